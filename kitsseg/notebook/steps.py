"""Steps of the notebooks: describe the runtime, choose folders, get patients, train or resume."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.errors import InputError
from kitsseg.runtime.hardware import gpus_of_backend

if TYPE_CHECKING:
    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.data.splits import CaseSplit
    from kitsseg.recipe import Recipe
    from kitsseg.training.options import TrainOptions

__all__ = [
    "Place",
    "choose_recipe",
    "choose_split",
    "demo_scores",
    "describe_device",
    "describe_training",
    "find_scores",
    "folders",
    "get_patients",
    "prepare",
    "score_test_patients",
    "train",
    "train_or_resume",
]

DRIVE = "/content/drive"
AT_ONCE = 10  # cases that are prepared before the archive is told of them
MOST_RUNS = 100
SPLIT = "80-10-10"
SHARES = (0.6, 0.2, 0.2)  # of synthetic patients: training, validation, test


@dataclass(frozen=True)
class Place:
    """Where the things of one notebook lie; other patients, or another variant, are another place.

    Attributes:
        data, cache: on the machine's own disk, which is lost with it; the same for all recipes.
        results: for the run, its predictions, scores and report: on Drive, if it is used.
        archive: for copies of the cache on Drive; None where they would not be worth it.
        patients: how many synthetic ones; None: those of KiTS19.
        cases: of KiTS19, such as "0-209".
    """

    data: Path
    cache: Path
    results: Path
    archive: Path | None = None
    patients: int | None = None
    cases: str = "all-training"


def describe_device() -> int:
    """Print the device of the training. Without a GPU, print how to get one on Colab, and go on.

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


def choose_recipe(name: str, demo: bool, variant: str = "paper") -> Recipe:
    """The recipe that the form of a notebook asks for.

    Args:
        name: of the recipe.
        demo: True takes the tiny recipe.
        variant: "paper" or "practical", if it is not the demo.
    """
    from kitsseg import recipes

    return recipes.get(f"{name}:tiny" if demo else name if variant == "paper" else f"{name}:{variant}")


def folders(
    name: str,
    demo: bool,
    variant: str = "paper",
    patients: int = 10,
    cases: str = "all-training",
    use_drive: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> Place:
    """Where the things of a notebook go.

    Args:
        name: of the recipe.
        demo: synthetic patients, so many as ``patients``; otherwise the ``cases`` of KiTS19, for the ``variant``.
        use_drive: keep results, and copies of the cache, on Google Drive, so that a lost machine is back in minutes.
        out: folder for all of it, in place of the machine's usual ones.

    Raises: InputError if ``use_drive`` is asked for outside Colab.
    """
    local = Path(out or ("/content/kitsseg-notebooks" if Path("/content").is_dir() else "kitsseg-notebooks"))
    kept = local
    if use_drive:
        try:
            from google.colab import drive
        except ImportError as error:
            raise InputError(
                "USE_DRIVE: expected to run on Colab, found no google.colab. Set it to False."
            ) from error
        drive.mount(DRIVE)
        kept = Path(DRIVE) / "MyDrive" / "kitsseg"
    who = f"phantoms-{patients}" if demo else "kits19"
    chosen = f"demo-{patients}" if demo else f"{variant}-{re.sub(r'[^0-9a-z,_-]+', '', cases.lower())}"
    place = Place(
        data=local / "data" / who,
        cache=local / "cache" / who,
        results=kept / "runs" / f"{name}-{chosen}",
        archive=kept / "caches" if use_drive and not demo else None,
        patients=patients if demo else None,
        cases=cases,
    )
    for folder in (place.data, place.cache, place.results.parent):
        folder.mkdir(parents=True, exist_ok=True)
    return place


def prepare(recipe: Recipe, place: Place) -> None:
    """Patients into the cache: synthetic ones are made; those of KiTS19 come back from Drive or are fetched one by one.

    Of KiTS19 the label maps stay, and no more scans lie on the disk than are being prepared. What is there already is
    neither made nor fetched again.
    """
    from kitsseg.data.cache.build import preprocess_cases
    from kitsseg.runtime.console import progress_bar
    from kitsseg.runtime.warning_lines import warnings_as_lines

    if place.patients is not None:
        get_patients(place.data, True, place.patients)
        with progress_bar("cases") as progress, warnings_as_lines():
            preprocess_cases(place.data, place.cache, recipe.preprocess, progress=progress)
        return
    names, back = _names(place), []
    if place.archive:
        back = _from_archive(recipe, place, names)
    missing = [name for name in names if not _is_cached(recipe, place, name)]
    fetched = _from_host(recipe, place, names, missing)
    _say(
        f"{len(names)} patients are ready: {fetched} fetched and prepared, {len(back)} brought back from Drive, "
        f"{len(names) - fetched - len(back)} were there."
    )


def _from_archive(recipe: Recipe, place: Place, names: list[str]) -> list[str]:
    from kitsseg.data.cache.archive import bring_back
    from kitsseg.data.download.download import choose_files, download_files
    from kitsseg.runtime.console import progress_bar

    with progress_bar() as progress:
        labels = choose_files(place.cases, labels_only=True)
        download_files(place.data, labels, say=_say, progress=progress)
        return bring_back(
            place.archive or place.cache,
            place.cache,
            recipe.preprocess,
            names,
            data=place.data,
            progress=progress,
            say=_say,
        )


def _from_host(recipe: Recipe, place: Place, names: list[str], missing: list[str]) -> int:
    """Fetch and prepare cases, and keep them, some at a time. Returns how many."""
    from kitsseg.data.cache.archive import keep_cases
    from kitsseg.data.download.passing import FromHost, preprocess_from_host
    from kitsseg.runtime.console import progress_bar

    archive, fetched = place.archive, 0
    workers = min(2, os.cpu_count() or 1)
    with progress_bar("cases") as progress:
        for first in range(0, max(len(missing), 1), AT_ONCE):
            later = {*missing[first + AT_ONCE :]}
            so_far = [name for name in names if name not in later]

            def within(text: str, done: float, total: int) -> None:
                progress(text, done, len(names))

            wanted = FromHost(names=so_far, say=_say)
            _, made, _ = preprocess_from_host(
                place.data, place.cache, recipe.preprocess, wanted, workers=workers, progress=within
            )
            fetched += len(made)
            if archive:
                try:
                    keep_cases(place.cache, recipe.preprocess, archive, so_far, say=_say)
                except (InputError, OSError) as error:
                    _say(f"warning: no copy on Drive any more: {error}")
                    archive = None
    return fetched


def _is_cached(recipe: Recipe, place: Place, name: str) -> bool:
    from kitsseg.data.cache.cases import cache_folder

    return (cache_folder(place.cache, recipe.preprocess) / name).is_dir()


def _names(place: Place) -> list[str]:
    """Names of the chosen cases of KiTS19."""
    from kitsseg.data.download.catalog import parse_cases
    from kitsseg.data.kits19.manifest import read_manifest

    return parse_cases(place.cases, read_manifest())


def _chosen(recipe: Recipe, place: Place) -> Mapping[str, CachedCase]:
    """The cached cases that are chosen; the cache may hold more of an earlier choice."""
    from kitsseg.data.cache.cases import open_cache

    cases = open_cache(place.cache, recipe.preprocess)
    return cases if place.patients is not None else {name: cases[name] for name in _names(place)}


def choose_split(recipe: Recipe, place: Place) -> CaseSplit:
    """Training, validation and test patients among the chosen ones: for KiTS19 those of the split 80-10-10."""
    from kitsseg.data.splits import load_split, make_split

    cases = _chosen(recipe, place)
    return make_split(cases, SHARES) if place.patients is not None else load_split(SPLIT).among(cases)[0]


def get_patients(
    folder: str | os.PathLike[str], demo: bool, n_synthetic: int = 10, cases: str | None = None
) -> Path:
    """Make synthetic patients for the demo, or download KiTS19. Existing patients are not made or fetched again.

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


def train(
    recipe: Recipe,
    place: Place,
    split: CaseSplit,
    epochs: int | None = None,
    precision: str = "float32",
    accumulate: int = 1,
    start_from: str | os.PathLike[str] | None = None,
) -> Path:
    """Train in the place's folder, or in a new folder beside it if the place holds a run of other settings.

    An unfinished run of the same settings goes on, as with ``train_or_resume``.

    Args:
        recipe: Recipe.
        place: Place.
        split: CaseSplit.
        epochs: of each phase; 0 or None: the recipe's own.
        precision, accumulate, start_from: as ``TrainOptions``; an empty ``start_from`` is none.

    Returns: the run folder; predictions and scores belong beside it.
    """
    from kitsseg.training.options import TrainOptions
    from kitsseg.training.train import check_same

    options = TrainOptions(
        epochs=epochs or None, precision=precision, accumulate=accumulate, start_from=start_from or None
    )
    for run in _runs(place):
        if (run / "run.json").is_file():
            try:
                check_same(recipe, place.cache, split, run, options)
            except InputError as error:
                _say(f"Not taken up again: {_first_sentence(error)}")
                continue
        return train_or_resume(recipe, place.cache, split, run, options=options)
    raise InputError(f"{place.results}: expected fewer than {MOST_RUNS} runs. Remove some.")


def _runs(place: Place) -> list[Path]:
    """Where the runs of a place lie, from the first one on."""
    results = place.results
    beside = [results.with_name(f"{results.name}-run{number}") for number in range(2, MOST_RUNS)]
    return [folder / "run" for folder in (results, *beside)]


def _first_sentence(error: InputError) -> str:
    return f"{str(error).split('. ')[0].rstrip('.')}."


def train_or_resume(
    recipe: Recipe,
    cache: str | os.PathLike[str],
    split: CaseSplit,
    run: str | os.PathLike[str],
    epochs: int | None = None,
    seed: int = 0,
    options: TrainOptions | None = None,
) -> Path:
    """Train a recipe, or go on with an unfinished run of the same settings. A finished run is left alone.

    After the first epoch a line says how long the rest takes at the measured rate, and what to do if that is too long.

    Args: as ``kitsseg.training.train.train_recipe``; ``epochs`` of 0 or None are the recipe's own. ``options`` are
        taken in place of ``epochs`` and ``seed``.

    Raises: InputError, naming the difference, if the folder holds a run of another recipe, with other epochs, another
        split or seed, or other patients.
    """
    from kitsseg.notebook.pace import Pace
    from kitsseg.runtime.console import progress_bar
    from kitsseg.training.options import TrainOptions
    from kitsseg.training.train import check_same, train_recipe

    run, options = Path(run), options or TrainOptions(seed=seed, epochs=epochs or None)
    if (run / "model.keras").is_file():
        check_same(recipe, cache, split, run, options)
        _say(f"{run} has been trained already.")
        return run
    with progress_bar("steps") as progress:
        pace = Pace(recipe, progress, _say)
        resume = (run / "run.json").is_file()
        return train_recipe(
            recipe, cache, split, run, replace(options, resume=resume, progress=pace, say=_say)
        )


def score_test_patients(run: str | os.PathLike[str], place: Place, split: CaseSplit) -> Path:
    """Segment the test patients and score them. The scans of KiTS19 patients are fetched first, and stay.

    Args:
        run: folder of a finished run.
        place: Place.
        split: CaseSplit, whose test part is scored.

    Returns: scores.csv, in the folder of the results.
    """
    from kitsseg.inference.cohort import predict_cases
    from kitsseg.runtime.console import progress_bar
    from kitsseg.scoring.evaluate import evaluate_folders

    if place.patients is None:
        get_patients(place.data, False, cases=",".join(name.removeprefix("case_") for name in split.test))
    results = Path(run).parent
    scans = [place.data / name for name in split.test]
    with progress_bar("scans") as progress:
        predict_cases(run, scans, results / "predictions", part="test", progress=progress)
    evaluate_folders(results / "predictions", place.data, results / "scores.csv")
    return results / "scores.csv"


def find_scores(place: Place) -> Path | None:
    """The scores of the latest run of a place that has some, by whichever notebook; None without."""
    found = [run.parent / "scores.csv" for run in _runs(place)]
    there = [path for path in found if path.is_file()]
    return there[-1] if there else None


def demo_scores(name: str, place: Place, epochs: int | None = None) -> Path:
    """The scores.csv of a recipe: that of a notebook that has run, else of a demo run made here.

    Args:
        name: of the recipe.
        place: ``folders(name, ...)``.
        epochs: as for ``train``.

    Raises: InputError if there are none and the place is not for a demo.
    """
    if scores := find_scores(place):
        _say(f"{name}: {scores}")
        return scores
    if place.patients is None:
        raise InputError(
            f"{place.results}: expected the scores of {name}, found none. Run its notebook first, with the same "
            "settings, or leave it out."
        )
    recipe = choose_recipe(name, True)
    prepare(recipe, place)
    # the names of the patients alone decide: every recipe gets the same split
    split = choose_split(recipe, place)
    return score_test_patients(train(recipe, place, split, epochs), place, split)


def describe_training(recipe: Recipe) -> None:
    """Say how much arithmetic the recipe's training is, how long that would take on Colab's T4, and whether it fits."""
    from kitsseg.notebook.pace import SESSION_HOURS, advice
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
    if work.hours()[1] > SESSION_HOURS:
        _say(f"That may be longer than a free session. {advice(recipe, work.hours()[1])}")


def _say(text: str) -> None:
    from kitsseg.runtime.console import console

    console.print(text, markup=False)
