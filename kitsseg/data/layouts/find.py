"""Cases on disk, whatever the layout: KiTS19, 21 and 23, nnU-Net raw, DICOM series, or patterns.

Preprocessing, prediction and evaluation all find their cases here; ``find_scans`` says which scans a prediction is
asked for, and how each is called.
"""

from dataclasses import replace
from pathlib import Path

from kitsseg.data.formats.dicom import is_series
from kitsseg.data.layouts.kits import IMAGE_NAMES, LABEL_NAMES, Case, Layout, kits_cases
from kitsseg.data.layouts.nnunet import nnunet_cases, nnunet_root
from kitsseg.data.layouts.patterns import pattern_cases
from kitsseg.errors import InputError

__all__ = ["IMAGE_NAMES", "LABEL_NAMES", "Case", "Layout", "find_cases", "find_scans", "prediction_name"]


def find_cases(folder, need_labels=True, need_image=True, layout=None):
    """All cases of a folder, sorted by name.

    Args:
        folder: a folder of case folders (``case_00000/imaging.nii.gz``) or one of them; an nnU-Net raw dataset, or
            its ``imagesTr``, ``imagesTs`` or ``labelsTr``; where no labels are needed, the folder of a DICOM series or
            a folder of such. With patterns in ``layout``, any folder.
        need_labels: a case without a label map is an error.
        need_image: a case without a CT is an error; otherwise ``image`` is where it would be.
        layout: Layout; None: what the folder holds decides.

    Raises: InputError if there is no case, more than one layout, or a case that lacks a file it needs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of cases, found {'a file' if folder.exists() else 'nothing'}."
        )
    layout = layout or Layout()
    if layout.images is not None or layout.labels is not None:
        cases = pattern_cases(folder, layout, need_labels, need_image)
        if not cases:
            pattern = layout.images if layout.images is not None else layout.labels
            raise InputError(f"{folder}: expected cases such as {pattern}, found none. Check the pattern.")
    else:
        cases = _detected(folder, layout, need_labels, need_image)
    return [_checked(case, need_labels, need_image) for case in sorted(cases, key=lambda case: case.name)]


def _detected(folder, layout, need_labels, need_image):
    cases, nnunet = kits_cases(folder, layout), nnunet_root(folder)
    if cases and nnunet:
        raise InputError(
            f"{folder}: expected one layout, found case folders ({cases[0].name}) and an nnU-Net dataset "
            f"({nnunet[0].name}). Give one of the folders in it, or --images and --labels."
        )
    if nnunet:
        root, parts = nnunet
        if need_labels and len(parts) > 1 and not (root / "labelsTs").is_dir():
            parts = parts[:1]  # test images have no labels
        cases = nnunet_cases(root, parts, layout)
        if not cases:
            raise InputError(
                f"{folder}: expected images such as imagesTr/case_00000_0000.nii.gz, found none. "
                "Complete the dataset, or say where the files are with --images and --labels."
            )
    if not cases:
        series = [folder] if is_series(folder) else _folders_of_series(folder)
        if series and (need_labels or not need_image):
            raise InputError(
                f"{folder}: expected cases with label maps, found DICOM series ({series[0].name}). "
                "Say where the label maps are: --images PATTERN --labels PATTERN"
            )
        if series and (files := _nifti_files(folder)):
            raise InputError(
                f"{folder}: expected one layout, found DICOM series ({series[0].name}) and NIfTI files "
                f"({files[0].name}). Give them one by one, or say which are meant with --images."
            )
        cases = [Case(path.resolve().name, path, None) for path in series]
    if not cases:
        raise InputError(
            f"{folder}: expected cases such as {folder.name}/case_00000/imaging.nii.gz, found none. "
            f"{_advice(folder, layout)}"
        )
    return cases


def _nifti_files(folder):
    return sorted(
        path for end in (".nii.gz", ".nii") for path in folder.glob(f"[!.]*{end}") if path.is_file()
    )


def _folders_of_series(folder):
    return [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name[0] != "." and is_series(sub)]


def _advice(folder, layout):
    """What to do about a folder without cases: one level further down, by pattern, or make some."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_dir() and (kits_cases(entry, layout) or nnunet_root(entry)):
            return f"There are some in {entry}: give that folder."
    files = _nifti_files(folder)
    if files or any(entry.is_dir() and any(entry.glob("*.nii*")) for entry in entries):
        example = "*.nii.gz" if files else "*/ct.nii.gz"
        return f"Say which files are the scans and label maps: --images '{example}' --labels PATTERN"
    return "Try: kitsseg synthesize FOLDER"


def _checked(case, need_labels, need_image):
    for needed, path in ((need_image, case.image), (need_labels, case.labels)):
        if needed and not path.exists():
            there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            more = f" and {len(there) - 8} more" if len(there) > 8 else ""
            raise InputError(
                f"{path}: missing; the folder holds {', '.join(there[:8]) or 'nothing'}{more}. "
                "Complete or remove the case."
            )
    return replace(case, labels=case.labels if case.labels and case.labels.exists() else None)


def prediction_name(case_name):
    """Name of a case's prediction as KiTS19 asks for it: case_00210 -> prediction_00210.nii.gz."""
    if case_name.startswith("case_"):
        return f"prediction_{case_name.removeprefix('case_')}.nii.gz"
    return f"{case_name}.nii.gz"


def find_scans(inputs, layout=None):
    """Scans by case name.

    Args:
        inputs: files, case folders, folders of cases, DICOM series.
        layout: Layout of the folders among them.

    Raises: InputError for a name that comes up twice; FileNotFoundError.
    """
    scans = {}
    for item in map(Path, inputs):
        if item.is_dir():
            found = [(case.name, case.image) for case in find_cases(item, need_labels=False, layout=layout)]
        elif item.exists():
            name = item.resolve().parent.name if item.name in IMAGE_NAMES else item.name
            found = [(name.removesuffix(".gz").removesuffix(".nii"), item)]
        else:
            raise InputError(
                f"{item}: expected a scan or a folder of cases, found nothing there. Check the path."
            )
        for name, path in found:
            if name in scans:
                raise InputError(
                    f"{path}: a second scan called {name} beside {scans[name]}. Rename one of them."
                )
            scans[name] = path
    return scans
