"""The papers' networks at full size that find kidneys in phantoms: python benchmarks/phantom_networks.py OUT [NAME ...]

For whole_scan.py and predict_stages.py, whose networks have random weights otherwise. On a CPU the full networks would
train for days, so a narrow network is trained, for 15 minutes and less on one core: the paper's network with a quarter
of the channels of each layer, at the paper's resolution, on 12 procedural patients of 60 x 512 x 512 voxels. Then its
weights are put into the full network, in which all other weights are 0. A product of zeros takes as long as any other:
the full network finds what the narrow one has learned, and takes the time that it takes with any weights.

OUT/NAME is a run with the full network, OUT/narrow/NAME the training. A stopped call goes on. Printed is the Dice of
two other patients.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from whole_scan import RECIPES, save_run

from kitsseg import (
    evaluate_folders,
    make_split,
    open_cache,
    predict_cases,
    preprocess_cases,
    recipes,
    train_recipe,
)
from kitsseg.data import synthesize_cases
from kitsseg.models import read_network
from kitsseg.pruning.shrink import channel_scores, choose_channels, masked_model, shrink_model
from kitsseg.recipe import Plateau, Recipe, changed
from kitsseg.training.options import TrainOptions

KEEP, MULTIPLE = 0.25, 4
TEST_SEED = 1000
BALANCED = {"sampler.batch_size": 8, "sampler.positive": 6, "sampler.unit": "case"}
# half of the slices without kidney: most of a scan has none
HALF = {"sampler.batch_size": 4, "sampler.positive": 2}
FALLING = {"schedule": Plateau(factor=0.5, patience=1), "kept_epoch": "last"}
# all phases of a recipe but the first are left out; what else differs from the paper's training
TRAINED: dict[str, dict[str, object]] = {
    "unet2d": {**HALF, **FALLING, "learning_rate": 2e-3},
    "wp_unet": {**BALANCED, "learning_rate": 3e-3},
    "squeeze_unet": {**BALANCED, "learning_rate": 2e-3, "epochs": 12},
    "enhanced_unet": {**HALF, **FALLING, "progressive": None, "learning_rate": 0.05, "epochs": 14},
    # wide patches, because most of a scan is neither kidney nor tumor
    "deeplab3d": {
        **FALLING,
        "sampler.cases_per_batch": 1,
        "sampler.patch_size": (24, 96, 96),
        "learning_rate": 5e-3,
        "epochs": 8,
    },
}
# without the background in its loss, enhanced_unet called the background tumor and came to rest there
LOSS: dict[str, dict[str, object]] = {
    "enhanced_unet": {"loss.include_background": True},
    "deeplab3d": {"loss.fn_weight": 0.5, "loss.fp_weight": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("networks", nargs="*", default=RECIPES)
    a = parser.parse_args()
    train, test = a.out / "data", a.out / "test"
    if not train.is_dir():
        synthesize_cases(train, 12, (60, 512, 512))
    if not test.is_dir():
        synthesize_cases(test, 2, (60, 512, 512), seed=TEST_SEED)
    for name in a.networks:
        if not (a.out / name / "model.keras").is_file():
            make(name, a.out, train)
        predict_cases(a.out / name, [test], a.out / "labels" / name)
        scores = evaluate_folders(a.out / "labels" / name, test, a.out / "labels" / f"{name}.csv").rows
        print(name, [f"TK {row['tk_dice']:.3f} TU {row['tu_dice']:.3f}" for row in scores], flush=True)


def make(name: str, out: Path, data: Path) -> None:
    keras.utils.set_random_seed(0)
    recipe = shortened(name)
    wide = recipe.build_model(**recipe.model)
    removed = choose_channels(channel_scores(wide, "random"), KEEP, MULTIPLE)
    narrow = replace(recipe, build_model=lambda **_: shrink_model(wide, removed))
    cache, run = out / "cache", out / "narrow" / name
    preprocess_cases(data, cache, recipe.preprocess)
    split = make_split(open_cache(cache, recipe.preprocess), (0.8, 0.2, 0.0))
    if not (run / "model.keras").is_file():
        options = TrainOptions(resume=(run / "run.json").is_file())
        train_recipe(narrow, cache, split, run, options)
    full = widened(wide, read_network(run / "model.keras"), removed)
    save_run(full, out / name, recipes.get(name))


def shortened(name: str) -> Recipe:
    """The recipe with one short phase, and without weights from elsewhere."""
    recipe = recipes.get(name)
    phase = recipe.phases[0]
    every = {"epochs": 20, "steps_per_epoch": 60, "steps_from": None, "validate_cases_every": None}
    changes = {f"phases.{phase.name}.{key}": value for key, value in (every | TRAINED[name]).items()}
    changes |= LOSS.get(name, {})
    if "weights" in recipe.model:
        changes["model.weights"] = None
    return changed(replace(recipe, phases=(phase,)), changes, dict.fromkeys(changes, "for a benchmark"))


def widened(wide: keras.Model, narrow: keras.Model, removed: dict[str, list[int]]) -> keras.Model:
    """A network like ``wide`` with the weights of ``shrink_model(wide, removed)``, and 0 elsewhere."""
    for weight in wide.weights:
        weight.assign(np.ones(weight.shape))
    full = masked_model(wide, removed)  # 1 where the narrow network has a weight
    for weight, small in zip(full.weights, narrow.weights, strict=True):
        array = keras.ops.convert_to_numpy(weight).copy()
        array[array == 1] = keras.ops.convert_to_numpy(small).ravel()
        weight.assign(array)
    return full


if __name__ == "__main__":
    main()
