"""The scans of a prediction: what was found, what was left out and why, and scans that would have one label map."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kitsseg.data.formats.dicom import read_series_grid
from kitsseg.data.formats.grid import Grid
from kitsseg.data.formats.nifti import read_grid
from kitsseg.data.layouts.names import pattern_of, prediction_name
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given

__all__ = ["Found", "Scan", "scan_grid"]


@dataclass(frozen=True)
class Scan:
    """One scan.

    Attributes:
        path: of a NIfTI file, of the folder of a DICOM series, or of the image of a single slice.
        kind: in words, such as "DICOM series".
        series: the SeriesInstanceUID, if the folder holds several series.
        shown: the archive and the path in it, if ``path`` is a temporary file unpacked from an archive.
    """

    path: Path
    kind: str = "NIfTI"
    series: str | None = None
    shown: Path | None = None

    @property
    def place(self) -> Path:
        """The path that the user knows: in an archive, the archive and the path in it."""
        return as_given(self.shown or self.path)

    @property
    def is_dicom(self) -> bool:
        """Whether it is a DICOM series."""
        return self.kind == "DICOM series"


@dataclass
class Found:
    """The result of a search for scans.

    Attributes:
        scans: name -> Scan, in the order in which they were given and found.
        left_out: (path, reason) of each file or folder that is not a scan.
        wrong: (path, reason) of each file or folder that should hold scans but cannot be searched.
        clashing: name of a label map -> (name, Scan) of the scans that it would belong to, two or more. None of them is
            in ``scans``, as only the user knows which one is meant.
    """

    scans: dict[str, Scan] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    clashing: dict[str, list[tuple[str, Scan]]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, scan: Scan) -> None:
        """Add a scan, unless it is there already. If its label map would be another scan's too, both are clashing."""
        target = prediction_name(name)
        if target not in self._names:
            self._names[target] = name
            self.scans[name] = scan
            return
        if target not in self.clashing:
            known = self._names[target]
            if _same(scan, self.scans[known]):
                return
            self.clashing[target] = [(known, self.scans.pop(known))]
        if not any(_same(scan, known) for _, known in self.clashing[target]):
            self.clashing[target].append((name, scan))

    def add_all(self, found: "Found") -> None:
        """Add the result of another search."""
        for name, scan in found.scans.items():
            self.add(name, scan)
        for several in found.clashing.values():
            for name, scan in several:
                self.add(name, scan)
        self.left_out += found.left_out
        self.wrong += found.wrong

    def knows(self, name: str) -> bool:
        """Whether there is a scan with the label map of this name."""
        return prediction_name(name) in self._names

    def is_of_another(self, name: str, scan: Scan) -> bool:
        """Whether a name belongs to another scan already."""
        target = prediction_name(name)
        several = [known for _, known in self.clashing.get(target, ())]
        if not several and target in self._names:
            several = [self.scans[self._names[target]]]
        return bool(several) and not any(_same(scan, known) for known in several)

    def clashes(self) -> Iterator[tuple[str, Scan, InputError]]:
        """The name of each clashing scan, the scan, and the reason why it cannot be segmented."""
        for target, several in self.clashing.items():
            for index, (name, scan) in enumerate(several):
                other = several[0 if index else 1][1]
                yield name, scan, _clash(target, scan, other)


def _same(scan: Scan, other: Scan) -> bool:
    """Whether two scans are one: the same file, or the same series of the same folder."""
    if scan.series != other.series or (scan.shown is None) != (other.shown is None):
        return False
    if scan.shown and other.shown:  # an archive that is given twice is unpacked twice
        return scan.shown.resolve() == other.shown.resolve()
    return scan.path.samefile(other.path)


def scan_grid(scan: Scan) -> Grid:
    """The grid of a scan, from its headers alone.

    Raises: InputError, OSError as ``read_image``, except for damage behind the headers.
    """
    return read_series_grid(scan.path, scan.series) if scan.path.is_dir() else read_grid(scan.path)


def _clash(target: str, scan: Scan, other: Scan) -> InputError:
    return InputError(
        f"{scan.place}: expected a name for its label map that no other scan has, found {target} for {other.place} "
        f"too. {_apart(scan.place, other.place)}"
    )


def _apart(path: Path, other: Path) -> str:
    """Advice about two scans that would have the same name."""
    given = [as_given(path), as_given(other)]
    folder = Path(os.path.commonpath([path.parent for path in given]))
    pattern = pattern_of([path.relative_to(folder) for path in given], fixed=False)
    if pattern is None or given[0].parent == given[1].parent:
        return "Rename one, or predict them into two folders (--out)."
    return (
        f"Give the folder of both, {folder}, with --images {shlex.quote(pattern)}: what * stands for is then the name. "
        "Or predict them into two folders (--out)."
    )
