"""What Linux says of the memory of this process."""

import contextlib
from pathlib import Path

__all__ = ["status_mib"]


def status_mib(field):
    """A field of /proc/self/status in MiB, such as VmHWM, the most it has had; None where that is not known.

    Of this program, without that of the process it was forked from.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None
