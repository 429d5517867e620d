"""Paths: how a user gave them, how JSON files of runs, predictions and scores name them, and which may be believed.

A record names other files relative to its own folder, so a folder that holds all of them can be moved, mounted
elsewhere or sent to somebody else as a whole, and no record tells the name of a user or of a machine. A path on another
drive of Windows has no relative form and stays absolute. Links are kept as links: the file in a store that a link leads
to has another name, and may be another one tomorrow.

A record may come from somebody else. Whatever it names is checked here before anything is done with it: ``file_beside``
for a file that is written or removed, ``absolute_paths`` for one that is read.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError

__all__ = [
    "absolute_paths",
    "as_given",
    "check_regular",
    "check_utf8",
    "file_beside",
    "file_id",
    "relative_path",
    "relative_paths",
]

OF_A_CASE = ("prediction", "truth", "image")


def as_given(path: str | os.PathLike[str]) -> Path:
    """A path made absolute, without ``.`` and ``..``, in which links stay what they are.

    In a folder that was entered through a link, relative paths begin with that link, as ``pwd`` shows it.
    """
    path = Path(path)
    if not path.is_absolute():
        path = _working_folder() / path
    if ".." in path.parts:  # where it leads to depends on where links lead to
        last = len(path.parts) - path.parts[::-1].index("..")
        path = Path(os.path.realpath(Path(*path.parts[:last])), *path.parts[last:])
    return path


def file_id(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells a file from all others, whatever its paths and links are called; None if it is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_utf8(name: str, where: object, advice: str) -> None:
    """Check that a name can be written to the files of kitsseg, which are all UTF-8.

    Args:
        name: of a file, folder or case.
        where: what has the name, for the message.
        advice: what the user can do, a sentence.

    Raises: InputError for bytes that are not UTF-8, as in names from archives in an old encoding.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        found = name.encode("utf-8", "surrogateescape")
        raise InputError(
            f"{where}: expected a name in UTF-8, found {found!r}, which may mean {found.decode('latin-1')}. {advice}"
        ) from error


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path is no pipe, socket or device, before it is opened: opening a pipe may wait for ever.

    A file, a folder, and a path where nothing is pass.

    Raises: InputError.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise InputError(f"{path}: expected a file, found {kind}. Write its contents to a file first.")


def _working_folder() -> Path:
    here, shown = Path.cwd(), os.environ.get("PWD", "")
    try:
        if Path(shown).is_absolute() and ".." not in Path(shown).parts and here.samefile(shown):
            return Path(shown)
    except (OSError, ValueError):
        pass  # an old value, of a folder that is gone
    return here


def file_beside(record: Path, name: object) -> Path:
    """The file ``name`` in the folder of a record that names it.

    Raises: ValueError if it is no name of a file in this very folder.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(sign in name for sign in ("/", "\\", "\0"))
        or os.path.splitdrive(name)[0]
    ):
        raise ValueError(f"expected the name of a file in its own folder, found {name!r:.80}")
    return Path(record).parent / name


def relative_path(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """``path`` as a file in ``folder`` is to name it, with ``/`` on every system."""
    return _Relative(folder)(path)


class _Relative:
    """``relative_path`` for many paths and one folder. It asks the system once where a folder leads to."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()
        self.above = {self.folder, *self.folder.parents}
        self.real: dict[Path, Path] = {}

    def __call__(self, path: str | os.PathLike[str]) -> str:
        path = as_given(path)
        try:
            for ancestor in (path, *path.parents):
                if ancestor not in self.real:
                    self.real[ancestor] = ancestor.resolve()
                if (
                    self.real[ancestor] in self.above
                ):  # the way up from the folder meets the way that was given
                    up = os.path.relpath(self.real[ancestor], self.folder)
                    return Path(up, path.relative_to(ancestor)).as_posix()
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:
            return str(path)


def relative_paths(record: dict[str, Any], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """A record of ``kitsseg predict`` or ``evaluate`` as it is written to ``folder``; the argument is not changed."""
    return _changed(record, _Relative(folder))


def absolute_paths(record: dict[str, Any], folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of ``relative_paths`` with absolute paths again, after it was read from ``folder``.

    Raises: ValueError if the value of a path is not text.
    """
    folder = Path(folder).resolve()

    def absolute(path: object) -> str:
        if not isinstance(path, str) or "\0" in path:
            raise ValueError(f"expected a path, found {path!r:.80}")
        return os.path.normpath(folder / path)

    return _changed(record, absolute)


def _changed(record: dict[str, Any], change: Callable[[Any], str]) -> dict[str, Any]:
    record = {**record}
    if record.get("run"):
        record["run"] = change(record["run"])
    if record.get("also"):
        record["also"] = [change(path) for path in record["also"]]
    for part in ("cases", "failed"):
        if record.get(part):
            record[part] = {
                case: entry | {key: change(entry[key]) for key in OF_A_CASE if entry.get(key)}
                for case, entry in record[part].items()
            }
    return record
