"""Locks of a folder: one process or thread at a time.

A lock is the operating system's lock of a hidden file, in which the process that holds the lock is named. It ends when
that process ends, even if the process is killed, so that nobody has to clear up after a killed process. The hidden
file is removed with the lock; the file of a killed process stays until the next process takes the lock.

Some network file systems have no locks. There the work goes on without a lock, after a warning.
"""

import os
import platform
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TextIO

from kitsseg.errors import InputError

__all__ = ["claim", "create_claimed", "folder_lock"]

if sys.platform == "win32":  # as a type checker reads it
    import msvcrt

    def _lock(file: TextIO, wait: bool) -> None:
        file.seek(1 << 20)  # behind what others read: Windows lets nobody read what is locked
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # waits ten seconds

    _TAKEN = PermissionError
else:
    import fcntl

    def _lock(file: TextIO, wait: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    _TAKEN = BlockingIOError

_in_this_process: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_warned: set[str] = set()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def claim(file: BinaryIO) -> bool | None:
    """Take the lock of an opened file, for as long as it stays open.

    Returns: True if the lock was taken; False if another process or thread has it; None if the system has no locks of
        files that others may still read.
    """
    if os.name == "nt":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def create_claimed(new_path: Callable[[], Path]) -> tuple[Path, BinaryIO]:
    """Create a file and take its lock, where others remove files that nobody has the lock of.

    Between the two steps another process may take the file for one of a killed process. Then a new one is made.

    Args:
        new_path: makes a new path at each call.

    Returns: (path, the opened file); without the lock where the system has no locks.
    """
    while True:
        path = new_path()
        file = path.open("xb")
        taken = claim(file)
        if taken is None or (taken and _is_at(file, path)):
            return path, file
        file.close()


@contextmanager
def folder_lock(
    folder: str | os.PathLike[str],
    name: str,
    wait: bool = True,
    doing: str = "working",
    say: Callable[[str], object] = _warn,
) -> Iterator[None]:
    """Hold the lock ``name`` of a folder for a block.

    Args:
        folder: is made if it does not exist; a folder that was made is removed at the end if it is still empty.
        name: of the lock. The hidden file is ``.NAME.lock``.
        wait: True waits until the lock is free; False raises an error if another process holds it.
        doing: what this process does in the folder, such as "training", for the error that another process gets.
        say: called with a warning, once for each folder, if the file system has no locks.

    Raises: InputError, naming the process that holds the lock, if ``wait`` is False and the lock is taken;
        InputError if ``folder`` is a file.
    """
    folder = Path(folder)
    made = not folder.exists()
    if not made and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file. Choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.lock"
    inside = _in_this_process[os.path.realpath(path)]
    if not inside.acquire(blocking=wait):
        raise _taken(folder, path, doing)
    try:
        file = _locked(folder, path, wait, doing, say)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M}")
            file.flush()
            yield
        finally:
            if (
                os.name != "nt"
            ):  # Windows removes only closed files, and a closed one may belong to the next process
                path.unlink(missing_ok=True)
            file.close()  # this gives the lock back
    finally:
        inside.release()
        if made:
            with suppress(OSError):
                folder.rmdir()  # nothing came of it


def _locked(folder: Path, path: Path, wait: bool, doing: str, say: Callable[[str], object]) -> TextIO:
    """The opened file, its lock held."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file, wait)
            if os.name == "nt" or _is_at(file, path):
                return file
        except _TAKEN as error:
            file.close()
            raise _taken(folder, path, doing) from error
        except OSError as error:
            if str(folder) not in _warned:
                _warned.add(str(folder))
                say(
                    f"warning: {folder}: this file system has no locks ({error.strerror}). Going on without: do not "
                    "call two commands at once that write there."
                )
            return file
        except BaseException:
            file.close()
            raise
        file.close()  # the process that held the lock before has removed this file: open the new one


def _is_at(file: TextIO | BinaryIO, path: Path) -> bool:
    """Whether an opened file is still the one of that name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(file.fileno())
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _taken(folder: Path, path: Path, doing: str) -> InputError:
    who = ""
    with suppress(OSError, ValueError):
        who = path.read_text(encoding="utf-8")[:200].strip()
    return InputError(
        f"{folder}: another process is {doing} here{f' ({who})' if who else ''}. Wait until it has ended, or stop it "
        "first."
    )
