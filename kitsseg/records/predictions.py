"""``predictions.json``: the networks that made the label maps of a folder, and the result for every scan.

    predictions.json            the networks, ``cases`` and, with a reason each, ``failed``
    predictions-0123abcd.jsonl  journal of one process that is running or was killed: a line for each scan

Every process appends to its own journal. So no process can overwrite the entries of another, a killed process loses
only the scan that it was working on, and ten thousand scans cost ten thousand lines. A process that ends gathers all
journals in ``predictions.json``; if there are several entries of a scan, the newest one counts. The process then
removes its own journal and the journals of killed processes, which it recognizes by the operating system's locks. If
two processes end at the same moment, or the file system has no locks, journals stay until the next call and are read
together with ``predictions.json``.

An entry identifies the scan from which the label map was made by a ``Source``, as the cache does. A label map of
another scan, a label map that somebody has edited, and a file that is in no record are never overwritten.
"""

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from kitsseg.data.cache.sources import Source, unchanged
from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.formats.slices import slice_size
from kitsseg.data.layouts.names import JOURNALS, PREDICTIONS, prediction_name
from kitsseg.errors import InputError, some_of
from kitsseg.files.checksums import crc32_of
from kitsseg.files.json_records import as_builtins, converted, read_record, record_of, write_record
from kitsseg.files.locks import claim, create_claimed
from kitsseg.files.paths import absolute_paths, as_given, file_beside, relative_paths
from kitsseg.labels.volumes import Volumes
from kitsseg.records.made_by import MadeBy, differences
from kitsseg.records.precision import PrecisionCheck
from kitsseg.records.scan_part import ScanPart

__all__ = [
    "PREDICTIONS",
    "Box",
    "CoarsePass",
    "FailedScan",
    "PredictedScan",
    "Predictions",
    "PredictionsRecord",
    "changed_since",
    "has_journals",
    "read_predictions",
    "synthetic_among",
    "write_predictions",
]

EXPECTED = "the record of kitsseg predict"
ADVICE = "Choose another folder, or remove this one."
MOST_NAMES = 20  # synthetic scans in a sentence


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box of a scan: (slices, rows, columns) of its first voxel and behind its last one, in KiTS19's axes."""

    start: tuple[int, ...]
    stop: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CoarsePass:
    """What the coarse pass found in a scan: where the kidneys lie, or why the networks saw the whole scan.

    Attributes:
        start, stop: (slices, rows, columns) of the region, in voxels of the scan in KiTS19's axes.
        parts: the left and the right part of the region, without the columns between the kidneys; empty where there
            are none between them.
        widened: why the region is wider than what the pass found; None: it is not.
        whole: why there is no region.
        seconds: of processor time.
    """

    start: tuple[int, ...] | None = None
    stop: tuple[int, ...] | None = None
    parts: tuple[Box, ...] = ()
    widened: str | None = None
    whole: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """A scan that has a label map: the places of both, and their checksums when the label map was written.

    Attributes:
        image: path of the scan; in an archive, the archive and the path in it.
        part: what else is needed to read the scan; None: nothing, or an older version wrote the record.
        doubts: what is doubtful about the scan (``doubts_about``), a sentence each.
        unlike: what about the scan no case of KiTS19 is like (``unlike_kits19``).
        volumes: of kidneys and tumors, where they were asked for.
        coarse: of the coarse pass; None: there was none.
        precision: checks of the networks' lower precision that were made of this scan; None: there were none.
        patient, mask_values: of a single slice: whose it is, and the value of each label in the mask.
    """

    file: str
    image: str
    source: Source
    crc32: str
    phantom: bool
    seconds: float | None = None
    doubts: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    volumes: Volumes | None = None
    coarse: CoarsePass | None = None
    precision: tuple[PrecisionCheck, ...] | None = None
    patient: str | None = None
    mask_values: tuple[int, ...] | None = None
    part: ScanPart | None = None
    finished: str = ""

    @property
    def unlike_remark(self) -> str:
        """A sentence about what no case of KiTS19 is like; empty if there is nothing, or the scan is synthetic."""
        if self.phantom or not self.unlike:
            return ""
        return f"{'; '.join(self.unlike)}: the network may have learned from nothing like it."

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that predict warns of about the scan, a sentence each."""
        return (*self.doubts, *filter(None, [self.unlike_remark]))


@dataclass(frozen=True, kw_only=True)
class FailedScan:
    """A scan without a label map, and why."""

    image: str
    reason: str
    traceback: str | None = None
    finished: str = ""


Entry = PredictedScan | FailedScan


@dataclass(frozen=True, kw_only=True)
class PredictionsRecord(MadeBy):
    """Content of ``predictions.json``: MadeBy, and the entries of all scans by name.

    Attributes:
        phantom: whether all scans with a label map are synthetic.
        begun: name -> time, of scans that a killed process had begun; None if there is none.
    """

    phantom: bool
    cases: dict[str, PredictedScan]
    failed: dict[str, FailedScan]
    begun: dict[str, str] | None = None
    version: int = 1

    @property
    def entries(self) -> dict[str, Entry]:
        """Of all scans, by name."""
        return {**self.cases, **self.failed}

    @property
    def synthetic(self) -> list[str]:
        """Names of the scans with a label map that are synthetic."""
        return [name for name, entry in self.cases.items() if entry.phantom]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of a journal: the networks and settings, a scan that the process begins, or a scan that it has done."""

    header: MadeBy | None = None
    begun: str | None = None
    time: str = ""
    done: str | None = None
    case: PredictedScan | None = None
    failed: FailedScan | None = None


def synthetic_among(synthetic: Sequence[str], total: int) -> str:
    """A sentence about the synthetic ones among some scans; empty if none or all of them are synthetic."""
    if not 0 < len(synthetic) < total:
        return ""
    return f"{len(synthetic)} of {total} scans are synthetic: {some_of(sorted(synthetic), MOST_NAMES)}."


def has_journals(folder: Path) -> bool:
    """Whether a process is writing label maps to a folder, or was killed while it did so."""
    return any(folder.glob(JOURNALS))


def read_predictions(folder: Path) -> PredictionsRecord | None:
    """The record of a folder of label maps, with absolute paths; None if there is no record.

    Raises: InputError if the file holds anything else.
    """
    records = _records(folder)
    if not records:
        return None
    last = list(records.values())[-1]  # predictions.json, if it is there
    return _record_of(last, _newest(records.values()), None)


def changed_since(record: PredictionsRecord | None, label_maps: Mapping[str, Path]) -> list[str]:
    """The scans whose label map is not the file that a record knows: it was edited, or exchanged with another one.

    Args:
        record: of ``read_predictions``. label_maps: scan -> label map that stands for it.
    """
    cases = record.cases if record else {}
    return [
        name
        for name, file in label_maps.items()
        if (entry := cases.get(name)) is not None
        and entry.file == file.name
        and entry.crc32 != crc32_of(file)
    ]


def write_predictions(folder: Path, record: PredictionsRecord) -> None:
    """Write ``predictions.json``, whole or not at all, with paths relative to the folder."""
    write_record(folder / PREDICTIONS, record, lambda values: relative_paths(values, folder))


class Predictions:
    """The record of a folder of label maps, kept up to date on disk.

    Args:
        out: the folder.
        header: the networks and settings of this call. They must be the same in every call, as far as
            ``differences`` compares them.
        overwrite: segment every scan, even if it has a label map, and replace any file with the name of its label map.

    Raises: InputError if the folder holds predictions that were made in another way, or a record is damaged.
    """

    def __init__(self, out: Path, header: MadeBy, overwrite: bool = False) -> None:
        self.out, self.overwrite = Path(out), overwrite
        self.header = converted(as_builtins(header), MadeBy)  # as it will be read again
        self.own: dict[str, Entry] = {}
        self.seen: dict[str, int | None] = {}
        self.at_work: set[str] = set()
        self.journal: BinaryIO | None = None
        self.path = self._new_path()
        self.entries, self.begun = self._everything()

    def made_by(self, engine: str) -> None:
        """Record the engine that computes the networks.

        Raises: InputError if another engine made the label maps that exist already.
        """
        if self.header.engine != engine:
            before, self.header = self.header, replace(self.header, engine=engine)
            try:
                self._everything()
            except InputError:
                self.header = before
                raise
            if self.journal:
                self._append(_Line(header=self.header))

    def is_whole(self, name: str, image: Path, shown: Path | None = None) -> bool:
        """Whether a scan has a label map that is unchanged since it was written, and the scan is unchanged as well.

        Args:
            name: of the case.
            image: the file or folder of the scan.
            shown: the path of the scan in the record, if ``image`` is a temporary file.

        Raises: InputError if a file exists that must not be replaced silently: a label map of another scan, one that
            was edited, or a file that is in no record.
        """
        entry, file = self.entries.get(name), self.label_map(name)
        self.seen[name] = _modified(file)
        if self.seen[name] is None or self.overwrite:
            return False
        if not isinstance(entry, PredictedScan):
            # of a process that was killed after it had written the label map, and before it could say so
            if name in self.begun:
                return False
            raise InputError(
                f"{file}: is there, and {PREDICTIONS} does not say that kitsseg predict made it. Choose another folder "
                "for the label maps, or move that file."
            )
        try:
            edited = crc32_of(file) != entry.crc32
            if edited:
                (slice_size if file.suffix == ".png" else read_labels)(
                    file
                )  # whole: no damaged file gets through
        except (InputError, FileNotFoundError):
            return False
        if edited:
            raise InputError(
                f"{file}: has changed since it was predicted. Keep it elsewhere or remove the file; then predict again."
            )
        try:
            if unchanged(entry.source, Path(image)):
                return True
        except OSError:
            return False  # what is wrong is said when the scan is read
        if os.path.normpath(entry.image) != str(as_given(shown or image)):
            raise InputError(
                f"{file}: is the label map of another scan of this name, {entry.image}, not of {shown or image}. "
                "Choose another folder for the label maps, or remove the file."
            )
        return False

    def begin(self, name: str, image: Path, shown: Path | None = None) -> bool:
        """Record that this process segments a scan now. Returns False if another process has done so meanwhile.

        Args: as ``is_whole``.
        Raises: InputError as ``is_whole``.
        """
        if name in self.seen and _modified(self.label_map(name)) != self.seen[name]:
            self.entries, self.begun = self._everything()
            if self.is_whole(name, image, shown):
                return False
        self._append(_Line(begun=name, time=_now()))
        self.at_work.add(name)
        return True

    def forget_file(self, name: str) -> None:
        """Remove the label map of an earlier call if its scan can no longer be segmented."""
        if isinstance(self.entries.get(name), PredictedScan):
            self.label_map(name).unlink(missing_ok=True)

    def add(self, name: str, entry: Entry) -> None:
        """Record the result for a scan."""
        self.at_work.discard(name)
        self.own[name] = self.entries[name] = entry = replace(entry, finished=_now())
        if isinstance(entry, FailedScan):
            self._append(_Line(done=name, failed=entry))
        else:
            self._append(_Line(done=name, case=entry))

    def finish(self) -> dict[str, str]:
        """Gather the journals of all processes in ``predictions.json``.

        Returns: name of a scan -> reason, for scans that failed because another process has meanwhile replaced their
            label map by one of another scan with the same name.
        """
        if self.journal is None and not any(self.out.glob(JOURNALS)):
            self.entries, self.begun = self._everything()
            # a record of nothing would only stand in the way of other predictions
            if not (self.entries or self.begun) or self._on_disk() == self.content():
                return {}
        if self.journal is None:
            self._open()  # who writes the record says so, see _gathered
        self._gathered()
        lost = {}
        for name, mine in self.own.items():
            now = self.entries[name]
            if (
                now != mine
                and isinstance(mine, PredictedScan)
                and getattr(now, "source", None) != mine.source
            ):
                lost[name] = (
                    f"{self.label_map(name)}: another command has made the label map of another scan of "
                    f"this name, {now.image}, at the same time. Choose another folder for the label maps."
                )
        return lost

    def content(self) -> PredictionsRecord:
        """The content that ``predictions.json`` has, or would have if it were written now."""
        return _record_of(self.header, self.entries, self.begun or None)

    def label_map(self, name: str) -> Path:
        """Path of the label map of a scan."""
        return self.out / prediction_name(name)

    def fail(self, name: str, image: Path, reason: str) -> None:
        """Record that a scan has no label map.

        Args:
            name: of the case.
            image: path of the scan for the record.
            reason: a sentence.
        """
        self.add(name, FailedScan(image=str(as_given(image)), reason=reason))

    def give_up(self) -> None:
        """As ``finish``, after an error. If no scan was done, no file is left."""
        if self.journal is None:
            return
        if self.own or any(self.label_map(name).exists() for name in self.at_work):
            with suppress(InputError, OSError):  # what stopped the work is the error to tell
                self.finish()
        else:
            self.close()
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal of this process, so that the next process can gather it."""
        if self.journal:
            self.journal.close()
            self.journal = None

    def _gathered(self) -> None:
        """Write the entries of all journals to ``predictions.json``, then remove own and dead journals.

        A process has a journal from before it reads ``predictions.json`` until after it has written it. So if no other
        process has a journal after this one has written, no process can replace the record by an older one. Otherwise
        the journal stays, and a later process gathers it.
        """
        dead = [
            file for path in sorted(self.out.glob(JOURNALS)) if path != self.path if (file := _dead(path))
        ]
        try:
            written = None
            while True:
                self.entries, self.begun = self._everything()
                if (found := self.content()) == written:
                    break
                write_predictions(self.out, found)
                written = found
            read = {Path(file.name) for file in dead}
            alone = not set(self.out.glob(JOURNALS)) - read - {self.path}
            for path in read:
                path.unlink(missing_ok=True)
            self.close()
            if alone:
                self.path.unlink(missing_ok=True)
        finally:
            for file in dead:
                file.close()

    def _everything(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """The newest entry of each scan from all journals, and the scans that were begun but not done."""
        records = _records(self.out)
        begun: dict[str, str] = {}
        for path, record in records.items():
            _check_same(path, record, self.header)
            if self.header.engine is None:
                self.header = replace(self.header, engine=record.engine)
            if record.split.part != self.header.split.part:  # the folder holds more than one part
                self.header = replace(self.header, split=replace(self.header.split, part=None))
            for name, time in (record.begun or {}).items():
                begun[name] = max(time, begun.get(name, ""))
        entries = _newest(records.values())
        done = [name for name in begun if name in entries and entries[name].finished >= begun[name]]
        return entries, {name: time for name, time in sorted(begun.items()) if name not in done}

    def _on_disk(self) -> PredictionsRecord | None:
        with suppress(FileNotFoundError):
            return _read(self.out / PREDICTIONS)
        return None

    def _append(self, line: _Line) -> None:
        journal = self.journal or self._open()
        journal.write(json.dumps(_moved(as_builtins(line), self.out)).encode() + b"\n")
        journal.flush()

    def _new_path(self) -> Path:
        return self.out / JOURNALS.replace("*", secrets.token_hex(4))

    def _open(self) -> BinaryIO:
        self.out.mkdir(parents=True, exist_ok=True)
        self.path, journal = create_claimed(self._new_path)
        self.journal = journal
        try:
            self._append(_Line(header=self.header))
            self._everything()  # a process that began at the same time may make its label maps in another way
        except BaseException:
            self.close()
            self.path.unlink(missing_ok=True)
            raise
        return journal


def _records(folder: Path) -> dict[Path, PredictionsRecord]:
    """The record and all journals of a folder, without the journals of processes that have only just begun."""
    found = {}
    # predictions.json last: what a process that ends in this moment moves there is then found there
    for path in [*sorted(folder.glob(JOURNALS)), folder / PREDICTIONS]:
        with suppress(FileNotFoundError):
            if (record := _read(path)) is not None:
                found[path] = record
    return found


def _newest(records: Iterable[PredictionsRecord]) -> dict[str, Entry]:
    """The entry that was finished last, of several entries of a scan."""
    entries: dict[str, Entry] = {}
    for record in records:
        for name, entry in record.entries.items():
            if name not in entries or entries[name].finished < entry.finished:
                entries[name] = entry
    return entries


def _record_of(
    header: MadeBy, entries: Mapping[str, Entry], begun: dict[str, str] | None
) -> PredictionsRecord:
    entries = {name: entries[name] for name in sorted(entries)}
    cases = {name: entry for name, entry in entries.items() if isinstance(entry, PredictedScan)}
    return PredictionsRecord(
        **{each.name: getattr(header, each.name) for each in fields(MadeBy)},
        phantom=bool(cases) and all(entry.phantom for entry in cases.values()),
        cases=cases,
        failed={name: entry for name, entry in entries.items() if isinstance(entry, FailedScan)},
        begun=begun,
    )


def _check_same(path: Path, there: MadeBy, here: MadeBy) -> None:
    if found := differences(there, here):
        before, now = (" and ".join(words) for words in zip(*found, strict=True))
        raise InputError(
            f"{path}: expected predictions of this run with these settings, found others: its label maps were made "
            f"{before}, now {now}. Choose another folder, or remove this one."
        )


def _read(path: Path) -> PredictionsRecord | None:
    """``predictions.json`` or a journal, checked, with absolute paths; None for a journal that has only just begun."""
    whole = path.name == PREDICTIONS
    record = read_record(path, PredictionsRecord, EXPECTED, ADVICE) if whole else _read_journal(path)
    if record is None:
        return None
    try:
        for name, entry in record.entries.items():
            file = file_beside(path, prediction_name(name))
            if isinstance(entry, PredictedScan) and file_beside(path, entry.file) != file:
                raise ValueError(f"expected {file.name} as the label map of {name}, found {entry.file}")
        for name in record.begun or ():
            file_beside(path, prediction_name(name))
        return converted(absolute_paths(as_builtins(record), path.parent), PredictionsRecord)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: expected {EXPECTED}, found something else ({error}). {ADVICE}") from error


def _read_journal(path: Path) -> PredictionsRecord | None:
    """The journal of one process. A last line that is cut off is left out. None if it has only just begun."""
    header: MadeBy | None = None
    entries: dict[str, Entry] = {}
    begun: dict[str, str] = {}
    for text in path.read_bytes().split(b"\n")[:-1]:
        line = record_of(text, _Line, path, EXPECTED, ADVICE)
        header = line.header or header
        if line.begun is not None:
            begun[line.begun] = line.time
        if line.done is not None and (entry := line.case or line.failed):
            entries[line.done] = entry
            begun.pop(line.done, None)
    return None if header is None else _record_of(header, entries, begun or None)


def _moved(line: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A line of a journal with paths relative to the folder of the journal."""
    if "header" in line:
        line["header"] = relative_paths(line["header"], folder)
    for kind in ("case", "failed"):
        if kind in line:
            line[kind] = relative_paths({"cases": {"": line[kind]}}, folder)["cases"][""]
    return line


def _dead(path: Path) -> BinaryIO | None:
    """The opened journal of a process that has ended, with its lock held; None if the process may still run."""
    try:
        file = path.open("r+b")
    except OSError:
        return None
    if claim(file):
        return file
    file.close()
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _modified(file: Path) -> int | None:
    with suppress(OSError):  # none of this name, or a name that no file can have: writing will tell
        return file.lstat().st_mtime_ns
    return None
