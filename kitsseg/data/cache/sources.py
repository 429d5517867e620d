"""Records of the files that a cached case was made from. They show if a file was replaced, without a full read."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Source", "source_of", "unchanged"]

_END_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Source:
    """Size and time of a file when it was read, and the SHA-256 of its first and its last 64 KiB."""

    bytes: int
    modified_ns: int
    ends_sha256: str


def source_of(path: Path) -> Source:
    """The Source of a file as it is now.

    The first 64 KiB of a file hold the header, and the last eight bytes of a gzip file hold checksum and length of its
    contents. For a folder (a DICOM series) the names, sizes and times of all files in it are hashed, and the latest
    time counts as its time.
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
    """Whether a file is still the one that ``source_of`` described.

    A gzip file may have another time, such as after copying, because its checksum tells that it is the same. A file of
    another format must have the same time.
    """
    now = source_of(path)
    if path.is_file() and now.modified_ns != source.modified_ns:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                now = replace(now, modified_ns=source.modified_ns)
    return now == source


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
