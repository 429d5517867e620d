"""Records of the files that a cached case was made from. They show if a file was replaced.

Only stat is asked where nothing has changed. A file whose size and time are as recorded may still be another one,
because programs that copy or repair files can keep the time. Its inode or the time of its last change of status, which
no program can set, then differs from the record, and its contents are compared. After copying a whole data set these
differ as well, and the contents are the same.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kitsseg.data.formats.dicom_folder import files_looked_at
from kitsseg.files.checksums import crc32_of

__all__ = ["Source", "same_contents", "size_of", "source_of", "unchanged"]

_END_BYTES = 1 << 16
# Some file systems count time in steps of two seconds. A file that changed less than that ago may change again without
# another time of change.
_SETTLED_NS = 2_000_000_000
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a file or the folder of a DICOM series was when it was read.

    Attributes:
        bytes, modified_ns: size and time; of a folder the sum and the latest.
        ends_sha256: SHA-256 of the first and the last 64 KiB; of a folder, of the names, sizes and times of its files.
        contents: a checksum of all of it, in any order of a folder's files. None in records of older versions.
        stamp: a digest of all that stat tells. While it is the same, so is the file. None if the file had changed too
            short a time ago for that.
    """

    bytes: int
    modified_ns: int
    ends_sha256: str
    contents: str | None = None
    stamp: str | None = field(default=None, compare=False)


def source_of(path: Path) -> Source:
    """The Source of a file or of the folder of a DICOM series as it is now; all of it is read, except for gzip.

    The first 64 KiB of a file hold the header, and the last eight bytes of a gzip file hold checksum and length of its
    contents. Of a folder those files count that reading a series looks at.

    Raises: OSError if it cannot be read.
    """
    seen = _Seen(path)
    stamp = seen.stamp if seen.changed_ns < time.time_ns() - _SETTLED_NS else None
    return Source(
        bytes=seen.bytes,
        modified_ns=seen.modified_ns,
        ends_sha256=seen.ends_sha256(),
        contents=seen.contents(),
        stamp=stamp,
    )


def size_of(path: Path) -> int:
    """``source_of(path).bytes``, by stat alone."""
    return _Seen(path).bytes


def unchanged(source: Source, path: Path) -> bool:
    """Whether a file is still the one that ``source_of`` described. Nothing is read if stat tells the same as then.

    A file may have another time, such as after copying, if its contents are the same. The record of an older version
    holds no checksum of them: then a file must have the same time, unless it is gzip.

    Raises: OSError if it cannot be read.
    """
    if source.contents is not None:
        return same_contents(source, path)
    seen = _Seen(path, of_older_version=True)
    if (told := seen.told_by_stat(source)) is not None:
        return told
    if seen.modified_ns != source.modified_ns and not seen.is_gzip():
        return False
    return seen.ends_sha256() == source.ends_sha256


def same_contents(source: Source, path: Path) -> bool:
    """Whether a file, wherever it lies and whatever its time, holds what ``source_of`` described.

    An older version recorded the size of a series, and nothing more that a copy has too.

    Raises: OSError if it cannot be read.
    """
    seen = _Seen(path, of_older_version=source.contents is None)
    if (told := seen.told_by_stat(source)) is not None:
        return told
    if not seen.is_folder and seen.ends_sha256() != source.ends_sha256:
        return False
    return seen.has_contents_of(source)


class _Seen:
    """What stat tells of a file, or of the files of a folder; the rest is read when asked for.

    Args:
        path: of the file or folder.
        of_older_version: count all files of a folder, also those that reading leaves alone.
    """

    def __init__(self, path: Path, of_older_version: bool = False) -> None:
        self.path, self.is_folder = path, path.is_dir()
        self.files: Sequence[Path] = [path]
        if self.is_folder:
            every = (item for item in path.rglob("*") if item.is_file())
            self.files = sorted(every if of_older_version else files_looked_at(path))
        self.stats = [item.stat() for item in self.files]
        self.bytes = sum(stat.st_size for stat in self.stats)
        self.modified_ns = max((stat.st_mtime_ns for stat in self.stats), default=0)
        self.changed_ns = max((stat.st_ctime_ns for stat in self.stats), default=0)

    @property
    def stamp(self) -> str:
        return self._digest((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in self.stats)

    def told_by_stat(self, source: Source) -> bool | None:
        """Whether this is ``source``, as far as stat tells: not with another size, surely with the same stamp."""
        if self.bytes != source.bytes:
            return False
        return True if self.stamp == source.stamp else None

    def is_gzip(self) -> bool:
        if self.is_folder:
            return False
        with self.path.open("rb") as file:
            return file.read(len(_GZIP)) == _GZIP

    def ends_sha256(self) -> str:
        if self.is_folder:
            return self._digest((stat.st_size, stat.st_mtime_ns) for stat in self.stats)
        with self.path.open("rb") as file:
            ends = file.read(_END_BYTES)
            file.seek(max(self.bytes - _END_BYTES, 0))
            return _sha256(ends + file.read(_END_BYTES))

    def contents(self) -> str:
        if self.is_gzip():
            with self.path.open("rb") as file:
                file.seek(max(self.bytes - 8, 0))
                return f"gzip {file.read(8).hex()}"
        if not self.is_folder:
            return f"crc32 {crc32_of(self.path)}"
        return f"crc32 of each {_sha256(' '.join(sorted(map(crc32_of, self.files))).encode())}"

    def has_contents_of(self, source: Source) -> bool:
        return source.contents is None or self.contents() == source.contents

    def _digest(self, numbers: Iterable[tuple[int, ...]]) -> str:
        """Over numbers about each file, and in a folder the names of the files."""
        names = [item.relative_to(self.path).as_posix() if self.is_folder else "" for item in self.files]
        text = "".join(
            "\0".join([name, *map(str, of_file), ""]) for name, of_file in zip(names, numbers, strict=True)
        )
        return _sha256(os.fsencode(text))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
