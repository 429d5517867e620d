"""``predictions.json``: what made the label maps of a folder, and what became of every scan.

    predictions.json            what made them, ``cases`` and, with a reason each, ``failed``
    predictions-0123abcd.jsonl  the same of a process at work, or killed at it: a line for each scan

Every process appends to a file of its own, so that two lose nothing of each other, a killed one nothing but the scan it
was at, and ten thousand scans cost ten thousand lines. A process that ends gathers all of them in ``predictions.json``;
of several entries of a scan the newest counts. It then removes its own file, and those of processes that have been
killed, which the operating system's locks tell from those at work. Where two end at the same moment, or the file system
has no locks, files stay until the next call; they are read as well.

An entry says which scan the label map was made of, by the record that the cache keeps of its source files too. A label
map of another scan, one that somebody has edited, and a file that is in no record are never overwritten.
"""

import json
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from kitsseg.data.cache.sources import unchanged
from kitsseg.data.formats.nifti import read_labels
from kitsseg.data.formats.slices import slice_size
from kitsseg.data.layouts.names import prediction_name
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.checksums import crc32_of
from kitsseg.files.locks import claim
from kitsseg.files.paths import absolute_paths, as_given, file_beside, relative_paths

__all__ = ["PREDICTIONS", "Predictions", "read_predictions", "write_predictions"]

PREDICTIONS = "predictions.json"
JOURNALS = "predictions-*.jsonl"
MADE_BY = ("kitsseg", "networks", "engine", "inference", "postprocess")
_SOURCE = {"bytes": int, "modified_ns": int, "ends_sha256": str}
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def read_predictions(folder: Path) -> dict[str, Any] | None:
    """What is recorded of a folder of label maps, with absolute paths; None if there is no record.

    Raises: ValueError, KeyError, TypeError or AttributeError for something else than a record.
    """
    journals = [_read_journal(path) for path in sorted(folder.glob(JOURNALS))]  # first: see _gathered
    path = folder / PREDICTIONS
    record = None
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
    for header, cases, failed, _ in journals:
        record = {"cases": {}, "failed": {}} | header | (record or {})
        for name, entry in (cases | failed).items():
            before = record["cases"].get(name) or record["failed"].get(name)
            if before is None or before["finished"] < entry["finished"]:
                record["cases"].pop(name, None)
                record["failed"].pop(name, None)
                record["failed" if name in failed else "cases"][name] = entry
    return None if record is None else absolute_paths(record, folder)


def write_predictions(folder: Path, record: dict[str, Any]) -> None:
    """Write ``predictions.json``, whole or not at all, with paths relative to the folder."""
    with atomic_path(folder / PREDICTIONS) as temporary:
        text = json.dumps(relative_paths(record, folder), indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


class Predictions:
    """The record of a folder of label maps, kept up to date on disk.

    Args:
        out: the folder.
        header: what makes the label maps, as it is to stand in the file; what ``MADE_BY`` names must be the same in
            every call. An ``engine`` of None agrees with any.

    Raises: InputError if the folder holds predictions that were made in another way, or a record is damaged.
    """

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        self.out, self.header = Path(out), json.loads(json.dumps(header))
        self.own: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, int | None] = {}
        self.journal: BinaryIO | None = None
        self.path = self.out / JOURNALS.replace("*", secrets.token_hex(4))
        self.entries, self.begun = self._everything()

    def made_by(self, engine: str) -> None:
        """Say which engine computes the networks.

        Raises: InputError if another one made the label maps that are there.
        """
        if self.header["engine"] != engine:
            before, self.header["engine"] = self.header["engine"], engine
            try:
                self._everything()
            except InputError:
                self.header["engine"] = before
                raise
            if self.journal:
                self._append({"header": relative_paths(self.header, self.out)})

    def is_whole(self, name: str, image: Path) -> bool:
        """Whether the label map of a scan is there, as it was written, and was made of the scan as it is now.

        Raises: InputError if a file is there that may not be replaced in silence: of another scan, edited, or in no
            record.
        """
        entry, file = self.entries.get(name), self.out / prediction_name(name)
        self.seen[name] = _modified(file)
        if self.seen[name] is None:
            return False
        if entry is None or "reason" in entry:
            # of a process that was killed after it had written the label map, and before it could say so
            if name in self.begun:
                return False
            raise InputError(
                f"{file}: is there, and {PREDICTIONS} does not say that kitsseg predict made it. Choose another folder "
                "for the label maps, or remove the file."
            )
        try:
            edited = crc32_of(file) != entry["crc32"]
            if edited:
                (slice_size if file.suffix == ".png" else read_labels)(
                    file
                )  # whole: no damaged file gets through
        except (InputError, FileNotFoundError):
            return False
        if edited:
            raise InputError(
                f"{file}: has changed since it was predicted. Keep it elsewhere, and remove it to predict again."
            )
        try:
            if unchanged(entry["source"], Path(image)):
                return True
        except OSError:
            return False  # what is wrong is said when the scan is read
        if os.path.normpath(entry["image"]) != str(as_given(image)):
            raise InputError(
                f"{file}: is the label map of another scan of this name, {entry['image']}, not of {image}. Choose "
                "another folder for the label maps, or remove the file."
            )
        return False

    def begin(self, name: str, image: Path) -> bool:
        """Say that a scan is being segmented now; False if another process has done it in the meantime.

        Raises: InputError as ``is_whole``.
        """
        if name in self.seen and _modified(self.out / prediction_name(name)) != self.seen[name]:
            self.entries, self.begun = self._everything()
            if self.is_whole(name, image):
                return False
        self._append({"begun": name, "time": _now()})
        return True

    def forget_file(self, name: str) -> None:
        """Remove the label map that an earlier call made of a scan which can no longer be segmented."""
        if "file" in self.entries.get(name, {}):
            (self.out / prediction_name(name)).unlink(missing_ok=True)

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Put down what became of a scan: its entry of ``cases``, or {"reason": ...} if it failed."""
        self.own[name] = self.entries[name] = entry | {"finished": _now()}
        cases = relative_paths({"cases": {name: self.own[name]}}, self.out)["cases"]
        self._append({"done": name, "entry": cases[name]})

    def finish(self) -> dict[str, str]:
        """Gather the files of all processes in ``predictions.json``.

        Returns: scans whose label map another process has replaced, in the meantime, by that of another scan of the
            same name, with the reason; they have failed.
        """
        if self.journal is None and not any(self.out.glob(JOURNALS)):
            self.entries, self.begun = self._everything()
            if not self.out.is_dir() or self._on_disk() == self._record():
                return {}
        if self.journal is None:
            self._open()  # who writes the record says so, see _gathered
        self._gathered()
        lost = {}
        for name, mine in self.own.items():
            now = self.entries[name]
            if now != mine and "source" in mine and now.get("source") != mine["source"]:
                lost[name] = (
                    f"{self.out / prediction_name(name)}: another command has made the label map of another scan of "
                    f"this name, {now['image']}, at the same time. Choose another folder for the label maps."
                )
        return lost

    def close(self) -> None:
        """Give up the file of this process as it is, for the next one to gather."""
        if self.journal:
            self.journal.close()
            self.journal = None

    def _gathered(self) -> None:
        """Write what all files say; then remove own and dead files.

        Whoever reads and writes ``predictions.json`` has a file of its own from before it reads until after it has
        written. So, if no other process has one once this one has written, nobody will put an older record in its
        place. Otherwise the file stays, for those who come later.
        """
        dead = [
            file for path in sorted(self.out.glob(JOURNALS)) if path != self.path if (file := _dead(path))
        ]
        try:
            written = None
            while True:
                self.entries, self.begun = self._everything()
                if (found := self._record()) == written:
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

    def _everything(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Newest entry of each scan from all files of the folder, and scans that are begun and not done."""
        entries: dict[str, dict[str, Any]] = {}
        begun: dict[str, str] = {}
        # predictions.json last: what a process that ends in this moment moves there is then found there
        for path in [*sorted(self.out.glob(JOURNALS)), self.out / PREDICTIONS]:
            try:
                record = _read(path)
            except FileNotFoundError:
                continue
            if record is None:
                continue
            self._check(path, record)
            if self.header["engine"] is None:
                self.header["engine"] = record["engine"]
            split = self.header["split"]
            if record["split"]["part"] != split["part"]:
                split["part"] = None  # the folder holds more than one part
            for name, entry in (record["cases"] | record["failed"]).items():
                if name not in entries or entries[name]["finished"] < entry["finished"]:
                    entries[name] = entry
            for name, time in record["begun"].items():
                begun[name] = max(time, begun.get(name, ""))
        done = [name for name in begun if name in entries and entries[name]["finished"] >= begun[name]]
        return entries, {name: time for name, time in sorted(begun.items()) if name not in done}

    def _check(self, path: Path, record: dict[str, Any]) -> None:
        for key in MADE_BY:
            here, there = self.header[key], record.get(key)
            if there != here and not (key == "engine" and None in (there, here)):
                raise InputError(
                    f"{path}: expected predictions of this run with these settings, found others ({key} "
                    f"{_short(there)}, now {_short(here)}). Choose another folder, or remove this one."
                )

    def _record(self) -> dict[str, Any]:
        entries = self.entries
        cases = {name: entries[name] for name in sorted(entries) if "reason" not in entries[name]}
        failed = {name: entries[name] for name in sorted(entries) if "reason" in entries[name]}
        phantom = any(entry["phantom"] for entry in cases.values())
        record = self.header | {"phantom": phantom, "cases": cases, "failed": failed}
        return record | ({"begun": self.begun} if self.begun else {})

    def _on_disk(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return absolute_paths(json.loads((self.out / PREDICTIONS).read_text(encoding="utf-8")), self.out)
        return None

    def _append(self, line: dict[str, Any]) -> None:
        if self.journal is None:
            self._open()
        self.journal.write(json.dumps(line).encode() + b"\n")
        self.journal.flush()

    def _open(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.journal = self.path.open("xb")
        claim(self.journal)
        try:
            self._append({"header": relative_paths(self.header, self.out)})
            self._everything()  # a process that began at the same time may make its label maps in another way
        except BaseException:
            self.close()
            self.path.unlink(missing_ok=True)
            raise


def _read(path: Path) -> dict[str, Any] | None:
    """One file of the record, of either kind, checked to its last entry; with absolute paths. None: just begun."""
    try:
        if path.name == PREDICTIONS:
            record = json.loads(path.read_text(encoding="utf-8"))
        else:
            header, cases, failed, begun = _read_journal(path)
            if not header:
                return None
            record = header | {"cases": cases, "failed": failed, "begun": begun}
        for name, entry in (record["cases"] | record["failed"]).items():
            _check_entry(path, name, entry)
        record["begun"] = {
            name: time + ""
            for name, time in record.get("begun", {}).items()
            if file_beside(path, prediction_name(name))
        }
        _ = record["split"]["part"], record["engine"]
        return absolute_paths(record, path.parent)
    except _DAMAGE as error:
        raise InputError(
            f"{path}: expected the record of kitsseg predict, found something else ({type(error).__name__}: {error}). "
            "Choose another folder, or remove this one."
        ) from error


def _check_entry(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for an entry that ``Predictions`` cannot work with, or must not."""
    file = file_beside(path, prediction_name(name))
    _ = entry["finished"] + "", entry["image"] + ""
    if "reason" in entry:
        _ = entry["reason"] + ""
        return
    if file_beside(path, entry["file"]) != file:
        raise ValueError(f"expected {file.name} as the label map of {name}, found {entry['file']}")
    _ = entry["crc32"] + "", entry["phantom"]
    for key, kind in _SOURCE.items():
        if type(entry["source"][key]) is not kind:
            raise ValueError(f"expected {key} of the scan {name}, found {entry['source'][key]!r:.60}")


def _read_journal(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]:
    """(header, cases, failed, begun) of the file of one process. Its last line may be cut off: it is left out."""
    header: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    begun: dict[str, str] = {}
    for text in path.read_bytes().split(b"\n")[:-1]:
        line = json.loads(text)
        if "header" in line:
            header = line["header"]
        elif "begun" in line:
            begun[line["begun"]] = line["time"]
        else:
            entries[line["done"]] = line["entry"]
            begun.pop(line["done"], None)
    failed = {name: entry for name, entry in entries.items() if "reason" in entry}
    return header, {name: entries[name] for name in entries if name not in failed}, failed, begun


def _dead(path: Path) -> BinaryIO | None:
    """The opened file of a process that has ended, its lock held; None if the process is at work, or may be."""
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
    with suppress(FileNotFoundError):
        return file.lstat().st_mtime_ns
    return None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."
