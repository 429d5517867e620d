"""SHA-256 of the files of a data folder as they were when they were first trusted: ``hashes.json``.

The imaging of KiTS19 moved to another host since 2019, so a file that differs from the one of 2019 need not be wrong:
it is trusted on first use, written down here, and from then on must stay as it was.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.locks import folder_lock

__all__ = ["HASHES_FILE", "RecordedHash", "read_hashes", "record_hash"]

HASHES_FILE = "hashes.json"
_LOCK = "hashes"


@dataclass(frozen=True)
class RecordedHash:
    """What a file was when it was first trusted."""

    sha256: str
    bytes: int


def read_hashes(folder):
    """What is recorded in a data folder: dict of path below it, with slashes -> RecordedHash; empty without a record.

    Raises: InputError if the record is damaged.
    """
    path = Path(folder) / HASHES_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        hashes = {name: RecordedHash(**values) for name, values in json.loads(text).items()}
        if not all(re.fullmatch("[0-9a-f]{64}", h.sha256) and h.bytes >= 0 for h in hashes.values()):
            raise ValueError("not a SHA-256")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the hashes that kitsseg recorded, found something else ({error}). "
            "Move it away: the files are then checked and recorded anew."
        ) from error
    return hashes


def record_hash(folder, relative_path, sha256, bytes):
    """Record one file. The record is whole at any time; threads and processes may record at once.

    Args:
        relative_path: of the file, below ``folder``.
        sha256: hexadecimal. An earlier record of this path is replaced.
        bytes: size of the file.
    """
    with folder_lock(folder, _LOCK):
        hashes = read_hashes(folder) | {Path(relative_path).as_posix(): RecordedHash(sha256, bytes)}
        rows = {name: vars(hashes[name]) for name in sorted(hashes)}
        with atomic_path(Path(folder) / HASHES_FILE) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
