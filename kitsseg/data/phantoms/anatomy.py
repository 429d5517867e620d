"""The body of a synthetic patient: HU of all tissues around given kidneys and tumors.

All positions are millimeters in the patient: z runs to inferior, y to posterior, x to the patient's left,
from a point between the two kidneys. Shapes are given by their approximate signed distance, so that they
blend over a voxel's width as a scanner would average them, whatever the voxel size.

Sizes and HU are an adult's, as textbooks give them, and vary from patient to patient as widely as real contrast
CT does: time after injection, fat and muscle, table, contents of the bowel. Where the organs lie is ours. Between
the organs lie blobs of random shape and HU (the idea of SynthSeg, Billot et al. 2023), because nobody can draw
everything that a belly holds; whoever learns from phantoms must not take every unknown bright thing for a kidney.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = [
    "FAT",
    "Canvas",
    "Enhancement",
    "Patient",
    "draw_enhancement",
    "ellipsoid_distance",
    "paint_body",
    "random_field",
]

FAT = -100
Box = tuple[slice, ...]
Point = Sequence[float] | npt.NDArray[np.floating[Any]]  # (z, y, x), in mm
Coordinate = npt.NDArray[np.floating[Any]]  # of voxels, in mm
Within = Callable[[Coordinate, Coordinate], Coordinate | float]  # within(y, x): a signed distance, mm


@dataclass(frozen=True)
class Enhancement:
    """HU of a patient's tissues at the moment of the scan.

    Attributes:
        urine: in the renal pelvis; bright where the contrast medium is being excreted.
        oral: of the bowel's contents if the patient drank contrast medium, else None.
    """

    aorta: float
    veins: float
    cortex: float
    medulla: float
    urine: float
    liver: float
    spleen: float
    pancreas: float
    bowel: float
    muscle: float
    marrow: float
    oral: float | None


def draw_enhancement(rng: np.random.Generator) -> Enhancement:
    """Draw the HU of a patient: plain (5 %), late arterial (half), portal venous or excretory phase."""
    phase = rng.choice(("plain", "arterial", "portal", "excretory"), p=(0.05, 0.5, 0.37, 0.08))

    def around(median: float, spread: float, low: float, high: float) -> float:
        return float(np.clip(median * np.exp(rng.normal(0, spread)), low, high))

    bounds = {
        "plain": ((35, 48), (35, 48), (0.9, 1.0), (45, 65), (40, 55), (30, 48), (25, 45)),
        "arterial": ((170, 420), (50, 150), (0.42, 0.85), (50, 95), (80, 150), (70, 125), (60, 120)),
        "portal": ((110, 200), (95, 185), (0.82, 1.05), (75, 135), (85, 145), (65, 115), (60, 110)),
        "excretory": ((80, 140), (80, 135), (0.92, 1.08), (65, 105), (70, 110), (55, 90), (50, 90)),
    }[phase]
    aorta, veins, ratio, liver, spleen, pancreas, bowel = (float(rng.uniform(*pair)) for pair in bounds)
    cortex = {
        "plain": lambda: float(rng.uniform(28, 42)),
        "arterial": lambda: around(180, 0.32, 85, 290),
        "portal": lambda: around(142, 0.30, 75, 240),
        "excretory": lambda: around(112, 0.20, 70, 170),
    }[phase]()
    urine = rng.uniform(150, 900) if phase == "excretory" else rng.uniform(0, 25)
    oral = float(rng.uniform(120, 600)) if rng.random() < 0.3 else None
    if rng.random() < 0.15:  # steatosis
        liver -= float(rng.uniform(15, 45))
    return Enhancement(
        aorta,
        veins,
        cortex,
        cortex * ratio,
        float(urine),
        liver,
        spleen,
        pancreas,
        bowel,
        muscle=float(rng.uniform(38, 72)),
        marrow=float(rng.uniform(110, 250)),
        oral=oral,
    )


@dataclass(frozen=True)
class Patient:
    """Position and size of a patient in a volume, all in mm.

    Attributes:
        origin_mm: (z, y, x) of the point between the kidneys, from the center of the first voxel.
        half_width: half the width of the body along x.
        front, back: y of the skin at the belly and at the back.
        fat: thickness of the fat under the skin.
        muscle: thickness of the muscular wall.
        spine: y of the middle of the vertebral bodies.
        kidneys: (z, y, x) center of each kidney, at most one on each side.
    """

    origin_mm: tuple[float, float, float]
    half_width: float
    front: float
    back: float
    fat: float
    muscle: float
    spine: float
    kidneys: tuple[tuple[float, float, float], ...]

    def skin(self, y: Coordinate, x: Coordinate) -> Coordinate:
        """Approximate signed distance to the skin, mm, negative inside."""
        depth = (self.back - self.front) / 2
        y = np.abs(y - (self.front + self.back) / 2) / depth
        radius = (y**2.4 + np.abs(x / self.half_width) ** 2.4) ** (1 / 2.4)
        distance: Coordinate = (radius - 1) * depth
        return distance

    def wall(self, y: Coordinate, x: Coordinate) -> Coordinate:
        """Approximate signed distance to the muscular wall under the subcutaneous fat, mm."""
        return self.skin(y, x) + self.fat * (1 + 0.3 * np.cos(y / 60))

    def cavity(self, y: Coordinate, x: Coordinate) -> Coordinate:
        """Approximate signed distance to the inside of the wall, mm."""
        return self.wall(y, x) + self.muscle


def _anywhere(y: Coordinate, x: Coordinate) -> float:
    return -np.inf


class Canvas:
    """An HU volume on a grid of ``step_mm``, and the coordinates to paint shapes into it.

    The shapes are bent by a few millimeters, differently for each patient.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        step_mm: Sequence[float] | npt.NDArray[np.float64],
        origin_mm: Sequence[float],
        rng: np.random.Generator,
    ) -> None:
        self.hu = np.full(shape, -1000, np.float32)
        self.axes = [(np.arange(n) * s - o).astype(np.float32) for n, s, o in zip(shape, step_mm, origin_mm)]
        self.edge_mm = float(max(2.0, step_mm[1], step_mm[2]))
        self.phase = rng.uniform(0, 2 * np.pi, 4).tolist()

    def box(self, low: npt.ArrayLike, high: npt.ArrayLike) -> Box:
        """Slices of the grid that hold the box from ``low`` to ``high`` and a margin to bend and blend in."""
        low, high = np.array(low) - 8 - self.edge_mm, np.array(high) + 8 + self.edge_mm
        return tuple(slice(*np.searchsorted(axis, ends)) for axis, *ends in zip(self.axes, low, high))

    def points(self, box: Box, bend: float = 1.0) -> tuple[Coordinate, Coordinate, Coordinate]:
        """Bent coordinates z (n, 1, 1), y and x (n, rows, columns) of the voxels in a box."""
        z, y, x = np.ix_(*(axis[part] for axis, part in zip(self.axes, box)))
        a, b, c, d = self.phase
        bent_y = y + bend * (3 * np.sin(x / 23 + z / 41 + a) + 2 * np.sin(x / 11 - z / 17 + b))
        bent_x = x + bend * (3 * np.sin(y / 19 - z / 37 + c) + 2 * np.sin(y / 9 + z / 23 + d))
        return z, bent_y, bent_x

    def blend(self, box: Box, distance: Coordinate, value: float | Coordinate) -> None:
        """Paint where a signed distance is negative, blended over a voxel's width at the border.

        Args:
            box: slices of the grid.
            distance: signed distance in mm of the voxels in the box.
            value: HU, one number or one for each voxel.
        """
        part = self.hu[box]
        part += np.clip(0.5 - distance / self.edge_mm, 0, 1) * (value - part)

    def ellipsoid(
        self,
        center: Point,
        radii: Point,
        value: float
        | Callable[
            [Coordinate, Coordinate, Coordinate],
            Coordinate,
        ],
        within: Within = _anywhere,
    ) -> None:
        """Paint an ellipsoid.

        Args:
            center: (z, y, x) in mm.
            radii: along the same axes, in mm.
            value: HU.
            within: called as within(y, x); a signed distance in mm that bounds the ellipsoid. None: no bound.
        """
        # Python's floats, not NumPy's: those would make float64 volumes of float32 coordinates
        center, radii = [float(c) for c in center], [float(r) for r in radii]
        box = self.box(np.subtract(center, radii), np.add(center, radii))
        z, y, x = self.points(box)
        distance = ellipsoid_distance((z - center[0], y - center[1], x - center[2]), radii)
        self.blend(box, np.maximum(distance, within(y, x)), value(z, y, x) if callable(value) else value)

    def tube(
        self,
        start: Point,
        end: Point,
        radius: float,
        value: float,
        within: Within = _anywhere,
    ) -> None:
        """Paint a tube with round ends.

        Args:
            start, end: (z, y, x) in mm.
            radius: in mm.
            value: HU.
            within: as in ``ellipsoid``.
        """
        start, way = [float(p) for p in start], [float(q - p) for p, q in zip(start, end)]
        box = self.box(np.minimum(start, end) - radius, np.maximum(start, end) + radius)
        z, y, x = self.points(box)
        steps = (z - start[0], y - start[1], x - start[2])
        squared = max(sum(w * w for w in way), 1e-6)
        along = np.clip(sum(p * w for p, w in zip(steps, way)) / squared, 0, 1)
        distance = np.sqrt(sum((p - along * w) ** 2 for p, w in zip(steps, way))) - float(radius)
        self.blend(box, np.maximum(distance, within(y, x)), float(value))


def ellipsoid_distance(offset: Sequence[Coordinate], radii: Point) -> Coordinate:
    """Approximate signed distance, mm, to an ellipsoid; ``offset`` are the coordinates from its center."""
    distance: Coordinate = (np.sqrt(sum((o / r) ** 2 for o, r in zip(offset, radii))) - 1) * min(radii)
    return distance


def random_field(
    axes: list[npt.NDArray[np.float32]], length_mm: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Smooth normal noise, mean about 0 and deviation about 1, with structures of about ``length_mm``.

    Drawn on a lattice as coarse as the structures allow and interpolated linearly: a tenth of the time of filtering
    noise on the grid itself, and the structures are the same size on any grid.

    Args:
        axes: coordinates in mm along slices, rows and columns, ascending.
        length_mm: size of the structures.
        rng: ``numpy.random.Generator``.

    Returns: float32 (slices, rows, columns).
    """
    step = length_mm / 3
    shape = [int((axis[-1] - axis[0]) / step) + 3 for axis in axes]
    values = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 1.3, mode="wrap", truncate=3)
    values /= max(float(values.std()), 1e-6)
    for number, axis in enumerate(axes):
        position = (axis - axis[0]) / step
        low = position.astype(np.intp)
        weight = np.float32(position - low).reshape([-1 if n == number else 1 for n in range(3)])
        below = values.take(low, number)
        values = below + weight * (values.take(low + 1, number) - below)
    field: npt.NDArray[np.float32] = values
    return field


def paint_body(canvas: Canvas, patient: Patient, hu: Enhancement, rng: np.random.Generator) -> None:
    """Paint everything except for kidneys and tumors.

    Args:
        canvas: Canvas; changed.
        patient: Patient.
        hu: Enhancement.
        rng: ``numpy.random.Generator``.
    """
    whole = tuple(slice(None) for _ in canvas.axes)
    z, y, x = canvas.points(whole, bend=0.6)
    _paint_table(canvas, patient, whole, y, x, rng)
    skin, wall = patient.skin(y, x), patient.wall(y, x)
    canvas.blend(whole, skin, 10)
    canvas.blend(whole, skin + 2, FAT + rng.uniform(-12, 8))
    canvas.blend(whole, wall, hu.muscle)
    canvas.blend(whole, patient.cavity(y, x), FAT - 5)
    # ribs run obliquely; the costal arch rises to the front
    slope, apart, level = rng.uniform(0.4, 0.9), rng.uniform(24, 34), rng.uniform(-10, 60)
    across = (z + slope * y) % apart - apart / 2
    rib = np.sqrt((wall + 0.55 * patient.muscle) ** 2 + (0.8 * across) ** 2) - rng.uniform(3.5, 5.5)
    rib = np.maximum(rib, z - level - 0.5 * y)
    canvas.blend(whole, rib, rng.uniform(280, 500))
    canvas.blend(whole, rib + 2.5, rng.uniform(80, 250))
    del z, skin, wall, rib, across  # each as large as the volume
    _paint_belly(canvas, patient, hu, whole, y, x, rng)
    del y, x
    _paint_bowel(canvas, patient, hu, rng)
    _paint_organs(canvas, patient, hu, rng)
    _paint_muscles_and_spine(canvas, patient, hu, rng)
    _paint_vessels(canvas, patient, hu, rng)


def _paint_table(
    canvas: Canvas, patient: Patient, whole: Box, y: Coordinate, x: Coordinate, rng: np.random.Generator
) -> None:
    """Paint the table's curved surfaces below the patient, a blanket, and in some scans the arms."""
    if rng.random() < 0.8:
        curve, below = rng.uniform(0.0004, 0.0016), patient.back + rng.uniform(8, 30)
        for _ in range(rng.integers(1, 3)):
            table = below - curve * x**2 - y
            canvas.blend(whole, np.abs(table) - rng.uniform(1, 2.5), rng.uniform(-300, 300))
            below += rng.uniform(12, 35)
    if rng.random() < 0.08:
        (top, bottom), at = canvas.axes[0][[0, -1]], rng.uniform(-60, 40)
        for side in (-1, 1):
            middle = side * (patient.half_width + rng.uniform(38, 60))
            for radius, value in ((34, FAT), (28, 50), (9, 500), (5, 60)):
                canvas.tube((top, at, middle), (bottom, at + 20, middle), radius, value)


def _paint_belly(
    canvas: Canvas,
    patient: Patient,
    hu: Enhancement,
    whole: Box,
    y: Coordinate,
    x: Coordinate,
    rng: np.random.Generator,
) -> None:
    """Fill the cavity in front of the kidneys with blobs of random shape, HU and contents."""
    blobs, contents = (random_field(canvas.axes, length, rng) for length in (rng.uniform(22, 45), 60))
    packed = rng.uniform(-0.5, 1.2)  # in standard deviations: a third to nine tenths of the cavity stay fat
    room = np.maximum(patient.cavity(y, x) + 3, y + rng.uniform(15, 35) - 0.25 * np.abs(x))
    blobs = np.maximum((packed - blobs) * 9, room)
    wall = rng.uniform(1.5, 4)
    canvas.blend(whole, blobs, hu.bowel)
    values = np.array(
        (hu.bowel, rng.uniform(0, 35), hu.bowel + rng.uniform(-30, 60), rng.uniform(-80, 200), -850)
    )
    if hu.oral is not None:
        values[3] = hu.oral
    chosen = values[np.searchsorted((-0.5, 0.3, 0.9, 1.7), contents)].astype(np.float32)
    chosen += rng.uniform(3, 30) * random_field(canvas.axes, 9, rng)
    canvas.blend(whole, blobs + wall, chosen)


def _paint_organs(canvas: Canvas, patient: Patient, hu: Enhancement, rng: np.random.Generator) -> None:
    """Paint liver, spleen, pancreas, stomach, gallbladder and adrenals, and the heart and lungs of a long scan."""
    half, front = patient.half_width, patient.front
    uneven = rng.uniform(0, 25) if hu.aorta > 160 else 0.0

    def lung(y: Coordinate, x: Coordinate) -> Coordinate:
        distance: Coordinate = np.maximum(patient.cavity(y, x), 22 - np.abs(x))
        return distance

    def mottled(z: Coordinate, y: Coordinate, x: Coordinate) -> Coordinate:  # early filling of the red pulp
        waves: Coordinate = np.sin(x / 3.5 + 2 * np.sin(z / 7)) * np.sin(y / 4 + 2 * np.sin(x / 9))
        return hu.spleen + uneven * waves

    def inside(y: Coordinate, x: Coordinate) -> Coordinate:
        return patient.cavity(y, x) + 1.5

    shift = rng.uniform(-30, 35)
    for side in (-1, 1):
        canvas.ellipsoid((-265, -30, 78 * side), (140, 95, 70), -840, lung)
    canvas.ellipsoid((-185, -75, 25), (48, 52, 58), rng.uniform(130, 170), inside)
    # the right lobe fills its side from wall to wall; how far down it reaches differs by half a kidney
    middle = (shift - 75, front * rng.uniform(0.2, 0.4), rng.uniform(15, 30) - half / 1.7)
    radii = (rng.uniform(75, 110), rng.uniform(75, 100), half / rng.uniform(1.7, 2.2))
    canvas.ellipsoid(middle, radii, hu.liver, inside)
    left = (shift - rng.uniform(70, 95), front * 0.7, rng.uniform(-15, 25))
    canvas.ellipsoid(left, (46, rng.uniform(28, 45), rng.uniform(45, 75)), hu.liver, inside)
    for _ in range(14):
        start = (middle[0] + rng.normal(0, 30), middle[1] + rng.normal(0, 20), middle[2] + rng.normal(15, 20))
        end = start + rng.normal(0, (20, 30, 25))
        inner = hu.liver + rng.choice((-12, 0.3 * (hu.veins - hu.liver), 35))
        canvas.tube(start, end, rng.uniform(1, 3.5), inner, inside)
    if rng.random() < 0.5:
        gallbladder = (middle[0] + 70, middle[1] - 35, middle[2] + 40)
        canvas.ellipsoid(gallbladder, rng.uniform(12, 26, 3), rng.uniform(0, 25), inside)
    spleen = (shift - rng.uniform(50, 90), rng.uniform(-15, 20), half - rng.uniform(40, 60))
    canvas.ellipsoid(spleen, (rng.uniform(40, 65), rng.uniform(38, 58), rng.uniform(22, 38)), mottled, inside)
    stomach = (shift - rng.uniform(50, 90), front * rng.uniform(0.35, 0.65), half / rng.uniform(2, 3.5))
    outer = np.array((rng.uniform(40, 60), rng.uniform(28, 46), rng.uniform(32, 50)))
    level, fluid = stomach[1] - rng.uniform(-10, 30), hu.oral if hu.oral is not None else rng.uniform(0, 50)
    canvas.ellipsoid(stomach, outer, hu.bowel + rng.uniform(-10, 20), inside)
    canvas.ellipsoid(
        stomach,
        outer - rng.uniform(3, 7),
        lambda z, y, x: fluid - (fluid + 900) * (y < level).astype(np.float32),
        inside,
    )
    tail = rng.uniform(7, 12)
    canvas.tube((-12, -58, -38), (-42, -50, 22), tail + 2, hu.pancreas)
    canvas.tube((-42, -50, 22), (-58, -28, half / 2), tail, hu.pancreas)
    duodenum = rng.uniform(8, 14)
    canvas.tube((-25, -50, -48), (35, -38, -45), duodenum, hu.bowel)
    canvas.tube((-25, -50, -48), (35, -38, -45), duodenum - 3, rng.uniform(0, 60))
    canvas.tube((35, -38, -45), (38, -44, 15), duodenum, hu.bowel)
    for side in (-1, 1):
        tip = (-52, -14, 36 * side)
        for limb in ((-38, -4, 32 * side), (-38, -2, 48 * side)):
            canvas.tube(tip, limb, rng.uniform(2, 4), hu.pancreas)


def _paint_bowel(canvas: Canvas, patient: Patient, hu: Enhancement, rng: np.random.Generator) -> None:
    """Paint loops of small bowel and the colon, with fluid, feces, contrast medium or gas in them."""
    half, front = patient.half_width, patient.front
    bottom = min(canvas.axes[0][-1], 260)
    loops = []
    for z in np.arange(-20, bottom + 20, rng.uniform(2, 5)):
        center = np.array((z, rng.uniform(front + 30, -45), rng.uniform(-0.7, 0.7) * half))
        loops.append((center, rng.normal(size=3) * (10, 14, 20), rng.uniform(7, 16)))
    for z in np.arange(-30, min(bottom + 20, 170), rng.uniform(18, 30)):
        for side in (-1, 1):  # ascending and descending colon
            center = np.array(
                (z, rng.uniform(-45, 5), side * (half - patient.fat - patient.muscle - rng.uniform(18, 40)))
            )
            loops.append((center, rng.normal(size=3) * (14, 4, 4), rng.uniform(12, 26)))
    dense = 0.3 if hu.oral is not None else 0.1
    for center, way, radius in loops:
        contents = (rng.uniform(0, 45), rng.uniform(-80, 80), rng.uniform(100, 220), -850)
        if hu.oral is not None:
            contents = (*contents[:2], hu.oral * rng.uniform(0.6, 1.1), -850)
        lumen = rng.choice(contents, p=(0.6 - dense, 0.25, dense, 0.15))
        shell = rng.uniform(1.5, 4)
        ends = center - way, center + way
        canvas.tube(*ends, radius, hu.bowel + rng.uniform(-15, 25), patient.cavity)
        canvas.tube(*ends, radius - shell, lumen, replace(patient, muscle=patient.muscle + shell).cavity)


def _paint_muscles_and_spine(
    canvas: Canvas, patient: Patient, hu: Enhancement, rng: np.random.Generator
) -> None:
    """Paint psoas, quadratus and back muscles, vertebrae with discs, and the wings of the ilium far below."""
    (top, bottom), back, spine = canvas.axes[0][[0, -1]], patient.back, patient.spine
    size, bone = rng.uniform(0.75, 1.25), rng.uniform(0.85, 1.15)
    inner = back - patient.fat
    erector = float(np.clip((inner - spine - 12) / 2, 14, 26)) * rng.uniform(0.85, 1.1)
    for side in (-1, 1):
        canvas.tube((-30, spine + 4, 27 * side), (65, spine + 2, 39 * side), 13 * size, hu.muscle + 4)
        canvas.tube(
            (25, spine, 36 * side), (max(bottom, 31), spine - 18, 52 * side), 20 * size, hu.muscle + 4
        )
        quadratus = (45, (spine + inner) / 2 + 4, 62 * side)
        canvas.ellipsoid(quadratus, (85, 10 * size, 19 * size), hu.muscle, patient.wall)
        for lateral in (27, 50):
            middle = inner - erector + (lateral - 27) * 0.1
            ends = (top, middle, lateral * side), (bottom, middle, lateral * side)
            canvas.tube(*ends, erector, hu.muscle, patient.wall)
        canvas.ellipsoid((205, 22, 98 * side), (65, 58, 14), 320)
    box = canvas.box((top, spine - 28, -55), (bottom, back, 55))
    z, y, x = canvas.points(box, bend=0.4)
    y = y - spine
    apart = rng.uniform(30, 38)
    # half of that in the middle of a disc, 0 in that of a vertebra
    offset = np.abs((z + rng.uniform(0, apart)) % apart - apart / 2)
    texture = random_field([axis[part] for axis, part in zip(canvas.axes, box)], 7, rng)
    body = np.maximum(np.sqrt(y**2 * 1.6 + x**2) - 23 * bone, -28 * bone - y)
    canvas.blend(box, body, rng.uniform(70, 110))  # discs
    vertebra = np.maximum(body, offset - apart / 2 + 3.5)
    canvas.blend(box, vertebra, rng.uniform(350, 700))
    canvas.blend(box, vertebra + rng.uniform(1.5, 3), hu.marrow + rng.uniform(10, 50) * texture)
    arch = np.sqrt((y - 28) ** 2 + x**2 / 1.4)
    reach = max(inner - spine - 6, 45)  # the tip of the spinous process, under the skin's fat
    process = np.maximum(np.abs(x) - rng.uniform(2.5, 5), np.abs(y - (44 + reach) / 2) - (reach - 44) / 2)
    wings = np.maximum(np.maximum(np.abs(x) - 42, np.abs(y - 26 - 0.1 * np.abs(x)) - 4), offset - 7)
    hard = np.minimum(np.minimum(np.maximum(arch - 16, offset - 14), np.maximum(process, offset - 10)), wings)
    canvas.blend(box, hard, rng.uniform(350, 600))
    canvas.blend(box, hard + 3, hu.marrow)
    canvas.blend(box, arch - 9.5, 30)  # canal


def _paint_vessels(canvas: Canvas, patient: Patient, hu: Enhancement, rng: np.random.Generator) -> None:
    """Paint aorta and vena cava, the mesenteric vessels in front of them and their branches."""
    (top, bottom), spine = canvas.axes[0][[0, -1]], patient.spine
    cava, aorta = rng.uniform(7, 13), rng.uniform(8, 13)
    y = spine - 22 - aorta
    canvas.tube((top, y, -20), (bottom, y + 2, -20), cava, hu.veins)
    canvas.tube((top, y, 7), (min(bottom, 110), y, 9), aorta, hu.aorta)
    if rng.random() < 0.4:  # calcified plaques
        for z in rng.uniform(-80, 80, 8):
            angle = rng.uniform(0, 2 * np.pi)
            at = (z, y + aorta * np.sin(angle), 8 + aorta * np.cos(angle))
            canvas.ellipsoid(at, (4, 2, 2), rng.uniform(300, 900))
    front = y - aorta
    canvas.tube((-25, front, 8), (20, front - 14, 8), 3.5, hu.aorta - 20)
    canvas.tube((20, front - 14, 8), (120, front - 30, 2), 3, hu.aorta - 30)
    canvas.tube((-30, front - 10, -8), (110, front - 28, -10), 5, hu.veins)
    for _ in range(28):
        start = np.array((rng.uniform(-40, 130), front - rng.uniform(0, 70), rng.normal(0, 40)))
        end = start + rng.normal(0, (12, 10, 20))
        value = rng.choice((0.85 * hu.aorta, hu.veins, 40.0), p=(0.35, 0.45, 0.2))
        canvas.tube(start, end, rng.uniform(1, 3.2), value, patient.cavity)
