"""Find the scans for a prediction, given as files, folders of any kind, archives, or a mixture of these.

A folder is searched with all folders in it. These count as scans:

    case folders of KiTS, data sets of nnU-Net    as ``kitsseg.data.layouts.find`` finds them, named as there
    NIfTI files                                   each; not what is called a label map (``seg``, ``mask`` ...), or what
                                                  lies in a folder that is called so
    DICOM files                                   each CT series, however many lie in a folder, or across folders
    zip archives                                  what lies in them, unpacked into a temporary folder

Nothing is left out silently: ``Found`` names everything that was left out, everything that could not be searched, and
scans whose label maps would have one name, with the reason. A damaged scan is noticed when it is read.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kitsseg.data.formats.dicom_file import is_dicom
from kitsseg.data.formats.dicom_folder import DicomSeries, series_of
from kitsseg.data.layouts.find import Case, Layout, checked_case, find_cases
from kitsseg.data.layouts.kits import empty_case_folders, holds_no_files, kits_cases
from kitsseg.data.layouts.names import (
    JOURNALS,
    PREDICTIONS,
    check_name,
    is_label_folder,
    is_named_as_labels,
    is_nifti,
    scan_name,
    stem_of,
)
from kitsseg.data.layouts.nnunet import nnunet_cases, nnunet_root
from kitsseg.data.layouts.scan_names import clean_name, named_files, named_series
from kitsseg.data.layouts.scans import Found, Scan
from kitsseg.data.layouts.slices import has_slices
from kitsseg.errors import InputError, some_of
from kitsseg.files.archives import unpack
from kitsseg.files.paths import check_regular

__all__ = ["find_scans"]

_OTHER_ARCHIVES = (
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
    ".7z",
    ".rar",
)
_FOREIGN = 3  # files that are named, of those with one ending that are neither NIfTI nor DICOM
_NO_CT = "no CT"
_MANY = 3  # single images in a folder: rather a series whose slices lost what they share than so many series
_EACH_ITS_OWN = "images that each have a SeriesInstanceUID of their own, as some anonymizers write"


def _quotes(items: Sequence[Path]) -> str:
    """The advice to quote a path with spaces, if some words beginning with the first one are such a path."""
    for end in range(2, len(items) + 1):
        path = " ".join(map(str, items[:end]))
        if Path(path).exists():
            return f' A path with spaces needs quotes: "{path}".'
    return ""


def find_scans(
    inputs: Iterable[str | os.PathLike[str]],
    layout: Layout | None = None,
    unpacked: Callable[[], Path] | None = None,
) -> Found:
    """Find the scans in some inputs. A scan that is given twice, such as by its file and its folder, counts once.

    Args:
        inputs: files, archives, or folders.
        layout: Layout of the folders; if it has patterns, only files that fit them are scans.
        unpacked: returns a new, empty folder into which an archive is unpacked. The folder must stay until the scans
            are read. None: archives are refused.

    Raises: InputError for an input that does not exist or holds no scan.
    """
    layout = layout or Layout()
    all_found = Found()
    items = [Path(item) for item in inputs]
    for number, item in enumerate(items):
        check_regular(item)
        if item.is_dir():
            all_found.add_all(_in_folder(item, layout, unpacked))
        elif not item.exists():
            raise InputError(
                f"{item}: expected a scan or a folder of cases, found nothing there. Check the path."
                f"{_quotes(items[number:])}"
            )
        elif _is_archive(item):
            _into_archive(item, layout, unpacked, all_found)
        else:
            all_found.add(scan_name(item), Scan(item))
    for name, scan in [
        *all_found.scans.items(),
        *(one for two in all_found.clashing.values() for one in two),
    ]:
        check_name(name, scan.place)
    return all_found


def _in_folder(folder: Path, layout: Layout, unpacked: Callable[[], Path] | None) -> Found:
    """The scans of a folder that the user gave.

    Raises: InputError if there is no scan, unless something in the folder could not be searched.
    """
    if layout.images is not None or layout.labels is not None:
        cases = find_cases(folder, need_labels=False, layout=layout)
        by_pattern = Found()
        for case in cases:
            by_pattern.add(case.name, _scan_of(case, "by --images"))
        return by_pattern
    found = _Search(folder, layout, unpacked).found()
    if found.scans or found.wrong or found.clashing:
        return found
    series = [f"{what}: {why}" for what, why in found.left_out if _NO_CT in why]
    if not series:
        find_cases(folder, need_labels=False, layout=layout)  # says what lies there, and what to do
    advice = "Give another folder"
    if any(line.endswith(_EACH_ITS_OWN) for line in series):
        advice = "Export the series again, so that all its slices have one SeriesInstanceUID, or give another folder"
    raise InputError(f"{folder}: expected CT scans, found none ({'; '.join(series[:3])}). {advice}.")


def _scan_of(case: Case, kind: str) -> Scan:
    return Scan(case.scan, "DICOM series" if case.scan.is_dir() else kind)


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _into_archive(archive: Path, layout: Layout, unpacked: Callable[[], Path] | None, found: Found) -> None:
    """Unpack an archive, and add what it holds."""
    if unpacked is None:
        raise InputError(f"{archive}: expected scans, found an archive. Unpack it first.")
    target = unpacked() / clean_name(archive.stem)
    target.mkdir()
    try:
        unpack(archive, target)
    except ValueError as error:
        found.wrong.append(
            (str(archive), f"cannot be unpacked: {error}. Unpack it yourself, or make it anew")
        )
        return
    inside = _Search(target, layout, None, archive).found()
    if not (inside.scans or inside.wrong or inside.clashing):
        found.wrong.append((str(archive), "holds no scans: neither NIfTI files nor DICOM series of CT"))
    for name in list(inside.scans):
        if found.is_of_another(name, inside.scans[name]):  # the name of the archive tells them apart
            found.add(clean_name(f"{archive.stem}_{name}"), inside.scans.pop(name))
    found.add_all(inside)


class _Search:
    """One search through a folder and all folders in it.

    Args:
        folder: where the search begins.
        layout: Layout, for the case folders among them.
        unpacked: as in ``find_scans``; None: archives are left out.
        archive: the archive from which the folder was unpacked, or None.
    """

    def __init__(
        self, folder: Path, layout: Layout, unpacked: Callable[[], Path] | None, archive: Path | None = None
    ) -> None:
        self.folder, self.layout, self.unpacked, self.archive = folder, layout, unpacked, archive
        self.result = Found()
        self.nifti: list[Path] = []
        self.dicom: list[Path] = []
        self.archives: list[Path] = []
        self.of_labels: dict[Path, int] = {}
        self.others: dict[str, list[Path]] = {}

    def found(self) -> Found:
        self._look(self.folder, frozenset())
        for name, path in named_files(self.nifti, self.folder):
            self._add(name, Scan(path))
        self._add_series()
        for path in self.archives:
            if self.unpacked is None:
                self._leave_out(path, "an archive in an archive")
            else:
                _into_archive(path, self.layout, self.unpacked, self.result)
        for folder, count in self.of_labels.items():
            files = f"{count} NIfTI file{'s' * (count != 1)}"
            self._leave_out(
                folder, f"{files}, in a folder named as one of label maps; give that folder itself to take it"
            )
        for ending, paths in sorted(self.others.items()):
            files = f"{len(paths)} file{'s' if len(paths) > 1 else ''} {ending or 'without an ending'}"
            # with names, so that a scan with a wrong name is seen
            named = some_of([str(path.relative_to(self.folder)) for path in paths], _FOREIGN)
            what = f"{self._shown(self.folder)}: {files} ({named})"
            self.result.left_out.append((what, "neither NIfTI nor DICOM"))
        self.result.scans = dict(sorted(self.result.scans.items()))
        return self.result

    def _shown(self, path: Path) -> str:
        return str(path if self.archive is None else self.archive / path.relative_to(self.folder))

    def _leave_out(self, path: Path, why: str) -> None:
        self.result.left_out.append((self._shown(path), why))

    def _wrong(self, path: Path, error: InputError) -> None:
        text = str(error).replace(str(self.folder), self._shown(self.folder))
        self.result.wrong.append((self._shown(path), text.removeprefix(f"{self._shown(path)}: ")))

    def _add(self, name: str, scan: Scan) -> None:
        if self.archive is not None:
            scan = Scan(scan.path, scan.kind, scan.series, Path(self._shown(scan.path)))
        self.result.add(name, scan)

    def _look(self, here: Path, above: frozenset[Path]) -> None:
        real = here.resolve()
        if real in above:  # links may lead in circles
            return
        above |= {real}
        if here != self.folder and has_slices(here):
            self.result.wrong.append((self._shown(here), "single slices: give this folder by itself"))
            return
        try:
            done = self._cases_in(here)
        except OSError as error:
            self.result.wrong.append((self._shown(here), f"cannot be read ({error.strerror})"))
            return
        for path in sorted(path for path in here.iterdir() if not path.name.startswith(".")):
            if path in done:
                continue
            if path.is_dir():
                if is_nifti(path) and holds_no_files(path):
                    self._leave_out(path, "a folder without files where a scan's name promises a file")
                self._look(path, above)
            else:
                try:
                    self._file(path)
                except OSError as error:
                    self.result.wrong.append((self._shown(path), f"cannot be read ({error.strerror})"))

    def _cases_in(self, here: Path) -> set[Path]:
        """Add the cases of case folders and nnU-Net datasets; returns the files and folders that belong to them."""
        done: set[Path] = set()

        def refused(folder: Path, error: InputError) -> None:
            self._wrong(folder, error)
            done.update({folder, *folder.iterdir()})

        cases = kits_cases(here, self.layout, ("--images",), refused)
        if predicted := _predicted_in(here):
            maps = f"{len(predicted)} label map{'s' * (len(predicted) != 1)} of kitsseg predict"
            self._leave_out(here, f"{maps}, no CT")
            done |= {*predicted, here / PREDICTIONS, *here.glob(JOURNALS)}
        for case in [case for case in cases if not _scan_has_another_name(case)]:
            self._of_case(case, "KiTS case")
            # all of a case's folder is the case's
            done |= {case.scan.parent, *(case.scan.parent.iterdir() if case.scan.parent == here else ())}
        for path in empty_case_folders(here, cases):
            self._leave_out(path, "no files in the folder of a case. Complete or remove the folder")
            done.add(path)
        if self.folder in (here, *here.parents) and (dataset := nnunet_root(here)):
            root, parts = dataset
            if root == here or here == self.folder:
                done |= {here / f"{kind}{part}" for kind in ("images", "labels") for part in parts}
                done.add(here / "dataset.json")
                for part in parts:
                    try:
                        cases = nnunet_cases(root, (part,), self.layout, ("--images",))
                    except InputError as error:
                        self._wrong(here, error)
                        break
                    for case in cases:
                        self._of_case(case, f"nnU-Net images{part}")
                if root != here:  # the folder imagesTr or imagesTs itself
                    done |= set(here.iterdir())
        return done

    def _of_case(self, case: Case, kind: str) -> None:
        try:
            scan = _scan_of(checked_case(case, need_labels=False, need_image=True), kind)
        except InputError as error:
            self._wrong(case.scan, error)
        else:
            self._add(case.name, scan)

    def _file(self, path: Path) -> None:
        if not path.exists():
            self.result.wrong.append(
                (self._shown(path), "a link to nothing. Fetch the file, or remove the link")
            )
        elif not path.is_file():
            self._leave_out(path, "no file but a pipe, a socket or a device")
        elif is_nifti(path):
            if is_named_as_labels(stem_of(path.name)):
                why = "named as a label map; give the file itself to take it"
                self._leave_out(path, why)
            elif folder := self._label_folder(path):
                self.of_labels[folder] = self.of_labels.get(folder, 0) + 1
            else:
                self.nifti.append(path)
        elif _is_archive(path):
            self.archives.append(path)
        elif path.name.lower().endswith(_OTHER_ARCHIVES):
            self._leave_out(path, "an archive, of which only .zip is unpacked. Unpack it first")
        elif is_dicom(path):
            self.dicom.append(path)
        elif path.name.upper() != "DICOMDIR":  # which lists the files of a disc, and is no scan
            ending = path.suffix.lower()
            if ending[1:].isdigit():  # a part of a DICOM UID
                ending = ""
            self.others.setdefault(ending, []).append(path)

    def _label_folder(self, path: Path) -> Path | None:
        """The folder in which a file lies, if it or one above it, in the folder that was given, is named as labels."""
        names = path.relative_to(self.folder).parts[:-1]
        return path.parent if any(map(is_label_folder, names)) else None

    def _add_series(self) -> None:
        if not self.dicom:
            return
        try:
            series = series_of(self.dicom)
        except InputError as error:  # pydicom is missing
            self._wrong(self.folder, error)
            return
        taken = []
        single = Counter(item.folder for item in series if _is_one_image(item))
        for folder, count in single.items():
            if count >= _MANY:
                what = f"{self._shown(folder)}: {count} files"
                self.result.left_out.append((what, f"{_NO_CT} volume but {_EACH_ITS_OWN}"))
        for item in series:
            if _is_one_image(item) and single[item.folder] >= _MANY:
                continue
            files = f"{item.files} file{'s' * (item.files != 1)}"
            what = f"{self._shown(item.folder)}: {item.description or 'a series'} ({files})"
            if item.why_not is not None:
                # a localizer is taken by a CT scanner too
                localizers = item.why_not == "localizer images"
                why_not = f"localizer images, {_NO_CT}" if localizers else f"{_NO_CT} but {item.why_not}"
                self.result.left_out.append((what, why_not))
            elif _is_one_image(item):
                self.result.left_out.append((what, f"{_NO_CT} volume but one image"))
            else:
                taken.append(item)
        for name, item in named_series(taken, self.folder, self.archive is not None, self.result.knows):
            self._add(name, Scan(item.folder, "DICOM series", None if item.alone else item.uid))


def _scan_has_another_name(case: Case) -> bool:
    """Whether the folder of a case holds no CT of KiTS's name, but another file that may be one, such as ct.nii.gz."""
    if os.path.lexists(case.scan):
        return False
    files = (path for path in case.scan.parent.rglob("*") if path.is_file())
    return any(
        not is_named_as_labels(stem_of(path.name)) if is_nifti(path) else is_dicom(path) for path in files
    )


def _predicted_in(folder: Path) -> set[Path]:
    """The label maps in a folder that a record of ``kitsseg predict`` there lists."""
    records = [path for path in (folder / PREDICTIONS, *folder.glob(JOURNALS)) if path.is_file()]
    names: set[str] = set()
    for path in records:
        lines = [path.read_bytes()] if path.name == PREDICTIONS else path.read_bytes().splitlines()
        for line in lines:
            with suppress(ValueError):  # of another tool's file, or of a line that a killed process left
                names |= set(_label_maps_in(json.loads(line)))
    return {folder / name for name in names if Path(name).name == name and (folder / name).is_file()}


def _label_maps_in(value: Any) -> Iterator[str]:
    """The names of label maps anywhere in a record."""
    if isinstance(value, dict):
        if isinstance(value.get("file"), str):
            yield value["file"]
        for item in value.values():
            yield from _label_maps_in(item)


def _is_one_image(item: DicomSeries) -> bool:
    return item.why_not is None and item.uid is not None and item.files < 2
