"""Train the starter network on procedural synthetic patients only: python scripts/train_starter.py FOLDER

Nothing of KiTS19 or of any patient is in it: bodies and labels are drawn by ``kitsseg.data.phantoms`` from the seed.
The network is a 2D U-Net of 8 filters that sees slices of 3 mm in plane, HU from 0 to 255. FOLDER gets the patients
(``data``), the cache, the run and ``starter.tflite`` (float16 weights, below 1 MB). The same seed gives the same
patients and the same batches. Called again, the script goes on where it was stopped.

About half an hour on one core: 0.12 seconds a step. docs/starter.md says how it is scored. The first candidate, 100
patients and 16 epochs (2,400 steps, seed 0), became the starter.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from kitsseg import recipes
from kitsseg.recipe import (
    Augmentation,
    InferenceSpec,
    OneCycle,
    PreprocessSpec,
    RandomAppearance,
    Recipe,
    SliceSampler,
    settings,
)

__all__ = ["starter_recipe"]

LARGEST = 1 << 20  # bytes of the exported file
WINDOW = (
    144,
    144,
)  # 432 mm: a whole slice of most patients; larger slices are predicted in overlapping windows


def starter_recipe() -> Recipe:
    """The recipe of the starter network: the 2D U-Net's network and loss, sampling and augmentation of its own."""
    base = recipes.get("unet2d:tiny")
    reason = "ours: chosen on phantoms and on the real slices of 21 patients"
    [phase] = base.phases
    phase = replace(
        phase,
        sampler=SliceSampler(batch_size=8, positive=6, positive_weights="area", patch_size=(112, 112)),
        augmentation=Augmentation(
            scale_range=(0.75, 1.3), scale_probability=0.8, appearance=RandomAppearance(probability=0.8)
        ),
        epochs=90,
        steps_per_epoch=150,
        learning_rate=3e-3,
        schedule=OneCycle(rise=0.2, start_divisor=10.0, end_divisor=200.0, momentum=(0.95, 0.85)),
        validate_cases_every=None,
        validate_cases=None,
    )
    recipe = replace(
        base,
        name="starter",
        preprocess=PreprocessSpec(
            spacing_mm=(None, 3.0, 3.0), hu_window=(0.0, 255.0), hu_mean=60.0, hu_std=70.0
        ),
        phases=(phase,),
        inference=InferenceSpec(tile=None, multiple=16),
        build_optimizer=recipes.get(
            "squeeze_unet"
        ).build_optimizer,  # AdamW, whose momentum a one-cycle can set
        claim="None: no paper's network. Trained on synthetic patients alone, for trying things out.",
        reported={},
    )
    changed = ("preprocess", "phases", "inference")
    kept = {key: text for key, text in base.evidence.items() if key.split(".")[0] not in changed}
    return replace(
        recipe,
        evidence={key: kept.get(key, reason) for key, value in settings(recipe) if value is not None},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=200, help="synthetic patients (default: 200)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's 90 of 150 steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from kitsseg.runtime.start_keras import start_keras

    start_keras(trains=True)
    from kitsseg import ExportOptions, TrainOptions, export_run, preprocess_cases, train_recipe
    from kitsseg.data.cache.cases import open_cache
    from kitsseg.data.phantoms.synthesize import synthesize_cases
    from kitsseg.data.splits import make_split

    def progress(what, done, total):
        if done % max(1, total // 20) == 0:
            print(f"{what}: {done} of {total}", flush=True)

    recipe = starter_recipe()
    data, cache, run = (arguments.folder / name for name in ("data", "cache", "run"))
    if not data.exists():
        unfinished = arguments.folder / "data.unfinished"
        if unfinished.exists():
            raise SystemExit(f"{unfinished}: patients of a call that was stopped. Remove it and call again.")
        synthesize_cases(unfinished, arguments.cases, (40, 128, 128), arguments.seed, progress)
        unfinished.rename(data)
    preprocess_cases(data, cache, recipe.preprocess, progress=progress)
    split = make_split(open_cache(cache, recipe.preprocess), (0.92, 0.08, 0.0))
    options = TrainOptions(
        seed=arguments.seed,
        epochs=arguments.epochs,
        resume=(run / "run.json").exists(),
        progress=progress,
    )
    if not (run / "model.keras").exists():
        train_recipe(recipe, cache, split, run, options)
    file = arguments.folder / "starter.tflite"
    if not file.exists():
        export_run(run, file, ExportOptions(precision="float16", softmax=True, size=WINDOW))
    if file.stat().st_size > LARGEST:
        raise SystemExit(f"{file}: {file.stat().st_size} bytes, more than {LARGEST} of the wheel.")
    print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
