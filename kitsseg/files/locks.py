"""One process, or one thread, at a time in a folder.

The lock is the operating system's, on an empty hidden file: it ends with the process that holds it, however that
ends, so that a killed one never has to be cleared up after.
"""

import os
from contextlib import contextmanager
from pathlib import Path

from kitsseg.errors import InputError

__all__ = ["folder_lock"]

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
