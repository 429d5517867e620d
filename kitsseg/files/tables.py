"""CSV files: one way to write rows and one way to read them, always UTF-8.

Text that a spreadsheet would take for a formula (it begins with = + @ -, a tab or a carriage return) is written with an
apostrophe before it, which is taken away again when it is read. Numbers are written as they are.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path

__all__ = ["csv_path", "read_columns", "read_rows", "write_rows"]

_QUOTED = set(',"\r\n')
_FORMULA = re.compile(r"'*[=+@\-\t\r]")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def csv_path(path: str | os.PathLike[str], content: str) -> Path:
    """The path of a CSV file to be written; ``content`` is a word for the message, such as "scores".

    Raises: InputError for another suffix, or for a folder.
    """
    path = Path(path)
    if path.suffix != ".csv" or path.is_dir():
        raise InputError(f"{path}: expected the name of a .csv file to write the {content} to.")
    return path


def write_rows(
    path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Replace a CSV file by rows, whole or not at all.

    Args:
        path: of the file.
        rows: a value for each column; a value that is missing or None gives an empty cell.
        columns: in order; without it all names of the rows, in the order in which they come.
    """
    rows = list(rows)
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        file.write(_line(columns))
        for row in rows:
            if other := row.keys() - set(columns):
                raise ValueError(f"{path}: expected the columns {', '.join(columns)}, found {min(other)}")
            file.write(_line([_inert(row.get(name)) for name in columns]))


def read_rows(
    path: str | os.PathLike[str] | Traversable,
    kinds: Mapping[str, Callable[[str], Any]],
    others: Callable[[str], Any] | None,
    expected: str,
    advice: str,
    optional: Mapping[str, Callable[[str], Any]] | None = None,
    by_hand: bool = False,
) -> list[dict[str, Any]]:
    """Read a CSV file.

    Args:
        path: of the file.
        kinds: name of a column that must be there -> function that makes a value from the text of a cell, as ``int``.
        others: the same function for all other columns; None leaves the other columns out.
        expected: what the file should be, such as "the scores of kitsseg evaluate", for the message.
        advice: a sentence that tells the user what to do if the file holds something else.
        optional: as ``kinds``, for columns that may be missing.
        by_hand: True for files that people write: the last line may lack its line end, names of columns may have
            capital letters, and spaces around names and cells are left out.

    Returns: a dict for each row; None for an empty cell, unless its kind is ``str``.
    Raises: InputError, naming the file, the line and the column. FileNotFoundError if there is none.
    """

    def wrong(what: object) -> InputError:
        return InputError(f"{path}: expected {expected}, found others ({what}). {advice}")

    source = Path(path) if isinstance(path, str | os.PathLike) else path
    data, known = source.read_bytes(), {**(optional or {}), **kinds}
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            at = text[: text.index("\0")].count("\n") + 1
            raise ValueError(f"line {at} holds a NUL character, as text of another encoding than UTF-8 may")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=by_hand)
        if by_hand and reader.fieldnames:
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames]
        names, lines = reader.fieldnames or (), list(reader)
    except (ValueError, csv.Error) as error:
        raise wrong(error) from error
    if missing := [name for name in kinds if name not in names]:
        raise wrong(_no_column(missing[0], names))
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise wrong(f"two columns {twice[0]}")
    if data and not data.endswith(b"\n") and not by_hand:
        raise wrong("its last line is cut off")
    rows = []
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise wrong(f"line {number} has another number of cells than the first line")
        row: dict[str, Any] = {}
        for name, cell in line.items():
            kind = known.get(name, others)
            if kind is None:
                continue
            if not cell and kind is not str:
                if name in kinds:
                    raise wrong(f"line {number}: {name} is empty")
                row[name] = None
                continue
            try:
                row[name] = kind(_as_written(cell.strip() if by_hand else cell))
            except ValueError as error:
                raise wrong(f"line {number}, {name}: {error}") from error
        rows.append(row)
    return rows


def read_columns(path: str | os.PathLike[str]) -> list[str]:
    """The names of the columns of a CSV file, without reading its rows; none for a file that is missing or no table."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file, strict=True), [])
    except (OSError, ValueError, csv.Error):
        return []


def _no_column(name: str, names: Sequence[str]) -> str:
    """What is told of a table without the column ``name``; ``names`` are those of its first line."""
    for separator, word in _OTHER_SEPARATORS.items():
        if any(separator in other for other in names):
            return f"no column {name}: its cells are separated by {word}, commas were expected"
    alike = [other for other in names if other.strip().lower() == name.lower()]
    return f"no column {name}" + (f", but {alike[0]!r}" if alike else "")


def _line(cells: Sequence[Any]) -> str:
    """A line of the file. csv.writer leaves a lone carriage return without quotes, and cannot read it back."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    if texts == [""]:
        return '""\n'  # an empty line is no row
    quoted = ['"' + text.replace('"', '""') + '"' if _QUOTED & set(text) else text for text in texts]
    return ",".join(quoted) + "\n"


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _as_written(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
