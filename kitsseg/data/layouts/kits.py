"""The classes Case and Layout, and the case folders of KiTS.

Each finder (``kits_cases``, ``nnunet_cases``, ``pattern_cases``) says where the files of a case are expected.
``kitsseg.data.layouts.find.find_cases`` chooses the finder and checks that the files exist.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kitsseg.data.formats.slices import SliceImage, check_window
from kitsseg.data.layouts.names import IMAGE_NAMES, LABEL_NAMES, folder_name
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given

__all__ = ["CYST", "Case", "Layout", "empty_case_folders", "holds_no_files", "kits_cases"]

CYST = {"background": 0, "kidney": 1, "tumor": 2}


@dataclass(frozen=True)
class Case:
    """One patient's files.

    Attributes:
        image: the CT, a NIfTI file or the folder of a DICOM series; None if only label maps were searched.
        labels: the label map; None if there is none.
        label_values: the classes that its labels 0, 1, 2, ... become (see ``read_labels``).
        slices: the single images of a patient without a scan; ``image`` and ``labels`` are then their folders.
    """

    name: str
    image: Path | None
    labels: Path | None
    label_values: tuple[int | None, ...] = (0, 1, 2)
    slices: tuple[SliceImage, ...] = ()

    @property
    def scan(self) -> Path:
        """``image`` of a case that was found to have one.

        Raises: ValueError without.
        """
        if self.image is None:
            raise ValueError(f"{self.name}: no image was looked for.")
        return self.image

    @property
    def truth(self) -> Path:
        """``labels`` of a case that was found to have some.

        Raises: ValueError without.
        """
        if self.labels is None:
            raise ValueError(f"{self.name}: no label map was looked for.")
        return self.labels


@dataclass(frozen=True)
class Layout:
    """Where the files of a folder of cases lie, as the user states it. If all is None, the folder decides.

    Attributes:
        images, labels: patterns such as ``*/ct.nii.gz``, relative to the folder. The text that the wildcards stand for
            is the name of the case; an image and a label map with the same name belong together.
        cyst: "kidney", "tumor" or "background": what cysts (label 3 of KiTS21 and KiTS23) become. None refuses them.
        hu_window: for single images, the HU of their darkest and brightest value.
        mask_values: for single images, the values of background, kidney and tumor in their masks; None: 0, 1, 2.
    """

    images: str | None = None
    labels: str | None = None
    cyst: str | None = None
    hu_window: tuple[float, float] | None = None
    mask_values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.cyst is not None and self.cyst not in CYST:
            raise InputError(f"cyst: expected {', '.join(CYST)}, found {self.cyst}.")
        if self.hu_window is not None:
            check_window(self.hu_window, "--hu-window")
        if self.mask_values is not None and not (
            1 < len(self.mask_values) <= 3 and len(set(self.mask_values)) == len(self.mask_values)
        ):
            raise InputError(
                f"--mask-values: expected different values of background, kidney and, if there is any, tumor, found "
                f"{','.join(map(str, self.mask_values))}."
            )

    @property
    def label_values(self) -> tuple[int, ...]:
        """Of KiTS label maps."""
        return (0, 1, 2) if self.cyst is None else (0, 1, 2, CYST[self.cyst])


def kits_cases(
    folder: Path,
    layout: Layout,
    options: tuple[str, ...] = (),
    refused: Callable[[Path, InputError], object] | None = None,
) -> list[Case]:
    """Cases of KiTS19, KiTS21 or KiTS23: folders of a CT and a label map. Empty if there are none.

    A link that leads nowhere counts as a file, so that a scan which has not been fetched is reported as missing.

    Args:
        folder: of case folders, or one case folder.
        layout: Layout.
        options: the options for patterns that the command has, for the messages.
        refused: called as refused(folder, error) for a case with two label maps or two images, which is then left out.
            None: the error is raised.

    Raises: InputError for a case with two label maps or two images.
    """
    if here := _files_of(folder):
        folders = {as_given(folder): here}
    else:
        below = sorted(sub for sub in folder.iterdir() if not sub.name.startswith(".") and sub.is_dir())
        folders = {sub: files for sub in below if (files := _files_of(sub))}
    cases = []
    for sub, files in folders.items():
        try:
            image, labels = (_only(sub, files, names, options) for names in (IMAGE_NAMES, LABEL_NAMES))
        except InputError as error:
            if refused is None:
                raise
            refused(sub, error)
        else:
            cases.append(Case(folder_name(sub), image, labels, layout.label_values))
    return cases


def empty_case_folders(folder: Path, cases: Iterable[Case]) -> list[Path]:
    """The folders beside case folders that are named as one, such as ``case_00004``, and hold no file.

    Another folder of a tree may be empty for good reasons; these are cases whose copy has failed.

    Args:
        folder: the folder of case folders.
        cases: that ``kits_cases`` found in it.
    """
    found = {case.scan.parent.name for case in cases if case.scan.parent.parent == folder}
    alike = {shape for shape in map(_without_digits, found) if "#" in shape}
    if not alike:
        return []
    below = sorted(sub for sub in folder.iterdir() if not sub.name.startswith(".") and sub.is_dir())
    return [
        sub
        for sub in below
        if sub.name not in found and _without_digits(sub.name) in alike and holds_no_files(sub)
    ]


def holds_no_files(folder: Path) -> bool:
    """Whether neither a folder nor any folder in it holds a file, hidden files left aside."""
    return not any(
        name for _, _, names in os.walk(folder, followlinks=False) for name in names if name[0] != "."
    )


def _without_digits(name: str) -> str:
    """What names of cases have in common: ``case_00004`` -> ``case_#``."""
    return re.sub(r"\d+", "#", name.lower())


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """Name of a case's file -> the file of this name in a folder; capital and small letters count as the same."""
    found: dict[str, list[Path]] = {}
    known = {name.lower(): name for name in IMAGE_NAMES + LABEL_NAMES}
    for path in sorted(folder.iterdir()):
        if (name := known.get(path.name.lower())) and (path.is_file() or path.is_symlink()):
            found.setdefault(name, []).append(path)
    return {name: paths for name, paths in found.items() if not all(map(Path.is_dir, paths))}


def _only(
    folder: Path, files: dict[str, list[Path]], names: tuple[str, ...], options: tuple[str, ...]
) -> Path:
    """The file that exists under one of these names; if there is none, the path of the first name."""
    found = [path for name in names for path in files.get(name, ())]
    if len(found) > 1:
        which = f", or say which is meant with {' or '.join(options)}" if options else ""
        raise InputError(
            f"{folder}: expected one of {', '.join(names)}, found {' and '.join(p.name for p in found)}. "
            f"Remove one{which}."
        )
    return found[0] if found else folder / names[0]
