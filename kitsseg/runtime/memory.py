"""Memory that is free, given back to the system."""

import contextlib
import ctypes

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Make the process as small as what it holds.

    The C library of Linux keeps what was freed in pieces of up to 32 MiB for later, but a scan is one piece of
    hundreds that does not fit there: reading a network of 50 MB leaves 110 MiB behind. Elsewhere nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
