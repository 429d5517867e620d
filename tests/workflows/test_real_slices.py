"""The benchmark on real slices: which job is next, what a table says, how far it has come."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from kitsseg.pruning.shrink import channel_scores, choose_channels, shrink_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("real_slices", BENCHMARKS / "real_slices.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["real_slices"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("real_slices", None)


@pytest.fixture(scope="module")
def page(bench):
    return sys.modules["real_slices_page"]


def row(patient, true, both, slice_name="s"):
    """A slice of 100 pixels: ``true`` of tumor, of which ``both`` are found."""
    counts = [[100 - true, 0, 0], [0, 0, 0], [true - both, 0, both]]
    return {"slice": slice_name, "patient": patient, "counts": counts}


def test_unet2d_comes_first_then_its_seeds_then_the_others(bench):
    found = bench.jobs(list(bench.ROWS), "abcd", 3)
    # thirteen trainings of a row and seed: one in setting a, four folds in b, c and d; only b of what wp_unet leads
    # to, no d with our settings, and nothing to train for three seeds together
    assert len(found) == len({job.folder for job in found}) == 3 * (7 * 13 + 9 * 4 + 9) + 8
    from_it = {name for name, row in bench.ROWS.items() if row.parent and row.recipe == "wp_unet"} | {
        "wp_unet-half"
    }
    assert len(from_it) == 9 and {job.setting for job in found if job.row in from_it} == {"b"}
    assert [(job.row, job.seed) for job in found[:13]] == [("unet2d", 0)] * 13
    assert [(job.setting, job.fold) for job in found[:6]] == [
        ("a", 0),
        *(("b", i) for i in range(4)),
        ("c", 0),
    ]
    assert {(job.row, job.seed) for job in found[13:39]} == {("unet2d", 1), ("unet2d", 2)}
    first_seeds = 39 + 13 * 6 + 4 * 9 + 9 + 8
    assert {job.seed for job in found[39:first_seeds]} == {0}
    assert {job.seed for job in found[first_seeds:]} == {1, 2}
    assert not {job.row for job in found[39:]} & {"unet2d"}


def test_means_are_over_slices_then_patients_then_seeds(page):
    # patient a: 2 * 10 / 30 and 1; patient b: 0 and 0
    rows = [row("a", 20, 10), row("a", 20, 20), row("b", 10, 0), row("b", 10, 0)]
    first = (2 / 3 + 1) / 2
    assert page.patient_dice(rows) == {"a": (first, first), "b": (0, 0)}
    better = [row("a", 20, 20), row("b", 10, 10)]
    found = page.summary([rows, better])
    np.testing.assert_allclose(found["mean"], [(first / 2 + 1) / 2] * 2)
    np.testing.assert_allclose(found["of_seeds"][:, 0], [first / 2, 1])
    np.testing.assert_allclose(found["of_patients"][:, 0], [(first + 1) / 2, 0.5])
    low, high = found["interval"][0]
    assert low == pytest.approx(0.5) and high == pytest.approx((first + 1) / 2)
    # pooled: 2 * 30 / (60 + 30) with one seed, 1 with the other
    np.testing.assert_allclose(found["pooled"], [(2 / 3 + 1) / 2] * 2)


def test_differences_are_patient_by_patient_and_only_of_what_is_there(page):
    # patient a: 2 * 10 / 30 instead of 1; patient b: 1 instead of 2 * 10 / 30
    one = page.summary([[row("a", 20, 20), row("b", 20, 10)]])
    two = page.summary([[row("a", 20, 10), row("b", 20, 20)]])
    found = {("unet2d", "b"): one, ("unet2d", "d"): two, ("wp_unet-longer", "b"): one}
    assert page.difference_rows(found) == [
        "| `unet2d`, 12 filters: (d) minus (b) | +0.000 (-0.333 to +0.333) | +0.000 (-0.333 to +0.333) |"
    ]
    found["wp_unet-shrunk", "b"] = page.summary([[row("a", 20, 20), row("b", 20, 20)]])
    assert page.difference_rows(found)[1:] == [
        "| (b): `wp_unet`, shrunk to half its channels, minus `wp_unet`, trained twice as long "
        "| +0.167 (+0.000 to +0.333) | +0.167 (+0.000 to +0.333) |"
    ]
    # pooled: 2 * 30 / (40 + 30)
    assert page.pooled_rows({("unet2d", "b"): one}) == ["| `unet2d`, 12 filters |  | 0.857, 0.857 |  |  |"]


def test_a_difference_is_of_the_seeds_that_both_have(page):
    found, missed = [row("a", 20, 20), row("b", 20, 20)], [row("a", 20, 0), row("b", 20, 0)]
    one = page.summary([missed, found], (0, 1))
    two = page.summary([found, found], (1, 2))
    assert page.changes(one, two).startswith("+0.000 (+0.000 to +0.000)")  # of seed 1 alone
    alone = page.summary([found])  # three seeds together: beside all seeds of the other row
    assert page.changes(one, alone).startswith("+0.500 (+0.500 to +0.500)")
    assert page.changes(page.summary([missed], (0,)), page.summary([missed, found], (0, 1))).startswith(
        "+0.000"
    )


def test_the_patients_set_aside_have_a_mean_of_their_own(page):
    rows = [row(patient, 20, 20 if patient == page.ASIDE[0] else 0) for patient in page.ASIDE]
    tuned = page.summary([[*rows, row("case_00000", 20, 20)]])
    assert page.aside({("wp_unet", "a"): tuned}) == "`wp_unet` 0.143 and 0.143"  # 1 of 7
    assert page.aside({("wp_unet", "b"): tuned}) == ""


def test_what_is_not_run_is_called_so(page):
    assert page.written(0, None) == "not run"
    one = page.summary([[row("a", 20, 20), row("b", 20, 20)]], (0,))
    assert page.written(0, one) == "1.000 (1.000 to 1.000; one seed)"
    two = page.summary([[row("a", 20, 20)], [row("a", 20, 0)]], (0, 1))
    assert page.written(1, two) == "0.500 (0.500 to 0.500; seeds 0.000 to 1.000)"
    assert page.written(1, page.summary([[row("a", 20, 20)], [row("a", 20, 0)]])) == "0.500 (0.500 to 0.500)"


def test_the_short_table_has_means_and_how_many_seeds_are_missing(page):
    one, two = [row("a", 20, 20), row("b", 20, 20)], [row("a", 20, 20), row("b", 20, 0)]
    found = {
        ("unet2d", "b"): page.summary([one, two], (0, 1)),
        ("unet2d", "c"): page.summary([one], (0,)),
        ("unet2d-ours-together", "b"): page.summary([two]),
    }
    refused = {("wp_unet-shrunk-int8", "b"): "refused"}
    facts = page.Facts(
        found, refused, {page.PIXELS: page.summary([two]), "empty label map": page.summary([two])}, 600, 2
    )
    lines = page.short_table(facts).splitlines()
    assert page.WHAT in lines[0] and "2 seeds or as many as parentheses say" in lines[0]
    assert lines[2].startswith("| TK / TU | (a) rendered CT only |") and lines[3] == "|---|---|---|---|---|"
    assert lines[4:] == [
        "| `unet2d`, 12 filters | not run | 0.750 / 0.750 | 1.000 / 1.000 (1) | not run |",
        "| `unet2d`, our settings, three seeds together |  | 0.500 / 0.500 | not run |  |",
        "| the same as int8 |  | refused |  |  |",
        "| classifier of single pixels |  | 0.500 / 0.500 |  |  |",
        "| empty label map | 0.500 / 0.500 | 0.500 / 0.500 | 0.500 / 0.500 | 0.500 / 0.500 |",
    ]


def test_folds_hold_every_patient_once_and_leave_some_to_choose_by(bench, tmp_path):
    names = [f"case_{i:05d}" for i in range(28)]
    splits = [bench.Bench.split(None, "patients", fold, names) for fold in range(4)]
    assert sorted(name for split in splits for name in split.test) == names
    assert all(
        len(split.test) == 7 and len(split.validation) == 4 and len(split.train) == 17 for split in splits
    )
    rendered = bench.Bench.split(None, "rendered", 0, names[:22])
    assert rendered.test == () and len(rendered.train) + len(rendered.validation) == 22


def test_the_work_folder_is_made_and_every_row_has_a_recipe(bench, page, real_data, tmp_path, monkeypatch):
    made = bench.Bench(tmp_path / "out", real_data / "kits19_slices", real_data / "kits19", 600)
    assert (len(made.items), len(made.patients)) == (79, 28)
    for name, kind in bench.ROWS.items():
        recipe = made.recipe(name)
        steps = sum(bench.steps_of(phase) for phase in recipe.phases) / kind.length
        assert 500 <= steps <= 720 and recipe.preprocess.clip_hu == (0.0, 255.0), name
    few = [item for item in made.items if item.patient == "case_00025"]
    monkeypatch.setattr(made, "items", few)
    monkeypatch.setattr(made, "single_pixels", made.empty_map)  # takes a while
    text = page.full_tables(bench.facts_of(made, 3))
    every = "; ".join(row.label for row in bench.ROWS.values())
    assert f"\nNot run: {every}." in text and "| not run |" not in text and page.WHAT in text
    assert "| empty label map | 0.000" in text
    made.kept = {
        "wp_unet-shrunk-int8/b-fold0-seed0": [],
        "wp_unet-shrunk-int8/b-fold1-seed0": [row("a", 20, 10)],
    }
    text = page.full_tables(bench.facts_of(made, 3))
    assert "| the same as int8 |  | refused by `kitsseg export`: 1 of 2 |  |  |" in text
    assert "; the same as int8;" not in text.partition("Not run: ")[2]
    assert made.all_scores("wp_unet-shrunk-int8", "b", 0) is None


def test_a_baseline_is_the_shrunk_network_with_fresh_weights(bench):
    tiny = bench.recipes.get("wp_unet:tiny")
    model = tiny.build_model(**tiny.model)
    small = shrink_model(model, choose_channels(channel_scores(model), 0.5, 8))
    half = tiny.build_model(**(tiny.model | dict(bench.ROWS["wp_unet-half"].model)))
    assert [weight.shape for weight in half.weights] == [weight.shape for weight in small.weights]


def test_label_counts_are_kept_and_count_as_done(bench, tmp_path):
    file, rows = tmp_path / "scores.csv", [row("a", 20, 10, "s1"), row("b", 5, 0, "s2")]
    kept = {
        "wp_unet-shrunk-int8/b-fold0-seed0": [],
        "unet2d/a-fold0-seed1": rows,
        "wp_unet-pruned-50/b-fold3-seed0": [row("c", 1, 1)],
    }
    bench.write_scores(file, 600, kept)
    assert bench.read_scores(file, 600) == kept
    with pytest.raises(SystemExit, match="600 steps, expected 300"):
        bench.read_scores(file, 300)


def test_our_settings_are_those_of_no_other_row(bench, tmp_path):
    """Averaged weights, random appearance of real slices, mirrored predictions; rendered CT looks as for the others."""
    work = object.__new__(bench.Bench)
    work.steps = 600
    ours, plain = ({s: work.recipe(name, s) for s in "abc"} for name in ("unet2d-ours", "unet2d"))
    for setting, probability in (("a", 0.8), ("b", 0.5), ("c", 0.5)):
        [phase] = ours[setting].phases
        assert phase.augmentation.appearance.probability == probability
        assert ours[setting].inference.mirror_axes == (0, 1)
    assert ours["b"].model == plain["b"].model
    assert plain["a"].phases == ours["a"].phases
    assert plain["b"].phases[0].augmentation.appearance is None
    assert plain["b"].inference.mirror_axes == ()


def test_the_second_of_a_pair_is_compared_in_each_setting_that_both_have(page):
    def of(*patients):
        return page.summary([[row("a", 20, 10 + n), row("b", 20, n)] for n in patients])

    found = {
        ("unet2d", "b"): of(0),
        ("unet2d", "c"): of(0),
        ("unet2d-ours", "b"): of(5),
        ("unet2d-ours", "c"): of(0),
        ("unet2d", "d"): of(0),
    }
    lines = [line for line in page.difference_rows(found) if "our settings, minus" in line]
    assert [line[2:5] for line in lines] == ["(b)", "(c)"]
    assert "| +0.2" in lines[0] and "| +0.000 (+0.000 to +0.000)" in lines[1]


def test_seeds_together_are_the_networks_of_their_row(bench, monkeypatch):
    monkeypatch.setattr(bench.Bench, "made", lambda work, job: Path(job.folder))
    work = object.__new__(bench.Bench)
    job = bench.Job(2, "unet2d-ours-together", 0, "c", 2)
    assert work._networks(job) == tuple(Path(f"unet2d-ours/c-fold2-seed{seed}") for seed in range(3))
    assert work._networks(bench.Job(0, "unet2d", 1, "b", 0)) == (Path("unet2d/b-fold0-seed1"),)
    monkeypatch.setattr(bench.Bench, "made", lambda work, job: None)  # an int8 file that was refused
    assert work._networks(bench.Job(2, "wp_unet-shrunk-int8", 0, "b", 0)) == ()


def test_a_refused_file_is_left_out_in_one_row_and_kept_in_another(bench, monkeypatch, tmp_path):
    def refusing(parent, file, options):
        assert parent == tmp_path / "jobs" / "wp_unet-shrunk" / "b-fold1-seed2" / "run"
        if bench.LEAST_DICE[options.precision] > (0, 0):
            raise bench.OtherLabels("other labels")
        file.write_text(options.precision)

    monkeypatch.setattr(bench, "export_run", refusing)
    monkeypatch.setattr(bench.Bench, "cache", lambda work, recipe, kind: tmp_path / "cache" / kind)
    work = object.__new__(bench.Bench)
    work.out, work.steps = tmp_path, 600
    shrunk = tmp_path / "jobs" / "wp_unet-shrunk" / "b-fold1-seed2" / "run"
    shrunk.mkdir(parents=True)
    (shrunk / "model.keras").touch()
    least = dict(bench.LEAST_DICE)
    made = {
        name: work.made(bench.Job(3, f"wp_unet-shrunk-{name}", 2, "b", 1))
        for name in ("int8", "int8-weights", "int8-unchecked")
    }
    assert made["int8"] is None and made["int8-weights"] is None
    assert made["int8-unchecked"].read_text() == "int8"
    assert least == bench.LEAST_DICE
