"""Where all of KiTS19 is at hand a recipe takes the split of its paper; steps per epoch follow from the split."""

import re

import numpy as np
import pytest

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.formats.nifti import write_image
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.splits import load_split
from kitsseg.recipe import steps_of_epoch
from kitsseg.records.run import read_run
from kitsseg.runtime.console import console
from kitsseg.training import train as training

SLICES = 2
# split of the paper (train, validation, test), steps of an epoch with two slices a case
STATED = {
    "deeplab3d": ("deeplab3d", (147, 63, 0), [12, 12]),
    "enhanced_unet": ("80-10-10 of 210", (168, 21, 21), [100]),
    "squeeze_unet": ("squeeze_unet", (168, 42, 0), [168 * SLICES // 16]),
    "unet2d": ("80-10-10", (168, 21, 21), [24]),
    "wp_unet": ("wp_unet", (158, 52, 0), [-(-158 * SLICES // 16)] * 2),
}


@pytest.fixture(scope="module")
def made_kits19(tmp_path_factory):
    """210 cases, named as those of KiTS19, of two slices each."""
    folder = tmp_path_factory.mktemp("kits19")
    labels = np.zeros((SLICES, 8, 8), np.uint8)
    labels[:, 2:6, 2:6], labels[:, 3:5, 3:5] = 1, 2
    for i in range(210):
        image = (100 * labels.astype(np.int16) + i - 60).astype(np.int16)
        case = folder / f"case_{i:05d}"
        write_image(case / "imaging.nii.gz", image, (3.0, 0.78125, 0.78125))
        write_image(case / "segmentation.nii.gz", labels, (3.0, 0.78125, 0.78125))
    return folder


class Begun(Exception):
    """Training has begun: run.json is there."""


@pytest.mark.parametrize("name", list(STATED))
def test_a_papers_recipe_on_all_of_kits19(name, made_kits19, tmp_path, monkeypatch, capsys):
    split, parts, steps = STATED[name]
    cache, run = str(tmp_path / "cache"), tmp_path / "run"
    monkeypatch.setattr(console, "width", 1000)
    small = ["--set", "preprocess.slice_size=32,32"] if name in ("squeeze_unet", "wp_unet") else []
    assert main(["preprocess", name, str(made_kits19), cache, *small]) == 0
    capsys.readouterr()

    def begun(*_):
        raise Begun

    monkeypatch.setattr(training, "_train_phase", begun)
    monkeypatch.setattr(training, "_train_progressively", begun)
    no_weights = ["--set", "model.weights=none"] if name == "squeeze_unet" else []
    arguments = ["train", name, cache, str(run), *small, *no_weights]
    with pytest.raises(Begun):
        main(arguments)
    out = capsys.readouterr().out
    record = read_run(run)
    assert record.split.name == split
    assert f"split {split}, {'/'.join(map(str, parts))} cases" in out
    assert tuple(len(getattr(record.split.cases, part)) for part in ("train", "validation", "test")) == parts
    assert [phase["steps_per_epoch"] for phase in record.settings["phases"]] == steps
    if name == "enhanced_unet":  # its paper says nothing of a split
        assert "at hand: the split" not in out
    else:
        assert re.search(f"at hand: .*split of {name}", out)
        assert record.split.hash == load_split(split).hash


def test_of_fewer_cases_the_split_and_the_steps_are_their_own(made_kits19, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(30):
        (data / f"case_{i:05d}").symlink_to(made_kits19 / f"case_{i:05d}")
    monkeypatch.setattr(console, "width", 1000)
    cache, run = str(tmp_path / "cache"), tmp_path / "run"
    assert main(["preprocess", "unet2d", str(data), cache]) == 0
    monkeypatch.setattr(training, "_train_phase", lambda *_: (_ for _ in ()).throw(Begun()))
    with pytest.raises(Begun):
        main(["train", "unet2d", cache, str(run)])
    record = read_run(run)
    assert record.split.name == "80-10-10 of 30"
    [phase] = record.settings["phases"]
    assert phase["steps_per_epoch"] == -(-24 // 7)
    evidence = record.settings["evidence"]["phases.train.steps_per_epoch"]
    assert "24 training cases" in evidence
    # pruning goes on with the steps that the run had
    again = recipes.of_record(record)
    assert again.phases[0].steps_per_epoch == 4
    capsys.readouterr()
    with pytest.raises(Begun):
        main(["train", "unet2d", cache, str(tmp_path / "given"), "--steps", "2"])
    assert read_run(tmp_path / "given").settings["phases"][0]["steps_per_epoch"] == 2


@pytest.mark.parametrize("name", ["deeplab3d", "squeeze_unet", "unet2d", "wp_unet"])
def test_the_steps_of_a_recipe_are_those_of_the_real_cases(name):
    recipe, manifest = recipes.get(name), read_manifest()
    slices = [manifest[case].shape[0] for case in load_split(recipe.split).train]
    for phase in recipe.phases:
        assert steps_of_epoch(phase, slices) == phase.steps_per_epoch
    if name == "wp_unet":
        assert sum(slices) == 35_826
