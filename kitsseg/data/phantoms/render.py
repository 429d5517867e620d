"""CT intensities for a label map: a phantom of the patient around it, tissues, partial volume and noise.

Everything smooth is computed on a thinned grid of about 2 mm and interpolated slice by slice; the labels'
borders keep the full resolution. HU are those of the late arterial phase (textbook values): cortex 150-220,
medulla 60-100, tumors bright and mixed (clear cell, with necrosis 15-35) or gray and even (papillary). Noise
is correlated over about a millimeter, as with a soft kernel, and grows as slices get thinner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kitsseg.data.phantoms.anatomy import FAT, Canvas, Patient, paint_body
from kitsseg.errors import InputError

__all__ = ["render_ct"]

THIN_MM = 2.2
SLAB = 16
MARGIN_MM = 25.0  # around the labels: fat, and room for interpolation


def render_ct(
    labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float], rng: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Render the CT of a patient with these kidneys and tumors.

    Args:
        labels: (slices, rows, columns) uint8 in KiTS axes, 0 background, 1 kidney, 2 tumor.
        spacing_mm: voxel size in the same order.
        rng: ``numpy.random.Generator``; the result is a function of the labels, the spacing and its state.

    Returns: int16 HU (slices, rows, columns), -1024 to 3071. Memory beyond labels and result: some float32
        volumes at about 2 mm, and some slices.
    Raises: InputError if no voxel is labeled.
    """
    steps = [max(1, round(THIN_MM / s)) for s in spacing_mm]
    thin = labels[tuple(slice(None, None, step) for step in steps)]
    step_mm = np.array(steps) * spacing_mm
    patient = place_patient(thin, step_mm, rng)
    canvas = Canvas(thin.shape, step_mm, patient.origin_mm, rng)
    aorta = paint_body(canvas, patient, rng)
    kidneys = paint_kidneys(canvas, patient, thin, step_mm, aorta, rng)
    noise = noise_maker(labels.shape[1:], spacing_mm, rng)
    image = np.empty(labels.shape, np.int16)
    for first in range(0, len(labels), SLAB):
        numbers = range(first, min(first + SLAB, len(labels)))
        slab = upsample(canvas.hu, numbers, labels.shape[1:], steps)
        insert_kidneys(slab, numbers, labels, spacing_mm, kidneys, steps)
        for number, plane in zip(numbers, slab):
            plane += noise()
            np.rint(plane, out=plane)
            image[number] = np.clip(plane, -1024, 3071, out=plane)
    return image


def place_patient(
    labels: npt.NDArray[np.uint8], step_mm: npt.NDArray[np.float64], rng: np.random.Generator
) -> Patient:
    """Place a body around the kidneys and tumors of a label map.

    Args:
        labels: (slices, rows, columns) integers, possibly thinned out.
        step_mm: distance of its voxels.

    Returns: ``Patient``, with all labels inside the skin.
    Raises: InputError if no voxel is labeled.
    """
    index = np.argwhere(labels)
    if not len(index):
        raise InputError("expected kidneys (1) or tumors (2) in the label map, found only background.")
    points = index * np.asarray(step_mm)
    kidney = labels[tuple(index.T)] == 1
    kidney = points[kidney] if kidney.any() else points
    middle = (labels.shape[2] - 1) * step_mm[2] / 2
    half = (points[:, 2].min() + points[:, 2].max()) / 2
    sides = [kidney[kidney[:, 2] < half], kidney[kidney[:, 2] >= half]]
    centers = [side.mean(axis=0) for side in sides if len(side) > 0.1 * len(kidney)]
    # a single kidney says nothing about the midline; the image's middle is never far from it
    apart = len(centers) == 2 and centers[1][2] - centers[0][2] > 60
    midline = (centers[0][2] + centers[1][2]) / 2 if apart else middle
    midline = np.clip(midline, middle - 30, middle + 30)
    row = kidney[:, 1].mean()
    if (
        near := np.abs(points[:, 2] - midline) < 20
    ).any():  # the spine lies behind a horseshoe kidney's bridge
        row = max(row, np.percentile(points[near, 1], 98) + 22)
    origin = np.array([kidney[:, 0].mean(), row, midline])
    points = points - origin
    back = max(float(np.percentile(points[:, 1], 98)) + rng.uniform(32, 44), 66.0)
    front = min(back - rng.uniform(215, 260), float(points[:, 1].min()) - 25)
    half_width = max(rng.uniform(148, 170), float(np.abs(points[:, 2]).max()) + 28)
    kidneys = tuple(tuple((center - origin).tolist()) for center in centers)
    patient = Patient(tuple(origin.tolist()), half_width, front, back, rng.uniform(8, 20), kidneys)
    # large tumors push the flanks and the belly out
    while patient.skin(points[:, 1], points[:, 2]).max() > -12:
        half_width, front, back = patient.half_width + 3, patient.front - 2, patient.back + 2
        patient = replace(patient, half_width=half_width, front=front, back=back)
    return patient


@dataclass(frozen=True)
class Tissues:
    """HU (slices, rows, columns) in the thinned grid's box around kidneys and tumors."""

    box: tuple[slice, ...]
    around: npt.NDArray[np.float32]
    kidney: npt.NDArray[np.float32]
    tumor: npt.NDArray[np.floating[Any]]


def paint_kidneys(
    canvas: Canvas,
    patient: Patient,
    thin: npt.NDArray[np.uint8],
    step_mm: npt.NDArray[np.float64],
    aorta: float,
    rng: np.random.Generator,
) -> Tissues:
    """Paint perirenal fat and renal vessels, and make up the textures of kidneys and tumors: ``Tissues``."""
    box = tuple(
        slice(max(0, int(i.min() - MARGIN_MM / step)), int(i.max() + MARGIN_MM / step) + 2)
        for i, step in zip(np.nonzero(thin), step_mm)
    )
    labels = thin[box]
    noise = partial(smooth_noise, labels.shape, step_mm, rng=rng)
    outside = ndimage.distance_transform_edt(labels == 0, step_mm).astype(np.float32)
    canvas.blend(box, outside - 6 - 2.5 * noise(12), FAT)
    for center in patient.kidneys:
        hilum = np.array(center) * (1, 1, 0.8)
        root = np.array((center[0] * 0.3, -32, 8))
        canvas.tube(root - (0, 0, 28), hilum + (6, -3, 0), 5, rng.uniform(120, 180))
        canvas.tube(root, hilum, 3, aorta - 30)

    depth = ndimage.distance_transform_edt(labels > 0, step_mm).astype(np.float32)
    cortex, medulla = rng.uniform(160, 210), rng.uniform(70, 95)
    # columns of cortex reach down between the pyramids
    inner = np.clip((depth - 6.5 - 1.5 * noise(5)) / 3 + 0.5, 0, 1)
    kidney = cortex + inner * (medulla - cortex) + 5 * noise(4)
    if rng.random() < 0.3:  # a simple cyst belongs to the kidney in KiTS19
        at = rng.choice(np.argwhere(labels == 1)) if (labels == 1).any() else np.zeros(3)
        offset = [(i - a) * s for i, a, s in zip(np.ogrid[tuple(map(slice, labels.shape))], at, step_mm)]
        distance = np.sqrt(sum(o**2 for o in offset)) - rng.uniform(4, 11)
        kidney += np.clip(0.5 - distance / 2, 0, 1) * (rng.uniform(3, 15) - kidney)
    return Tissues(
        box, canvas.hu[box].copy(), kidney.astype(np.float32), tumor_texture(labels, step_mm, noise, rng)
    )


def tumor_texture(
    labels: npt.NDArray[np.uint8],
    step_mm: npt.NDArray[np.float64],
    noise: Callable[[float], npt.NDArray[np.float32]],
    rng: np.random.Generator,
) -> npt.NDArray[np.floating[Any]]:
    """HU of tumor tissue in a box: three in four are mixed and bright (clear cell), the others gray."""
    if rng.random() > 0.75:
        return rng.uniform(42, 75) + 6 * noise(6)
    core = ndimage.distance_transform_edt(labels == 2, step_mm).astype(np.float32)
    texture = rng.uniform(85, 140) + rng.uniform(12, 28) * noise(9) + 7 * noise(4)
    largest = core.max()
    if largest > 8:  # necrosis: the middle of larger tumors, with a ragged border
        dead = np.clip((core / largest + 0.22 * noise(10) - rng.uniform(0.5, 0.85)) / 0.12 + 0.5, 0, 1)
        texture += dead * (rng.uniform(15, 35) - texture)
    return texture


def smooth_noise(
    shape: tuple[int, ...], step_mm: npt.NDArray[np.float64], length_mm: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Normal noise, mean 0 and deviation 1, with structures of about ``length_mm``."""
    sigma = [length_mm / 2 / s for s in step_mm]
    values = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap", truncate=3)
    normal: npt.NDArray[np.float32] = values / max(values.std(), 1e-6)
    return normal


def insert_kidneys(
    slab: npt.NDArray[np.float32],
    numbers: range,
    labels: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    tissues: Tissues,
    steps: Sequence[int],
) -> None:
    """Set kidneys and tumors in some slices, with partial volume at their borders.

    Args:
        slab: HU (slices, rows, columns) float32 of the slices ``numbers``; changed.
        labels: all labels.
    """
    start = [part.start * step for part, step in zip(tissues.box, steps)]
    stop = [min((part.stop - 1) * step + 1, n) for part, step, n in zip(tissues.box, steps, labels.shape)]
    # one slice more on either side for the blur
    low, high = max(numbers[0] - 1, start[0]), min(numbers[-1] + 2, stop[0])
    rows, columns = slice(start[1], stop[1]), slice(start[2], stop[2])
    part = labels[low:high, rows, columns] if low < high else None
    if part is None or not part.any():
        return
    around, kidney, tumor = (
        upsample(t, range(low - start[0], high - start[0]), part.shape[1:], steps)
        for t in (tissues.around, tissues.kidney, tissues.tumor)
    )
    hu = np.where(part == 1, kidney, np.where(part == 2, tumor, around))
    sigma = (0.35, 0.7 / spacing_mm[1], 0.7 / spacing_mm[2])
    hu = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=2)
    first, last = max(low, numbers[0]), min(high, numbers[-1] + 1)
    slab[first - numbers[0] : last - numbers[0], rows, columns] = hu[first - low : last - low]


def upsample(
    field: npt.NDArray[np.floating[Any]], numbers: range, shape: tuple[int, ...], steps: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Interpolate slices ``numbers`` of (rows, columns) ``shape`` from a field thinned by ``steps``."""
    result = np.empty((len(numbers), *shape), np.float32)
    rows, columns = (
        neighbors(np.arange(n), step, m) for n, step, m in zip(shape, steps[1:], field.shape[1:])
    )
    for plane, low, high, weight in zip(result, *neighbors(np.array(numbers), steps[0], len(field))):
        thin = field[low] + weight * (field[high] - field[low])
        low, high, weight = columns
        thin = thin[:, low] + weight * (thin[:, high] - thin[:, low])
        low, high, weight = rows
        plane[...] = thin[high]
        base = thin[low]
        plane -= base
        plane *= weight[:, None]
        plane += base
    return result


def neighbors(
    index: npt.NDArray[np.int64], step: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Neighbors of fine indices in the thinned grid: low, high and weight of high; its last value goes on."""
    low = np.minimum(index // step, count - 1)
    weight = np.minimum(index / step - low, 1).astype(np.float32)
    return low, np.minimum(low + 1, count - 1), weight


def noise_maker(
    shape: tuple[int, ...], spacing_mm: Sequence[float], rng: np.random.Generator
) -> Callable[[], npt.NDArray[np.float32]]:
    """A function that gives the noise of one slice after another, (rows, columns) float32.

    Each is the sum of two random crops of a bank, whose making would cost ten times as much for each slice.
    """
    deviation = np.clip(13.5 * (3 / spacing_mm[0]) ** 0.35, 9, 26) * rng.uniform(0.85, 1.15)
    bank = rng.standard_normal((8, shape[0] + 64, shape[1] + 64), np.float32)
    bank = ndimage.gaussian_filter(bank, (0, 0.6 / spacing_mm[1], 0.6 / spacing_mm[2]), mode="wrap")
    bank /= bank.std()
    # fewer photons arrive from the middle of the body
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    amount = (deviation * (0.6 + 0.5 * np.exp(-2 * (y**2 + x**2)))).astype(np.float32)

    def crop(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        row, column = rng.integers(0, 65, 2)
        return plane[row : row + shape[0], column : column + shape[1]]

    def noise() -> npt.NDArray[np.float32]:
        angle = rng.uniform(0, 2 * np.pi)
        first, second = rng.permutation(len(bank))[:2]  # one plane shifted against itself would show stripes
        plane = crop(bank[first]) * np.float32(np.cos(angle))
        plane += crop(bank[second]) * np.float32(np.sin(angle))
        plane *= amount
        return plane

    return noise
