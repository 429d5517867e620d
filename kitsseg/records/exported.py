"""Exported networks: which files they are, and what they say about themselves. Needs no inference engine.

What prediction has to know travels inside the file, as JSON:

    model.tflite   a zip archive behind the FlatBuffer that holds kitsseg.json, the way TensorFlow Lite's own
                   metadata tools attach files: ``unzip -p model.tflite kitsseg.json``
    model.onnx     the entry ``kitsseg`` of ``metadata_props``
    SavedModel     assets.extra/kitsseg.json
"""

import json
import mmap
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.records.run import TrainedNetwork, specs_of

__all__ = ["METADATA", "SUFFIXES", "Exported", "format_of", "read_exported"]

METADATA = "kitsseg.json"
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "saved_model": ""}
METADATA_PROPS = 14  # the field of ONNX' ModelProto


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
    try:
        text = {"litert": _of_litert, "onnx": _of_onnx, "saved_model": _of_saved_model}[kind](path)
        record = json.loads(text)
        shape, softmax = tuple(record["input"]["shape"]), record["output"]["softmax"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise InputError(
            f"{path}: expected the metadata that kitsseg export writes, found none or damaged ones ({error}). "
            "Export the run again."
        ) from error
    preprocess, inference, postprocess = specs_of(record, path)
    return TrainedNetwork(
        record=record,
        source=Exported(path, kind, shape, softmax),
        preprocess=preprocess,
        inference=inference,
        postprocess=postprocess,
    )


def _of_litert(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(METADATA)


def _of_saved_model(path):
    return (path / "assets.extra" / METADATA).read_text()


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
