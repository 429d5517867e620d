"""JSON files that are read and written by one definition each: a dataclass, with a version number.

A definition says by its types what a file holds. Wrong types, missing fields, NaN, numbers out of range, nesting
without end and damaged text all become one InputError, which names the file and the field. Editors of Windows may
begin a file with a byte order mark; the mark is left out.
"""

import codecs
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.paths import absolute_paths, check_utf8

__all__ = [
    "as_builtins",
    "as_json",
    "converted",
    "read_object",
    "read_record",
    "read_with_absolute_paths",
    "record_of",
    "write_record",
]

Record = TypeVar("Record")


class _Version(msgspec.Struct):
    version: int = 1


def read_record(path: str | os.PathLike[str], kind: type[Record], expected: str, advice: str) -> Record:
    """Read a record.

    Args:
        path: of the file.
        kind: the dataclass that defines the record. The default of its field ``version`` is the newest version that
            can be read.
        expected: what the file should be, such as "the record of kitsseg predict", for the message.
        advice: a sentence that tells the user what to do if the file holds something else.

    Raises: InputError, naming file and field. FileNotFoundError if there is no such file.
    """
    return record_of(Path(path).read_bytes(), kind, path, expected, advice)


def read_with_absolute_paths(
    path: str | os.PathLike[str], kind: type[Record], expected: str, advice: str
) -> Record:
    """Read a record as ``read_record`` does, and make the paths in it absolute (``files.paths.absolute_paths``).

    Args: as ``read_record``. Raises: InputError as ``read_record``, and for a path that is none.
    """
    record = read_record(path, kind, expected, advice)
    try:
        return converted(absolute_paths(as_builtins(record), Path(path).parent), kind)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: expected {expected}, found something else ({error}). {advice}") from error


def record_of(
    data: bytes, kind: type[Record], path: str | os.PathLike[str], expected: str, advice: str
) -> Record:
    """Read a record as ``read_record`` does, from ``data``, which is the content of the file ``path`` or a part of it.

    Args: as ``read_record``. Raises: InputError, naming file and field.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        newest = getattr(kind, "version", 1)
        if (found := msgspec.json.decode(data, type=_Version).version) > newest:
            raise InputError(
                f"{path}: expected {expected}, version {newest}, found version {found}: a newer kitsseg wrote it. "
                "Use that version."
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected {expected}, found something else ({error}). {advice}") from error


def read_object(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file that has no definition of its own.

    Raises: ValueError if the file holds anything but one JSON object: other text, nesting without end, NaN, numbers
        out of range, a list. OSError if it cannot be read.
    """
    try:
        data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
        found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    return found


def converted(value: object, kind: type[Record]) -> Record:
    """A record of this kind from the builtin values of ``as_builtins``.

    Raises: TypeError, naming the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise TypeError(str(error)) from error


def as_builtins(record: object) -> Any:
    """The record as dicts, lists, text and numbers. A field that is None by default is left out while it is None.

    Raises: InputError for text that is not UTF-8, such as a path in an old encoding.
    """
    text = json.dumps(_shown(record), allow_nan=False, ensure_ascii=False)
    try:
        return json.loads(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        quotes = text.rfind('"', 0, error.start), text.find('"', error.end)
        name = text[quotes[0] + 1 : quotes[1]]
        check_utf8(name, name, "Rename that file or folder.")
        raise


def as_json(record: object, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> str:
    """The text of the file: indented, ASCII, in the order of the fields.

    Args:
        change: a function that is applied to the values before they are written, such as one that makes paths relative.
    """
    values = as_builtins(record)
    return json.dumps(change(values) if change else values, indent=1, allow_nan=False) + "\n"


def write_record(
    path: str | os.PathLike[str],
    record: object,
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Replace a file by a record, whole or not at all. Args: as ``as_json``."""
    text = as_json(record, change)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _shown(value: Any) -> Any:
    """Dataclasses as dicts, without the fields that are None by default."""
    if hasattr(value, "__dataclass_fields__"):
        fields = value.__dataclass_fields__.items()
        return {
            name: _shown(item)
            for name, field in fields
            if (item := getattr(value, name)) is not None or field.default is not None
        }
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value
