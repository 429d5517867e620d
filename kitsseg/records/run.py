"""The run folder: the files that training writes and that prediction and the report read.

    RUN/run.json       recipe and its settings, split and its hash, seed, versions, data, status, times
    RUN/split.json     the split, readable by ``--split``
    RUN/history.csv    one row an epoch: phase, epoch, learning rate, losses, batch metrics
    RUN/validation_cases.csv  TK and TU Dice of whole validation cases, every few epochs
    RUN/model.keras    the best weights; appears when training has finished
    RUN/network.onnx   the same network as a file that starts without Keras, see kitsseg.export.export.write_quick_start
    RUN/sparsity.csv   where a run prunes: a row for each weight matrix
    RUN/pruning.npz    where a run prunes: the masks of these weights
    RUN/precision.json once predicted in a lower precision: how far that agrees with float32
    RUN/engines.json   once predicted with --engine auto: the fastest engine on each machine
    RUN/checkpoint/    where an unfinished run goes on; see kitsseg.records.checkpoints

Each file is replaced as a whole, never written in place.
"""

import contextlib
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from kitsseg.data.splits import CaseSplit, load_split, save_split
from kitsseg.errors import InputError
from kitsseg.files.atomic import remove_unfinished
from kitsseg.files.json_records import as_builtins, read_record, write_record
from kitsseg.files.tables import read_rows, write_rows
from kitsseg.recipe import Recipe, given_settings
from kitsseg.version import __version__

__all__ = [
    "FoldPlan",
    "FoldsPlan",
    "Parent",
    "PartsOfSplit",
    "RunFacts",
    "RunRecord",
    "Shrunk",
    "SplitFacts",
    "SplitOfRun",
    "WholeCases",
    "create_run",
    "read_history",
    "read_run",
    "read_sparsity",
    "seen_patients",
    "update_run",
    "versions",
    "write_history",
]


SPARSITY: dict[str, Callable[[str], Any]] = {
    "weights": str,
    "shape": str,
    "pruned": str,
    "size": int,
    "zeros": int,
    "sparsity": float,
}


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """The split in a run's record: name, hash, and the names of the cases of each part."""

    name: str | None = None
    hash: str | None = None
    cases: dict[str, list[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The entries of a ``run.json`` that the report shows. Each may be missing in a file that was written by hand."""

    kitsseg: str | None = None
    recipe: str | None = None
    paper: str | None = None
    reported: dict[str, Any] | None = None
    given: dict[str, Any] | None = None
    seed: int | None = None
    versions: dict[str, str] | None = None
    split: SplitFacts | None = None
    status: str | None = None
    phantom: bool | None = None
    seconds: float | None = None
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class PartsOfSplit:
    """Names of the cases of each part."""

    train: list[str]
    validation: list[str]
    test: list[str]


@dataclass(frozen=True, kw_only=True)
class SplitOfRun:
    """The split of a run: name, hash and source of a CaseSplit, and its cases."""

    name: str
    hash: str
    source: str | None = None
    cases: PartsOfSplit

    @staticmethod
    def of(split: CaseSplit) -> "SplitOfRun":
        """The record of a split and its cases."""
        cases = PartsOfSplit(train=[*split.train], validation=[*split.validation], test=[*split.test])
        return SplitOfRun(name=split.name, hash=split.hash, source=split.source, cases=cases)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The run that a run started from.

    Attributes:
        run: its folder, relative to the folder of the run that started from it.
        how: "train" if the first phase started from its weights; None for a pruned or shrunk run.
        patients: "train" and "validation" -> the patients that it, or a run before it, had seen.
    """

    run: str
    recipe: str | None = None
    model_sha256: str | None = None
    how: str | None = None
    phantom: bool | None = None
    patients: dict[str, list[str]] | None = None


@dataclass(kw_only=True)
class WholeCases:
    """Seconds that scoring whole validation cases took, and, after training, their share of all other time."""

    seconds: float
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """How a network was made smaller, and its parameters before and after."""

    keep: float | None
    by: str
    multiple: int
    parameters_before: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """A fold of a cross-validation: the hash of its split, and the cases that it leaves out."""

    hash: str
    test: list[str]


@dataclass(frozen=True, kw_only=True)
class FoldsPlan:
    """A cross-validation: the options that all its folds share, and the folds."""

    options: dict[str, Any]
    folds: list[FoldPlan]


@dataclass(kw_only=True)
class RunRecord:
    """Content of ``run.json``.

    Attributes:
        kitsseg: the version that wrote it.
        given: dotted name -> value, of the settings of the recipe that the user gave.
        settings: all values of the recipe, as JSON has them.
        status: "training" or "finished".
        phantom: whether any training or validation case was synthesized.
        patients: ``kitsseg.data.cache.parts.patients_digest`` of the training and validation patients.
        seconds: duration of the training.
        precision, accumulate, ema, devices: of TrainOptions.
        shrink: only in a shrunk run.
        model_sha256: of ``model.keras``, once it is written.
        sparsity: only in a pruned run, see ``kitsseg.pruning.sparsity.sparsity_totals``.
        versions_resumed: other versions with which the run was resumed.
        cross_validation: only in the folder of a cross-validation.
    """

    kitsseg: str | None = None
    recipe: str
    paper: str = ""
    reported: dict[str, Any] = field(default_factory=dict)
    reported_unrefined: dict[str, Any] | None = None
    given: dict[str, Any] | None = None
    settings: dict[str, Any]
    seed: int
    versions: dict[str, str]
    split: SplitOfRun
    status: str
    phantom: bool | None = None
    patients: str | None = None
    single_slices: bool | None = None
    cache: str | None = None
    seconds: float = 0.0
    devices: int | None = None
    precision: str | None = None
    accumulate: int | None = None
    ema: float | None = None
    parent: Parent | None = None
    shrink: Shrunk | None = None
    model_sha256: str | None = None
    sparsity: dict[str, Any] | None = None
    whole_case_validation: WholeCases | None = None
    versions_resumed: dict[str, str] | None = None
    cross_validation: FoldsPlan | None = None
    version: int = 1


def create_run(
    folder: str | os.PathLike[str], recipe: Recipe, split: CaseSplit, seed: int, details: Mapping[str, Any]
) -> Path:
    """Start a run folder.

    Args:
        folder: must not exist, or hold nothing except for the files of the same call that was killed.
        recipe: Recipe.
        split: CaseSplit.
        seed: of the training.
        details: further entries of ``run.json``.

    Raises: InputError if the folder is in use.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and _only_begun(folder, split)):
        found, advice = _in_use(folder)
        raise InputError(f"{folder}: expected a new or empty folder for the run, found {found}. {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    record = RunRecord(
        kitsseg=__version__,
        recipe=recipe.name,
        paper=recipe.paper,
        reported=dict(recipe.reported),
        reported_unrefined=dict(recipe.reported_unrefined),
        given=given_settings(recipe),
        settings=as_builtins(recipe.as_dict()),
        seed=seed,
        versions=versions(),
        split=SplitOfRun.of(split),
        status="training",
        **details,
    )
    try:
        save_split(split, folder / "split.json")
        update_run(folder, record)
    except BaseException:  # half of this could neither be resumed nor be started again
        (folder / "split.json").unlink(missing_ok=True)
        raise
    return folder


def update_run(folder: str | os.PathLike[str], record: RunRecord) -> None:
    """Replace ``run.json``."""
    write_record(Path(folder) / "run.json", record)


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """The record of a run folder, finished or not.

    Raises: InputError if ``folder`` is no run folder, or its record is damaged.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: expected the folder of a run, found no run.json in it. Run kitsseg train first."
        )
    return read_record(path, RunRecord, "the record of a run", "Train again.")


def seen_patients(record: RunRecord) -> dict[str, set[str]]:
    """The patients of a run's training ("train") and of the choice of its best epoch ("validation").

    The patients of the run that it started from are included.

    Args:
        record: of ``read_run``.
    """
    earlier = (record.parent and record.parent.patients) or {}
    cases = record.split.cases
    return {
        "train": {*cases.train, *earlier.get("train", ())},
        "validation": {*cases.validation, *earlier.get("validation", ())},
    }


def write_history(folder: str | os.PathLike[str], rows: list[dict[str, Any]]) -> None:
    """Replace ``history.csv``; ``rows`` are dicts with the same keys within a phase."""
    write_rows(Path(folder) / "history.csv", rows)


def read_history(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of ``history.csv`` with numbers as numbers; empty if there is none.

    Raises: InputError if it is damaged.
    """
    path = Path(folder) / "history.csv"
    if not path.is_file():
        return []
    kinds: dict[str, Callable[[str], Any]] = {
        "phase": str,
        "epoch": int,
        "learning_rate": _finite,
        "loss": _finite,
    }
    rows = read_rows(path, kinds, _finite, "a row for each epoch", "Train again.")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def read_sparsity(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of RUN/sparsity.csv with numbers as numbers; empty for a run that was not pruned.

    Raises: InputError if it is damaged.
    """
    path, expected = Path(folder) / "sparsity.csv", "a row for each weight matrix"
    if not path.is_file():
        return []
    rows = read_rows(path, SPARSITY, None, expected, "Prune again.")
    for row in rows:
        if not (0 <= row["zeros"] <= row["size"] and 0 <= row["sparsity"] <= 1):
            raise InputError(
                f"{path}: expected {expected}, found {row['zeros']} zeros among {row['size']} weights. Prune again."
            )
    return rows


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that influence results; the packages are not imported."""
    found = {"python": platform.python_version(), "kitsseg": __version__}
    for name in ("tensorflow", "keras", "numpy", "nibabel", "jax"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _in_use(folder: Path) -> tuple[str, str]:
    """The error for a folder that holds something already, with advice."""
    with contextlib.suppress(InputError):
        record = read_run(folder)
        if record.status == "finished":
            return f"a finished run of {record.recipe}", "Choose another."
        advice = "Go on: the same command with --resume. Or choose another folder."
        return f"an unfinished run of {record.recipe}", advice
    return "one in use", "Choose another."


def _only_begun(folder: Path, split: CaseSplit) -> bool:
    """Whether a folder holds only the files that ``create_run`` with this split writes before it can be killed."""
    ours = (".run-kitsseg-", ".split-kitsseg-", ".train.lock")
    entries = [path for path in folder.iterdir() if not path.name.startswith(ours)]
    if [path.name for path in entries] == ["split.json"]:
        with contextlib.suppress(InputError):
            return load_split(entries[0]).hash == split.hash
    return not entries
