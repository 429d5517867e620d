"""What the notebooks call beside the library: the runtime, folders, patients, and trainings that go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.errors import InputError
from kitsseg.runtime.hardware import gpus_of_backend

if TYPE_CHECKING:
    from kitsseg.data.splits import CaseSplit
    from kitsseg.recipe import Recipe

__all__ = [
    "demo_scores",
    "describe_device",
    "describe_training",
    "folders",
    "get_patients",
    "train_or_resume",
]


def describe_device() -> int:
    """Say what the training will run on; on a machine without a GPU, how to get one on Colab, and go on.

    Returns: number of GPUs that Keras sees.
    """
    import keras

    gpus = len(gpus_of_backend())
    backend = f"Keras {keras.version()} on {keras.config.backend()}"
    if gpus:
        _say(f"{backend}, {gpus} GPU.")
    else:
        _say(
            f"{backend}, no GPU: the demo takes a minute or two on a CPU, KiTS19 itself would take days. "
            "On Colab: Runtime > Change runtime type > T4 GPU, then run this notebook from the top."
        )
    return gpus


def folders(
    name: str, use_drive: bool = False, out: str | os.PathLike[str] | None = None
) -> tuple[Path, Path]:
    """Where things go: (fast local folder for data and cache, folder for runs and results that may be a drive).

    Args:
        name: of the sub-folder, such as the recipe's name.
        use_drive: keep runs on Google Drive, so that a disconnected Colab can go on where it was.
        out: folder to use for both instead, outside Colab.

    Raises: InputError if ``use_drive`` is asked for outside Colab.
    """
    local = Path(out or ("/content/kitsseg" if Path("/content").is_dir() else "kitsseg-notebooks")) / name
    kept = local
    if use_drive:
        try:
            from google.colab import drive
        except ImportError as error:
            raise InputError(
                "USE_DRIVE: expected to run on Colab, found no google.colab. Set it to False."
            ) from error
        drive.mount("/content/drive")
        kept = Path("/content/drive/MyDrive/kitsseg") / name
    for folder in (local, kept):
        folder.mkdir(parents=True, exist_ok=True)
    return local, kept


def get_patients(
    folder: str | os.PathLike[str], demo: bool, n_synthetic: int = 10, cases: str | None = None
) -> Path:
    """Synthetic patients for the demo, KiTS19 otherwise; what is there already is not made or fetched again.

    Args:
        folder: for the cases, in KiTS19 layout.
        demo: synthetic patients of 40 x 128 x 128 voxels instead of KiTS19.
        n_synthetic: how many of them.
        cases: of KiTS19, such as "0-209"; all training cases by default.

    Returns: the folder.
    """
    folder = Path(folder)
    if not demo:
        from kitsseg.data.download.download import choose_files, download_files
        from kitsseg.runtime.console import done, progress_bar

        with progress_bar() as progress:
            result = download_files(folder, choose_files(cases), say=done, progress=progress)
        _say(f"{len(result.fetched)} files came to {folder} ({len(result.kept)} were there already).")
    elif not any(folder.glob("case_*")):
        from kitsseg.data.phantoms.synthesize import synthesize_cases
        from kitsseg.runtime.console import progress_bar

        with progress_bar() as progress:
            synthesize_cases(folder, n_synthetic, (40, 128, 128), progress=progress)
    return folder


def train_or_resume(
    recipe: Recipe,
    cache: str | os.PathLike[str],
    split: CaseSplit,
    run: str | os.PathLike[str],
    epochs: int | None = None,
    seed: int = 0,
) -> Path:
    """``train_recipe``; goes on with an unfinished run of the same settings, and leaves a finished one alone.

    Args: as ``kitsseg.training.train.train_recipe``; ``epochs`` of 0 or None are the recipe's own.

    Raises: InputError, naming what differs, if the run in the folder is of another recipe, other epochs, another split,
        seed or other patients.
    """
    from kitsseg.runtime.console import progress_bar
    from kitsseg.training.options import TrainOptions
    from kitsseg.training.train import check_same, train_recipe

    run = Path(run)
    if (run / "model.keras").is_file():
        check_same(recipe, cache, split, run, TrainOptions(seed=seed, epochs=epochs or None))
        _say(f"{run} has been trained already.")
        return run
    with progress_bar() as progress:
        resume = (run / "run.json").is_file()
        options = TrainOptions(seed=seed, epochs=epochs or None, resume=resume, progress=progress)
        return train_recipe(recipe, cache, split, run, options)


def demo_scores(
    name: str,
    local: str | os.PathLike[str],
    kept: str | os.PathLike[str],
    n_synthetic: int = 10,
    epochs: int | None = None,
) -> Path:
    """The scores.csv of a recipe: that in ``kept`` if there is one, else of a demo run made here.

    Args:
        name: of the recipe; its tiny variant is trained.
        local: folder for synthetic patients and caches, the same for all recipes to be compared.
        kept: folder for run, predictions and scores.
        n_synthetic, epochs: as in ``get_patients`` and ``train_or_resume``.
    """
    from kitsseg import recipes
    from kitsseg.data.cache.build import preprocess_cases
    from kitsseg.data.cache.cases import open_cache
    from kitsseg.data.splits import make_split
    from kitsseg.inference.cohort import predict_cases
    from kitsseg.scoring.evaluate import evaluate_folders

    scores = Path(kept) / "scores.csv"
    if scores.is_file():
        return scores
    recipe = recipes.get(f"{name}:tiny")
    data = get_patients(Path(local) / "data", True, n_synthetic)
    preprocess_cases(data, Path(local) / "cache", recipe.preprocess)
    # the names of the patients alone decide: every recipe gets the same split
    split = make_split(open_cache(Path(local) / "cache", recipe.preprocess), (0.6, 0.2, 0.2))
    run = train_or_resume(recipe, Path(local) / "cache", split, Path(kept) / "run", epochs)
    predict_cases(run, [data], Path(kept) / "predictions", part="test")
    evaluate_folders(Path(kept) / "predictions", data, scores)
    return scores


def describe_training(recipe: Recipe) -> None:
    """Say how much arithmetic the recipe's training is, and how long that would take on Colab's T4."""
    from kitsseg.training.work import training_work

    work = training_work(recipe)
    least, most = (
        f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" for hours in work.hours()
    )
    _say(
        f"{work.steps:,} steps, {work.images:,} {work.what}, {work.flops / 1e12:,.0f} Tflop. On a T4 that is {least} "
        f"to {most}: arithmetic with a share of its 8.1 Tflop/s as CPUs reach here, not a measurement; reading and "
        "validation come on top. The bar below says what is left on this machine."
    )


def _say(text: str) -> None:
    from kitsseg.runtime.console import console

    console.print(text)
