"""Names of cases: all names of cases that come from paths, and all names of files that come from cases, are made here.

A name comes from the path that the user gave. Links are not followed, because a file in a store to which a link leads
(git-annex, DVC, a download cache) has another name there. A scan has the same name whether its file or its folder is
given.
"""

import os
import re
from pathlib import Path

from kitsseg.files.paths import as_given, check_utf8

__all__ = [
    "IMAGE_NAMES",
    "JOURNALS",
    "LABEL_NAMES",
    "PREDICTIONS",
    "case_of_prediction",
    "check_name",
    "folder_name",
    "in_case_folder",
    "is_label_folder",
    "is_named_as_labels",
    "is_nifti",
    "nnunet_part",
    "pattern_of",
    "prediction_name",
    "scan_name",
    "stem_of",
]

PREDICTIONS = "predictions.json"  # the record of ``kitsseg predict`` beside its label maps ...
JOURNALS = "predictions-*.jsonl"  # ... and those of its processes that are at work, or were killed

IMAGE_NAMES = ("imaging.nii.gz", "imaging.nii")
LABEL_NAMES = ("segmentation.nii.gz", "segmentation.nii", "aggregated_MAJ_seg.nii.gz")  # the last: KiTS21
_OF_FOLDERS = {name.lower() for name in IMAGE_NAMES + LABEL_NAMES}
_ENDINGS = (".nii.gz", ".nii")
_LABEL_WORDS = {"seg", "segmentation", "mask", "label", "annotation", "prediction", "gt"}
_LABEL_WORDS |= {f"{word}s" for word in _LABEL_WORDS}


def check_name(name: str, path: Path) -> None:
    """Check that a case's name can be written to the files of kitsseg, which are all UTF-8.

    Raises: InputError for bytes that are not UTF-8, as in names from archives in an old encoding.
    """
    check_utf8(name, path, "Rename the case: tables and reports could not name it.")


def folder_name(path: str | os.PathLike[str]) -> str:
    """The name of a folder, without following links; ``.`` and ``..`` are replaced by the name of their folder."""
    return as_given(path).name


def is_nifti(path: Path) -> bool:
    """Whether a file's name ends as those of NIfTI files do, in small or capital letters."""
    return path.name.lower().endswith(_ENDINGS)


def is_named_as_labels(name: str) -> bool:
    """Whether a word of a name, without its ending, says that it is a label map: "anna_seg", "Mask 2"."""
    return bool(_LABEL_WORDS & _words(name))


def is_label_folder(name: str) -> bool:
    """Whether the name of a folder says nothing but labels: "masks", not "kidney segmentation project"."""
    words = _words(name)
    return bool(words) and words <= _LABEL_WORDS | {"ground", "truth", "manual"}


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def stem_of(name: str) -> str:
    """The name of a NIfTI file without its ending, in small or capital letters: SCAN.NII.GZ -> SCAN."""
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def in_case_folder(file: Path) -> bool:
    """Whether a file has a name as in the case folders of KiTS, so that its folder names the case."""
    return file.name.lower() in _OF_FOLDERS


def nnunet_part(folder: Path) -> tuple[str, str] | None:
    """("images" or "labels", "Tr" or "Ts") of a folder ``imagesTr`` or the like, or of a link to one; else None."""
    return _part_of(as_given(folder))


def _part_of(folder: Path) -> tuple[str, str] | None:
    """As ``nnunet_part``, for the absolute path of a folder."""
    for name in (folder.name, folder.resolve().name):
        if match := re.fullmatch("(images|labels)(Tr|Ts)", name):
            return match[1], match[2]
    return None


def scan_name(file: Path) -> str:
    """Name of the case that a scan's file belongs to. It is the name that ``find_cases`` gives it for its folder."""
    folder = as_given(file).parent
    if in_case_folder(file):
        return folder.name
    stem, part = stem_of(file.name), _part_of(folder)
    return stem.removesuffix("_0000") if part and part[0] == "images" else stem


def prediction_name(case_name: str) -> str:
    """Name of a case's prediction as KiTS19 asks for it: case_00210 -> prediction_00210.nii.gz.

    That of a single slice is a PNG, whose name is the slice's already.
    """
    if case_name.endswith(".png"):
        return case_name
    if case_name.startswith("case_"):
        return f"prediction_{case_name.removeprefix('case_')}.nii.gz"
    return f"{case_name}.nii.gz"


def case_of_prediction(file: Path) -> str:
    """The case that a label map belongs to: the inverse of ``prediction_name``, for two other common names as well.

    Raises: InputError as ``check_name``.
    """
    stem = stem_of(file.name)
    case = f"case_{stem.removeprefix('prediction_')}" if stem.startswith("prediction_") else stem
    if in_case_folder(file):
        case = as_given(file).parent.name
    check_name(case, file)
    return case


def pattern_of(paths: list[Path], fixed: bool = True) -> str | None:
    """A pattern for --images that finds these files or folders, with a different text for each in its wildcards.

    Args:
        paths: relative to one folder.
        fixed: True keeps the names of folders that all paths share; False puts wildcards for them, too.

    Returns: the pattern, or None if the paths do not lie equally deep.
    """
    if len({len(path.parts) for path in paths}) != 1:
        return None
    *folders, names = zip(*(path.parts for path in paths), strict=True)
    parts = [
        found[0] if fixed and len(paths) > 1 and len(set(found)) == 1 else "*" for found in map(list, folders)
    ]
    if all(map(is_nifti, paths)):
        endings = {path.name[len(stem_of(path.name)) :] for path in paths}
        ending = endings.pop() if len(endings) == 1 else ".nii*"
        parts.append(names[0] if folders and len(set(names)) == 1 else f"*{ending}")
    else:
        parts.append("*")
    return re.sub(r"[\[\]{}]|(?<=\*)\*", "?", "/".join(parts))
