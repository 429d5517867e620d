"""Exported networks: which files they are, and what they say about themselves. Needs no inference engine.

What prediction has to know travels inside the file, as JSON:

    model.tflite   a zip archive behind the FlatBuffer that holds kitsseg.json, the way TensorFlow Lite's own
                   metadata tools attach files: ``unzip -p model.tflite kitsseg.json``
    model.onnx     the entry ``kitsseg`` of ``metadata_props``
    SavedModel     assets.extra/kitsseg.json
"""

import mmap
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.json_records import record_of
from kitsseg.records.run import TrainedNetwork, specs_of

__all__ = [
    "METADATA",
    "SUFFIXES",
    "ExportMetadata",
    "Exported",
    "ExportedInput",
    "ExportedOutput",
    "ExportedSplit",
    "format_of",
    "read_exported",
]

METADATA = "kitsseg.json"
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "saved_model": ""}
METADATA_PROPS = 14  # the field of ONNX' ModelProto


@dataclass(frozen=True, kw_only=True)
class ExportedSplit:
    """Name and hash of the run's split, without the names of the cases: they may be patients."""

    name: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class ExportedInput:
    """What the network takes: one image of this shape, (1, rows, columns, channels) or with slices before the rows."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    content: str = "as normalize() of settings.preprocess"


@dataclass(frozen=True, kw_only=True)
class ExportedOutput:
    """What the network gives: probabilities with ``softmax``, else logits."""

    softmax: bool
    content: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """What an exported network says about itself.

    Attributes:
        kitsseg: the version that wrote it.
        recipe, paper, reported, reported_unrefined, given, phantom, versions: of the run.
        settings: preprocess, postprocess, model and inference of the recipe, as the network is to be used.
        labels: label -> what it means.
    """

    kitsseg: str
    notice: str | None = None
    recipe: str | None = None
    paper: str | None = None
    reported: dict[str, Any] | None = None
    reported_unrefined: dict[str, Any] | None = None
    given: dict[str, Any] | None = None
    phantom: bool | None = None
    versions: dict[str, str] | None = None
    split: ExportedSplit
    settings: dict[str, Any]
    labels: dict[str, str] | None = None
    input: ExportedInput
    output: ExportedOutput
    precision: str
    version: int = 1


@dataclass(frozen=True)
class Exported:
    """The file of an exported network, not yet loaded.

    Attributes:
        format: "litert", "onnx" or "saved_model".
        input_shape: (1, rows, columns, channels), or with slices in front of the rows; fixed.
        softmax: whether its output are probabilities; else logits.
    """

    path: Path
    format: str
    input_shape: tuple[int, ...]
    softmax: bool


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format of an exported network, by its name and, for a folder, its content; None for anything else."""
    path = Path(path)
    if path.suffix in (".tflite", ".onnx"):
        return "litert" if path.suffix == ".tflite" else "onnx"
    return "saved_model" if (path / "saved_model.pb").is_file() else None


def read_exported(path: str | os.PathLike[str]) -> TrainedNetwork:
    """Read what ``kitsseg export`` wrote about a network; its ``source`` is an Exported.

    Raises: InputError if the file is missing, damaged, or was not written by ``kitsseg export``.
    """
    path, kind = Path(path), format_of(path)
    if kind is None or not path.exists():
        raise InputError(
            f"{path}: expected a .tflite or .onnx file or a SavedModel, found none. Check the path."
        )
    expected, advice = "the metadata that kitsseg export writes", "Export the run again."
    try:
        data = {"litert": _of_litert, "onnx": _of_onnx, "saved_model": _of_saved_model}[kind](path)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise InputError(
            f"{path}: expected {expected}, found none or damaged ones ({error}). {advice}"
        ) from error
    metadata = record_of(data, ExportMetadata, path, expected, advice)
    preprocess, inference, postprocess = specs_of(metadata, path)
    return TrainedNetwork(
        record=metadata,
        source=Exported(path, kind, metadata.input.shape, metadata.output.softmax),
        preprocess=preprocess,
        inference=inference,
        postprocess=postprocess,
    )


def _of_litert(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(METADATA)


def _of_saved_model(path):
    return (path / "assets.extra" / METADATA).read_bytes()


def _of_onnx(path):
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, entry in _fields(data):
            if number == METADATA_PROPS:
                pair = dict(_fields(entry))  # 1: key, 2: value
                if pair.get(1) == b"kitsseg":
                    return pair[2]
    raise KeyError("kitsseg")


def _fields(message):
    """Yield (number, bytes) of the length-delimited fields of a protocol buffer; the others are stepped over."""
    position = 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            if position >= len(message):
                raise ValueError("the file ends too early")
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key = varint()
        if key & 7 == 0:
            varint()
        elif key & 7 == 2:
            length = varint()
            if position + length > len(message):
                raise ValueError("the file ends too early")
            if length < 1 << 20 or key >> 3 == METADATA_PROPS:  # not the graph with its weights
                yield key >> 3, bytes(message[position : position + length])
            position += length
        elif key & 7 in (1, 5):
            position += 8 if key & 7 == 1 else 4
        else:
            raise ValueError("not a protocol buffer")
