"""The network of a finished run or of an exported file, and how its recipe uses it: the start of a prediction."""

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError, command_line
from kitsseg.files.checksums import sha256_of
from kitsseg.ranges import told_of
from kitsseg.recipe import InferenceSpec, PreprocessSpec, ReassignSmall, RemoveFar
from kitsseg.records.exported import Exported, ExportMetadata, read_metadata
from kitsseg.records.run import RunRecord, read_run
from kitsseg.version import __version__

__all__ = [
    "QUICK_START",
    "FinishedRun",
    "TrainedNetwork",
    "finished_run",
    "has_quick_start",
    "quick_start_of",
    "read_exported",
]

QUICK_START = "network.onnx"  # in a run folder: the network as a file that starts without Keras

KINDS: dict[str, type[RemoveFar] | type[ReassignSmall]] = {
    "RemoveFar": RemoveFar,
    "ReassignSmall": ReassignSmall,
}


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A finished run or an exported network, with everything that prediction, export and pruning need to know.

    It is read from disk once. Two of these objects are equal if they use the same file in the same way.

    Attributes:
        record: content of ``run.json``, or the metadata of an exported network.
        source: path of the weights ``model.keras``, or the exported network.
        preprocess, inference, postprocess: of its recipe.
        image_shape: (rows, columns, channels) of an image that it takes, of a 3D network (slices, rows, columns,
            channels): what a run was trained on first, what an exported network was tried with.
    """

    record: RunRecord | ExportMetadata = field(compare=False, repr=False)
    source: Path | Exported
    preprocess: PreprocessSpec
    inference: InferenceSpec
    postprocess: RemoveFar | ReassignSmall | None
    image_shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class FinishedRun(TrainedNetwork):
    """The network of a finished run; ``source`` is the path of its weights."""

    record: RunRecord = field(compare=False, repr=False)
    source: Path

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights; the record's, which ``finished_run`` has compared with the file, if it has one."""
        known = self.record.model_sha256 if self.record.status == "finished" else None
        return known or sha256_of(self.source)


def finished_run(folder: str | os.PathLike[str]) -> FinishedRun:
    """The network of a finished run; its ``source`` is the path of the weights.

    Raises: InputError if training has not finished, or the weights are gone.
    """
    record = read_run(folder)
    weights = Path(folder) / "model.keras"
    if not weights.is_file():
        if record.cross_validation:
            raise InputError(
                f"{folder}: expected one run, found a cross-validation. Give one of its folds, such as "
                f"{folder}/fold-0, or average them: kitsseg predict FOLD0 SCAN --out OUT --also FOLD1 ..."
            )
        parent = record.parent
        how = "shrink" if record.shrink else "prune"
        source = parent and os.path.normpath(Path(folder) / parent.run)
        words: list[object] = ["train", record.recipe, "CACHE", folder]
        if parent and parent.how == "train":
            words += ["--from", source]
        elif parent:
            words = [how, source, "CACHE", folder]
        raise InputError(
            f"{weights}: missing; the run's status is {record.status!r}. "
            f"Finish it with: {command_line(*words, '--resume')}"
        )
    path = f"{folder}/run.json"
    preprocess, inference, postprocess = _specs_of(record, path)
    with _settings_expected(record, path):
        patch = record.settings["phases"][0]["sampler"]["patch_size"]
        shape = (*map(operator.index, patch), preprocess.channels)
    _check_weights(record, weights)
    return FinishedRun(
        record=record,
        source=weights,
        preprocess=preprocess,
        inference=inference,
        postprocess=postprocess,
        image_shape=shape,
    )


def _check_weights(record: RunRecord, weights: Path) -> None:
    """Refuse weights that the training of a run did not write: its preprocessing may not belong to them.

    Raises: InputError.
    """
    stated = record.settings.get("name", record.recipe)
    if stated != record.recipe:
        raise InputError(
            f"{weights.parent / 'run.json'}: expected one recipe, found {record.recipe} and, in its settings, "
            f"{stated}. Train again, or take the file of the finished run back."
        )
    # while a run trains, a new file of weights may be there before its record is
    if record.model_sha256 and record.status == "finished" and sha256_of(weights) != record.model_sha256:
        raise InputError(
            f"{weights}: expected the weights that the training of this run wrote, found others or damaged ones "
            "(another SHA-256 than in run.json). Take the file of the run back, or train again."
        )


def read_exported(path: str | os.PathLike[str]) -> TrainedNetwork:
    """The network in a file that ``kitsseg export`` wrote; its ``source`` is an Exported.

    Raises: InputError as ``read_metadata``.
    """
    metadata, source = read_metadata(path)
    preprocess, inference, postprocess = _specs_of(metadata, path)
    return TrainedNetwork(
        record=metadata,
        source=source,
        preprocess=preprocess,
        inference=inference,
        postprocess=postprocess,
        image_shape=source.example[1:],
    )


def has_quick_start(run: FinishedRun) -> bool:
    """Whether a run holds a file with the name of ``QUICK_START``; the file is not read."""
    return (run.source.parent / QUICK_START).is_file()


def quick_start_of(run: FinishedRun) -> TrainedNetwork:
    """The network of a run, as it is computed from the run's file ``QUICK_START`` in place of its weights.

    Args:
        run: of ``finished_run``.

    Raises: InputError if that file is missing, damaged, or was made from other weights than the run has.
    """
    path = run.source.parent / QUICK_START
    make = command_line("export", run.source.parent)
    if not path.is_file():
        raise InputError(f"{path}: missing, there is no such file. Make it with: {make}")
    metadata, source = read_metadata(path)
    if metadata.weights_sha256 != run.weights_sha256:
        raise InputError(
            f"{path}: expected the network of {run.source.name} beside it, found one that was made from other weights. "
            f"Make it again: {make}"
        )
    return TrainedNetwork(
        record=run.record,
        source=source,
        preprocess=run.preprocess,
        inference=run.inference,
        postprocess=run.postprocess,
        image_shape=run.image_shape,
    )


def _specs_of(
    record: RunRecord | ExportMetadata, path: str | os.PathLike[str]
) -> tuple[PreprocessSpec, InferenceSpec, RemoveFar | ReassignSmall | None]:
    """PreprocessSpec, InferenceSpec and post-processing (RemoveFar, ReassignSmall or None) from the record of a run.

    Raises: InputError, naming ``path``, if another version wrote the record, or a setting lies outside its range.
    """
    with _settings_expected(record, path):
        values = record.settings
        with told_of(f"{path}: ", "preprocess."):
            preprocess = PreprocessSpec(**_tuples(values["preprocess"]))
        with told_of(f"{path}: ", "inference."):
            inference = InferenceSpec(**_tuples(values["inference"]))
        with told_of(f"{path}: ", "postprocess."):
            return preprocess, inference, _postprocess(values["postprocess"])


@contextmanager
def _settings_expected(record: RunRecord | ExportMetadata, path: str | os.PathLike[str]) -> Iterator[None]:
    """Settings that the block misses in the record, or finds to be something else, are an InputError."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:  # of values that do not go together
        raise InputError(f"{path}: {error} Train again.") from error
    except (IndexError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the settings of kitsseg {__version__}, found others ({error}). "
            f"It was written by kitsseg {record.kitsseg}; use that version."
        ) from error


def _postprocess(values: dict[str, Any] | None) -> RemoveFar | ReassignSmall | None:
    if values is None:
        return None
    # files that were written before they named the class: only one of the two has distances
    kind = values.get("kind", "RemoveFar" if "max_distance_mm" in values else "ReassignSmall")
    return KINDS[kind](**{name: value for name, value in values.items() if name != "kind"})


def _tuples(value: Any) -> Any:
    """Lists that were read from JSON, as tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
