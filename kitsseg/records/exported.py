"""Exported networks: their files and the metadata in these files. This module needs no inference engine.

The file of a network also holds the metadata that prediction needs, as JSON:

    model.tflite   a zip archive behind the FlatBuffer that holds kitsseg.json, the way TensorFlow Lite's own
                   metadata tools attach files: ``unzip -p model.tflite kitsseg.json``
    model.onnx     the entry ``kitsseg`` of ``metadata_props``, which is the last field of the file
    SavedModel     assets.extra/kitsseg.json

The JSON holds a checksum of itself and a checksum of everything else in the file. Both are compared before an engine
opens the file, because some engines end the process at a damaged file. So no engine is asked for the metadata:
onnxruntime's ``get_modelmeta``, for example, loads the whole network first.
"""

import hashlib
import json
import math
import mmap
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.json_records import as_builtins, record_of

__all__ = [
    "METADATA",
    "SUFFIXES",
    "ExportMetadata",
    "Exported",
    "ExportedInput",
    "ExportedOutput",
    "ExportedSplit",
    "fits",
    "format_of",
    "onnx_field",
    "read_metadata",
    "sealed",
    "sha256_of_folder",
]

METADATA = "kitsseg.json"
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "saved_model": ""}
METADATA_PROPS = 14  # the field of ONNX' ModelProto
_ONNX_ENTRY = (
    b"\n\x07kitsseg\x12"  # how an entry of it with this key begins; then come length and text of its value
)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    ValueError,
    EOFError,
)  # what becomes of a zip file, or of JSON
MOST_VOXELS = 1 << 30  # of an image; KiTS19's largest scan has 0.28 of it
LONGEST = 1 << 20  # bytes of the metadata; they have about 5,000


@dataclass(frozen=True, kw_only=True)
class ExportedSplit:
    """Name and hash of the run's split, without the names of the cases: they may be patients."""

    name: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class ExportedInput:
    """The input of the network: one image (1, rows, columns, channels), in 3D (1, slices, rows, columns, channels).

    Attributes:
        shape: of the image; None for an axis of any size.
        example: the shape of an image that the network has computed; None where ``shape`` has no None.
    """

    shape: tuple[int | None, ...]
    example: tuple[int, ...] | None = None
    dtype: str = "float32"
    content: str = "as normalize() of settings.preprocess"


@dataclass(frozen=True, kw_only=True)
class ExportedOutput:
    """The output of the network: probabilities if ``softmax`` is True, else logits."""

    softmax: bool
    content: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """The metadata of an exported network.

    Attributes:
        kitsseg: the version that wrote it.
        recipe, paper, reported, reported_unrefined, given, phantom, versions: from the record of the run.
        settings: preprocess, postprocess, model and inference of the recipe with which the network is used.
        labels: label -> its meaning.
        weights_sha256: SHA-256 of the run's ``model.keras`` from which the file was made.
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
    weights_sha256: str | None = None
    version: int = 1


@dataclass(frozen=True)
class Exported:
    """The file of an exported network, not yet loaded.

    Attributes:
        format: "litert", "onnx" or "saved_model".
        input_shape: (1, rows, columns, channels), or with slices in front of the rows; None for an axis of any size.
        softmax: whether its output are probabilities; else logits.
        example: shape of an image that the network can compute.
    """

    path: Path
    format: str
    input_shape: tuple[int | None, ...]
    softmax: bool
    example: tuple[int, ...]


def fits(shape: Sequence[int | None], size: Sequence[int]) -> bool:
    """Whether an array of this size fits a shape, in which None is an axis of any size."""
    return len(size) == len(shape) and all(n in (None, k) for n, k in zip(shape, size, strict=True))


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format of an exported network, by its name and, for a folder, its content; None for anything else."""
    path = Path(path)
    if path.suffix in (".tflite", ".onnx"):
        return "litert" if path.suffix == ".tflite" else "onnx"
    return "saved_model" if (path / "saved_model.pb").is_file() else None


def read_metadata(path: str | os.PathLike[str]) -> tuple[ExportMetadata, Exported]:
    """Read the metadata that ``kitsseg export`` wrote into the file of a network, and check the file's checksums.

    Returns: (metadata, Exported).
    Raises: InputError if the file is missing, damaged, or was not written by ``kitsseg export``.
    """
    path, kind = Path(path), format_of(path)
    if kind is None or not path.exists():
        raise InputError(
            f"{path}: expected a .tflite or .onnx file or a SavedModel, found none. Check the path."
        )
    expected, advice = "the metadata that kitsseg export writes", "Export the run again."
    try:
        data, content = {"litert": _of_litert, "onnx": _of_onnx, "saved_model": _of_saved_model}[kind](path)
        _check_seal(data, content)
        metadata = record_of(data, ExportMetadata, path, expected, advice)
        shape, example = _checked(metadata.input)
    except InputError:
        raise
    except (*_DAMAGE, KeyError, FileNotFoundError) as error:
        raise InputError(
            f"{path}: expected {expected}, found none or damaged ones ({error}). {advice}"
        ) from error
    return metadata, Exported(path, kind, shape, metadata.output.softmax, example)


def sealed(metadata: ExportMetadata | dict[str, Any], content_sha256: str) -> str:
    """The JSON text that goes into a file, with checksums of itself and of everything else in the file.

    Some inference engines end the process at a damaged file, so the checksums are compared before an engine opens it.
    """
    record = as_builtins(metadata) | {"content_sha256": content_sha256}
    return json.dumps(record | {"sha256": _digest(record)}, indent=1)


def sha256_of_folder(path: Path) -> str:
    """SHA-256 of names and contents of all files of a SavedModel, except for the metadata and hidden files."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [
        f"{file.relative_to(path).as_posix()} {sha256_of(file)}"
        for file in files
        if file.name != METADATA and not file.name.startswith(".")
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def onnx_field(entry: bytes) -> bytes:
    """An entry of ``metadata_props``, ready to be appended to a serialized ModelProto."""
    return bytes([METADATA_PROPS << 3 | 2]) + _varint(len(entry)) + entry


def _varint(value: int) -> bytes:
    """A length as protocol buffers hold it: seven bits in each byte, the lowest first, all but the last marked."""
    marked = b""
    while value >= 128:
        marked, value = marked + bytes([value & 127 | 128]), value >> 7
    return marked + bytes([value])


def _check_seal(data: bytes, content_sha256: str) -> None:
    record = json.loads(data)
    if (
        not isinstance(record, dict)
        or record.get("content_sha256") != content_sha256
        or record.pop("sha256", None) != _digest(record)
    ):
        raise ValueError("a checksum is wrong: something has changed since it was written")


def _checked(image: ExportedInput) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """(shape, example) of the input; both are (1, rows, columns, channels), or with slices in front of the rows."""
    shape = image.shape
    example = image.example or tuple(n for n in shape if n is not None)
    if (
        not fits(shape, example)
        or len(shape) not in (4, 5)
        or min(example) < 1
        or math.prod(example) > MOST_VOXELS
    ):
        raise ValueError(f"an input of shape {shape}")
    return shape, example


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _of_litert(path: Path) -> tuple[bytes, str]:
    """(metadata, SHA-256 of what is in front of the archive that holds them)."""
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            entry = archive.getinfo(METADATA)
            _check_length(entry.file_size)
            text = archive.read(METADATA)
        file.seek(0)
        return text, hashlib.sha256(file.read(entry.header_offset)).hexdigest()


def _of_saved_model(path: Path) -> tuple[bytes, str]:
    file = path / "assets.extra" / METADATA
    _check_length(file.stat().st_size)
    return file.read_bytes(), sha256_of_folder(path)


def _of_onnx(path: Path) -> tuple[bytes, str]:
    """(metadata, SHA-256 of what is in front of them); they are the last field of the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.rfind(_ONNX_ENTRY)  # never part of the JSON, which holds no control characters
        if at < 0:
            raise KeyError("kitsseg")
        _check_length(len(data) - at)
        entry = data[at:]
        field, value = onnx_field(entry), entry[len(_ONNX_ENTRY) :]
        texts = [value[n:] for n in range(1, 5) if value[:n] == _varint(len(value) - n)]
        if not texts or data[-len(field) :] != field:
            raise ValueError("a length is wrong: something has changed since it was written")
        with memoryview(data) as view, view[: -len(field)] as content:
            return texts[0], hashlib.sha256(content).hexdigest()


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise ValueError(f"metadata of {length:,} bytes, more than {LONGEST:,}")
