"""What killed processes left half made in a cache is removed, and never what another one is at work on.

Whoever writes a case holds a shared lock of the file that every cache has; who clears up needs it alone. The lock is
the operating system's and ends with the process that holds it, however that ends and on whichever machine it ran.
Where there are no such locks (Windows, some network file systems) nothing is removed.
"""

import shutil
from contextlib import contextmanager, suppress

from kitsseg.files.atomic import unfinished_folders

try:
    import fcntl
except ImportError:
    fcntl = None

__all__ = ["at_work", "clear_leftovers"]


@contextmanager
def at_work(file):
    """For a block, say by a lock of ``file`` that folders beside it are being written.

    It waits only for ``clear_leftovers``.
    """
    held = _open_locked(file, "rb", "LOCK_SH")
    try:
        yield
    finally:
        if held is not None:
            held.close()


def clear_leftovers(file):
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
