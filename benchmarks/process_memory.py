"""What Linux says of the memory of this process."""

import contextlib
from pathlib import Path

__all__ = ["status_mib"]


def status_mib(field):
    """A field of /proc/self/status in MiB, such as VmHWM, the peak of memory; None on a system without this file.

    The figure is that of this program alone, without the memory of the process that this process was forked from.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None
