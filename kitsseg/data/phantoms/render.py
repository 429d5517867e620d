"""CT intensities for a label map: a phantom of the patient around it, tissues, partial volume and noise.

Everything smooth is computed on a thinned grid of about 2 mm and interpolated slice by slice; the labels'
borders keep the full resolution. HU are those of contrast CT in any phase (``draw_enhancement``); tumors are
bright and mixed with necrosis, gray and even, or cystic. The tissue ends a millimeter or two inside the label, as it
does in KiTS19, whose outlines run through the fat around the kidney. Noise is correlated over about a millimeter, as
with a soft kernel, and grows as slices get thinner. Some scans show streaks or were blurred by a breath.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kitsseg.data.phantoms.anatomy import (
    FAT,
    Canvas,
    Enhancement,
    Patient,
    draw_enhancement,
    ellipsoid_distance,
    paint_body,
    random_field,
)
from kitsseg.errors import InputError

__all__ = ["kidney_texture", "noise_maker", "place_patient", "render_ct", "upsample"]

THIN_MM = 2.2
SLAB = 16
MARGIN_MM = 25.0  # around the labels: fat, and room for interpolation
EDGE_MM = 1.8  # deviation of the blur by which the depth below a label's border is estimated


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
    hu = draw_enhancement(rng)
    paint_body(canvas, patient, hu, rng)
    kidneys = _paint_kidneys(canvas, patient, thin, step_mm, hu, rng)
    noise = noise_maker(labels.shape[1:], spacing_mm, rng)
    breath = round(rng.uniform(1, 4) / spacing_mm[1]) if rng.random() < 0.08 else 0
    image = np.empty(labels.shape, np.int16)
    for first in range(0, len(labels), SLAB):
        numbers = range(first, min(first + SLAB, len(labels)))
        slab = upsample(canvas.hu, numbers, labels.shape[1:], steps)
        _insert_kidneys(slab, numbers, labels, spacing_mm, kidneys, steps)
        for number, plane in zip(numbers, slab):
            if breath:
                plane += np.roll(plane, breath, 0)
                plane *= np.float32(0.5)
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
        rng: ``numpy.random.Generator``.

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
    fat, muscle = float(np.clip(rng.lognormal(np.log(16), 0.55), 3, 60)), rng.uniform(8, 20)
    back = max(float(np.percentile(points[:, 1], 98)) + rng.uniform(34, 56) + 0.8 * fat, 66.0)
    front = min(back - rng.uniform(185, 245) - 1.2 * fat, float(points[:, 1].min()) - 25, -115.0)
    half_width = max(rng.uniform(128, 155) + fat, float(np.abs(points[:, 2]).max()) + 28)
    spine = rng.uniform(-14, 10)
    kidneys = tuple(tuple((center - origin).tolist()) for center in centers)
    patient = Patient(tuple(origin.tolist()), half_width, front, back, fat, muscle, spine, kidneys)
    # large tumors push the flanks and the belly out
    while patient.skin(points[:, 1], points[:, 2]).max() > -12:
        half_width, front, back = patient.half_width + 3, patient.front - 2, patient.back + 2
        patient = replace(patient, half_width=half_width, front=front, back=back)
    return patient


@dataclass(frozen=True)
class _Tissues:
    """HU (slices, rows, columns) in the thinned grid's box around kidneys and tumors.

    Attributes:
        shrink: the tissue ends so many mm inside the label's border.
        edge: width of the tissue's border in mm.
        blur: standard deviation in mm of the scanner's blur within a slice.
    """

    box: tuple[slice, ...]
    around: npt.NDArray[np.float32]
    kidney: npt.NDArray[np.float32]
    tumor: npt.NDArray[np.float32]
    shrink: npt.NDArray[np.float32]
    edge: float
    blur: float


def _paint_kidneys(
    canvas: Canvas,
    patient: Patient,
    thin: npt.NDArray[np.uint8],
    step_mm: npt.NDArray[np.float64],
    hu: Enhancement,
    rng: np.random.Generator,
) -> _Tissues:
    """Paint perirenal fat and renal vessels, and make up the textures of kidneys and tumors."""
    box = tuple(
        slice(max(0, int(i.min() - MARGIN_MM / step)), int(i.max() + MARGIN_MM / step) + 2)
        for i, step in zip(np.nonzero(thin), step_mm)
    )
    labels = thin[box]
    axes = [(np.arange(n) * step).astype(np.float32) for n, step in zip(labels.shape, step_mm)]
    noise = partial(random_field, axes, rng=rng)
    outside = ndimage.distance_transform_edt(labels == 0, step_mm).astype(np.float32)
    # from organs that touch the kidney to two centimeters of fat
    gap = float(np.clip(rng.lognormal(np.log(7), 0.7), 0.5, 22))
    canvas.blend(box, outside - gap - 0.4 * gap * noise(14), FAT + rng.uniform(-10, 10))
    strands = np.abs(noise(rng.uniform(10, 20))) - rng.uniform(0.0, 0.06)
    canvas.blend(box, np.maximum(strands * 8, outside - gap), rng.uniform(-80, 20))
    for center in patient.kidneys:
        hilum = np.array(center) * (1, 1, 0.78) + (0, -8, 0)
        canvas.ellipsoid(hilum, rng.uniform((14, 10, 12), (24, 18, 20)), FAT)
        pelvis = rng.uniform(2, 9)
        canvas.ellipsoid(hilum + (8, 6, 0), (1.6 * pelvis, pelvis, pelvis), hu.urine)
        canvas.tube(hilum + (8, 6, 0), hilum + (70, 4, 0), 2, hu.urine)
        root = np.array((center[0] * 0.3, patient.spine - 30, 8))
        canvas.tube(root - (0, 0, 28), hilum + (6, -3, 0), rng.uniform(3, 6.5), hu.veins)
        canvas.tube(root, hilum, rng.uniform(1.5, 3.5), hu.aorta - 30)
        for _ in range(4):
            way = rng.normal((0, 5, np.sign(center[2]) * 14), (12, 6, 5))
            canvas.tube(hilum, hilum + way, rng.uniform(1, 2.5), rng.choice((hu.veins, hu.aorta - 40)))
    shrink = np.clip(rng.uniform(0.3, 1.3) + 0.35 * noise(10), 0, 1.8)
    return _Tissues(
        box,
        canvas.hu[box].copy(),
        kidney_texture(labels, step_mm, hu, noise, rng),
        _tumor_texture(labels, step_mm, hu, noise, rng),
        np.asarray(shrink, np.float32),
        rng.uniform(0.8, 1.3),
        rng.uniform(0.4, 0.9),
    )


def kidney_texture(
    labels: npt.NDArray[np.uint8],
    step_mm: Sequence[float] | npt.NDArray[np.float64],
    hu: Enhancement,
    noise: Callable[[float], npt.NDArray[np.float32]],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """HU of kidney tissue in a box: cortex, pyramids, sinus with fat and calyces, cysts; uneven enhancement.

    Args:
        labels: of the box, (slices, rows, columns).
        step_mm: distance of its voxels.
        hu: Enhancement.
        noise: called as noise(length_mm); smooth noise on the box.
        rng: ``numpy.random.Generator``.
    """
    depth = ndimage.distance_transform_edt(labels > 0, step_mm).astype(np.float32)
    # columns of cortex reach down between the pyramids
    inner = np.clip((depth - rng.uniform(4.5, 8) - 1.8 * noise(rng.uniform(6, 12))) / 3 + 0.5, 0, 1)
    kidney = hu.cortex + inner * (hu.medulla - hu.cortex)
    kidney *= 1 + rng.uniform(0.02, 0.1) * noise(25) + rng.uniform(0.02, 0.07) * noise(5)
    if rng.random() < 0.7:
        sinus = np.clip((depth - rng.uniform(9, 15) - 3 * noise(8)) / 2 + 0.5, 0, 1)
        kinds = np.array((hu.urine, FAT * rng.uniform(0.2, 0.9), hu.veins, hu.medulla))
        kind = kinds[np.searchsorted((-0.8, 0.1, 0.5), noise(9))].astype(np.float32)
        kidney += sinus * (kind - kidney)
    where = np.argwhere(labels == 1)
    for _ in range(rng.poisson(0.7) if len(where) else 0):  # a simple cyst belongs to the kidney in KiTS19
        at, radius = rng.choice(where), rng.lognormal(np.log(6), 0.6)
        offset = [(i - a) * s for i, a, s in zip(np.ogrid[tuple(map(slice, labels.shape))], at, step_mm)]
        distance = ellipsoid_distance(offset, radius * rng.uniform(0.8, 1.2, 3))
        kidney += np.clip(0.5 - distance / 2, 0, 1) * (rng.uniform(-5, 25) - kidney)
    hounsfield: npt.NDArray[np.float32] = kidney.astype(np.float32)
    return hounsfield


def _tumor_texture(
    labels: npt.NDArray[np.uint8],
    step_mm: Sequence[float] | npt.NDArray[np.float64],
    hu: Enhancement,
    noise: Callable[[float], npt.NDArray[np.float32]],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """HU of tumor tissue in a box: half mixed and bright (clear cell), others gray and even, others cystic."""
    kind = rng.choice(("mixed", "even", "cystic"), p=(0.55, 0.33, 0.12))
    core = ndimage.distance_transform_edt(labels == 2, step_mm).astype(np.float32)
    largest = float(core.max())
    if kind == "cystic":  # a wall, septa, fluid
        texture = rng.uniform(5, 30) + 4 * noise(8)
        solid = np.maximum(rng.uniform(0.5, 3) - core, (rng.uniform(0.02, 0.12) - np.abs(noise(18))) * 8)
        value = rng.uniform(0.3, 0.9) * hu.cortex
        return np.asarray(texture + np.clip(solid / 2 + 0.5, 0, 1) * (value - texture), np.float32)
    if kind == "even":
        return np.asarray(rng.uniform(28, 95) + rng.uniform(2, 10) * noise(rng.uniform(6, 20)), np.float32)
    base = float(np.clip(hu.cortex * rng.uniform(0.4, 1.05), 40, 230))
    texture = base * (1 + rng.uniform(0.05, 0.25) * noise(rng.uniform(7, 16))) + 8 * noise(4)
    vessels = np.clip((rng.uniform(0.0, 0.08) - np.abs(noise(14))) * 12, 0, 1)
    texture += vessels * (0.8 * max(hu.aorta, base) - texture)
    if largest > 8 and rng.random() < 0.8:  # necrosis: the middle of larger tumors, with a ragged border
        dead = core / largest + rng.uniform(0.2, 0.5) * noise(rng.uniform(8, 20)) - rng.uniform(0.2, 0.85)
        dead = np.clip(dead / rng.uniform(0.1, 0.4) + 0.5, 0, 1)
        texture += dead * (rng.uniform(5, 45) - texture)
    return np.asarray(texture, np.float32)


def _insert_kidneys(
    slab: npt.NDArray[np.float32],
    numbers: range,
    labels: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    tissues: _Tissues,
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
    around, kidney, tumor, shrink = [
        upsample(t, range(low - start[0], high - start[0]), part.shape[1:], steps)
        for t in (tissues.around, tissues.kidney, tissues.tumor, tissues.shrink)
    ]
    hu, tissue = around, np.where(part == 2, tumor, kidney)
    # the depth below the border, mm, from a blurred mask: Gauss' integral is nearly straight around 0
    blur = [max(EDGE_MM, 0.5 * s) for s in spacing_mm[1:]]
    sigma = (0.0, blur[0] / spacing_mm[1], blur[1] / spacing_mm[2])
    depth = ndimage.gaussian_filter(np.float32(part > 0), sigma, mode="nearest", truncate=2.5)
    depth -= np.float32(0.5)
    depth *= np.float32(max(blur) / 0.37)
    depth -= shrink
    depth /= np.float32(max(tissues.edge, 0.6 * max(spacing_mm[1:])))
    depth += np.float32(0.5)
    tissue -= hu
    tissue *= np.clip(depth, 0, 1, out=depth)
    hu += tissue
    sigma = (0.35, tissues.blur / spacing_mm[1], tissues.blur / spacing_mm[2])
    hu = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=2)
    first, last = max(low, numbers[0]), min(high, numbers[-1] + 1)
    slab[first - numbers[0] : last - numbers[0], rows, columns] = hu[first - low : last - low]


def upsample(
    field: npt.NDArray[np.floating[Any]], numbers: range, shape: tuple[int, ...], steps: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Interpolate slices from a thinned field.

    Args:
        field: (slices, rows, columns), thinned by ``steps``.
        numbers: of the slices, on the full grid.
        shape: (rows, columns) of a slice.
        steps: (slices, rows, columns) by which the field is thinned.
    """
    result = np.empty((len(numbers), *shape), np.float32)
    rows, columns = (
        _neighbors(np.arange(n), step, m) for n, step, m in zip(shape, steps[1:], field.shape[1:])
    )
    for plane, low, high, weight in zip(result, *_neighbors(np.array(numbers), steps[0], len(field))):
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


def _neighbors(
    index: npt.NDArray[np.int64], step: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Neighbors of fine indices in the thinned grid: (low, high, weight of high), clamped at its end."""
    low = np.minimum(index // step, count - 1)
    weight = np.minimum(index / step - low, 1).astype(np.float32)
    return low, np.minimum(low + 1, count - 1), weight


def noise_maker(
    shape: tuple[int, ...], spacing_mm: Sequence[float], rng: np.random.Generator
) -> Callable[[], npt.NDArray[np.float32]]:
    """A function that gives the noise of one slice after another, (rows, columns) float32.

    Args:
        shape: (slices, rows, columns) of the scan.
        spacing_mm: voxel size along these axes.
        rng: ``numpy.random.Generator``.

    Each is the sum of two random crops of a bank, whose making would cost ten times as much for each slice.
    """
    deviation = float(np.clip(20 * (3 / spacing_mm[0]) ** 0.35 * rng.lognormal(0, 0.4), 5, 45))
    kernel = rng.uniform(0.35, 0.85)
    bank = rng.standard_normal((8, shape[0] + 64, shape[1] + 64), np.float32)
    bank = ndimage.gaussian_filter(bank, (0, kernel / spacing_mm[1], kernel / spacing_mm[2]), mode="wrap")
    bank /= bank.std()
    # fewer photons arrive from the middle of the body
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    amount = (deviation * (0.6 + 0.5 * np.exp(-2 * (y**2 + x**2)))).astype(np.float32)
    streaks = _streak_maker(shape, rng) if rng.random() < 0.12 else None

    def crop(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        row, column = rng.integers(0, 65, 2)
        return plane[row : row + shape[0], column : column + shape[1]]

    def noise() -> npt.NDArray[np.float32]:
        angle = rng.uniform(0, 2 * np.pi)
        first, second = rng.permutation(len(bank))[:2]  # one plane shifted against itself would show stripes
        plane = crop(bank[first]) * np.float32(np.cos(angle))
        plane += crop(bank[second]) * np.float32(np.sin(angle))
        plane *= amount
        if streaks is not None:
            plane += streaks()
        return plane

    return noise


def _streak_maker(shape: Sequence[int], rng: np.random.Generator) -> Callable[[], npt.NDArray[np.float32]]:
    """A function that gives the streaks of one slice after another: rays from a dense object near the middle."""
    center = np.array(shape) * rng.uniform(0.35, 0.65, 2)
    y, x = np.arange(shape[0]) - center[0], np.arange(shape[1]) - center[1]
    angle = ((np.arctan2(y[:, None], x) / np.pi + 1) * 359.5).astype(np.int16)
    strength = rng.uniform(2, 9)

    def streaks() -> npt.NDArray[np.float32]:
        rays = ndimage.gaussian_filter1d(rng.standard_normal(720, np.float32), 2.5, mode="wrap")
        pattern: npt.NDArray[np.float32] = (rays * np.float32(strength / rays.std())).take(angle)
        return pattern

    return streaks
