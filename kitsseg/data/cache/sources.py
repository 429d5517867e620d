"""Which files a cached case was made from, so that others in their place are noticed without reading them whole."""

import hashlib
import os
from pathlib import Path
from typing import Any

__all__ = ["source_record", "unchanged"]

_END_BYTES = 1 << 16


def source_record(path: Path) -> dict[str, Any]:
    """Size, time, and SHA-256 of the first and the last 64 KiB of a file.

    The first hold the header, and the last eight bytes of a gzip file are checksum and length of all its contents. Of a
    folder (a DICOM series): names, sizes and times of its files and those of folders in it, and the latest time.
    """
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file())
        stats = [item.stat() for item in files]
        names = [item.relative_to(path).as_posix() for item in files]
        text = "".join(
            f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0" for name, stat in zip(names, stats, strict=True)
        )
        size, modified = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
        return {"bytes": size, "modified_ns": modified, "ends_sha256": _sha256(os.fsencode(text))}
    with path.open("rb") as file:
        size = path.stat().st_size
        ends = file.read(_END_BYTES)
        file.seek(max(size - _END_BYTES, 0))
        ends += file.read(_END_BYTES)
    return {"bytes": size, "modified_ns": path.stat().st_mtime_ns, "ends_sha256": _sha256(ends)}


def unchanged(record: dict[str, Any], path: Path) -> bool:
    """Whether a file is still what ``source_record`` described.

    A gzip file may have another time, as after copying: its checksum tells. Anything else may not, whatever its name.
    """
    now = source_record(path)
    if path.is_file() and now["modified_ns"] != record["modified_ns"]:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                now["modified_ns"] = record["modified_ns"]
    return now == record


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
