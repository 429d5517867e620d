"""Folders of single slices: ``images/`` and ``labels/`` (or ``masks/``) beside a table ``slices.csv`` of patients.

The table has a row for each image: ``file``, ``patient`` (or ``case``), and if they are known ``spacing_mm_rows``,
``spacing_mm_columns`` (or one ``spacing_mm``), ``hu_low``, ``hu_high``. A case is then a patient: a stack of all slices
of the patient, which need not be neighbors. So no split can separate slices of one patient.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

from kitsseg.data.formats.grid import check_pixels
from kitsseg.data.formats.slices import IMAGE_ENDINGS, SliceImage, check_window
from kitsseg.data.layouts.kits import Case, Layout
from kitsseg.errors import InputError
from kitsseg.files.tables import read_rows

__all__ = ["SLICES", "find_slices", "has_images", "has_slices", "slice_cases", "slices_of_inputs"]

SLICES = "slices.csv"
_MASKS = ("labels", "masks")


def has_slices(folder: Path) -> bool:
    """Whether a folder holds ``slices.csv``, the table of single slices."""
    return (folder / SLICES).is_file()


def has_images(folder: Path) -> bool:
    """Whether a folder holds images that could be single slices, with or without ``slices.csv``."""
    return bool(_images_in(folder) or _images_in(folder / "images"))


def find_slices(folder: Path, layout: Layout, need_labels: bool) -> list[SliceImage]:
    """The slices of a folder, sorted by name.

    Args:
        folder: with ``slices.csv`` and the folder ``images``.
        layout: its ``hu_window`` and ``mask_values`` hold for all images.
        need_labels: every image needs a mask and a patient.

    Raises: InputError if the table or a needed value in it is missing, if a file is missing, is not in the table, or
        has the name of another, or if ``layout.hu_window`` contradicts the table.
    """
    table = folder / SLICES
    if not table.is_file():
        raise InputError(
            f"{table}: missing; expected a table with the columns file and patient, and spacing_mm_rows and "
            f"spacing_mm_columns, for the images in {folder}. Slices cannot be split by patient without it."
        )
    images = folder / "images"
    masks = next((folder / name for name in _MASKS if (folder / name).is_dir()), folder / _MASKS[0])
    slices: dict[str, SliceImage] = {}
    for row in _rows(table):
        item = _slice_of(row, table, images, masks, layout, need_labels)
        if item.name in slices:
            raise InputError(
                f"{table}: expected one row for each name, found {slices[item.name].image.name} and {item.image.name}. "
                "Rename or remove one."
            )
        slices[item.name] = item
    if others := sorted(
        {path.name for path in _images_in(images)} - {item.image.name for item in slices.values()}
    ):
        raise InputError(
            f"{table}: expected a row for each of the files in {images.name}, found none for {others[0]}"
            f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}. Add a row for each file, or remove the file."
        )
    if not slices:
        raise InputError(f"{table}: expected a row for each image, found none.")
    return [slices[name] for name in sorted(slices)]


def slice_cases(folder: Path, layout: Layout, need_labels: bool) -> list[Case]:
    """The patients of a folder of slices, each as one Case.

    Args: as ``find_slices``.
    Raises: InputError as ``find_slices``.
    """
    patients: dict[str, list[SliceImage]] = {}
    for item in find_slices(folder, layout, need_labels):
        patients.setdefault(item.patient or item.name, []).append(item)
    labels = next((folder / name for name in _MASKS if (folder / name).is_dir()), None)
    return [Case(name, folder / "images", labels, slices=tuple(items)) for name, items in patients.items()]


def slices_of_inputs(inputs: Iterable[str | os.PathLike[str]], layout: Layout) -> list[SliceImage] | None:
    """The slices among the inputs of a prediction, sorted by name; None if all inputs are scans.

    Args:
        inputs: folders of slices, or single images in them; masks and patients are not needed.
        layout: Layout.

    Raises: InputError for scans and slices together, an image that no table names, and two slices of one name.
    """
    found: dict[str, SliceImage] = {}
    scans, images = [], False
    for item in map(Path, inputs):
        if item.is_dir() and has_slices(item):
            some = find_slices(item, layout, need_labels=False)
        elif item.is_file() and item.suffix.lower() in IMAGE_ENDINGS:
            folder = next(
                (above for above in list(item.absolute().parents)[:2] if has_slices(above)), item.parent
            )
            some = [each for each in find_slices(folder, layout, False) if each.image.samefile(item)]
            if not some:
                raise InputError(
                    f"{item}: expected an image in the folder images with a row in {folder / SLICES}, found none."
                )
        else:
            scans.append(item)
            continue
        images = True
        for each in some:
            other = found.setdefault(each.name, each)
            if not other.image.samefile(each.image):
                raise InputError(
                    f"{each.image}: a second slice called {each.name} beside {other.image}. Predict them into two "
                    "folders (--out)."
                )
    if images and scans:
        raise InputError(
            f"{scans[0]}: expected slices like the other inputs, found a scan. Predict scans with a separate command."
        )
    return [found[name] for name in sorted(found)] if images else None


def _rows(table: Path) -> list[dict[str, str]]:
    expected, advice = "a table of slices", "It needs the columns file and patient."
    return read_rows(table, {"file": str}, str, expected, advice, by_hand=True)


def _slice_of(
    row: dict[str, str], table: Path, images: Path, masks: Path, layout: Layout, need_labels: bool
) -> SliceImage:
    file = (row.get("file") or "").strip()
    if not file or Path(file).name != file or not file.lower().endswith(IMAGE_ENDINGS):
        raise InputError(
            f"{table}: expected the name of a PNG or JPEG file in the column file, found {file!r}."
        )
    name = Path(file).stem
    patient = (row.get("patient") or row.get("case") or "").strip() or None
    if patient is None and need_labels:
        raise InputError(
            f"{table}: expected a patient of {file} in the column patient, found none. Slices are split by patient: "
            "name one for every image."
        )
    if patient is not None and (Path(patient).name != patient or patient.startswith(".")):
        raise InputError(f"{table}: expected a patient of {file} that can name a folder, found {patient!r}.")
    image = images / file
    if not image.is_file():
        raise InputError(f"{image}: missing, but {table.name} names it. Complete or remove the row.")
    mask = next(
        (path for end in (".png", *IMAGE_ENDINGS) if (path := masks / f"{name}{end}").is_file()), None
    )
    if mask is None and need_labels:
        raise InputError(f"{masks / name}.png: missing, the mask of {image}. Complete or remove the row.")
    window = _pair(row, table, file, ("hu_low", "hu_high"))
    if window is not None and layout.hu_window not in (None, window):
        raise InputError(
            f"--hu-window {layout.hu_window[0]:g},{layout.hu_window[1]:g}: {table} says {window[0]:g} to {window[1]:g} "
            f"for {file}. Leave the option out, or correct the table."
        )
    window = window or layout.hu_window
    if window is not None:
        check_window(window, f"{table}, {file}: hu_low and hu_high")
    spacing = _pair(row, table, file, ("spacing_mm_rows", "spacing_mm_columns"), "spacing_mm")
    if spacing is not None:
        check_pixels(spacing, f"{table}, {file}")
    return SliceImage(name, image, mask, patient, spacing, window, layout.mask_values or (0, 1, 2))


def _pair(
    row: dict[str, str], table: Path, file: str, names: tuple[str, str], both: str = ""
) -> tuple[float, float] | None:
    """Two numbers of a row, or one number that stands for both; None if the row has none."""
    texts = [(row.get(name) or row.get(both) or "").strip() for name in names]
    if not any(texts):
        return None
    try:
        numbers = [float(text) for text in texts]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not finite")
    except ValueError as error:
        raise InputError(
            f"{table}: expected two numbers in {' and '.join(names)} for {file}, found {texts[0]!r} and {texts[1]!r}."
        ) from error
    return numbers[0], numbers[1]


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS and path.name[0] != "." and path.is_file()
    )
