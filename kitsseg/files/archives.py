"""Zip archives: check that one is whole and not too large when unpacked, and unpack one that a stranger may have made.

.keras, .npz and .pth files are zip archives too. Their writers store arrays as they are, so that the contents of a file
hardly exceed the file. An archive that promises a multiple of its own size was not written by them, and is refused
before anything of it is unpacked.
"""

import errno
import os
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from kitsseg.errors import one_line

__all__ = ["check_archive", "damage_named", "is_whole", "unpack"]

MOST_TIMES, SPARE_BYTES = 16, 64 << 20  # a zipped-up network of which most weights are zero stays below

# of an archive of scans: label maps and air pack well, but nothing that a scanner wrote packs a thousandfold
MOST_SCAN_TIMES, MOST_ENTRIES = 200, 200_000
SHARE_OF_DISK = 0.9  # of the space that is free where an archive is unpacked

# what changed bits in a zip file make of it
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def check_archive(path: str | os.PathLike[str]) -> None:
    """Compare everything in a zip file with the CRC-32 it holds; takes about as long as reading the file.

    Raises: ValueError, saying what is wrong, if it is no zip file, was cut off, if a bit that matters has changed, or
        if its contents are far larger than the file. OSError if it cannot be read.
    """
    with Path(path).open("rb") as file, damage_named():
        _check(file)


@contextmanager
def damage_named() -> Iterator[None]:
    """In this block every error about a damaged zip file becomes a ValueError that says what is wrong."""
    try:
        yield
    except OSError as error:  # of a place in the file that a changed number names
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("its directory is damaged") from error
    except _DAMAGE as error:
        raise ValueError(one_line(error)) from error


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether ``check_archive`` finds nothing wrong with a file that is there."""
    try:
        check_archive(path)
    except (OSError, ValueError):
        return False
    return True


def unpack(path: str | os.PathLike[str], folder: Path, only: PurePath | None = None) -> None:
    """Unpack a zip archive that may come from anybody into a folder that is empty, with the times of its files.

    Nothing is written outside of the folder, no link is made, and no more is written than the archive declares.

    Args:
        path: of the archive.
        folder: where its contents go.
        only: unpack only this file or folder in the archive; the whole archive is checked nevertheless.

    Raises: ValueError, saying what is wrong, for an archive that is damaged or encrypted, one that holds links or
        paths that lead out of it, one that would unpack to far more than its size or to more than the disk holds, and
        one that does not hold ``only``.
    """
    try:
        with damage_named(), Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            _check_directory(file, archive)
            entries = [entry for entry in archive.infolist() if not _is_of_a_system(entry.filename)]
            _check_entries(entries, Path(path).stat().st_size)
            if only is not None:
                inside = len(only.parts)
                entries = [e for e in entries if PurePosixPath(e.filename).parts[:inside] == only.parts]
                if not entries:
                    raise ValueError(f"it does not hold {only.as_posix()}")
            _check_room(entries, shutil.disk_usage(folder).free)
            for entry in entries:
                if not entry.is_dir():
                    _unpack_one(archive, entry, folder)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(f"it holds a file and a folder of one name ({error.filename})") from error


def _is_of_a_system(name: str) -> bool:
    """Whether an entry is one of those that macOS and Windows add."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1] in (".DS_Store", "Thumbs.db"))


def _check_room(entries: list[zipfile.ZipInfo], free: int) -> None:
    inside = sum(entry.file_size for entry in entries)
    if inside > SHARE_OF_DISK * free:
        raise ValueError(f"it would unpack to {inside:,} bytes, and {free:,} are free")


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"it holds {len(entries):,} entries, more than {MOST_ENTRIES:,}")
    inside = sum(entry.file_size for entry in entries)
    if inside > MOST_SCAN_TIMES * size + SPARE_BYTES:
        raise ValueError(f"it has {size:,} bytes and would unpack to {inside:,}")
    seen: set[str] = set()
    for entry in entries:
        name, parts = entry.filename, PurePosixPath(entry.filename).parts
        if (
            not parts
            or name.startswith("/")
            or ".." in parts
            or "\\" in name
            or ":" in parts[0]
            or "\0" in name
        ):
            raise ValueError(f"its entry {name!r:.80} leads out of it")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"its entry {name!r:.80} is a link or a device")
        if entry.flag_bits & 1:
            raise ValueError("it is encrypted")
        if entry.is_dir():
            continue
        plain = str(PurePosixPath(name)).casefold()  # some file systems do not tell capital letters apart
        if plain in seen:
            raise ValueError(f"it holds two entries called {name!r:.80}")
        seen.add(plain)


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(entry.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as file:
        while piece := source.read(1 << 20):
            left -= len(piece)
            if left < 0:
                raise ValueError(f"its entry {entry.filename!r:.80} is longer than it declares")
            file.write(piece)
    with suppress(ValueError, OverflowError, OSError):  # a time that no calendar has
        seconds = time.mktime((*entry.date_time, 0, 0, -1))
        os.utime(target, (seconds, seconds))  # the same scan is known again the next time it is unpacked


def _check(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size < 22:
        raise ValueError("empty" if not size else f"cut off after {size} bytes")
    file.seek(-22, os.SEEK_END)
    end = file.read()
    with zipfile.ZipFile(file) as archive:
        _check_directory(file, archive)
        entries = archive.infolist()
        if not (end.startswith(b"PK\5\6") and entries):  # those of networks end so
            raise ValueError("its directory is damaged")
        inside = sum(entry.file_size for entry in entries)
        if inside > MOST_TIMES * size + SPARE_BYTES:
            raise ValueError(f"it has {size:,} bytes and would unpack to {inside:,}")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} in it is wrong")


def _check_directory(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Count what a reader finds in the directory: a changed length or name in it makes entries vanish silently."""
    entries = archive.infolist()
    cut_names = [entry for entry in entries if "\0" in entry.orig_filename]
    if cut_names or _stated_entries(file) not in (None, len(entries)):
        raise ValueError("its directory is damaged")


def _stated_entries(file: BinaryIO) -> int | None:
    """How many entries an archive says at its end that it has; None where it does not say so there."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 0xFFFF - 100))  # the longest remark, and the records in front of it
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    count = int.from_bytes(tail[at + 10 : at + 12], "little")
    if count < 0xFFFF:
        return count
    large = tail[max(0, at - 76) : at]  # of ZIP64: its record and the place of it
    return int.from_bytes(large[32:40], "little") if large.startswith(b"PK\6\6") else None
