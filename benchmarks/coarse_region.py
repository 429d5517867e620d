"""What the region of the coarse pass misses: python benchmarks/coarse_region.py OPTIONS

Printed are for each scan: whether ``kitsseg predict --coarse on`` takes the region or the whole scan; the share of the
region in the scan, and of its left and right part, without the columns between the kidneys; the processor time; which
share of the true voxels of kidney with tumor, and of tumor, lies outside the parts, and outside the box around all
voxels that the starter network finds, with a margin of 0, 10, 20 and 30 mm around the box.

``--phantoms`` draws procedural patients (of seeds that the starter was not trained with), ``--labels`` renders a CT for
real label maps, ``--scan`` takes a real CT and its label map. ``--slices`` takes single real slices and measures the
box of each slice alone. This is stricter, because the box of a scan surrounds the findings of all its slices.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from kitsseg.data import find_cases, read_image, read_labels, render_cases, synthesize_cases
from kitsseg.data.formats.slices import read_masks, read_slices
from kitsseg.data.layouts.kits import Layout
from kitsseg.data.layouts.slices import slices_of_inputs
from kitsseg.inference.coarse import coarse_network, look_at, region_of
from kitsseg.labels.components import components, paint
from kitsseg.records.predictions import Box

MARGINS = (0, 10, 20, 30)
THRESHOLDS = (0.5, 0.2)
SEED = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--cases", nargs="*", help="only these of --labels")
    parser.add_argument("--scan", nargs=2, type=Path)
    parser.add_argument("--slices", type=Path)
    a = parser.parse_args()
    coarse_network()
    print(
        "case | taken | share of the scan | parts, their share | seconds | outside the parts, % of kidney with tumor "
        "(of tumor) | p | outside the box at 0, 10, 20, 30 mm"
    )
    with tempfile.TemporaryDirectory() as folder:
        for number in range(a.phantoms):  # one at a time: a large patient needs half a gigabyte
            case = synthesize_cases(Path(folder) / "p", 1, (60, 256, 256), SEED + number)[0]
            measure(
                f"phantom {SEED + number}",
                read_image(case / "imaging.nii.gz"),
                read_labels(case / "segmentation.nii.gz"),
            )
            for file in case.iterdir():
                file.unlink()
        names = a.cases or (
            [case.name for case in find_cases(a.labels, need_image=False, options=())] if a.labels else []
        )
        for name in names:
            [case] = render_cases(a.labels, Path(folder) / "r", cases=[name])
            measure(
                f"rendered {name}",
                read_image(case / "imaging.nii.gz"),
                read_labels(case / "segmentation.nii.gz"),
            )
            (case / "imaging.nii.gz").unlink()
    if a.scan:
        measure(f"real {a.scan[0].name}", read_image(a.scan[0]), read_labels(a.scan[1]))
    if a.slices:
        measure_slices(a.slices)


def measure(name, scan, labels):
    spacing, truth = scan.grid.spacing_mm, labels.array
    started = time.process_time()
    copy = look_at(scan.array, spacing)
    seconds = time.process_time() - started
    region = region_of(copy)
    taken = [Box(start=region.start, stop=region.stop)] if region.start else []
    parts = region.parts or taken
    share, of_parts = (
        sum(inside_of([box], truth.shape).mean() for box in boxes) or 1.0 for boxes in (taken, parts)
    )
    lost = outside_of(inside_of(parts, truth.shape), truth) if parts else "whole scan"
    for threshold in THRESHOLDS:
        found = bodies(copy.background < 1 - threshold, copy.geometry)
        print(
            f"{name} | {region.whole or 'region'} | {share:.3f} | {len(region.parts)}, {of_parts:.3f} | "
            f"{seconds:.2f} | {lost} | {threshold} | "
            f"{outside(box_of(found), copy.geometry, truth)}",
            flush=True,
        )


def bodies(found, geometry):
    """Without specks, as the coarse pass leaves them out."""
    parts, kept = components(found), np.zeros(found.shape, np.uint8)
    large = parts.voxels * float(np.prod(geometry.spacing_mm)) >= 1000
    paint(kept, parts.runs.take(large[parts.ids]), 1)
    return kept


def box_of(found):
    """(first, last + 1) along each axis; None if there is nothing."""
    if not found.any():
        return None
    axes = [
        np.flatnonzero(found.any(axis=tuple(o for o in range(found.ndim) if o != axis)))
        for axis in range(found.ndim)
    ]
    return [(int(at[0]), int(at[-1]) + 1) for at in axes]


def outside(box, geometry, truth):
    """Shares of the truth outside the box, for each margin."""
    texts = []
    for margin in MARGINS:
        inside = np.zeros(truth.shape, bool)
        if box is not None:
            part = []
            for axis, (low, high) in enumerate(box):
                n, grid, mm = (
                    geometry.scan_shape[axis],
                    geometry.grid_shape[axis],
                    geometry.scan_spacing_mm[axis],
                )
                first = (low + geometry.start[axis]) * n / grid - margin / mm
                last = (high + geometry.start[axis]) * n / grid + margin / mm
                part.append(slice(max(int(np.floor(first)), 0), int(np.ceil(last))))
            inside[tuple(part)] = True
        texts.append(outside_of(inside, truth))
    return ", ".join(texts)


def inside_of(boxes, shape):
    """The voxels of some boxes."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        inside[tuple(map(slice, box.start, box.stop))] = True
    return inside


def outside_of(inside, truth):
    """Per cent of kidney with tumor, and of tumor, that are not inside."""
    tk, tu = truth > 0, truth == 2
    of_tumor = f"{100 * (tu & ~inside).sum() / tu.sum():.2f}" if tu.any() else "-"
    return f"{100 * (tk & ~inside).sum() / tk.sum():.2f} ({of_tumor})"


def measure_slices(folder):
    """Single slices: the box is that of one slice in its plane."""
    rows = []
    for item in slices_of_inputs([folder], Layout(hu_window=(0.0, 255.0))):
        image, mask = read_slices([item]), read_masks([item])
        copy = look_at(image.array, image.grid.spacing_mm)
        for threshold in THRESHOLDS:
            found = copy.background < 1 - threshold
            rows.append(
                (item.patient, threshold, outside(box_of(found), copy.geometry, mask.array), found.any())
            )
    for threshold in THRESHOLDS:
        own = [row for row in rows if row[1] == threshold]
        shares = np.array([[float(text.split(" ")[0]) for text in row[2].split(", ")] for row in own])
        print(
            f"{len(own)} real slices of {len({row[0] for row in own})} patients, p {threshold}: nothing found in "
            f"{sum(not row[3] for row in own)}; slices with more than 1 % outside at 0, 10, 20, 30 mm: "
            f"{(shares > 1).sum(axis=0).tolist()}; mean % outside {shares.mean(axis=0).round(2).tolist()}"
        )


if __name__ == "__main__":
    main()
