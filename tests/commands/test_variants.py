"""Every variant through the command line: preprocessed, trained for two steps, predicted, scored."""

import csv
import json

import pytest

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.phantoms.synthesize import synthesize_cases
from kitsseg.records.run import read_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eagerly")]

VARIANTS = [(name, variant) for name in recipes.names() for variant in recipes.variants(name)]
# little to compute: small slices, patches and batches; the networks are the full ones
SLICES = ("sampler.batch_size=2", "sampler.patch_size=32,32")
PREPROCESS = {
    "deeplab3d": ("spacing_mm=none,none,none",),
    "enhanced_unet": (),
    "squeeze_unet": ("slice_size=32,32",),
    "unet2d": ("spacing_mm=none,none,none",),
    "wp_unet": ("slice_size=32,32",),
}
TRAIN = {
    "deeplab3d": (
        *(f"phases.{phase}.sampler.cases_per_batch=1" for phase in ("scratch", "finetune")),
        "phases.scratch.sampler.patch_size=16,16,16",
        "phases.finetune.sampler.patch_size=12,12,12",
        "inference.tile=16,32,32",
        "inference.margin=4",
    ),
    "enhanced_unet": (
        *(f"phases.progressive.{text}" for text in (*SLICES, "sampler.positive=1")),
        "phases.progressive.progressive.rounds=1",
    ),
    "squeeze_unet": (
        *(f"phases.train.{text}" for text in SLICES),
        "model.input_shape=none,none,3",
        "model.weights=none",
    ),
    "unet2d": (*(f"phases.train.{text}" for text in (*SLICES, "sampler.positive=1")), "inference.tile=none"),
    "wp_unet": ("model.input_shape=none,none,1", *(f"phases.train.{text}" for text in SLICES)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    synthesize_cases(folder, 5, (16, 64, 64), 0)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def options(texts):
    return [part for text in texts for part in ("--set", text)]


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=[f"{n}:{v.name}" for n, v in VARIANTS])
def test_a_variant_trains_predicts_and_is_scored(name, variant, data, cache, tmp_path):
    full = f"{name}:{variant.name}"
    prepared = options(f"preprocess.{text}" for text in PREPROCESS[name])
    settings = [*prepared, *options(TRAIN[name])]
    if any(phase.name == "prune" for phase in recipes.get(full).phases):
        settings += options(f"phases.prune.{text}" for text in SLICES)
    run, out, scores = tmp_path / "run", tmp_path / "out", tmp_path / "scores.csv"
    short = ["--epochs", "1", "--steps", "2", "--validate-cases-every", "0"]
    for command in (
        ["preprocess", full, data, cache, *prepared],
        ["train", full, cache, run, *short, *settings],
        ["predict", run, data, "--part", "test", "--out", out],
        ["evaluate", out, data, "--out", scores],
    ):
        assert main([str(word) for word in command]) == 0
    record = read_run(run)
    assert record.recipe == full
    changed = json.loads(json.dumps(recipes.get(full).as_dict()))
    for key in set(changed["model"]) - {"input_shape", "weights"}:
        assert record.settings["model"][key] == changed["model"][key]
    assert record.settings["loss"] == changed["loss"]
    assert record.settings["postprocess"] == changed["postprocess"]
    assert record.reported == variant.reported
    with scores.open(newline="") as file:
        [row] = csv.DictReader(file)
    assert 0 <= float(row["tk_dice"]) <= 1
    assert 0 <= float(row["tu_dice"]) <= 1
