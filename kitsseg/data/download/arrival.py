"""Bring one file of KiTS19 into a data folder: it is checked before it gets its final name, then recorded."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.download.catalog import DamagedFile, check_file, find_local
from kitsseg.data.download.http import Connections, HostError, fetch_file, forget_part, part_of
from kitsseg.data.kits19.trusted_hashes import HASHES_FILE, RecordedHash, record_hash
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path

if TYPE_CHECKING:
    from kitsseg.data.download.catalog import KitsFile

__all__ = ["Landing"]

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Landing:
    """Brings files to a data folder. Several threads may call ``land``, for different files.

    Attributes:
        dest: the data folder.
        source: a folder to take files from, or None for the network.
        connections: of the download; they also tell when to stop.
        hashes: the hashes that were recorded in the data folder at the start.
        arrived: path of a file -> bytes of it that have arrived, for a progress bar.
    """

    dest: Path
    source: Path | None
    connections: Connections
    hashes: dict[str, RecordedHash]
    arrived: dict[str, int]

    def land(self, file: KitsFile) -> tuple[bool, str | None]:
        """Bring one file to its place, or check the one that is there.

        Returns: (whether it was fetched, a remark or None).
        Raises: InputError; HostError; Stopped; OSError.
        """
        path = self.dest / file.path
        there = self._check_existing(file, path) if path.exists() else None
        fetched = there is None
        if there is not None:
            sha256, remark = there
        elif self.source is None:
            sha256, remark = self._fetch(file, path)
        else:
            sha256, remark = self._take(self.source, file, path)
        forget_part(part_of(path))
        record_hash(self.dest, file.path, sha256, path.stat().st_size)
        return fetched, remark

    def _check_existing(self, file: KitsFile, path: Path) -> tuple[str, str | None] | None:
        """(SHA-256, remark) of an existing file without a recorded hash; None if it must be fetched again."""
        try:
            sha256, remark = check_file(path, file)
        except DamagedFile as damage:
            if not damage.whole:
                return None
            raise InputError(f"{path}: {damage}. Move it away, and call again to fetch it.") from damage
        self._compare_record(file, path, sha256)
        return sha256, remark

    def _fetch(self, file: KitsFile, path: Path) -> tuple[str, str | None]:
        try:
            try:
                return self._fetch_once(file, path)
            except DamagedFile:
                return self._fetch_once(file, path)
        except DamagedFile as damage:
            raise InputError(
                f"{path}: arrived damaged twice from {file.url}: {damage}. Call again later, or give --from with a "
                "folder of files."
            ) from damage
        except HostError:
            raise
        except InputError as error:
            raise InputError(f"{path}: not fetched. {error}") from error

    def _fetch_once(self, file: KitsFile, path: Path) -> tuple[str, str | None]:
        part = part_of(path)
        announced = fetch_file(
            file.url, part, self.connections, partial(self.arrived.__setitem__, file.path), file.most_bytes
        )
        try:
            sha256, remark = check_file(part, file, announced)
        except DamagedFile:
            forget_part(part)  # which of its bytes are wrong cannot be known
            raise
        self._compare_record(file, path, sha256)
        self.connections.check_stopped()
        with part.open("rb+") as opened:
            os.fsync(opened.fileno())
        part.replace(path)
        return sha256, remark

    def _take(self, source: Path, file: KitsFile, path: Path) -> tuple[str, str | None]:
        found = find_local(source, file)
        if found is None:
            raise InputError(f"{path}: is damaged, and {source} has no {file.path}. Fetch it without --from.")
        found = found.resolve()  # of the blob, where the folder holds links
        with atomic_path(path) as temporary:
            try:
                os.link(found, temporary)
            except OSError:  # another disk, or a file system without links
                self._copy(found, temporary, file)
            try:
                sha256, remark = check_file(temporary, file)
            except DamagedFile as damage:
                raise InputError(
                    f"{found}: {damage}. Replace it, or fetch the case without --from."
                ) from damage
            self._compare_record(file, path, sha256)
            self.connections.check_stopped()
        return sha256, remark

    def _copy(self, found: Path, target: Path, file: KitsFile) -> None:
        copied = 0
        with found.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                self.connections.check_stopped()
                writer.write(chunk)
                copied += len(chunk)
                self.arrived[file.path] = copied
        shutil.copystat(found, target)

    def _compare_record(self, file: KitsFile, path: Path, sha256: str) -> None:
        recorded = self.hashes.get(file.path)
        if recorded and recorded.sha256 != sha256:
            raise InputError(
                f"{path}: this file differs from the file recorded here first. To trust it, remove its path from "
                f"{HASHES_FILE}; otherwise move the file away. Then run the same command again."
            )
