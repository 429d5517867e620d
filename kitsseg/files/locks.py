"""Locks of a folder: one process or thread at a time, and clearing up after processes that were killed.

The locks are the operating system's, on hidden files: a lock ends with the process that holds it, however that
process ends and on whichever machine it ran, so that nobody has to clear up after a killed process.

``folder_lock`` lets one process in at a time. ``at_work`` is a shared lock: every process that writes a case of a
cache holds it. ``remove_unfinished`` needs the same lock alone, removes what killed processes left half made, and so
never removes what another process is at work on. Where there are no such locks (Windows, some network file systems)
nothing is removed.
"""

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.files.atomic import unfinished_folders

__all__ = ["at_work", "folder_lock", "remove_unfinished"]

if os.name == "nt":
    import msvcrt

    def _lock(file, wait):
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # waits ten seconds

    _TAKEN = PermissionError
else:
    import fcntl

    def _lock(file, wait):
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    _TAKEN = BlockingIOError


@contextmanager
def folder_lock(folder, name, wait=True, doing="working"):
    """Hold the lock ``name`` of a folder for a block; the folder is made if need be.

    Args:
        wait: wait for whoever holds it; otherwise that is an error.
        doing: what the holder is then said to be doing there.

    Raises: InputError if it is taken; OSError naming the file where the file system has no locks.
    """
    path = Path(folder) / f".{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:  # closing it gives the lock back
        try:
            _lock(file, wait)
        except _TAKEN as error:
            raise InputError(
                f"{folder}: another process is {doing} here. Wait until it has ended, or stop it first."
            ) from error
        except OSError as error:
            error.filename = str(path)
            raise
        yield


try:
    import fcntl
except ImportError:
    fcntl = None


@contextmanager
def at_work(file):
    """For a block, say by a lock of ``file`` that folders beside it are being written.

    It waits only for ``remove_unfinished``.
    """
    held = _open_locked(file, "rb", "LOCK_SH")
    try:
        yield
    finally:
        if held is not None:
            held.close()


def remove_unfinished(file):
    """Remove the unfinished folders beside ``file``, unless anybody is at work there; returns their paths."""
    held = _open_locked(file, "r+b", "LOCK_EX", "LOCK_NB")
    if held is None:
        return []
    with held:
        left = unfinished_folders(file.parent)
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed is no case either
        return left


def _open_locked(path, mode, *flags):
    """The opened file, its lock held until it is closed; None if that cannot be."""
    if fcntl is None:
        return None
    with suppress(OSError):
        file = path.open(mode)
        try:
            fcntl.flock(file, sum(getattr(fcntl, flag) for flag in flags))
        except OSError:
            file.close()
            raise
        return file
    return None
