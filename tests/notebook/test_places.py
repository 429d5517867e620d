"""The folders of a notebook, which run it continues, and what it says about the time. Nothing is trained here."""

import re
import shutil
import sys
import types
import zipfile

import pytest

from kitsseg import recipes
from kitsseg.errors import InputError
from kitsseg.notebook import choose_recipe, demo_scores, find_scores, folders, show_own_scan, train
from kitsseg.notebook.pace import Pace, advice
from kitsseg.notebook.steps import Place


@pytest.fixture
def place(trained, tmp_path):
    """A place of patients whose cache is there, and no run."""
    return Place(
        data=trained.data, cache=trained.cache, results=tmp_path / "runs" / "unet2d-demo-9", patients=9
    )


def test_demo_paper_and_practical_share_no_run_and_synthetic_patients_no_cache(tmp_path):
    places = [
        folders("unet2d", demo, variant, patients, cases, out=tmp_path)
        for demo in (True, False)
        for variant in ("paper", "practical")
        for patients, cases in ((10, "0-209"), (6, "0-19"))
    ]
    assert len({place.results for place in places}) == 2 + 4  # a demo has no variant
    demos, others = places[:4], places[4:]
    assert {place.cache.name for place in demos} == {"phantoms-10", "phantoms-6"}
    assert {place.cache.name for place in others} == {"kits19"}
    assert {place.data.name for place in others} == {"kits19"}
    # another paper's notebook finds the same patients
    assert folders("wp_unet", False, out=tmp_path).cache == others[0].cache
    assert folders("wp_unet", True, out=tmp_path).results != folders("unet2d", True, out=tmp_path).results


def test_only_the_caches_of_kits19_are_kept_on_drive(tmp_path, monkeypatch):
    from kitsseg.notebook import steps

    with pytest.raises(InputError, match="USE_DRIVE"):
        folders("unet2d", False, use_drive=True, out=tmp_path)
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=lambda where: None)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(steps, "DRIVE", str(tmp_path / "drive"))
    kept = tmp_path / "drive" / "MyDrive" / "kitsseg"
    place = folders("unet2d", False, cases="0-19, 30", use_drive=True, out=tmp_path)
    assert (place.archive, place.results) == (kept / "caches", kept / "runs" / "unet2d-paper-0-19,30")
    assert place.cache.is_relative_to(tmp_path) and not place.cache.is_relative_to(kept)
    assert folders("unet2d", True, use_drive=True, out=tmp_path).archive is None


def test_the_form_chooses_the_recipe():
    names = [choose_recipe("unet2d", *form).name for form in ((True,), (False,), (False, "practical"))]
    assert names == ["unet2d:tiny", "unet2d", "unet2d:practical"]


def test_a_run_of_other_settings_is_named_left_alone_and_gets_a_neighbor(trained, place, capsys, monkeypatch):
    first = place.results / "run"
    shutil.copytree(trained.run, first)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    begun = []
    monkeypatch.setattr(
        "kitsseg.training.train.train_recipe",
        lambda recipe, cache, split, run, options: begun.append((run, options)),
    )
    # the run of the fixture has seed 5, which a notebook never gives: another seed is another run
    train(trained.recipe, place, trained.split)
    said = " ".join(capsys.readouterr().out.split())
    assert "Not taken up again" in said and re.search(r"another seed .*\(5, now 0\)", said)
    neighbor = place.results.with_name("unet2d-demo-9-run2") / "run"
    assert [(run, options.resume) for run, options in begun] == [(neighbor, False)]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("what", "pattern"),
    [("epochs", "epochs was 3, is 2"), ("precision", "mixed_float16"), ("accumulate", "another accumulate")],
)
def test_what_differs_is_said(what, pattern, trained, place, capsys, monkeypatch):
    shutil.copytree(trained.run, place.results / "run")
    record = place.results / "run" / "run.json"
    record.write_text(record.read_text().replace('"seed": 5', '"seed": 0'))
    monkeypatch.setattr("kitsseg.training.train.train_recipe", lambda *_: None)
    value = {"epochs": 2, "precision": "mixed_float16", "accumulate": 7}[what]
    train(trained.recipe, place, trained.split, **{what: value})
    assert re.search(pattern, " ".join(capsys.readouterr().out.split()))


def test_a_finished_run_of_the_same_settings_is_used(trained, place, capsys):
    shutil.copytree(trained.run, place.results / "run")
    record = place.results / "run" / "run.json"
    record.write_text(record.read_text().replace('"seed": 5', '"seed": 0'))
    assert train(trained.recipe, place, trained.split) == place.results / "run"
    assert "has been trained already" in " ".join(capsys.readouterr().out.split())


def test_scores_of_the_latest_run_are_found_where_they_are(place):
    assert find_scores(place) is None
    for folder in (place.results, place.results.with_name("unet2d-demo-9-run2")):
        folder.mkdir(parents=True)
        (folder / "scores.csv").touch()
        assert find_scores(place) == folder / "scores.csv" == demo_scores("unet2d", place)


def test_scores_of_kits19_are_not_made_by_the_comparison(tmp_path):
    with pytest.raises(InputError, match="unet2d-paper-0-19: expected the scores of unet2d"):
        demo_scores("unet2d", folders("unet2d", False, cases="0-19", out=tmp_path))


def test_the_rate_is_measured_over_one_epoch_without_its_first_step():
    said, seconds = [], iter([100.0, 109.0, 160.0])
    recipe = recipes.get("unet2d:tiny")
    pace = Pace(recipe, lambda *_: None, said.append, clock=lambda: next(seconds))
    pace("train, epoch 1 of 3, loss 1.0", 1, 30)
    pace("train, epoch 1 of 3, loss 0.9", 10, 30)
    assert said == []
    # nine seconds for ten steps, validation included; 19 are left
    pace("train, epoch 2 of 3, loss 0.8", 11, 30)
    [line] = said
    assert re.fullmatch(r"Measured: 0\.9 s a step .*about 1 minutes left.* 19 steps\.", line)
    pace("train, epoch 3 of 3, loss 0.8", 21, 30)
    assert len(said) == 1


def test_advice_where_a_session_is_too_short():
    said, seconds = [], iter([0.0, 3600.0])
    pace = Pace(recipes.get("unet3d"), lambda *_: None, said.append, clock=lambda: next(seconds))
    pace("train, epoch 1 of 30, loss 1.0", 1, 31)
    pace("train, epoch 2 of 30, loss 1.0", 2, 31)
    assert "about 29.0 hours left" in said[0] and "3 in all" in said[0]
    assert 'VARIANT = "practical"' in said[0]
    assert "VARIANT" not in advice(recipes.get("unet3d:practical"), 29)
    assert "fewer CASES" in advice(recipes.get("squeeze_unet"), 29)


def test_no_scan_is_no_error_and_a_wrong_one_is_named(tmp_path, capsys):
    assert show_own_scan(tmp_path / "run", "") is None
    assert "SCAN" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz: .*NIfTI"):
        show_own_scan(tmp_path / "run", str(tmp_path / "nowhere.nii.gz"))
    with pytest.raises(InputError, match="UPLOAD"):
        show_own_scan(tmp_path / "run", "", upload=True)


def test_an_own_scan_is_segmented_by_both_networks(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained.run, tmp_path / "results" / "run")
    scan = next(trained.data.glob("*/imaging.nii.gz"))
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(scan, "mine.nii.gz")
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=lambda: {"export.zip": b""})
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.chdir(tmp_path)
    page = show_own_scan(run, "", upload=True).data
    assert page.count("<iframe srcdoc=") == 2 and "input type=&quot;checkbox&quot;" in page
    assert page.count("data:image/webp") > 18 and "no longer there" not in page
    made = sorted((tmp_path / "results" / "own").glob("*/*/*.nii.gz"))
    assert [path.parent.name for path in made] == ["run", "scan", "starter"]
    before = [path.stat().st_mtime_ns for path in made]
    show_own_scan(run, "export.zip")
    assert [path.stat().st_mtime_ns for path in made] == before
