"""Cross-validation: folds, what is trained again and what is not, and that no case is scored by a run that saw it."""

import csv
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.cases import read_json

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.commands.cross_validation import _command
from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.splits import load_split, make_split
from kitsseg.errors import InputError
from kitsseg.records.networks import finished_run
from kitsseg.records.run import read_history
from kitsseg.runtime.console import console
from kitsseg.runtime.devices import Devices
from kitsseg.scoring.compare import compare_scores
from kitsseg.scoring.dice import score_case
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
from kitsseg.workflows.cross_validate import COLUMNS, Scans, score_folds, train_folds
from kitsseg.workflows.folds import check_unseen, fold_splits, start_folds

pytestmark = pytest.mark.usefixtures("eagerly")
KITS = [f"case_{i:05d}" for i in range(210)]
NAMES = KITS[:9]
FOLDS = 4  # of nine cases: 3, 2, 2 and 2, so that the mean of the folds is not that of the cases


def test_folds_of_kits19_are_the_named_ones():
    splits = fold_splits(reversed(KITS))
    for number, split in enumerate(splits):
        assert split.test == load_split(f"5-fold-{number}").validation
        # 168 others: a tenth, 16.8, validates
        assert (len(split.train), len(split.validation), len(split.test)) == (151, 17, 42)
    assert len({split.hash for split in splits}) == 5


@pytest.mark.parametrize(("n", "folds"), [(4, 2), (3, 3), (9, 4), (10, 10), (23, 5)])
def test_every_case_is_left_out_once_and_seen_by_all_other_folds(n, folds):
    splits = fold_splits(KITS[:n], folds)
    assert sorted(case for split in splits for case in split.test) == KITS[:n]
    sizes = [len(split.test) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    for split in splits:  # that the parts do not overlap is checked by CaseSplit
        assert {*split.train, *split.validation, *split.test} == set(KITS[:n])
        assert split.train and split.validation


@pytest.mark.parametrize(
    ("n", "folds", "message"),
    [
        *((n, folds, f"--folds: expected 2 to {n}") for n, folds in ((9, 1), (9, 10), (0, 5))),
        *((n, 2, f"--folds 2: with {n} cases 1 is outside a fold") for n in (2, 3)),
    ],
)
def test_too_few_cases_are_refused(n, folds, message):
    with pytest.raises(InputError, match=message):
        fold_splits(KITS[:n], folds)


@pytest.fixture(scope="module")
def micro(trained):
    phase = replace(trained.recipe.phases[0], epochs=2, steps_per_epoch=2)
    return replace(trained.recipe, phases=(phase,))


def command(capsys, *arguments):
    code = main(["cross-validate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out + err


@pytest.fixture(scope="module")
def crossed(trained, micro, tmp_path_factory):
    """Four folds by three jobs, one of which was interrupted, then scored: (folder, what the commands said)."""
    folder, said = tmp_path_factory.mktemp("crossed") / "out", []
    arguments = ["cross-validate", "unet2d:micro", trained.cache, folder, "--folds", FOLDS, "--seed", 3]

    def stop(description, done, total):
        if (description.split(":")[0], done) == ("fold 2 of 4", 3):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "get", lambda name: micro)
        with console.capture() as captured:
            assert main([*map(str, arguments), "--fold", "1"]) == 0
            with pytest.raises(KeyboardInterrupt):  # in the second epoch
                options = TrainOptions(seed=3, progress=stop)
                train_folds(micro, trained.cache, folder, options, folds=FOLDS, only=[2])
            assert [row["epoch"] for row in read_history(folder / "fold-2")] == [1]
            assert main([*map(str, arguments), "--shard", "0/2", "--data", str(trained.data)]) == 0
            assert main([*map(str, arguments), "--shard", "1/2"]) == 0
        said.append(captured.get())
        before = {path: path.stat().st_mtime_ns for path in folder.glob("*/model.keras")}
        maps = {path: path.stat().st_mtime_ns for path in folder.glob("fold-*/predictions/*.nii.gz")}
        left = [
            folder / "fold-1" / name for name in ("checkpoint", ".run-kitsseg-0123abcd.json", ".train.lock")
        ]
        left[0].mkdir()  # as of a process that was killed when the fold had just finished
        for path in (left[0] / "train-00001.keras", *left[1:]):
            path.touch()
        with console.capture() as captured:
            assert main([*map(str, arguments), "--data", str(trained.data)]) == 0
        said.append(captured.get())
        assert not any(path.exists() for path in left)
        assert len(before) == FOLDS  # nothing was trained again,
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert len(maps) == 5  # of the first job, folds 0 and 2; nothing was predicted again
        assert {path: path.stat().st_mtime_ns for path in maps} == maps
    return folder, said


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_commands_say_what_is_left(crossed):
    _, (jobs, last) = crossed
    assert re.search(r"1 of 4 folds .*not yet: 0, 2, 3", jobs)
    assert re.search(r"3 of 4 folds .*not yet: 3\b", jobs)
    assert "all 4 folds are trained" in jobs
    assert "DATA --folds 4 --seed 3\n" in jobs  # with what the folds were started with
    assert f"next: kitsseg cross-validate unet2d:micro {crossed[0].parent}" not in last
    assert re.search("every case .*never saw it", last)
    assert "phantom" not in last  # these cases are not marked as synthetic


def test_what_is_left_is_told_with_every_option():
    options = {
        "precision": "mixed_bfloat16",
        "accumulate": 2,
        "ema": 0.99,
        "xla": "on",
        "steps_per_execution": 10,
        "loaders": 3,
        "no_quick_start": True,
    }
    given = {
        "recipe": "unet2d",
        "cache": "C",
        "out": "O",
        "data": None,
        "folds": 4,
        "epochs": None,
        "steps": 3,
        "seed": 0,
        "given": ["phases.train.sampler.patch_size=64,96", "postprocess=none"],
    }
    names = {"images": None, "labels": "a b/{case}.nii", "cyst": None}
    assert _command(SimpleNamespace(**given, **options, **names)) == (
        "kitsseg cross-validate unet2d C O --data DATA --folds 4 --steps 3 --precision mixed_bfloat16 --accumulate 2 "
        "--ema 0.99 --xla on --steps-per-execution 10 --loaders 3 '--labels=a b/{case}.nii' "
        "--no-quick-start --set phases.train.sampler.patch_size=64,96 --set postprocess=none"
    )


def test_every_fold_is_an_ordinary_run_that_never_saw_its_cases(crossed):
    folder, _ = crossed
    splits = fold_splits(NAMES, FOLDS)
    for number, split in enumerate(splits):
        record = finished_run(folder / f"fold-{number}").record
        assert record.status == "finished" and record.seed == 3
        assert record.split.cases.test == list(split.test)
        assert not set(split.test) & {
            *record.split.cases.train,
            *record.split.cases.validation,
        }
        assert [row["epoch"] for row in read_history(folder / f"fold-{number}")] == [1, 2]
        maps = {path.name for path in (folder / f"fold-{number}" / "predictions").glob("*.nii.gz")}
        assert maps == {f"prediction_{case[-5:]}.nii.gz" for case in split.test}
    assert [run.split for run in check_unseen(folder).runs] == [replace(s, source="") for s in splits]


def test_all_cases_are_scored_by_the_label_maps_of_their_own_fold(crossed, trained):
    folder, _ = crossed
    rows = {row["case"]: row for row in table_of(folder / "scores.csv")}
    assert sorted(rows) == NAMES
    for number, split in enumerate(fold_splits(NAMES, FOLDS)):
        for case in split.test:
            name = f"prediction_{case[-5:]}.nii.gz"
            own = folder / f"fold-{number}" / "predictions" / name
            assert (folder / "predictions" / name).read_bytes() == own.read_bytes()
            truth = read_labels(trained.data / case / "segmentation.nii.gz").array
            scores = score_case(read_labels(own).array, truth, (3.0, 0.8, 0.8))
            for key in ("tk_dice", "tu_dice", "composite"):
                assert float(rows[case][key]) == pytest.approx(scores[key], abs=1e-12)


def test_the_table_gives_each_fold_and_the_mean_over_all_cases(crossed):
    folder, _ = crossed
    rows, scores = table_of(folder / "folds.csv"), table_of(folder / "scores.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [row["fold"] for row in rows] == ["0", "1", "2", "3", "all"]
    assert [int(row["cases"]) for row in rows] == [3, 2, 2, 2, 9]
    assert [row["epochs"] for row in rows] == ["2"] * 4 + [""]
    by_case = {row["case"]: row for row in scores}
    for number, split in enumerate(fold_splits(NAMES, FOLDS)):
        for key in ("tk_dice", "composite", "tumor_recall"):
            expected = sum(float(by_case[case][key]) for case in split.test) / len(split.test)
            assert float(rows[number][key]) == pytest.approx(expected, abs=1e-12)
    summary = read_json(folder / "scores.json")
    for key in ("tk_dice", "tu_dice", "composite"):
        mean = sum(float(row[key]) for row in scores) / 9
        assert float(rows[-1][key]) == pytest.approx(mean, abs=1e-12)
        assert summary["scores"][key]["mean"] == pytest.approx(mean, abs=1e-12)
    assert summary["split"] == {"name": "4 folds of 9 cases", "part": "test"} | {
        "hash": read_json(folder / "run.json")["split"]["hash"]
    }
    assert len(summary["networks"]) == 4 and summary["failed"] == {}


def test_one_report_with_the_curves_of_all_folds(crossed):
    folder, _ = crossed
    page = (folder / "report.html").read_text()
    assert "4 folds of 9 cases" in page and "unet2d:micro" in page
    assert "Mean over 9 cases" in page
    phases = [row["phase"] for row in read_history(folder)]
    assert phases == [f"fold-{i} train" for i in range(4) for _ in range(2)]
    assert "fold-3 train" in page
    assert "No training curves" not in page
    # its own command makes the same page
    assert main(["report", str(folder), "--out", str(folder / "again.html")]) == 0
    assert (folder / "again.html").read_text() == page


def test_a_comparison_leaves_no_case_out(crossed, trained, tmp_path):
    """No case was seen by the run that scored it; an ordinary run's train cases would be left out."""
    folder, _ = crossed
    result = compare_scores({"a": folder / "scores.csv", "b": folder / "scores.csv"})
    assert result.cases == tuple(NAMES) and result.left_out == {}


@pytest.fixture
def copied(crossed, tmp_path):
    """A copy of the whole folder that a test may damage; scores.csv is removed."""
    shutil.copytree(crossed[0], tmp_path / "out")
    (tmp_path / "out" / "scores.csv").unlink()
    return tmp_path / "out"


def refused(out, data, message):
    with pytest.raises(InputError, match=message):
        score_folds(out, Scans(data))
    assert not (out / "scores.csv").exists()


def test_swapped_runs_are_found(copied, trained):
    for before, after in (("fold-0", "x"), ("fold-1", "fold-0"), ("x", "fold-1")):
        (copied / before).rename(copied / after)
    # the run of fold 1 has seen all cases of fold 0, of which the first is named
    seen = fold_splits(NAMES, FOLDS)[0].test[0]
    refused(
        copied,
        trained.data,
        f"fold-0: .*split of fold 0.*seen {seen}, .*should score",
    )


def test_a_run_that_was_trained_on_a_case_of_its_fold_is_found(copied, trained):
    path = copied / "fold-3" / "run.json"
    record = read_json(path)
    cases = record["split"]["cases"]
    leaked = cases["test"].pop()
    cases["train"].append(leaked)  # the hash that is written beside it stays as it was
    path.write_text(json.dumps(record))
    refused(copied, trained.data, f"fold-3: .*split of fold 3.*seen {leaked}")


def test_a_run_that_was_chosen_by_a_case_of_its_fold_is_found(copied, trained, micro):
    """A fold folder in which somebody trained with validation and test exchanged."""
    split = fold_splits(NAMES, FOLDS)[2]
    shutil.rmtree(copied / "fold-2")
    exchanged = replace(split, validation=split.test, test=split.validation)
    train_recipe(micro, trained.cache, exchanged, copied / "fold-2", TrainOptions(seed=3))
    with pytest.raises(InputError, match="fold-2: .*run with the split"):
        train_folds(micro, trained.cache, copied, TrainOptions(seed=3), folds=FOLDS)
    refused(copied, trained.data, "fold-2: .* test case of .*fold-")


def test_a_case_that_two_runs_leave_out_is_found(copied, trained):
    """The folder of one fold copied over that of another."""
    shutil.rmtree(copied / "fold-1")
    shutil.copytree(copied / "fold-0", copied / "fold-1")
    refused(copied, trained.data, r"fold-1: case_\d+ .*test case of .*fold-0, too")


def test_folds_that_are_not_trained_are_not_scored(copied, trained, micro):
    record = read_json(copied / "fold-1" / "run.json")
    (copied / "fold-1" / "run.json").write_text(json.dumps(record | {"status": "training"}))
    refused(copied, trained.data, "fold-1: .*not finished")
    shutil.rmtree(copied / "fold-1")
    refused(copied, trained.data, "fold-1: .*not trained yet")


def test_cases_that_cannot_be_predicted_are_not_left_out_in_silence(copied, trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    case = fold_splits(NAMES, FOLDS)[1].test[0]
    shutil.rmtree(data / case)
    refused(copied, data, f"1 of the 2 cases of fold-1 .*not there.* {case}")
    shutil.copytree(trained.data / case, data / case)
    scan = data / case / "imaging.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-100])
    (copied / "fold-1" / "predictions").rename(tmp_path / "elsewhere")
    refused(copied, data, f"{scan}.*damaged")


def test_what_does_not_fit_is_refused(copied, trained, micro, tmp_path, capsys, monkeypatch):
    cache = trained.cache

    def again(message, recipe=micro, out=copied, folds=FOLDS, only=None, **changes):
        with pytest.raises(InputError, match=message):
            train_folds(recipe, cache, out, TrainOptions(**{"seed": 3} | changes), folds=folds, only=only)

    again("with other options: seed 3", seed=4)
    again("other options: epochs None", epochs=7)
    again("with other options: precision float32", precision="mixed_bfloat16")
    again("with other cases or --folds: 4 folds of 9 cases, now 3 folds of 9 cases", folds=3)
    phase = replace(micro.phases[0], learning_rate=1.0)
    again("with other recipe", recipe=replace(micro, phases=(phase,)))
    again("--fold: expected 0 to 3, found 4", only=[4])
    again("several processes", devices=Devices(2, 0, 2))
    again(f"^{trained.run}: .*cross-validation, found another run", out=trained.run)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    again(r"found notes.txt in it", out=tmp_path / "used")
    with pytest.raises(InputError, match="one run, .*cross-validation"):
        finished_run(copied)
    (copied / "run.json").write_text("{")
    again(r"run\.json: .*record of a run")
    monkeypatch.setattr(recipes, "get", lambda name: micro)
    code, text = command(capsys, "unet2d:micro", cache, tmp_path / "new", "--folds", 10)
    assert (code, len(text.splitlines())) == (1, 1) and "--folds: expected 2 to 9" in text
    assert not (tmp_path / "new").exists()
    for wrong in (["--shard", "2/2"], ["--fold", "1", "--shard", "1/2"], ["--folds", "1"]):
        with pytest.raises(SystemExit):
            command(capsys, "unet2d:micro", cache, tmp_path / "new", *wrong)
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_jobs_that_start_at_once_write_the_same(trained, micro, tmp_path, monkeypatch):
    """Both have looked for run.json before either has written it."""
    from kitsseg.workflows import folds as case_folds

    written, first = [], case_folds.update_run

    def at_once(folder, record):
        if not written:
            written.append(record)
            start_folds(folder, micro, fold_splits(NAMES, 3), {"seed": 0})  # the other job
        first(folder, record)

    monkeypatch.setattr(case_folds, "update_run", at_once)
    start_folds(tmp_path / "out", micro, fold_splits(NAMES, 3), {"seed": 0})
    assert read_json(tmp_path / "out" / "run.json")["split"]["name"] == "3 folds of 9 cases"
    assert make_split(NAMES).hash not in {s.hash for s in fold_splits(NAMES, 3)}
    assert np.ptp([len(s.test) for s in fold_splits(NAMES, 3)]) == 0


def test_settings_that_are_given_reach_every_fold(trained, micro, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "get", lambda name: micro)
    rate = "phases.train.learning_rate=0.25"
    short = ("--folds", 3, "--fold", 0, "--epochs", 1, "--steps", 1)
    code, text = command(capsys, "unet2d:micro", trained.cache, tmp_path / "out", *short, "--set", rate)
    assert (code, f"--steps 1 --set {rate}" in text.replace("\n", " ")) == (0, True)
    for folder in (tmp_path / "out", tmp_path / "out" / "fold-0"):
        given = read_json(folder / "run.json")["given"]
        assert given["phases.train.learning_rate"] == 0.25
        assert given["phases.train.steps_per_epoch"] == 1
    code, text = command(capsys, "unet2d:micro", trained.cache, tmp_path / "out", *short)
    assert code == 1
    assert "phases.train.learning_rate = 0.25" in text
    code, text = command(capsys, "unet2d:micro", trained.cache, tmp_path / "no", *short, "--set", "rate=3")
    assert (code, "--set rate" in text, (tmp_path / "no").exists()) == (1, True, False)
