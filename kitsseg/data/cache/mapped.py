"""Memory-mapped files of a cache: a file is mapped when it is needed, and a limited number of files at a time.

A process holds a descriptor of every file that it maps, and the number of descriptors is limited (``ulimit -n``, often
1,024). A cache of a thousand cases has two thousand files. This module maps at most half as many files as the limit
allows. The file that was unused for the longest time is unmapped first; to map it again takes some 30 microseconds. An
array that is in use stays valid: its memory is given back when the last reference to the array is gone.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError

__all__ = ["NO_DAMAGE", "TOO_MANY", "MappedFile", "check_open_files", "open_files_limit"]

TOO_MANY = (errno.EMFILE, errno.ENFILE)  # open files, of this process or of the system
NO_DAMAGE = (*TOO_MANY, errno.ENOMEM)  # say nothing about the file that was to be mapped
MOST = 2048  # files that stay mapped, whatever the limit
_lock = threading.RLock()  # dying MappedFiles are forgotten in whatever thread the collector runs
_mapped: OrderedDict[weakref.ref[MappedFile], None] = OrderedDict()  # the one used last at the end


class MappedFile:
    """One file of a cache as an array that is mapped while it is in use.

    Args:
        load: function that maps and checks the file; called once, when the file is first needed.
    """

    def __init__(self, load: Callable[[], np.memmap[Any, Any]]) -> None:
        self._load = load
        self._array: npt.NDArray[Any] | None = None
        self._again: Callable[[], np.memmap[Any, Any]] | None = None
        self._me = weakref.ref(self, _forget)
        hash(self._me)  # computed now and kept: a weak reference to a dead object cannot be hashed any more

    def __reduce__(self) -> tuple[type[MappedFile], tuple[Callable[[], np.memmap[Any, Any]]]]:
        return MappedFile, (self._load,)

    def __call__(self) -> npt.NDArray[Any]:
        """The array, mapped.

        Raises: InputError of ``load``, and where too few files may be open; MemoryError where there is no room for it.
        """
        with _lock:
            if self._array is not None:
                _mapped.move_to_end(self._me)
                return self._array
            array = self._map()
            # np.memmap is slow to index
            self._array = found = array.view(np.ndarray)
            _mapped[self._me] = None
            _unmap(_most())
            return found

    def _map(self) -> np.memmap[Any, Any]:
        if self._again is not None:
            return _tried(self._again)
        array = _tried(self._load)
        path, dtype, offset, shape = Path(str(array.filename)), array.dtype, array.offset, array.shape
        self._again = lambda: np.memmap(path, dtype, "r", offset, shape)
        return array


def _tried(mapping: Callable[[], np.memmap[Any, Any]]) -> np.memmap[Any, Any]:
    """Call ``mapping``. If no descriptor or no memory is left for it, unmap all other files and call it again."""
    try:
        return mapping()
    except OSError as error:
        if error.errno not in NO_DAMAGE:
            raise
    _unmap(0)
    try:
        return mapping()
    except OSError as error:
        check_open_files(error)
        if error.errno == errno.ENOMEM:
            raise MemoryError("a file of the cache cannot be mapped; it is not damaged") from error
        raise


def _unmap(left: int) -> None:
    with _lock:
        while len(_mapped) > left:
            reference, _ = _mapped.popitem(last=False)
            if (file := reference()) is not None:
                file._array = None


def _forget(reference: weakref.ref[MappedFile]) -> None:
    with _lock:
        _mapped.pop(reference, None)


def _most() -> int:
    limit = open_files_limit()
    return MOST if limit is None else max(2, min(MOST, limit // 2))


def open_files_limit() -> int | None:
    """How many files this process may have open; None if there is no limit or the system does not tell it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def check_open_files(error: BaseException) -> None:
    """Raise an error that names the limit of open files if ``error`` came from this limit: no file is damaged then.

    Raises: InputError.
    """
    if isinstance(error, OSError) and error.errno in TOO_MANY:
        limit = open_files_limit()
        allowed = f"the {limit} that this process may open" if limit else "what the system allows"
        where = f"{error.filename}: " if error.filename else ""
        raise InputError(
            f"{where}cannot be opened, since {allowed} are in use; the file is not damaged. Raise the limit, as with "
            "ulimit -n 1024, and start again."
        ) from error
