"""Which files a cached case was made from, so that others in their place are noticed without reading them whole."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Source", "source_of", "unchanged"]

_END_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a file was when it was read: its size, its time, and the SHA-256 of its first and its last 64 KiB."""

    bytes: int
    modified_ns: int
    ends_sha256: str


def source_of(path: Path) -> Source:
    """What a file is now.

    Of a file, the first 64 KiB hold the header, and the last eight bytes of a gzip file are checksum and length of all
    its contents. Of a folder (a DICOM series) count the names, sizes and times of its files and of the files in its
    folders, and the latest time.
    """
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file())
        stats = [item.stat() for item in files]
        names = [item.relative_to(path).as_posix() for item in files]
        text = "".join(
            f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0" for name, stat in zip(names, stats, strict=True)
        )
        size, modified = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
        return Source(bytes=size, modified_ns=modified, ends_sha256=_sha256(os.fsencode(text)))
    with path.open("rb") as file:
        size = path.stat().st_size
        ends = file.read(_END_BYTES)
        file.seek(max(size - _END_BYTES, 0))
        ends += file.read(_END_BYTES)
    return Source(bytes=size, modified_ns=path.stat().st_mtime_ns, ends_sha256=_sha256(ends))


def unchanged(source: Source, path: Path) -> bool:
    """Whether a file is still what ``source_of`` described.

    A gzip file may have another time, as after copying: its checksum tells. Anything else may not, whatever its name.
    """
    now = source_of(path)
    if path.is_file() and now.modified_ns != source.modified_ns:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                now = replace(now, modified_ns=source.modified_ns)
    return now == source


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
