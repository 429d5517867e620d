"""The names of the scans that a search finds: of NIfTI files by their files, of DICOM series by folders or headers."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from kitsseg.data.formats.dicom_folder import DicomSeries
from kitsseg.data.layouts.names import folder_name, prediction_name, scan_name, stem_of

__all__ = ["clean_name", "named_files", "named_series"]

_LONGEST_NAME = 60


def named_files(files: list[Path], folder: Path) -> list[tuple[str, Path]]:
    """NIfTI files with their names, or, where several have the same name, with their paths in the folder as names.

    Args:
        files: of ``folder`` and the folders in it.
        folder: where the search began.
    """
    written = [prediction_name(scan_name(path)).casefold() for path in files]
    counts = Counter(written)
    named = []
    for path, target in zip(files, written, strict=True):
        name = scan_name(path)
        if counts[target] > 1:
            *folders, _ = path.relative_to(folder).parts
            name = "_".join([*folders, stem_of(path.name)])
        named.append((name, path))
    return named


def named_series(
    series: list[DicomSeries], folder: Path, in_archive: bool, knows: Callable[[str], bool]
) -> Iterator[tuple[str, DicomSeries]]:
    """DICOM series with their names. Folders of one series each, at most one level deep, give them; else headers do.

    Args:
        series: of ``folder`` and the folders in it.
        folder: where the search began.
        in_archive: whether ``folder`` was unpacked from an archive, so that its folders have no names that users know.
        knows: whether a scan of a name was found already. A series of such a name, or of that of another series, gets
            eight digits that tell of its UID.
    """
    if not in_archive and all(item.alone and folder in (item.folder, item.folder.parent) for item in series):
        yield from ((folder_name(item.folder), item) for item in series)
        return
    names = [_name_of(item, folder) for item in series]
    counts = Counter(name.casefold() for name in names)
    for name, item in zip(names, series, strict=True):
        if counts[name.casefold()] > 1 or knows(name):
            told = hashlib.sha256((item.uid or str(item.folder.relative_to(folder))).encode())
            name = f"{name}_{told.hexdigest()[:8]}"
        yield name, item


def _name_of(item: DicomSeries, folder: Path) -> str:
    """Patient, number and description; what the headers lack is told by folders."""
    below = item.folder.relative_to(folder).parts
    top = below[0] if below else folder_name(folder)
    series = "_".join(part for part in (item.number, item.description) if part) or (
        below[-1] if below else ""
    )
    return clean_name(f"{item.patient or top}_{series}")


def clean_name(text: str) -> str:
    """A name that every file system takes, of letters, digits, - and _."""
    plain = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFKC", text))
    return re.sub(r"_{2,}", "_", plain).strip("_-")[:_LONGEST_NAME].strip("_-") or "scan"
