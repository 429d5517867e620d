"""Scoring and post-processing on a real label map, ours beside what others use, in turn in one process.

    python benchmarks/scoring.py KITS19_FOLDER [case_00008 ...]

The prediction is the truth, moved by two rows, with 40 specks. Figures are medians of CPU seconds over three rounds; a
function that takes longer than ten seconds runs only once. CPU seconds count all threads; peers that have threads get
one thread. Each ratio to ours stands beside its target. Results that are the same quantity are checked to agree. Peers
that are not installed are listed as missing: pip install connected-components-3d monai surface-distance-based-measures.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from kitsseg.data import read_labels, write_labels
from kitsseg.data.geometry.label_box import foreground_box
from kitsseg.labels.components import components
from kitsseg.labels.distances import distance_mm
from kitsseg.scoring import surface_distances
from kitsseg.scoring.cases import count_files, read_boxes
from kitsseg.scoring.dice import score_counts
from kitsseg.scoring.surface import hausdorff_mm

ROUNDS, SLOW_S = 3, 10
MEMORY_MIB = 100  # for the Dice from two files, the interpreter and its modules not counted
CORNERS = np.ones((3, 3, 3))  # 26-connected


def perturbed(truth):
    """The truth moved by two rows, and 40 specks of 3 x 3 x 3 voxels."""
    prediction = np.roll(truth, 2, axis=1)
    rng = np.random.default_rng(0)
    for corner in rng.integers(0, np.array(truth.shape) - 3, (40, 3)):
        prediction[tuple(slice(a, a + 3) for a in corner)] = 1
    return prediction


def two_largest(voxels):
    return np.argsort(-voxels, kind="stable")[:2]


def our_components(labels):
    return sorted(components(labels).voxels.tolist())


def cc3d_components(labels):
    import cc3d

    return sorted(np.bincount(cc3d.connected_components(labels > 0, connectivity=26).ravel())[1:].tolist())


def skimage_components(labels):
    from skimage.measure import label

    return sorted(np.bincount(label(labels > 0, connectivity=3).ravel())[1:].tolist())


def our_distances(labels, spacing_mm):
    parts = components(labels)
    return sorted(distance_mm(parts, two_largest(parts.voxels), spacing_mm).round(3).tolist())


def scipy_distances(labels, spacing_mm):
    """A map of the distance to the two largest components; of each component the smallest value."""
    ids, n = ndimage.label(labels, structure=CORNERS)
    main = 1 + two_largest(np.bincount(ids.ravel(), minlength=n + 1)[1:])
    away = ndimage.distance_transform_edt(~np.isin(ids, main), sampling=spacing_mm)
    return sorted(np.round(ndimage.minimum(away, ids, np.arange(1, n + 1)), 3).tolist())


def our_dice(prediction, truth):
    scores = score_counts(count_files(prediction, truth)[0].sum(axis=0), 1.0)
    return round(scores["tk_dice"], 9), round(scores["tu_dice"], 9)


def official_dice(prediction, truth):
    """The lines of the KiTS19 starter code, on the arrays that nibabel reads."""
    one, other = (np.asanyarray(nib.load(path).dataobj) for path in (prediction, truth))
    one = np.round(one).astype(np.uint8)
    found = []
    for label in (0, 1):
        a, b = one > label, other > label
        found.append(round(float(2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())), 9))
    return tuple(found)


def our_hd95(prediction, truth, spacing_mm):
    """From whole volumes, as the others: the box is found here too."""
    (first, one), (second, other) = foreground_box(prediction), foreground_box(truth)
    low = np.minimum(first, second)
    high = np.maximum(np.add(first, one.shape), np.add(second, other.shape))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return hausdorff_mm(surface_distances(prediction[box] > 0, truth[box] > 0, spacing_mm))


def package_hd95(prediction, truth, spacing_mm):
    import surface_distance

    found = surface_distance.compute_surface_distances(truth > 0, prediction > 0, spacing_mm)
    return surface_distance.compute_robust_hausdorff(found, 95)


def monai_hd95(prediction, truth, spacing_mm):
    """MONAI takes the percentile over border voxels and not over areas, so its HD95 is near ours but not equal."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    torch.set_num_threads(1)
    one, other = (torch.from_numpy(labels > 0)[None, None] for labels in (prediction, truth))
    found = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing_mm)
    return float(found[0, 0])


def measure(functions, *arguments):
    """name -> (median CPU seconds, result), or (None, None) where the peer is not installed."""
    times, results = {name: [] for name in functions}, dict.fromkeys(functions)
    for _ in range(ROUNDS):
        for name, function in functions.items():
            if times[name] is None or (times[name] and max(times[name]) > SLOW_S):
                continue
            started = time.process_time()
            try:
                results[name] = function(*arguments)
            except ImportError:
                times[name] = None
                continue
            times[name].append(time.process_time() - started)
    return {name: (statistics.median(t) if t else None, results[name]) for name, t in times.items()}


def dice_memory_mib(prediction, truth):
    """Peak memory of a process that counts the labels of two files, minus its memory after the imports. Linux only.

    The peak is read from VmHWM, because the peak that ``getrusage`` gives for a child begins at the peak of its parent.
    """
    code = (
        "import sys; from kitsseg.scoring.cases import count_files; import kitsseg.scoring.dice\n"
        "def kib(key):\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(key))\n"
        "before = kib('VmRSS')\n"
        "count_files(*sys.argv[1:])\n"
        "print((kib('VmHWM') - before) / 1024)"
    )
    command = [sys.executable, "-c", code, str(prediction), str(truth)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(title, found, targets, same):
    """Print a line for each; return whether all targets that could be looked at are met."""
    ours, result = found["kitsseg"]
    print(f"{title:28}{'kitsseg':20}{ours:9.3f}")
    met = True
    for name, (seconds, other) in found.items():
        if name == "kitsseg":
            continue
        if seconds is None:
            print(f"{'':28}{name:20}  missing")
            continue
        target = targets.get(name)
        agrees = "" if name not in same else ", same result" if other == result else ", OTHER RESULT"
        met &= (target is None or seconds >= target * ours) and "OTHER" not in agrees
        aim = "" if target is None else f"   target {target:g}x"
        print(f"{'':28}{name:20}{seconds:9.3f}{seconds / ours:8.1f}x{aim}{agrees}")
    return met


def main():
    warnings.simplefilter("ignore")  # of the peers
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    met = True
    for case in sys.argv[2:] or ["case_00008"]:
        source = Path(sys.argv[1]) / case / "segmentation.nii.gz"
        volume = read_labels(source)
        truth, spacing_mm = volume.array, volume.grid.spacing_mm
        labels = perturbed(truth)
        print(f"{case}, {truth.shape} voxels{'CPU s':>22}{'ratio':>9}")
        found = measure(
            {"kitsseg": our_components, "cc3d": cc3d_components, "skimage": skimage_components}, labels
        )
        met &= compare("components", found, {"cc3d": 2.5, "skimage": 10}, {"cc3d", "skimage"})
        found = measure({"kitsseg": our_distances, "scipy": scipy_distances}, labels, spacing_mm)
        met &= compare("distances", found, {"scipy": 30}, {"scipy"})
        with tempfile.TemporaryDirectory() as folder:
            prediction = Path(folder) / "prediction.nii.gz"
            write_labels(prediction, labels, volume.grid)
            found = measure({"kitsseg": our_dice, "official expression": official_dice}, prediction, source)
            met &= compare("Dice of two .nii.gz", found, {"official expression": 6}, {"official expression"})
            grown = dice_memory_mib(prediction, source)
            met &= grown <= MEMORY_MIB
            print(f"{'':28}{'memory':20}{grown:9.0f} MiB   target {MEMORY_MIB} MiB")
            boxes = read_boxes(prediction, source)
            assert sum(map(np.count_nonzero, boxes)) == np.count_nonzero(labels) + np.count_nonzero(truth)
        functions = {"kitsseg": our_hd95, "surface-distance": package_hd95, "monai": monai_hd95}
        moved = np.roll(truth, 2, axis=1)  # without specks: they would make the box the whole volume
        found = measure(functions, moved, truth, spacing_mm)
        values = ", ".join(
            f"{name} {value:.4f} mm" for name, (_, value) in found.items() if value is not None
        )
        met &= compare("HD95", found, {"monai": 12}, set())
        print(f"{'':28}{values}")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print("targets met" if met else "a target was missed")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
