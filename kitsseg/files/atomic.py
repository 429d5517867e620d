"""Files and folders that appear whole or not at all, and how the remains of killed processes are removed.

A file that is being written has a hidden name beside its final name, ``.NAME-kitsseg-0123abcd.SUFFIX``, and its writer
holds a shared lock of the folder. When a process is killed, its hidden file stays, but the operating system ends its
lock. A process that gets the folder's lock exclusively therefore knows that nobody writes in the folder, and can
remove the hidden files. Every writer tries this before it writes, so that no command can forget it. Nothing is removed
where folders have no locks (Windows, some network file systems).
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

__all__ = ["atomic_folder", "atomic_path", "remove_unfinished"]

_UNFINISHED = re.compile(r"\..*-kitsseg-[0-9a-f]{8}(\..*)?", re.DOTALL)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` if the block ends well, and vanishes if not."""
    path = Path(path)
    suffix = "".join(path.suffixes[-2:])  # writers look at it
    with _errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writing_in(path.parent):
            temporary = path.parent / f"{_hidden(path)}{secrets.token_hex(4)}{suffix}"
            try:
                yield temporary
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As ``atomic_path``, for a folder: ``path`` must not exist yet, or be an empty folder."""
    path = Path(path)
    with _errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writing_in(path.parent):
            temporary = path.parent / f"{_hidden(path)}{secrets.token_hex(4)}"
            try:
                temporary.mkdir()  # inside: an interruption from here on finds the way out below
                yield temporary
                temporary.rename(path)
            finally:
                if temporary.exists():
                    shutil.rmtree(temporary)


def remove_unfinished(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove unfinished files of killed processes from a folder, unless a process writes there; returns their paths."""
    with _opened(Path(folder)) as descriptor:
        return _removed(Path(folder), descriptor)


@contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    """Remove unfinished files of killed processes from a folder, then hold the folder's shared lock for a block."""
    with _opened(folder) as descriptor:
        _removed(folder, descriptor)
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits only for somebody who removes
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of a folder for locking, closed at the end; None where a folder cannot be opened."""
    descriptor = None
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _removed(folder: Path, descriptor: int | None) -> list[Path]:
    """Remove the unfinished files of a folder if the folder's lock can be held exclusively."""
    if descriptor is None:
        return []
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return []
    with os.scandir(folder) as entries:
        left = sorted(Path(entry.path) for entry in entries if _UNFINISHED.fullmatch(entry.name))
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # what cannot be removed is never taken for whole either
        else:
            with suppress(OSError):
                path.unlink()
    return left


def _hidden(path: Path) -> str:
    """The beginning of the name of an unfinished file or folder. No case has a name that begins with a dot."""
    return f".{path.name.split('.')[0][:60]}-kitsseg-"  # a name may be as long as file systems allow


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Make errors in the block name ``path``. Without this an error of a write names no file or the temporary file."""
    try:
        yield
    except OSError as error:
        # an error without a number says all in its text, which a name of a file would hide
        if error.errno is not None and (error.filename is None or _hidden(path) in str(error.filename)):
            error.filename = str(path)
        raise
