"""Cases on disk in KiTS19 layout: ``case_00000/imaging.nii.gz`` with ``case_00000/segmentation.nii.gz``."""

from dataclasses import dataclass
from pathlib import Path

from kitsseg.errors import InputError

__all__ = ["Case", "find_cases", "prediction_name"]

IMAGE_NAMES = ("imaging.nii.gz", "imaging.nii")
LABEL_NAMES = ("segmentation.nii.gz", "segmentation.nii")


@dataclass(frozen=True)
class Case:
    """One patient's files; ``labels`` is None where there is no label map."""

    name: str
    image: Path
    labels: Path | None


def find_cases(folder, need_labels=True, need_image=True):
    """All cases of a folder in KiTS19 layout, sorted by name.

    Args:
        folder: holds one folder a case, or is itself the folder of one case.
        need_labels: a case without a label map is an error.
        need_image: a case without a CT is an error; otherwise ``image`` is where it would be.

    Raises: InputError if there is no case, or if a case lacks a file it needs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of cases, found {'a file' if folder.exists() else 'nothing'}."
        )
    names = IMAGE_NAMES + LABEL_NAMES
    if any((folder / name).exists() for name in names):
        folders = [folder.resolve()]
    else:
        folders = sorted(
            sub
            for sub in folder.iterdir()
            if not sub.name.startswith(".") and any((sub / n).exists() for n in names)
        )
    if not folders:
        raise InputError(
            f"{folder}: expected cases such as {folder.name}/case_00000/imaging.nii.gz, found none. "
            "Try: kitsseg synthesize FOLDER"
        )
    return [_case(sub, need_labels, need_image) for sub in folders]


def _case(folder, need_labels, need_image):
    image = next((folder / n for n in IMAGE_NAMES if (folder / n).exists()), None)
    labels = next((folder / n for n in LABEL_NAMES if (folder / n).exists()), None)
    for needed, found, name in ((need_image, image, IMAGE_NAMES[0]), (need_labels, labels, LABEL_NAMES[0])):
        if needed and found is None:
            there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise InputError(
                f"{folder / name}: missing; the folder holds {there}. Complete or remove the case."
            )
    return Case(folder.name, image or folder / IMAGE_NAMES[0], labels)


def prediction_name(case_name):
    """Name of a case's prediction as KiTS19 asks for it: case_00210 -> prediction_00210.nii.gz."""
    if case_name.startswith("case_"):
        return f"prediction_{case_name.removeprefix('case_')}.nii.gz"
    return f"{case_name}.nii.gz"
