"""Download KiTS19 from its hosts, or take it from a folder: several files at once, verified, resumable at any time.

A file gets its name (``DEST/case_00000/imaging.nii.gz``) only after it was found whole and right. A label map must have
the SHA-256 of the manifest. Imaging must have the SHA-256 of 2019 or the one that its host announces; if neither is
known, the checksum of gzip must be right. Its hash is then trusted on first use and recorded (``trusted_hashes``). A
call goes on where an earlier one stopped. It does not read files again whose hash is recorded; ``kitsseg verify`` does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.data.download.arrival import Landing
from kitsseg.data.download.catalog import LABELS_URL, find_local, parse_cases, wanted_files
from kitsseg.data.download.http import Connections, HostError, Stopped, part_of, part_size
from kitsseg.data.formats.nifti import says_phantom
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.kits19.trusted_hashes import read_hashes_alone
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.locks import folder_lock

if TYPE_CHECKING:
    from kitsseg.data.download.catalog import KitsFile
    from kitsseg.data.download.http import Patience
    from kitsseg.data.kits19.manifest import ManifestCase
    from kitsseg.interfaces import Progress

__all__ = ["LICENSE_FILE", "Downloaded", "choose_files", "download_files"]

Say = Callable[[str], object]  # a line for the user
LICENSE_FILE = "DATA_LICENSE.txt"
_NOTICE = (
    "The KiTS19 data are under CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): name the source, "
    "no commercial use, share alike. Source: Heller et al., The KiTS19 Challenge Data, arXiv:1904.00445, "
    "https://github.com/neheller/kits19."
)
_UNKNOWN_BYTES = 100 << 20  # a test case; the 210 training cases have 95 MB on average
_SPARE_BYTES = 64 << 20


@dataclass
class Downloaded:
    """Result of a download: paths of files below the data folder, and remarks on imaging that differs from 2019."""

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def choose_files(
    cases: str | None = None,
    labels_only: bool = False,
    source: str | os.PathLike[str] | None = None,
    images_url: str | None = None,
    labels_url: str = LABELS_URL,
    manifest: Mapping[str, ManifestCase] | None = None,
) -> list[KitsFile]:
    """The files of some cases, for ``download_files``.

    Args:
        cases: such as ``0,3-7`` or ``all-training``; without it all training cases, or all that ``source`` holds.
        labels_only: no imaging.
        source: a folder to take the files from; None for the network.
        images_url, labels_url: other addresses, with ``{case}`` in them; None: the imaging comes from the Hub and the
            labels from the repository of KiTS19.
        manifest: name -> ManifestCase; that of the package by default.

    Returns: list of KitsFile, label maps first.
    Raises: InputError for cases that KiTS19 does not have, an address that is none, or a ``source`` without any case.
    """
    manifest = read_manifest() if manifest is None else manifest
    if cases is not None or source is None:
        rows = [manifest[name] for name in parse_cases(cases or "all-training", manifest)]
        return wanted_files(rows, labels_only, images_url, labels_url)
    rows = [row for row in manifest.values() if row.label_sha256 or not labels_only]
    files = wanted_files(rows, labels_only, images_url, labels_url)
    there = {f.path.split("/")[0] for f in files if f.strict == labels_only and find_local(source, f)}
    if not there:
        what = "label maps" if labels_only else "imaging"
        raise InputError(
            f"{source}: expected {what} of KiTS19 cases in a usual layout, such as {files[-1].path}, found none. "
            "Check --from."
        )
    return [file for file in files if file.path.split("/")[0] in there]


def download_files(
    dest: str | os.PathLike[str],
    files: Sequence[KitsFile],
    source: str | os.PathLike[str] | None = None,
    jobs: int = 4,
    patience: Patience | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Bring files of KiTS19 to a data folder.

    Args:
        dest: the data folder, in KiTS19 layout.
        files: list of KitsFile.
        source: a folder to take the files from instead of the network; they are linked, or copied to another disk.
        jobs: number of files that are fetched at once.
        patience: how often and how long to try; None: ``Patience()``.
        say: called with lines for the user: the license of the data (once for each folder) and remarks.
        progress: called as ``progress(description, bytes done, bytes in total)``.

    Returns: Downloaded.
    Raises: InputError if files are missing at the end, saying why; HostError if a host cannot be reached; OSError of
        the disk. All bytes that have arrived are kept.
    """
    dest, say = Path(dest), say or (lambda text: None)
    source = None if source is None else Path(source)
    if dest.exists() and not dest.is_dir():
        raise InputError(f"{dest}: expected a folder for the data, found a file. Choose another.")
    with folder_lock(dest, "download", wait=False, doing="downloading", say=say):
        _show_license(dest, say)
        with Connections(patience) as connections:
            work = _Work(dest, source, files, connections)
            _check_space(dest, work)
            return work.run(jobs, say, progress)


class _Work:
    """The files still to do, and the threads that do them."""

    def __init__(
        self, dest: Path, source: Path | None, files: Sequence[KitsFile], connections: Connections
    ) -> None:
        self.dest, self.source, self.connections = dest, source, connections
        self.result, hashes = Downloaded(), read_hashes_alone(dest)
        self.todo: list[KitsFile] = []
        self.arrived: dict[str, int] = {}
        self.landing = Landing(dest, source, connections, hashes, self.arrived)
        for file in files:
            if not file.strict and says_phantom(dest / file.path):
                raise InputError(
                    f"{dest / file.path}: expected no case or the one of KiTS19, found a phantom, made by kitsseg "
                    "synthesize. Choose another folder for KiTS19, or move the phantoms away."
                )
            recorded, path = hashes.get(file.path), dest / file.path
            if recorded and path.is_file() and path.stat().st_size == recorded.bytes:
                self.result.kept.append(file.path)
            else:
                self.todo.append(file)
        self.sizes = {file.path: file.bytes or _UNKNOWN_BYTES for file in self.todo}
        if source is not None:
            self._check_source(source)

    def _check_source(self, source: Path) -> None:
        if not source.is_dir():
            raise InputError(f"{source}: expected a folder of KiTS19 files, found none. Check --from.")
        missing = [
            file
            for file in self.todo
            if not (self.dest / file.path).is_file() and find_local(source, file) is None
        ]
        if missing:
            first = missing[0]
            looked = ", ".join(first.places[:-1]) + " and " + first.places[-1]
            hint = " Get label maps first: kitsseg download DEST --labels-only." if first.strict else ""
            raise InputError(
                f"{source}: {len(missing)} files are not there, the first is {first.path}; looked for {looked}. "
                f"Choose --cases, or another folder.{hint}"
            )

    def run(self, jobs: int, say: Say, progress: Progress | None) -> Downloaded:
        waiting: queue.SimpleQueue[KitsFile] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[KitsFile, Any]] = queue.SimpleQueue()
        for file in self.todo:
            waiting.put(file)
        # daemons: one that still waits for a connection must not hold up the end of the process
        threads = [
            threading.Thread(target=self._do_all, args=(waiting, results), daemon=True)
            for _ in range(min(jobs, len(self.todo)))
        ]
        failures = []
        try:
            for thread in threads:
                thread.start()
            for _ in self.todo:
                file, outcome = self._next(results, progress)
                if isinstance(outcome, InputError) and not isinstance(outcome, HostError):
                    failures.append(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    fetched, remark = outcome
                    self._note(file, fetched, remark, say)
        finally:
            self.connections.stop()
            for thread in threads:
                if thread.is_alive():
                    thread.join(timeout=5)
        self._show(progress)
        if failures:
            more = "" if len(failures) == 1 else f" {len(failures) - 1} other files failed too."
            raise InputError(f"{failures[0]}{more}")
        for paths in (self.result.fetched, self.result.kept, self.result.remarks):
            paths.sort()  # threads end in any order
        return self.result

    def _next(
        self, results: queue.SimpleQueue[tuple[KitsFile, Any]], progress: Progress | None
    ) -> tuple[KitsFile, Any]:
        while True:
            with contextlib.suppress(queue.Empty):
                return results.get(timeout=0.2)
            self._show(progress)

    def _show(self, progress: Progress | None) -> None:
        if progress:
            total = sum(self.sizes.values())
            done = min(total, sum(list(self.arrived.values())))
            unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
            progress(f"{done / unit:.2f} of {total / unit:.2f} {name}", done, total)

    def _note(self, file: KitsFile, fetched: bool, remark: str | None, say: Say) -> None:
        size = (self.dest / file.path).stat().st_size
        self.sizes[file.path] = self.arrived[file.path] = size
        (self.result.fetched if fetched else self.result.kept).append(file.path)
        if remark:
            self.result.remarks.append(remark)
            say(remark)

    def _do_all(
        self, waiting: queue.SimpleQueue[KitsFile], results: queue.SimpleQueue[tuple[KitsFile, Any]]
    ) -> None:
        while True:
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.connections.check_stopped()
                outcome: Any = self.landing.land(file)
            except Stopped:
                return
            except BaseException as error:  # handed to the thread that waits
                outcome = error
            results.put((file, outcome))


def _show_license(dest: Path, say: Say) -> None:
    path = dest / LICENSE_FILE
    if not path.exists():
        say(_NOTICE)
        with atomic_path(path) as temporary:
            temporary.write_text(f"{_NOTICE}\n", encoding="utf-8")


def _check_space(dest: Path, work: _Work) -> None:
    """Refuse files that do not fit on the disk; files that are linked need no space."""
    missing = [file for file in work.todo if not (dest / file.path).exists()]
    if work.source is not None:
        disk = dest.stat().st_dev
        found = [(file, find_local(work.source, file)) for file in missing]
        missing = [file for file, there in found if there is None or there.stat().st_dev != disk]
    needed = sum(max(0, work.sizes[f.path] - part_size(part_of(dest / f.path))) for f in missing)
    free = shutil.disk_usage(dest).free
    if needed and needed + _SPARE_BYTES > free:
        raise InputError(
            f"{dest}: {len(missing)} files of about {needed / 1e9:.1f} GB need space, found {free / 1e9:.1f} GB free. "
            "Free some space, choose another folder, or give fewer --cases."
        )
