"""The run folder: what training leaves behind, and everything that prediction and the report read.

    RUN/run.json       recipe and its settings, split and its hash, seed, versions, data, status, times
    RUN/split.json     the split, readable by ``--split``
    RUN/history.csv    one row an epoch: phase, epoch, learning rate, losses, batch metrics
    RUN/validation_cases.csv  TK and TU Dice of whole validation cases, every few epochs
    RUN/model.keras    the best weights; appears when training has finished
    RUN/sparsity.csv   where a run prunes: a row for each weight matrix
    RUN/pruning.npz    where a run prunes: the masks of these weights
    RUN/checkpoint/    where an unfinished run goes on; see kitsseg.records.checkpoints

Each file is replaced as a whole, never written in place.
"""

import contextlib
import csv
import json
import os
import platform
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.data.splits import load_split, save_split
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path, remove_unfinished
from kitsseg.recipe import InferenceSpec, PreprocessSpec, ReassignSmall, RemoveFar, given_settings
from kitsseg.version import __version__

if TYPE_CHECKING:
    from kitsseg.records.exported import Exported

__all__ = [
    "TrainedNetwork",
    "create_run",
    "finished_run",
    "read_history",
    "read_run",
    "seen_patients",
    "specs_of",
    "update_run",
    "versions",
    "write_history",
]


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """What prediction, export and pruning need of a finished run or of an exported network, read from disk once.

    Two of them are equal if the same file is used in the same way.

    Attributes:
        record: content of ``run.json``, or the metadata of an exported network.
        source: path of the weights ``model.keras``, or the exported network.
        preprocess, inference, postprocess: of its recipe.
    """

    record: dict[str, Any] = field(compare=False, repr=False)
    source: "Path | Exported"
    preprocess: PreprocessSpec
    inference: InferenceSpec
    postprocess: RemoveFar | ReassignSmall | None


def create_run(folder, recipe, split, seed, details):
    """Start a run folder.

    Args:
        folder: must not exist, or be empty but for what the same call leaves when it is killed.
        details: further entries of ``run.json``.

    Raises: InputError if the folder is in use.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and _only_begun(folder, split)):
        raise InputError(
            f"{folder}: expected a new or empty folder for the run, found one in use. Choose another."
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    record = {
        "kitsseg": __version__,
        "recipe": recipe.name,
        "paper": recipe.paper,
        "reported": dict(recipe.reported),
        "reported_unrefined": dict(recipe.reported_unrefined),
        "given": given_settings(recipe),
        "settings": recipe.as_dict(),
        "seed": seed,
        "versions": versions(),
        "split": {"name": split.name, "hash": split.hash, "source": split.source}
        | {"cases": {part: list(getattr(split, part)) for part in ("train", "validation", "test")}},
        "status": "training",
        **details,
    }
    try:
        save_split(split, folder / "split.json")
        update_run(folder, record)
    except BaseException:  # half of this could neither be resumed nor be started again
        (folder / "split.json").unlink(missing_ok=True)
        raise
    return folder


def update_run(folder, record):
    """Replace ``run.json``."""
    with atomic_path(Path(folder) / "run.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def read_run(folder):
    """The record of a run folder, finished or not.

    Raises: InputError if ``folder`` is no run folder.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: expected the folder of a run, found no run.json in it. Run kitsseg train first."
        )
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}). Train again.") from error
    return record


def finished_run(folder: str | os.PathLike[str]) -> TrainedNetwork:
    """The network of a finished run; its ``source`` is the path of the weights.

    Raises: InputError if training has not finished, or the weights are gone.
    """
    record = read_run(folder)
    weights = Path(folder) / "model.keras"
    if not weights.is_file():
        if "cross_validation" in record:
            raise InputError(
                f"{folder}: expected one run, found a cross-validation. Give one of its folds, such as "
                f"{folder}/fold-0, or average them: kitsseg predict FOLD0 SCAN --out OUT --also FOLD1 ..."
            )
        parent = record.get("parent")
        how = "shrink" if "shrink" in record else "prune"
        source = parent and os.path.normpath(Path(folder) / parent["run"])
        command, options = f"train {record.get('recipe')}", ""
        if parent and parent.get("how") == "train":
            options = f" --from {source}"
        elif parent:
            command = f"{how} {source}"
        raise InputError(
            f"{weights}: missing; the run's status is {record.get('status')!r}. "
            f"Finish it with: kitsseg {command} CACHE {folder}{options} --resume"
        )
    preprocess, inference, postprocess = specs_of(record, f"{folder}/run.json")
    return TrainedNetwork(
        record=record, source=weights, preprocess=preprocess, inference=inference, postprocess=postprocess
    )


def seen_patients(record: dict[str, Any]) -> dict[str, set[str]]:
    """The patients that a run, or one that it started from, was trained on ("train") or chosen by ("validation").

    Args:
        record: of ``read_run``.
    """
    earlier = (record.get("parent") or {}).get("patients", {})
    return {
        part: {*record["split"]["cases"][part], *earlier.get(part, ())} for part in ("train", "validation")
    }


def specs_of(
    record: dict[str, Any], path: str | os.PathLike[str]
) -> tuple[PreprocessSpec, InferenceSpec, RemoveFar | ReassignSmall | None]:
    """PreprocessSpec, InferenceSpec and RemoveFar, ReassignSmall or None from the record of a run.

    Raises: InputError, naming ``path``, where another version wrote it.
    """
    try:
        values = record["settings"]
        return (
            PreprocessSpec(**_tuples(values["preprocess"])),
            InferenceSpec(**_tuples(values["inference"])),
            _postprocess(values["postprocess"]),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the settings of kitsseg {__version__}, found others ({error}). "
            f"It was written by kitsseg {record.get('kitsseg')}; use that version."
        ) from error


def write_history(folder, rows):
    """Replace ``history.csv``; ``rows`` are dicts with the same keys within a phase."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(Path(folder) / "history.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def read_history(folder):
    """Rows of ``history.csv`` with numbers as numbers; empty if there is none.

    Raises: InputError if it is damaged.
    """
    path = Path(folder) / "history.csv"
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode()
        if not text.endswith("\n"):
            raise ValueError("its last line is cut off")
        rows = [
            {
                key: value if key == "phase" else int(value) if key == "epoch" else float(value)
                for key, value in row.items()
                if value or value is None  # None: fewer values than names
            }
            for row in csv.DictReader(text.splitlines(), strict=True)
        ]
        _ = [(row["phase"] + "", row["epoch"] + 0) for row in rows]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}). Train again.") from error
    return rows


def versions():
    """Versions of Python and of the packages that decide about results; needs no import of them."""
    found = {"python": platform.python_version(), "kitsseg": __version__}
    for name in ("tensorflow", "keras", "numpy", "nibabel", "jax"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _only_begun(folder, split):
    """Whether a folder holds nothing but what ``create_run`` leaves, with this split, if it is killed at once."""
    ours = (".run-kitsseg-", ".split-kitsseg-", ".train.lock")
    entries = [path for path in folder.iterdir() if not path.name.startswith(ours)]
    if [path.name for path in entries] == ["split.json"]:
        with contextlib.suppress(InputError):
            return load_split(entries[0]).hash == split.hash
    return not entries


def _postprocess(values):
    kinds = [
        kind
        for kind in (RemoveFar, ReassignSmall)
        if values and {f.name for f in fields(kind)} == set(values)
    ]
    if values and not kinds:
        raise TypeError(f"no post-processing takes {sorted(values)}")
    return kinds[0](**values) if kinds else None


def _tuples(value):
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
