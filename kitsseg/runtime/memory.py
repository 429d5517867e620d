"""Memory: given back to the system, and errors that say that there is too little of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re

from kitsseg.errors import InputError, one_line

__all__ = ["give_back_memory", "too_little_memory"]

# Beside Python's MemoryError: TensorFlow says OOM or, where a constant of a graph has no room, that it cannot parse the
# constant; JAX RESOURCE_EXHAUSTED; the libraries of a GPU have errors of their own; an engine in C++ bad_alloc.
_SAID = re.compile(
    r"OOM when allocating|RESOURCE_EXHAUSTED|out of memory|MemoryError|bad[_ ]alloc|failed to allocate memory"
    r"|unable to allocate|cannot allocate memory|OUT_OF_MEMORY|STATUS_ALLOC_FAILED|Dst tensor is not initialized"
    r"|Cannot parse tensor from proto",
    re.IGNORECASE,
)
_WITHOUT_A_NUMBER = ("cannot parse tensor", "dst tensor")  # words that help nobody


def too_little_memory(error: BaseException) -> str | None:
    """What an error says about memory that does not suffice, in a few words; None if it is about something else.

    Args:
        error: of Python, NumPy, TensorFlow, JAX, an engine or the system. An InputError has words of its own: None.
    """
    if isinstance(error, InputError):
        return None
    if isinstance(error, MemoryError):
        return one_line(error)
    if isinstance(error, OSError):
        return one_line(error) if error.errno == errno.ENOMEM else None
    found = _SAID.search(str(error))
    if found is None:
        return "no room for a tensor" if type(error).__name__ == "ResourceExhaustedError" else None
    if found[0].lower().startswith(_WITHOUT_A_NUMBER):
        return "no room for a tensor"
    line = str(error)[found.start() :].splitlines()[0]
    return one_line(MemoryError(line.split(" on /job")[0].rstrip(" .")))


def give_back_memory() -> None:
    """Give memory that the process has freed back to the system.

    The C library of Linux keeps freed pieces of up to 32 MiB for later use, but a scan needs one piece of hundreds of
    MiB, which does not fit into them: after a network of 50 MB was read, 110 MiB stay unused. Other systems need
    nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
