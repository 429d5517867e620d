"""Write synthetic patients in KiTS19 layout, on which the whole package can be tried without the dataset.

A case depends only on the seed and on its number or name: asking for more cases changes none of the others. The header
of its scan records what it was made from, so that a call can go on where an earlier one stopped and leave finished
cases alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from kitsseg.data.formats.nifti import KITS_AXES, PHANTOM, is_phantom, read_labels, write_image
from kitsseg.data.layouts.find import find_cases
from kitsseg.data.phantoms.anatomy import ellipsoid_distance
from kitsseg.data.phantoms.render import render_ct
from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_folder
from kitsseg.files.checksums import sha256_of
from kitsseg.version import __version__

if TYPE_CHECKING:
    from kitsseg.interfaces import Progress

__all__ = ["draw_labels", "render_cases", "synthesize_cases"]

TUMOR_ML = (1.0, 700.0)  # KiTS19: 0.8 to 1464, but its largest do not fit a volume around the kidneys
SMALLEST = (8, 32, 32)
LARGEST = 1500  # of each: voxels of finer scans would be smaller than any that grid.py takes


def synthesize_cases(
    out: str | os.PathLike[str],
    n_cases: int = 12,
    size: Sequence[int] = (40, 128, 128),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Write synthetic patients: ``case_00000/imaging.nii.gz`` and ``segmentation.nii.gz`` and so on.

    Args:
        out: folder of the cases; made if missing.
        n_cases: how many.
        size: (slices, rows, columns). The field of view is a patient's, 170-190 mm along the slices and
            370-400 mm along the columns, whatever the size: fewer voxels are larger voxels.
        seed: an integer from 0; the same seed gives the same cases.
        progress: called as ``progress(description, done, total)`` after each case.

    Returns: folders of the cases. Those that an earlier call with the same seed and size has made are left alone.
    Raises: InputError if an argument is out of range, or if a case's folder is there already and holds
        anything else: nothing is written then.
    """
    _check_seed(seed)
    if n_cases < 1:
        raise InputError(f"expected at least one case, got {n_cases}.")
    if len(size) != 3 or any(not least <= n <= LARGEST for n, least in zip(size, SMALLEST)):
        least, found = (",".join(map(str, sizes)) for sizes in (SMALLEST, size))
        raise InputError(
            f"--size {found}: expected slices, rows and columns of at least {least}, and at most {LARGEST} of each."
        )
    folders = [Path(out) / f"case_{number:05d}" for number in range(n_cases)]
    made_from = [_digest(seed, number, *size) for number in range(n_cases)]
    missing = _check_empty(folders, made_from)
    for number, folder in enumerate(folders):
        if folder not in missing:
            continue
        rng = np.random.default_rng((seed, number))
        across = rng.uniform(370, 400) / size[2]
        spacing_mm = (round(rng.uniform(170, 190) / size[0], 3), round(across, 5), round(across, 5))
        labels = draw_labels(size, spacing_mm, rng)
        image = render_ct(labels, spacing_mm, rng)
        with atomic_folder(folder) as temporary:
            write_image(temporary / "segmentation.nii.gz", labels, spacing_mm)
            write_image(temporary / "imaging.nii.gz", image, spacing_mm, PHANTOM, made_from[number])
        if progress:
            progress("synthesize", number + 1, n_cases)
    return folders


def render_cases(
    labels_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    seed: int = 0,
    cases: Iterable[str] | int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write CT volumes for real label maps, in the same layout; the label maps are copied byte for byte.

    Args:
        labels_dir: cases in KiTS19 layout, with or without images; images are not looked at.
        out: folder of the new cases.
        seed: an integer from 0; a case depends on it, its name and its label map only.
        cases: names of the cases to render, or a number: the first so many by name; all by default.
        progress: called as ``progress(description, done, total)`` after each case.

    Returns: folders of the cases. Those that an earlier call with the same seed has made of the same label maps are
        left alone.
    Raises: InputError for a label map that cannot be read, has other axes than KiTS19's or is empty; for unknown case
        names or more cases than there are, and if a case's folder is there already and holds anything else: nothing is
        written then.
    """
    _check_seed(seed)
    found = {case.name: case for case in find_cases(labels_dir, need_image=False, options=())}
    if isinstance(cases, int) and cases > len(found):
        raise InputError(
            f"{labels_dir}: expected {cases} label maps, found {len(found)}. Ask for at most {len(found)} cases."
        )
    names = sorted(found)[:cases] if cases is None or isinstance(cases, int) else list(cases)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise InputError(f"{labels_dir}: expected {', '.join(unknown)}, found only {', '.join(found)}.")
    folders = [Path(out) / name for name in names]
    made_from = [_digest(seed, name, sha256_of(found[name].truth)) for name in names]
    missing = _check_empty(folders, made_from)
    for number, (name, folder) in enumerate(zip(names, folders)):
        if folder not in missing:
            continue
        source = found[name].truth
        volume = read_labels(source)
        grid = volume.grid
        if grid.axes != (0, 1, 2) or any(grid.flipped):
            raise InputError(
                f"{source}: expected the axes of KiTS19, {KITS_AXES}, found others. "
                "Take the label maps as KiTS19 released them."
            )
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        try:
            image = render_ct(volume.array, grid.spacing_mm, rng)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        with atomic_folder(folder) as temporary:
            shutil.copyfile(source, temporary / source.name)
            write_image(temporary / "imaging.nii.gz", image, grid.spacing_mm, PHANTOM, made_from[number])
        if progress:
            progress("render", number + 1, len(names))
    return folders


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"expected a seed of 0 or more, got {seed}.")


def _check_empty(folders: Sequence[Path], made_from: Sequence[str]) -> set[Path]:
    """The folders that have to be made. An existing case is never overwritten: it could be the only copy of a real one.

    Raises: InputError for a folder that holds anything but the case that would be made there.
    """
    missing = set()
    for folder, digest in zip(folders, made_from, strict=True):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            missing.add(folder)
        elif not _is_made_from(folder, digest):
            raise InputError(
                f"{folder}: expected no such case yet, or the one that this call makes; found another, such as one of "
                "another seed or size. Choose another folder or remove it."
            )
    return missing


def _is_made_from(folder: Path, digest: str) -> bool:
    """Whether a folder holds a synthetic case whose header says that it was made from ``digest``."""
    files = folder / "imaging.nii.gz", folder / "segmentation.nii.gz"
    try:
        image, labels = (cast("nib.Nifti1Image", nib.load(file)) for file in files)
    except (OSError, EOFError, ImageFileError, HeaderDataError, zlib.error):
        return False
    said = bytes(image.header["aux_file"].tobytes()).rstrip(b"\0").decode("ascii", "replace")
    return is_phantom(image.header) and said == digest and image.shape == labels.shape


def _digest(*values: object) -> str:
    """23 characters that identify the inputs from which a case is made."""
    return hashlib.sha256(" ".join(map(str, (__version__, *values))).encode()).hexdigest()[:23]


def draw_labels(
    shape: Sequence[int], spacing_mm: Sequence[float], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw kidneys and one tumor.

    Args:
        shape: (slices, rows, columns); the kidneys lie around the middle of the volume.
        spacing_mm: voxel size in the same order.
        rng: ``numpy.random.Generator``.

    Returns: uint8 labels (slices, rows, columns): two kidneys of about 120-260 ml (one patient in 20 has only
        one) and a tumor of 1-700 ml, median 30, that grows out of one of them. All labels occur at any size.
    """
    labels = np.zeros(shape, np.uint8)
    extent = np.array(shape) * spacing_mm
    middle = extent * (0.5, 0.57, 0.5) + rng.normal(0, (3, 6, 5))
    coordinates = [np.arange(n) * s for n, s in zip(shape, spacing_mm)]
    size, apart, level = max(rng.normal(1.1, 0.07), 0.95), rng.uniform(60, 82), rng.normal(6, 6)
    sides = (-1, 1) if rng.random() > 0.05 else (rng.choice((-1, 1)),)
    size *= 1.12 if len(sides) == 1 else 1  # a single kidney grows
    bodies = []
    for side in sides:  # -1 is the patient's right, whose kidney lies lower
        center = middle + (-side * level, rng.normal(0, 7), side * apart)
        radii = size * rng.normal((54, 26, 29), (4, 2, 2))
        tilt = side * np.radians(rng.uniform(8, 22))  # upper poles lean to the spine
        turn = side * np.radians(rng.normal(10, 18))  # the hilum looks to the front, more or less
        z, y, x = np.ix_(*(c - m for c, m in zip(coordinates, center)))
        z, x = z * np.cos(tilt) - x * np.sin(tilt), z * np.sin(tilt) + x * np.cos(tilt)
        y, x = y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)
        bend = rng.uniform(0, 2 * np.pi, 4)
        y = y + 2 * np.sin(z / 14 + bend[0]) + 1.2 * np.sin(x / 7 + bend[2])
        x = side * x + 2 * np.sin(z / 17 + bend[1]) + 1.2 * np.sin(z / 9 + bend[3])  # now lateral is positive
        sinus = ellipsoid_distance(
            (z, y + rng.uniform(3, 10), x + 24), rng.uniform((14, 8, 14), (25, 15, 21))
        )
        labels[(ellipsoid_distance((z, y, x + 4 * (z / 40) ** 2), radii) < 0) & (sinus > 0)] = 1
        bodies.append((side, center, radii))
    side, center, radii = bodies[rng.integers(len(bodies))]
    volume = np.clip(np.exp(rng.normal(np.log(30), 1.7)), *TUMOR_ML)
    radius = (volume * 750 / np.pi) ** (1 / 3)
    # toward lateral, front or back; the larger, the farther out, so that a kidney is left
    direction = rng.normal(size=3) * (0.7, 1, 0.7) + (0, 0, 0.6)
    direction[2] = side * abs(direction[2])
    direction /= np.linalg.norm(direction)
    surface = direction / np.sqrt(((direction / radii) ** 2).sum())
    at = center + surface + direction * radius * rng.uniform(-0.7, 0.15)
    at = np.clip(at, 1.1 * radius, np.maximum(extent - 1.1 * radius, 1.1 * radius))
    _draw_tumor(labels, [c - m for c, m in zip(coordinates, at)], volume, spacing_mm, rng)
    return labels


def _draw_tumor(
    labels: npt.NDArray[np.uint8],
    coordinates: Sequence[npt.NDArray[np.float64]],
    volume: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
) -> None:
    """Set a bumpy ellipsoid of ``volume`` ml to 2: the voxels nearest to its center, at least four."""
    z, y, x = np.ix_(*coordinates)
    a, b, c = rng.uniform(0, 2 * np.pi, 3)
    radius = (volume * 750 / np.pi) ** (1 / 3)
    z, y, x = (p * s for p, s in zip((z, y, x), rng.uniform(0.88, 1.12, 3)))
    bumps = (
        0.12
        * radius
        * (np.sin(2.5 * y / radius + a) + np.sin(2.5 * x / radius + b) + np.sin(2.5 * z / radius + c))
    )
    distance = (np.sqrt(z**2 + y**2 + x**2) + bumps).ravel()
    count = min(max(4, round(volume * 1000 / np.prod(spacing_mm))), labels.size // 8)
    labels.reshape(-1)[np.argpartition(distance, count)[:count]] = 2
