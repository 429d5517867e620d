"""Find cases on disk in any layout: KiTS19, 21 and 23, nnU-Net raw, DICOM series, or patterns.

Preprocessing and evaluation find their cases with this module, and so does prediction if patterns are given; without
patterns prediction finds scans with ``kitsseg.data.layouts.search``. The name of each case comes from
``kitsseg.data.layouts.names``.
"""

import os
import shlex
from dataclasses import replace
from pathlib import Path

from kitsseg.data.formats.dicom_folder import is_series
from kitsseg.data.layouts.kits import Case, Layout, kits_cases
from kitsseg.data.layouts.names import (
    check_name,
    folder_name,
    is_nifti,
    pattern_of,
)
from kitsseg.data.layouts.nnunet import nnunet_cases, nnunet_root
from kitsseg.data.layouts.patterns import pattern_cases
from kitsseg.data.layouts.slices import SLICES, has_images, has_slices, slice_cases
from kitsseg.errors import InputError
from kitsseg.files.paths import check_regular

__all__ = ["Case", "Layout", "checked_case", "find_cases"]

# how far advice looks for files in a folder without cases
_DEPTH, _FOLDERS = 6, 500


def find_cases(
    folder: str | os.PathLike[str],
    need_labels: bool = True,
    need_image: bool = True,
    layout: Layout | None = None,
    options: tuple[str, ...] | None = None,
    slices: bool = False,
) -> list[Case]:
    """All cases of a folder, sorted by name.

    Args:
        folder: a folder of case folders (``case_00000/imaging.nii.gz``) or one of them; an nnU-Net raw dataset, or
            its ``imagesTr``, ``imagesTs`` or ``labelsTr``; where no labels are needed, the folder of a DICOM series or
            a folder of such. With patterns in ``layout``, any folder.
        need_labels: a case without a label map is an error.
        need_image: a case without a CT is an error; otherwise ``image`` is the path where the CT would lie.
        layout: Layout; None finds the layout out from the folder.
        options: the options "--images" and "--labels" that the command has, so that an error may advise them. None:
            the options for the files that are needed.
        slices: the folder may hold single slices (``kitsseg.data.layouts.slices``); a case is then a patient.

    Raises: InputError if there is no case, more than one layout, or a case that lacks a file it needs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of cases, found {'a file' if folder.exists() else 'nothing'}. Check the path."
        )
    if options is None:
        wanted = {"--images": need_image, "--labels": need_labels or not need_image}
        options = tuple(option for option, needed in wanted.items() if needed)
    layout = layout or Layout()
    if layout.images is not None or layout.labels is not None:
        cases = pattern_cases(folder, layout, need_labels, need_image)
        if not cases:
            pattern = layout.images if layout.images is not None else layout.labels
            raise InputError(f"{folder}: expected cases such as {pattern}, found none. Check the pattern.")
    else:
        if has_slices(folder):
            if not slices:
                raise InputError(
                    f"{folder}: expected whole scans, found single slices ({SLICES}). Slices can be preprocessed, "
                    "predicted and evaluated."
                )
            return sorted(slice_cases(folder, layout, need_labels), key=lambda case: case.name)
        cases = _detected(folder, layout, need_labels, need_image, options)
    for case in cases:
        check_name(case.name, case.image or case.labels or folder)
    return [checked_case(case, need_labels, need_image) for case in sorted(cases, key=lambda case: case.name)]


def _detected(
    folder: Path, layout: Layout, need_labels: bool, need_image: bool, options: tuple[str, ...]
) -> list[Case]:
    cases, nnunet = kits_cases(folder, layout, options), nnunet_root(folder)
    patterns = " ".join(f"{option} PATTERN" for option in options)
    if cases and nnunet:
        raise InputError(
            f"{folder}: expected one layout, found case folders ({cases[0].name}) and an nnU-Net dataset "
            f"({nnunet[0].name}). Give one of the folders in it{f', or {patterns}' if patterns else ''}."
        )
    if nnunet:
        root, parts = nnunet
        if need_labels and len(parts) > 1 and not (root / "labelsTs").is_dir():
            parts = parts[:1]  # test images have no labels
        cases = nnunet_cases(root, parts, layout, options)
        if not cases:
            where = f", or say where the files are: {patterns}" if patterns else ""
            raise InputError(
                f"{folder}: expected images such as imagesTr/case_00000_0000.nii.gz, found none. "
                f"Complete the dataset{where}."
            )
    if not cases:
        series = [folder] if is_series(folder) else _folders_of_series(folder)
        if series and (need_labels or not need_image):
            where = (
                f"Say where the label maps are: {patterns}" if patterns else "Give the folder of label maps."
            )
            raise InputError(
                f"{folder}: expected cases with label maps, found DICOM series ({series[0].name}). {where}"
            )
        if series and (files := _nifti_files(folder)):
            which = f", or say which files are meant: {patterns}" if patterns else ""
            raise InputError(
                f"{folder}: expected one layout, found DICOM series ({series[0].name}) and NIfTI files "
                f"({files[0].name}). Give the series and the files in separate commands{which}."
            )
        cases = [Case(folder_name(path), path, None) for path in series]
    if not cases and has_images(folder):
        return slice_cases(folder, layout, need_labels)  # says what they lack
    if not cases and need_image and not need_labels and not any(_below(folder)):
        empty = "it holds no files" if any(folder.iterdir()) else "the folder is empty"
        raise InputError(
            f"{folder}: expected NIfTI files, DICOM series, PNG slices or .zip archives, found none: {empty}. "
            "Check the path."
        )
    if not cases:
        file = "imaging.nii.gz" if need_image or not need_labels else "segmentation.nii.gz"
        raise InputError(
            f"{folder}: expected cases such as {folder_name(folder)}/case_00000/{file}, found none. "
            f"{_advice(folder, layout, options)}"
        )
    return cases


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if is_nifti(path) and path.is_file())


def _folders_of_series(folder: Path) -> list[Path]:
    return [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name[0] != "." and is_series(sub)]


def _advice(folder: Path, layout: Layout, options: tuple[str, ...]) -> str:
    """Advice about a folder without cases: another folder, or a pattern for the files in it."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name[0] != "." and (kits_cases(entry, layout) or nnunet_root(entry)):
            return f"There are some in {entry}: give that folder."
    files, series, others = _below(folder)
    if files:
        said = _patterns(files, options)
        return f"Say which files are {said}" if said else f"It holds NIfTI files such as {files[0]}."
    if series:
        parents = sorted({path.parent for path in series})
        where = (
            f"the folder that holds them, {folder / parents[0]}"
            if len(parents) == 1
            else "each of their folders"
        )
        said = f"It holds DICOM series further down ({series[0]}): give {where}"
        pattern = pattern_of(series)
        if pattern and options == ("--images",):
            return f"{said}, or all with --images {shlex.quote(pattern)}"
        return f"{said}."
    if others:
        return f"It holds neither NIfTI files nor DICOM series, but {', '.join(others[:3])}."
    return "It holds no files. Try: kitsseg synthesize FOLDER"


def _patterns(files: list[Path], options: tuple[str, ...]) -> str:
    """The options of a command, with a pattern for the files that lie least deep in the folder."""
    depth = min(len(path.parts) for path in files)
    pattern = pattern_of([path for path in files if len(path.parts) == depth])
    if pattern is None:
        return ""
    if options == ("--images", "--labels"):
        return f"the scans and label maps: --images {shlex.quote(pattern)} --labels PATTERN"
    kinds = {"--images": "the scans", "--labels": "the label maps"}
    return "".join(f"{kinds[option]}: {option} {shlex.quote(pattern)}" for option in options)


def _below(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """NIfTI files and DICOM series below a folder, relative to it, and names of other files; at most a few of each."""
    files: list[Path] = []
    series: list[Path] = []
    others: list[str] = []
    for looked_at, (here, folders, names) in enumerate(os.walk(folder, followlinks=True)):
        relative = Path(here).relative_to(folder)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if looked_at == _FOLDERS:
            break
        if len(relative.parts) == _DEPTH:
            folders.clear()
        shown = [relative / name for name in sorted(names) if name[0] != "."]
        nifti = [path for path in shown if is_nifti(path)]
        files += nifti
        if not nifti and relative.parts and is_series(Path(here)):
            series.append(relative)
        elif not nifti:
            others += map(str, shown)
    return files, series, others


def checked_case(case: Case, need_labels: bool, need_image: bool) -> Case:
    """The case after a check that its files exist. A label map that does not exist and is not needed is left out.

    Args:
        case: Case.
        need_labels, need_image: whether a missing file is an error.

    Raises: InputError for a missing file, a pipe, or a link that leads nowhere.
    """
    for needed, path in ((need_image, case.image), (need_labels, case.labels)):
        if path is not None:
            check_regular(path)
        if needed and path is not None and not path.exists():
            if path.is_symlink():
                raise InputError(
                    f"{path}: is a link to {path.readlink()}, which does not exist. Fetch the file, as with "
                    "git annex get or dvc pull, or remove the case."
                )
            there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            more = f" and {len(there) - 8} more" if len(there) > 8 else ""
            raise InputError(
                f"{path}: missing; the folder holds {', '.join(there[:8]) or 'nothing'}{more}. "
                "Complete or remove the case."
            )
    return replace(case, labels=case.labels if case.labels and case.labels.exists() else None)
