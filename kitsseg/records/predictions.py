"""``predictions.json``: what made the label maps of a folder, and what became of every scan.

    predictions.json          what made them, ``cases`` and, with a reason each, ``failed``
    predictions.2-of-8.json   the same, of the second of eight jobs that share the folder

Jobs need no lock, which network file systems may lack: each writes a file of its own after every scan. Whoever ends
puts all of them together, and again until nobody has written meanwhile; of several entries of a scan the newest
counts. A call without shards reads the jobs' files too.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np

from kitsseg.data.formats.nifti import read_labels
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.checksums import crc32_of
from kitsseg.files.paths import absolute_paths, relative_paths

__all__ = ["PREDICTIONS", "Predictions", "size_of"]

PREDICTIONS = "predictions.json"
MADE_BY = ("kitsseg", "networks", "engine", "inference", "postprocess")


class Predictions:
    """The record of a folder of label maps, kept up to date on disk.

    Args:
        out: the folder.
        header: what makes the label maps, as it is to stand in the file; what ``MADE_BY`` names must be the same in
            every call. An ``engine`` of None agrees with any.
        shard: (number from 1, count), or None.

    Raises: InputError if the folder holds predictions that were made in another way, or a record is damaged.
    """

    def __init__(self, out, header, shard=None):
        self.out, self.header, self.shard = Path(out), json.loads(json.dumps(header)), shard
        self.own = {}
        self.entries = self._everything()

    def made_by(self, engine):
        """Say which engine computes the networks.

        Raises: InputError if another one made the label maps that are there.
        """
        for path in sorted(self.out.glob("predictions*.json")):
            self._check(path, _read(path), {"engine": engine})
        self.header["engine"] = engine

    def forget_file(self, name):
        """Remove the label map that an earlier call made of a scan which can no longer be segmented."""
        if "file" in self.entries.get(name, {}):
            (self.out / self.entries[name]["file"]).unlink(missing_ok=True)

    def add(self, name, entry):
        """Put down what became of a scan: its entry of ``cases``, or {"reason": ...} if it failed."""
        self.own[name] = self.entries[name] = entry | {"finished": datetime.now(UTC).isoformat()}
        if self.shard:
            self._write(self.out / "predictions.{}-of-{}.json".format(*self.shard), self.own)
        else:
            self._write(self.out / PREDICTIONS, self.entries)

    def finish(self):
        """Put the files of all jobs together in ``predictions.json``."""
        written = None
        while (
            found := self._everything()
        ) != written:  # a job that ends at the same time may be the later reader
            self._write(self.out / PREDICTIONS, found)
            written = found
        self.entries = written

    def is_whole(self, name, image):
        """Whether the label map of a scan is there, as it was written, and belongs to the scan as it is now.

        Raises: InputError if somebody has changed it: it is not replaced in silence.
        """
        entry = self.entries.get(name)
        if entry is None or "reason" in entry or entry["image_bytes"] != size_of(image):
            return False
        file = self.out / entry["file"]
        try:
            read_labels(file)  # to its end: a damaged file does not get through
        except (InputError, FileNotFoundError):
            return False
        if crc32_of(file) != entry["crc32"]:
            raise InputError(
                f"{file}: has changed since it was predicted. Keep it elsewhere, and remove it to predict again."
            )
        return Path(image).is_dir() or _same_grid(file, image)  # of DICOM the size has to do

    def _everything(self):
        """Newest entry of each scan from all files of the folder."""
        found = {}
        for path in sorted(self.out.glob("predictions*.json")):
            record = _read(path)
            self._check(path, record)
            if self.header["engine"] is None:
                self.header["engine"] = record["engine"]
            split = self.header["split"]
            if record["split"]["part"] != split["part"]:
                split["part"] = None  # the folder holds more than one part
            for name, entry in (record["cases"] | record["failed"]).items():
                if name not in found or found[name]["finished"] < entry["finished"]:
                    found[name] = entry
        return found

    def _check(self, path, record, now=None):
        for key, here in (now or {key: self.header[key] for key in MADE_BY}).items():
            there = record.get(key)
            if there != here and not (key == "engine" and None in (there, here)):
                raise InputError(
                    f"{path}: expected predictions of this run with these settings, found others ({key} "
                    f"{_short(there)}, now {_short(here)}). Choose another folder, or remove this one."
                )

    def _write(self, path, entries):
        cases = {name: entries[name] for name in sorted(entries) if "reason" not in entries[name]}
        record = self.header | {
            "phantom": any(entry["phantom"] for entry in cases.values()),
            "cases": cases,
            "failed": {name: entries[name] for name in sorted(entries) if "reason" in entries[name]},
        }
        with atomic_path(path) as temporary:
            text = json.dumps(relative_paths(record, self.out), indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")


def _read(path):
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in (record["cases"] | record["failed"]).values():
            _ = entry["finished"]
            if "reason" not in entry:
                _ = entry["file"], entry["image_bytes"], entry["crc32"], entry["phantom"]
        _ = record["split"]["part"], record["engine"]
        record = absolute_paths(record, path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the record of kitsseg predict, found something else ({type(error).__name__}: {error}). "
            "Choose another folder, or remove this one."
        ) from error
    return record


def _short(value):
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def size_of(image):
    """Bytes of a scan: a file, or the folder of a DICOM series."""
    image = Path(image)
    files = [path for path in image.iterdir() if path.is_file()] if image.is_dir() else [image]
    return sum(path.stat().st_size for path in files)


def _same_grid(file, image):
    try:
        ours, theirs = nib.load(file), nib.load(image)
    except Exception:  # what a damaged header makes nibabel raise is said when the scan is read
        return False
    return ours.shape == theirs.shape and np.array_equal(ours.affine, theirs.affine)
