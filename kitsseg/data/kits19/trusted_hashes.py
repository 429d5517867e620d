"""``hashes.json``: the SHA-256 of each file of a data folder when the file was first trusted.

The imaging of KiTS19 has moved to another host since 2019, so a file that differs from the one of 2019 need not be
wrong. Such a file is trusted on first use: its hash is recorded here, and from then on the file must not change.
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
    """SHA-256 and size of a file when it was first trusted."""

    sha256: str
    bytes: int


def read_hashes(folder: str | os.PathLike[str]) -> dict[str, RecordedHash]:
    """The record of a data folder: path below the folder, with slashes -> RecordedHash; empty if there is no record.

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
    """As ``read_hashes``, under the lock of the record, so that no other process writes it meanwhile."""
    with folder_lock(folder, _LOCK):
        return read_hashes(folder)


def record_hash(
    folder: str | os.PathLike[str], relative_path: str | os.PathLike[str], sha256: str, bytes: int
) -> None:
    """Record one file. The record is whole at any time; threads and processes may record at once.

    Args:
        folder: the data folder.
        relative_path: of the file, below ``folder``. An earlier record of this path is replaced.
        sha256: hexadecimal.
        bytes: size of the file.
    """
    with folder_lock(folder, _LOCK):
        hashes = read_hashes(folder) | {Path(relative_path).as_posix(): RecordedHash(sha256, bytes)}
        write_record(Path(folder) / HASHES_FILE, {name: hashes[name] for name in sorted(hashes)})
