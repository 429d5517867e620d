"""Single slices as PNG or JPEG images: gray values from and to HU, masks from and to labels.

An image of 8 or 16 bits does not hold HU: they were clipped to a window, and the window was spread over the gray
values. The user has to state this window; HU outside of it are lost. A mask is a PNG whose values are the labels, or
other values that the user states, such as 0, 128 and 255.

Such files do not tell which side of the patient is left, or whether image and mask were mirrored together. Masks that
are mirrored against their images are noticed when several images are compared (``mirrored_masks``).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from kitsseg.data.formats.grid import Grid, Volume, check_pixels
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path

__all__ = [
    "IMAGE_ENDINGS",
    "SliceImage",
    "check_window",
    "mirrored_masks",
    "read_mask",
    "read_masks",
    "read_slice",
    "read_slices",
    "slice_size",
    "write_mask",
]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_WORDS = ("background", "kidney", "tumor")
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
WINDOW_HU = (-32768.0, 65535.0)  # what scanners write; HU of one window are a small part of it
SHOWN = 6  # values of a mask in a message


@dataclass(frozen=True)
class SliceImage:
    """One slice of a patient, as a file.

    Attributes:
        name: the file's name without its ending.
        image: the file.
        labels: its mask; None if there is none.
        patient: the patient that it shows; None if not stated.
        spacing_mm: (rows, columns); None if not stated.
        hu_window: HU of the gray values 0 and 255 (65,535 of 16 bits); None if not stated.
        mask_values: the mask's values of background, kidney and tumor.
    """

    name: str
    image: Path
    labels: Path | None
    patient: str | None
    spacing_mm: tuple[float, float] | None
    hu_window: tuple[float, float] | None
    mask_values: tuple[int, ...] = (0, 1, 2)

    @property
    def truth(self) -> Path:
        """``labels`` of a slice that was found to have a mask.

        Raises: ValueError without.
        """
        if self.labels is None:
            raise ValueError(f"{self.name}: no mask was looked for.")
        return self.labels


def check_window(window: tuple[float, float], where: str) -> None:
    """Refuse a window that is empty, or that lies beyond all HU.

    Args:
        window: HU of the darkest and the brightest gray value.
        where: it was stated, for the message.

    Raises: InputError.
    """
    low, high = window
    if not WINDOW_HU[0] <= low < high <= WINDOW_HU[1]:  # nor is NaN
        raise InputError(
            f"{where}: expected two HU from {WINDOW_HU[0]:g} to {WINDOW_HU[1]:g}, the lower one first, found {low:g} "
            f"and {high:g}. Give the HU of the darkest and the brightest gray value."
        )


def read_slice(item: SliceImage) -> npt.NDArray[np.int16]:
    """HU (rows, columns) of an image.

    Raises: InputError for a file that is damaged, in color or of more than 16 bits, and where no window is given.
    """
    path, (mode, values) = item.image, _pixels(item.image)
    if values.ndim == 3 or mode == "P":
        raise InputError(
            f"{path}: expected a gray image of 8 or 16 bits, found a color image ({mode}). Save it in gray."
        )
    if mode not in ("L", *_SIXTEEN) or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: expected a gray image of 8 or 16 bits, found another kind ({mode}).")
    if item.hu_window is None:
        bits = 8 if mode == "L" else 16
        raise InputError(
            f"{path}: expected the HU of the darkest and brightest value, found none; an image of {bits} bits does not "
            "state these HU. Give --hu-window LOW,HIGH, or the columns hu_low and hu_high of slices.csv."
        )
    low, high = item.hu_window
    hu = low + values.astype(np.float64) * ((high - low) / (255 if mode == "L" else 65535))
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def read_mask(item: SliceImage) -> npt.NDArray[np.uint8]:
    """Labels (rows, columns) of an image's mask: 0 background, 1 kidney, 2 tumor.

    Raises: InputError for a file that is damaged, in color, of another size than its image, or with other values.
    """
    path = item.labels
    if path is None:
        raise InputError(f"{item.image}: expected a mask of the same name, found none.")
    mode, values = _pixels(path)
    if values.ndim == 3:
        raise InputError(f"{path}: expected a mask of single values, found a color image ({mode}).")
    if values.shape != (size := slice_size(item.image)):
        raise InputError(
            f"{path}: expected {size[0]} x {size[1]} pixels (rows x columns) as its image {item.image.name} has, found "
            f"{values.shape[0]} x {values.shape[1]}. Are these two files of the same slice?"
        )
    values = values.astype(np.int64)
    labels = np.zeros(values.shape, np.uint8)
    known = np.zeros(values.shape, bool)
    for label, value in enumerate(item.mask_values):
        here = values == value
        labels[here], known = label, known | here
    if not known.all():
        raise InputError(_unknown_values(path, np.unique(values), item.mask_values))
    return labels


def _unknown_values(path: Path, found: npt.NDArray[np.int64], expected: tuple[int, ...]) -> str:
    meant = ", ".join(f"{value} {word}" for value, word in zip(expected, _WORDS))
    shown = ", ".join(map(str, found[:SHOWN])) + (
        f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    )
    if path.suffix.lower() in (".jpg", ".jpeg"):
        advice = "JPEG changes values: save masks as PNG."
    elif len(found) <= len(_WORDS):
        named = ",".join(map(str, found))
        advice = f"If these are background, kidney and tumor, say so: --mask-values {named}"
    else:
        advice = "Is this an image instead of a mask?"
    return f"{path}: expected the mask values {meant}; found {shown}. {advice}"


def read_slices(items: Sequence[SliceImage]) -> Volume:
    """The images of one patient as a stack, in the order given; its slices need not be neighbors.

    Returns: Volume with int16 ``array`` (images, rows, columns).
    Raises: InputError as ``read_slice``; for images of several sizes, or the same image twice.
    """
    planes = [read_slice(item) for item in items]
    seen: dict[bytes, SliceImage] = {}
    for item, plane in zip(items, planes, strict=True):
        if plane.shape != planes[0].shape or item.spacing_mm != items[0].spacing_mm:
            raise InputError(
                f"{item.image}: expected {_size(planes[0], items[0])} as in {items[0].image.name} of the same "
                f"patient {item.patient}; found {_size(plane, item)}. Bring these images to one size and spacing."
            )
        other = seen.setdefault(plane.tobytes(), item)
        if other is not item and plane.min() < plane.max():  # several may show nothing but air
            raise InputError(
                f"{item.image}: the same image as {other.image.name}, of the same patient {item.patient}. Remove one "
                "of the two."
            )
    return Volume(items[0].image, np.stack(planes), _grid(planes, items[0]))


def read_masks(items: Sequence[SliceImage]) -> Volume:
    """The masks of these images as a stack: uint8 labels (images, rows, columns)."""
    planes = [read_mask(item) for item in items]
    for item, plane in zip(items, planes, strict=True):
        if plane.shape != planes[0].shape:
            raise InputError(
                f"{item.labels}: expected {planes[0].shape} pixels as {items[0].labels} has, a mask of the same "
                f"patient {item.patient}; found {plane.shape}."
            )
    return Volume(items[0].truth, np.stack(planes), _grid(planes, items[0]))


def write_mask(path: Path, labels: npt.NDArray[np.uint8], mask_values: tuple[int, ...] = (0, 1, 2)) -> None:
    """Write the labels of a slice as a PNG; it appears whole or not at all.

    Args:
        path: of the PNG.
        labels: uint8 (rows, columns): 0 background, 1 kidney, 2 tumor.
        mask_values: the pixel values of background, kidney and tumor.
    """
    values = np.array(mask_values, np.uint8 if max(mask_values) < 256 else np.uint16)[labels]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        Image.fromarray(values).save(file, format="PNG")


def slice_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of an image, from its header."""
    with _opened(path) as image:
        return image.height, image.width


def mirrored_masks(
    images: Sequence[npt.NDArray[np.int16]], masks: Sequence[npt.NDArray[np.uint8]]
) -> str | None:
    """Find out from the edges in images whether their masks are mirrored against them.

    A mask's outline lies on edges of its image. Over all images together the mean slope of HU along the outlines is
    compared with that along the outlines of the mirrored masks. On real KiTS19 slices the right way round wins in 99 %
    of single images against mirrored columns, in 96 % against mirrored rows.

    Args:
        images, masks: HU and labels (rows, columns) of the same size; images without foreground are not used.

    Returns: "left and right", "top and bottom" or "both"; None if the masks fit as they are, or if fewer than
        ``LEAST`` images have foreground, which are too few to tell.
    """
    from scipy import ndimage  # half a second that commands about scans need not wait

    slopes: dict[str, list[float]] = {name: [] for name in ("", *_MIRRORED)}
    for hu, labels in zip(images, masks, strict=True):
        if not labels.any():
            continue
        slope = ndimage.gaussian_gradient_magnitude(hu.astype(np.float32), 1.5)
        outline = labels > 0
        outline = ndimage.binary_dilation(outline) & ~ndimage.binary_erosion(outline)
        for name in slopes:
            slopes[name].append(float(slope[np.flip(outline, _MIRRORED.get(name, ()))].mean()))
    as_it_is = np.array(slopes.pop(""))
    if len(as_it_is) < LEAST:
        return None
    best = max(slopes, key=lambda name: np.mean(slopes[name]))
    ours = np.array(slopes[best])
    clear = (ours > as_it_is).mean() >= SHARE and ours.mean() > FACTOR * as_it_is.mean()
    return best if clear else None


_MIRRORED = {"left and right": (1,), "top and bottom": (0,), "both": (0, 1)}
LEAST, SHARE, FACTOR = 4, 0.75, 1.3


def _pixels(path: Path) -> tuple[str, npt.NDArray[Any]]:
    """(Pillow's mode, values); a gray image that was saved as RGB counts as gray."""
    with _opened(path) as image:
        if (pictures := getattr(image, "n_frames", 1)) > 1:
            raise InputError(
                f"{path}: expected one image, found {pictures} in one file, as of an animation. Save one slice to each "
                "file."
            )
        try:
            mode, values = image.mode, np.array(image)
        except _DAMAGE as error:
            raise InputError(f"{path}: damaged image ({error}). Copy or make it again.") from error
    if values.dtype == bool:
        return "L", values.astype(np.uint8)
    if mode == "RGB" and (values == values[..., :1]).all():
        return "L", values[..., 0]
    return mode, values


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # no slice has 9,459 x 9,459 pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected an image, found nothing there.") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged, or neither PNG nor JPEG ({error}).") from error


def _size(plane: npt.NDArray[np.int16], item: SliceImage) -> str:
    spacing = "" if item.spacing_mm is None else f" of {item.spacing_mm[0]:g} x {item.spacing_mm[1]:g} mm"
    return f"{plane.shape[0]} x {plane.shape[1]} pixels{spacing}"


def _grid(planes: Sequence[npt.NDArray[Any]], item: SliceImage) -> Grid:
    """The grid of a stack. The distance of its images is unknown; the 1 mm in this grid is never used.

    Raises: InputError for pixels that no slice of a CT has.
    """
    rows, columns = planes[0].shape
    shape = (len(planes), rows, columns)
    if item.spacing_mm is not None:
        check_pixels(item.spacing_mm, item.image, (rows, columns))
    spacing = (1.0, *(item.spacing_mm or (1.0, 1.0)))
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_zooms(spacing)
    header.set_sform(np.diag([*spacing, 1.0]), code="aligned")
    return Grid(shape, spacing, (0, 1, 2), (False, False, False), header)
