"""SHA-256 of the files of a data folder as they were when they were first trusted: ``hashes.json``.

The imaging of KiTS19 moved to another host since 2019, so a file that differs from the one of 2019 need not be wrong:
it is trusted on first use, written down here, and from then on must stay as it was.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.files.json_records import read_record, write_record
from kitsseg.files.locks import folder_lock

__all__ = ["HASHES_FILE", "RecordedHash", "read_hashes", "read_hashes_alone", "record_hash"]

HASHES_FILE = "hashes.json"
_LOCK = "hashes"


@dataclass(frozen=True)
class RecordedHash:
    """What a file was when it was first trusted."""

    sha256: str
    bytes: int


def read_hashes(folder: str | os.PathLike[str]) -> dict[str, RecordedHash]:
    """What is recorded in a data folder: dict of path below it, with slashes -> RecordedHash; empty without a record.

    Raises: InputError if the record is damaged.
    """
    path = Path(folder) / HASHES_FILE
    expected, advice = (
        "the hashes that kitsseg recorded",
        "Move it away: the files are then checked and recorded anew.",
    )
    try:
        hashes = read_record(path, dict[str, RecordedHash], expected, advice)
    except FileNotFoundError:
        return {}
    for name, found in hashes.items():
        if not re.fullmatch("[0-9a-f]{64}", found.sha256) or found.bytes < 0:
            raise InputError(f"{path}: expected {expected}, found no SHA-256 or no size of {name}. {advice}")
    return hashes


def read_hashes_alone(folder: str | os.PathLike[str]) -> dict[str, RecordedHash]:
    """As ``read_hashes``, while nobody else writes the record; the lock of a process that was killed goes with it."""
    with folder_lock(folder, _LOCK):
        return read_hashes(folder)


def record_hash(
    folder: str | os.PathLike[str], relative_path: str | os.PathLike[str], sha256: str, bytes: int
) -> None:
    """Record one file. The record is whole at any time; threads and processes may record at once.

    Args:
        relative_path: of the file, below ``folder``.
        sha256: hexadecimal. An earlier record of this path is replaced.
        bytes: size of the file.
    """
    with folder_lock(folder, _LOCK):
        hashes = read_hashes(folder) | {Path(relative_path).as_posix(): RecordedHash(sha256, bytes)}
        write_record(Path(folder) / HASHES_FILE, {name: hashes[name] for name in sorted(hashes)})
