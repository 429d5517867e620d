"""What a case is, how the user says where its files lie, and the case folders of KiTS.

Each finder (this one, ``nnunet_cases``, ``pattern_cases``) says where a case's files are expected; whether they are
there is looked at by ``kitsseg.data.layouts.find.find_cases``, which chooses the finder.
"""

from dataclasses import dataclass
from pathlib import Path

from kitsseg.errors import InputError

__all__ = ["CYST", "IMAGE_NAMES", "LABEL_NAMES", "Case", "Layout", "kits_cases"]

IMAGE_NAMES = ("imaging.nii.gz", "imaging.nii")
LABEL_NAMES = ("segmentation.nii.gz", "segmentation.nii", "aggregated_MAJ_seg.nii.gz")  # the last: KiTS21
CYST = {"background": 0, "kidney": 1, "tumor": 2}


@dataclass(frozen=True)
class Case:
    """One patient's files.

    Attributes:
        image: the CT, a NIfTI file or the folder of a DICOM series.
        labels: the label map; None where there is none.
        label_values: what its labels 0, 1, 2, ... become (see ``read_labels``).
    """

    name: str
    image: Path
    labels: Path | None
    label_values: tuple[int | None, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Layout:
    """What the user says about a folder of cases; all None: found out from the folder.

    Attributes:
        images, labels: patterns such as ``*/ct.nii.gz``, relative to the folder. What the wildcards stand for names
            the case, and belongs together where it is the same.
        cyst: "kidney", "tumor" or "background": what cysts (label 3 of KiTS21 and KiTS23) become. None refuses them.
    """

    images: str | None = None
    labels: str | None = None
    cyst: str | None = None

    def __post_init__(self):
        if self.cyst is not None and self.cyst not in CYST:
            raise InputError(f"cyst: expected {', '.join(CYST)}, found {self.cyst}.")

    @property
    def label_values(self):
        """Of KiTS label maps."""
        return (0, 1, 2) if self.cyst is None else (0, 1, 2, CYST[self.cyst])


def kits_cases(folder, layout):
    """Cases of KiTS19, KiTS21 or KiTS23: folders of a CT and a label map. Empty if there are none.

    Raises: InputError for a case with two label maps or two images.
    """
    names = IMAGE_NAMES + LABEL_NAMES
    if any((folder / name).is_file() for name in names):
        folders = [folder.resolve()]
    else:
        folders = sorted(
            sub
            for sub in folder.iterdir()
            if not sub.name.startswith(".") and any((sub / n).is_file() for n in names)
        )
    return [
        Case(sub.name, _only(sub, IMAGE_NAMES), _only(sub, LABEL_NAMES), layout.label_values)
        for sub in folders
    ]


def _only(folder, names):
    """The one of these files that is there, or else where the first would be."""
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(
            f"{folder}: expected one of {', '.join(names)}, found {' and '.join(p.name for p in found)}. "
            "Remove one, or say which is meant with --images or --labels."
        )
    return found[0] if found else folder / names[0]
