"""A patient's body as a phantom: the HU of everything around given kidneys and tumors.

All positions are millimeters in the patient: z runs to inferior, y to posterior, x to the patient's left,
from a point between the two kidneys. Shapes are given by their approximate signed distance, so that they
blend over a voxel's width as a scanner would average them, whatever the voxel size.

Sizes and HU are those of an adult in the late arterial (corticomedullary) phase, as textbooks give them;
where the organs lie is ours. Liver, spleen, vessels and bowel overlap the kidneys and tumors in HU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FAT", "Canvas", "Patient", "ellipsoid_distance", "paint_body"]

FAT, MUSCLE = -100, 58
Box = tuple[slice, ...]
Point = Sequence[float] | npt.NDArray[np.floating[Any]]  # (z, y, x), in mm
Coordinate = npt.NDArray[np.floating[Any]]  # of voxels, in mm
Within = Callable[[Coordinate, Coordinate], Coordinate | float]  # within(y, x): a signed distance, mm


@dataclass(frozen=True)
class Patient:
    """Where a patient lies in a volume.

    Attributes:
        origin_mm: (z, y, x) of the point between the kidneys, from the center of the first voxel.
        half_width: of the body, along x.
        front, back: y of the skin.
        fat: thickness under the skin.
        kidneys: (z, y, x) center of each kidney, at most one to a side.
    """

    origin_mm: tuple[float, float, float]
    half_width: float
    front: float
    back: float
    fat: float
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
        return self.wall(y, x) + 13


def anywhere(y: Coordinate, x: Coordinate) -> float:
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
        """Paint ``value`` (HU) where the signed distance is negative."""
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
        within: Within = anywhere,
    ) -> None:
        """Paint an ellipsoid; ``within(y, x)`` is a signed distance that bounds it."""
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
        within: Within = anywhere,
    ) -> None:
        """Paint a tube with round ends; ``within`` as for ``ellipsoid``."""
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


def paint_body(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> float:
    """Paint everything but kidneys and tumors.

    Returns: HU of the aorta, for the vessels that leave it.
    """
    whole = tuple(slice(None) for _ in canvas.axes)
    z, y, x = canvas.points(whole, bend=0.6)
    if rng.random() < 0.6:
        table = patient.back + 16 - 0.0012 * x**2 - y
        canvas.blend(whole, np.abs(table) - 2, -40)
    skin, wall = patient.skin(y, x), patient.wall(y, x)
    canvas.blend(whole, skin, 10)
    canvas.blend(whole, skin + 2, FAT)
    canvas.blend(whole, wall, MUSCLE)
    canvas.blend(whole, patient.cavity(y, x), FAT - 5)
    rib = np.maximum(np.abs(wall + 7) - 3.5, np.abs((z + 0.5 * y) % 27 - 13.5) - 5)
    canvas.blend(whole, np.maximum(rib, z - 30 - 0.5 * y), 330)  # the costal arch rises to the front
    del z, y, x, skin, wall, rib  # each as large as the volume
    paint_bowel(canvas, patient, rng)
    paint_organs(canvas, patient, rng)
    paint_muscles_and_spine(canvas, patient, rng)
    top, bottom = canvas.axes[0][[0, -1]]
    aorta = rng.uniform(250, 340)
    canvas.tube((top, -33, -19), (bottom, -31, -19), 10.5, rng.uniform(95, 150))  # inferior vena cava
    canvas.tube((top, -34, 8), (min(bottom, 110), -34, 8), 9.5, aorta)
    return aorta


def paint_organs(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Paint liver, spleen, pancreas and stomach, and what a long scan shows above them."""
    half = patient.half_width

    def lung(y: Coordinate, x: Coordinate) -> Coordinate:
        distance: Coordinate = np.maximum(patient.cavity(y, x), 22 - np.abs(x))
        return distance

    def mottled(z: Coordinate, y: Coordinate, x: Coordinate) -> Coordinate:  # early filling of the red pulp
        hu: Coordinate = spleen + 22 * np.sin(x / 3.5 + 2 * np.sin(z / 7)) * np.sin(y / 4 + 2 * np.sin(x / 9))
        return hu

    liver, spleen = rng.uniform(70, 90), rng.uniform(110, 140)
    shift = rng.uniform(-15, 10)
    for side in (-1, 1):
        canvas.ellipsoid((-265, -30, 78 * side), (140, 95, 70), -840, lung)
    canvas.ellipsoid((-185, -75, 25), (48, 52, 58), rng.uniform(130, 170), patient.cavity)
    front = patient.front
    canvas.ellipsoid((shift - 82, front * 0.72, 0), (46, 34, 62), liver, patient.cavity)
    canvas.ellipsoid((shift - 65, front * 0.3, 24 - half / 1.7), (88, 84, half / 2.1), liver, patient.cavity)
    for _ in range(9):
        start = (shift - 75 + rng.normal(0, 15), front * 0.4, -45)
        end = start + rng.normal((0, 0, -35), (40, 35, 18))
        canvas.tube(start, end, rng.uniform(2, 4), liver + rng.choice((-12, 35)))
    canvas.ellipsoid((shift - 68, -2, half / 1.55), (50, 44, half / 4.8), mottled, patient.cavity)
    stomach = (shift - 72, front * 0.5, half / 2.6)
    level = stomach[1] - rng.uniform(0, 20)
    canvas.ellipsoid(stomach, (48, 42, 40), rng.uniform(70, 95), patient.cavity)
    canvas.ellipsoid(
        stomach, (44, 38, 36), lambda z, y, x: 22 - 922 * (y < level).astype(np.float32), patient.cavity
    )
    pancreas = rng.uniform(80, 110)
    canvas.tube((-22, -62, -38), (-42, -50, 22), 10, pancreas)
    canvas.tube((-42, -50, 22), (-58, -28, half / 2), 8, pancreas)


def paint_bowel(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Paint loops of small bowel and the colon, with fluid, feces or gas in them."""
    half, front = patient.half_width, patient.front
    bottom = min(canvas.axes[0][-1], 260)
    loops = []
    for z in np.arange(-20, bottom + 20, 3.0):
        center = np.array((z, rng.uniform(front + 40, -48), rng.uniform(-0.6, 0.6) * half))
        loops.append((center, rng.normal(size=3) * (10, 14, 20), rng.uniform(8, 14)))
    for z in np.arange(-10, min(bottom + 20, 170), 24):
        for side in (-1, 1):  # ascending and descending colon
            center = np.array((z, rng.uniform(-25, -5), side * (half - 62)))
            loops.append((center, np.array((14, 3, 3)), rng.uniform(14, 20)))
    for center, way, radius in loops:
        contents = (rng.uniform(5, 40), rng.uniform(-60, 60), rng.uniform(100, 220), -850)
        lumen = rng.choice(contents, p=(0.5, 0.2, 0.1, 0.2))
        canvas.tube(center - way, center + way, radius, rng.uniform(60, 120), patient.cavity)
        canvas.tube(center - way, center + way, radius - 2.5, lumen, lambda y, x: patient.cavity(y, x) + 2.5)


def paint_muscles_and_spine(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Paint psoas and back muscles, vertebrae with discs, and the wings of the ilium far below."""
    (top, bottom), back = canvas.axes[0][[0, -1]], patient.back
    for side in (-1, 1):
        canvas.tube((-25, -2, 27 * side), (65, 0, 38 * side), 11, MUSCLE + 4)
        canvas.tube((30, 0, 34 * side), (max(bottom, 31), -18, 50 * side), 18, MUSCLE + 4)
        canvas.tube((top, back - 32, 33 * side), (bottom, back - 32, 33 * side), 23, MUSCLE, patient.wall)
        canvas.ellipsoid((205, 22, 98 * side), (65, 58, 14), 320)
    marrow = rng.uniform(150, 230)
    box = canvas.box((top, -30, -50), (bottom, back, 50))
    z, y, x = canvas.points(box, bend=0.4)
    offset = np.abs((z + rng.uniform(0, 34)) % 34 - 17)  # 17 in the middle of a disc, 0 in that of a vertebra
    body = np.maximum(np.sqrt((y + 2) ** 2 * 1.6 + x**2) - 23, -30 - y)
    canvas.blend(box, body, 85)  # discs
    vertebra = np.maximum(body, offset - 13.5)
    canvas.blend(box, vertebra, rng.uniform(450, 650))
    canvas.blend(box, vertebra + 2.5, marrow)
    arch = np.sqrt((y - 26) ** 2 + x**2 / 1.4)
    process = np.maximum(np.abs(x) - 3.5, np.abs(y - (back + 20) / 2) - (back - 44) / 2)
    wings = np.maximum(np.maximum(np.abs(x) - 42, np.abs(y - 24 - 0.1 * np.abs(x)) - 4), offset - 6)
    bone = np.minimum(np.minimum(np.maximum(arch - 16, offset - 14), np.maximum(process, offset - 9)), wings)
    canvas.blend(box, bone, 420)
    canvas.blend(box, arch - 9.5, 30)  # canal
