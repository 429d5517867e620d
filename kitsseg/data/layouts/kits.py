"""What a case is, how the user says where its files lie, and the case folders of KiTS.

Each finder (this one, ``nnunet_cases``, ``pattern_cases``) says where a case's files are expected; whether they are
there is looked at by ``kitsseg.data.layouts.find.find_cases``, which chooses the finder.
"""

from dataclasses import dataclass
from pathlib import Path

from kitsseg.data.formats.slices import SliceImage
from kitsseg.data.layouts.names import IMAGE_NAMES, LABEL_NAMES, folder_name
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given

__all__ = ["CYST", "Case", "Layout", "kits_cases"]

CYST = {"background": 0, "kidney": 1, "tumor": 2}


@dataclass(frozen=True)
class Case:
    """One patient's files.

    Attributes:
        image: the CT, a NIfTI file or the folder of a DICOM series; None where only label maps were asked for.
        labels: the label map; None where there is none.
        label_values: what its labels 0, 1, 2, ... become (see ``read_labels``).
        slices: of a patient of whom there are single images only; ``image`` and ``labels`` are their folders then.
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
    """What the user says about a folder of cases; all None: found out from the folder.

    Attributes:
        images, labels: patterns such as ``*/ct.nii.gz``, relative to the folder. What the wildcards stand for names
            the case, and belongs together where it is the same.
        cyst: "kidney", "tumor" or "background": what cysts (label 3 of KiTS21 and KiTS23) become. None refuses them.
        hu_window: of single images, HU of their darkest and brightest value.
        mask_values: of single images, the values of background, kidney and tumor in their masks; None: 0, 1, 2.
    """

    images: str | None = None
    labels: str | None = None
    cyst: str | None = None
    hu_window: tuple[float, float] | None = None
    mask_values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.cyst is not None and self.cyst not in CYST:
            raise InputError(f"cyst: expected {', '.join(CYST)}, found {self.cyst}.")
        if self.hu_window is not None and not self.hu_window[0] < self.hu_window[1]:
            low, high = self.hu_window
            raise InputError(f"--hu-window: expected two HU, the lower one first, found {low:g},{high:g}.")
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


def kits_cases(folder: Path, layout: Layout, options: tuple[str, ...] = ()) -> list[Case]:
    """Cases of KiTS19, KiTS21 or KiTS23: folders of a CT and a label map. Empty if there are none.

    A link to nothing counts as a file: a scan that has not been fetched is missed, not overlooked.

    Args:
        options: those for patterns that the command has, for the messages.

    Raises: InputError for a case with two label maps or two images.
    """
    if here := _files_of(folder):
        folders = {as_given(folder): here}
    else:
        below = sorted(sub for sub in folder.iterdir() if not sub.name.startswith(".") and sub.is_dir())
        folders = {sub: files for sub in below if (files := _files_of(sub))}
    return [
        Case(
            folder_name(sub),
            _only(sub, files, IMAGE_NAMES, options),
            _only(sub, files, LABEL_NAMES, options),
            layout.label_values,
        )
        for sub, files in folders.items()
    ]


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder that are called as a case's files, by that name; capital letters do not count."""
    found: dict[str, list[Path]] = {}
    known = {name.lower(): name for name in IMAGE_NAMES + LABEL_NAMES}
    for path in sorted(folder.iterdir()):
        if (name := known.get(path.name.lower())) and (path.is_file() or path.is_symlink()):
            found.setdefault(name, []).append(path)
    return {name: paths for name, paths in found.items() if not all(map(Path.is_dir, paths))}


def _only(
    folder: Path, files: dict[str, list[Path]], names: tuple[str, ...], options: tuple[str, ...]
) -> Path:
    """The one of these files that is there, or else where the first would be."""
    found = [path for name in names for path in files.get(name, ())]
    if len(found) > 1:
        which = f", or say which is meant with {' or '.join(options)}" if options else ""
        raise InputError(
            f"{folder}: expected one of {', '.join(names)}, found {' and '.join(p.name for p in found)}. "
            f"Remove one{which}."
        )
    return found[0] if found else folder / names[0]
