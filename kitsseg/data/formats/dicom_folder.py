"""Find the files of DICOM series: in a folder that holds one series, and among files that lie anywhere.

A file that should be a slice but cannot be read is never left out silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitsseg.data.formats.dicom_file import check_pydicom, data_set, is_dicom, no_slice_kind, quiet_pydicom
from kitsseg.errors import InputError

__all__ = ["DicomSeries", "files_looked_at", "files_of_folder", "files_of_series", "is_series", "series_of"]

_BESIDE_A_SERIES = {
    "dicomdir",
    "thumbs.db",
    "desktop.ini",
    "autorun.inf",
    "version",
    "readme",
    "license",
    "index",
}
_OTHER_KINDS = {
    ".txt",
    ".md",
    ".json",
    ".xml",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".log",
    ".ini",
    ".inf",
    ".db",
}
_OTHER_KINDS |= {
    ".pdf",
    ".html",
    ".htm",
    ".css",
    ".js",
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
}
_OTHER_KINDS |= {
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".npy",
    ".npz",
    ".stl",
    ".exe",
    ".dll",
    ".sh",
    ".bat",
    ".py",
}
_OTHER_KINDS |= {".md5", ".sha256", ".bval", ".bvec", ".doc", ".docx", ".xls", ".xlsx", ".url", ".lnk"}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
}
_NAMED = 3  # files in a message
_OF_SERIES = ["SeriesInstanceUID", "Modality", "PatientID", "SeriesNumber", "SeriesDescription", "ImageType"]


def is_series(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds DICOM files; only the first bytes of its files are looked at."""
    return any(path.is_file() and is_dicom(path) for path in _entries(folder))


@dataclass(frozen=True)
class DicomSeries:
    """One of the series among some files.

    Attributes:
        uid: SeriesInstanceUID; None for a folder in which no header can be read.
        folder: the deepest folder that holds all files of the series.
        alone: True if this folder holds no file of another series.
        files: number of files.
        patient, number, description: from the headers, or empty.
        why_not: None for a CT; else words that say what the series is instead.
    """

    uid: str | None
    folder: Path
    alone: bool
    files: int
    patient: str = ""
    number: str = ""
    description: str = ""
    why_not: str | None = None


def series_of(files: Sequence[Path]) -> list[DicomSeries]:
    """The series that some DICOM files belong to, in the order of their folders; the files may lie anywhere.

    A file whose header cannot be read counts to the series of its folder, so that reading that series names the file.

    Raises: InputError if pydicom is missing.
    """
    groups: dict[str, list[Path]] = {}
    firsts: dict[str, Any] = {}
    unknown: dict[Path, list[Path]] = {}
    kinds: dict[str, set[str]] = {}
    with quiet_pydicom():
        for path in files:
            header = _series_header(path)
            uid = str(header.get("SeriesInstanceUID") or "") if header is not None else ""
            if not uid:
                unknown.setdefault(path.parent, []).append(path)
                continue
            groups.setdefault(uid, []).append(path)
            firsts.setdefault(uid, header)
            modality = str(header.get("Modality") or "without a modality")
            kind = no_slice_kind(header) if modality == "CT" else None
            kinds.setdefault(uid, set()).add(f"{kind}s" if kind else modality)
    owners: dict[Path, set[str]] = {}  # of a folder: the series in it and in the folders in it
    for uid, paths in [*groups.items(), *((str(folder), paths) for folder, paths in unknown.items())]:
        for folder in {path.parent for path in paths}:
            for above in (folder, *folder.parents):
                owners.setdefault(above, set()).add(uid)
    beside = {path.parent for paths in groups.values() for path in paths}
    found = [
        DicomSeries(None, folder, True, len(paths))
        for folder, paths in unknown.items()
        if folder not in beside
    ]
    for uid, paths in groups.items():
        folders = {path.parent for path in paths}
        folder = Path(os.path.commonpath(folders))
        others = kinds[uid] - {"CT"}
        found.append(
            DicomSeries(
                uid,
                folder,
                folders == {folder} and owners[folder] <= {uid, str(folder)},
                len(paths),
                patient=str(firsts[uid].get("PatientID") or ""),
                number=str(firsts[uid].get("SeriesNumber") or ""),
                description=str(firsts[uid].get("SeriesDescription") or ""),
                why_not=" and ".join(sorted(others)) if others == kinds[uid] else None,
            )
        )
    return sorted(found, key=lambda series: (series.folder, series.uid or ""))


def _series_header(path: Path) -> Any:
    """The part of a file's header that tells its series; None if the header cannot be read."""
    check_pydicom(path)
    try:
        return data_set(path, stop_before_pixels=True, specific_tags=_OF_SERIES)
    except Exception:  # reading the series says what is wrong
        return None


def files_of_folder(folder: Path) -> list[Path]:
    """The DICOM files of a folder.

    Raises: InputError if there is none, or if other files may be slices too. To leave them out silently would make the
        patient shorter, or double the distance of slices.
    """
    dicom, others = [], []
    for path in _entries(folder):
        if path.is_file() and is_dicom(path):
            dicom.append(path)
        elif path.is_file() or not path.exists():  # a link to nothing is neither file nor folder
            others.append(path)
    if not dicom:
        raise InputError(
            f"{folder}: expected a NIfTI file, or a folder with the DICOM files of one series; found a folder "
            "without DICOM files."
        )
    _check_all_read(folder, dicom, others)
    deeper = next((path for path in _deeper(folder) if is_dicom(path)), None)
    if deeper:
        raise InputError(
            f"{folder}: expected all slices of a series in one folder, found DICOM files in {deeper.parent.name} "
            f"too ({deeper.relative_to(folder)}). Put the files of each series in a folder of their own."
        )
    return dicom


def files_of_series(folder: Path, uid: str) -> list[Path]:
    """The files of one series in a folder and the folders in it.

    Raises: InputError if there is none, or if a file beside them cannot be read and may be one of its slices.
    """
    found = []
    below = (entry for entry in sorted(folder.rglob("*")) if entry.is_dir())
    for here in [folder, *(entry for entry in below if not _is_hidden(entry, folder))]:
        entries = [path for path in _entries(here) if not path.is_dir()]
        dicom = [path for path in entries if path.is_file() and is_dicom(path)]
        uids = {path: _uid(path) for path in dicom}
        ours = [path for path in dicom if uids[path] == uid]
        if ours:
            damaged = [path for path in dicom if not uids[path]]
            _check_all_read(here, dicom, [path for path in entries if path not in uids] + damaged)
        found += ours
    if not found:
        raise InputError(
            f"{folder}: expected the files of the series {uid}, found none. Check whether the series was moved."
        )
    return found


def files_looked_at(folder: Path) -> list[Path]:
    """The files of a folder and the folders in it that reading a series depends on.

    Hidden files are none of them, and files of well-known other kinds neither.
    """
    here = (path for path in _entries(folder) if path.is_file())
    return [path for path in (*here, *_deeper(folder)) if not _is_beside_a_series(path) or is_dicom(path)]


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _uid(path: Path) -> str:
    header = _series_header(path)
    return "" if header is None else str(header.get("SeriesInstanceUID") or "")


def _check_all_read(folder: Path, dicom: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise InputError if any of the other files of a folder may be a slice as well."""
    endings = {path.suffix.lower() for path in dicom} - {""}
    unread = [path for path in others if path.suffix.lower() in endings or not _is_beside_a_series(path)]
    if unread:
        named = ", ".join(f"{path.name} ({_what(path)})" for path in unread[:_NAMED])
        more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
        raise InputError(
            f"{folder}: expected a DICOM slice in every file, found {len(unread)} of {len(dicom) + len(unread)} files "
            f"that are not DICOM: {named}{more}. Copy or export the series again, or remove what is no part of it."
        )


def _deeper(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files of the folders in a folder. Links to folders are followed unless they lead up again."""
    above = (*above, folder.resolve())
    for entry in _entries(folder):
        if entry.is_dir() and entry.resolve() not in above:
            yield from (path for path in _entries(entry) if path.is_file())
            yield from _deeper(entry, above)


def _is_beside_a_series(path: Path) -> bool:
    name = path.name.lower()
    known = name in _BESIDE_A_SERIES or path.suffix.lower() in _OTHER_KINDS or name.endswith(".nii.gz")
    return known and path.exists()


def _what(path: Path) -> str:
    if not path.exists():
        return "a link to nothing"
    if not path.is_file():  # reading a pipe would wait for ever
        return "no file"
    with path.open("rb") as file:
        start = file.read(8)
    packed = next((name for mark, name in _PACKED.items() if start.startswith(mark)), None)
    return "empty" if not start else f"still packed with {packed}" if packed else "damaged or of another type"


def _entries(folder: str | os.PathLike[str]) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
