"""Reading, preparing and resampling a CT against the libraries that others use: python benchmarks/prepare.py

    pip install "kitsseg[bench]"
    python benchmarks/prepare.py [--case FOLDER] [--slices 834] [--resampled 270] [--rounds 5]

--case is a folder with imaging.nii.gz and segmentation.nii.gz; without it a scan of noise is made. Ours and each peer
run in turn within each round, in one process and on one core where the system allows it. Times are of the processor;
printed are medians over the rounds, and the medians of the ratios within a round beside their targets. Peers that
resample do so in the same geometry: the largest difference to our result is printed in HU. What is not installed is
left out, and said so.
"""

import argparse
import importlib
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import zoom

from kitsseg import preprocess_cases, recipes
from kitsseg.data import read_image, read_labels, write_image
from kitsseg.data.geometry.resample import resample_slices, resampled_shape

# the scan as it is: the peers below do not resample either
SPEC = replace(recipes.get("unet2d").preprocess, spacing_mm=(None, None, None), crop_to_body=False)
TARGET_MM = recipes.get("unet2d").preprocess.spacing_mm


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=Path, help="folder of one case; without it a scan is made")
    parser.add_argument("--slices", type=int, default=834, help="of the scan that is made")
    parser.add_argument("--resampled", type=int, default=270, help="slices of it that are resampled")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        case = arguments.case or make_case(work / "data" / "case_00000", arguments.slices)
        image, labels = (case / f"{name}.nii.gz" for name in ("imaging", "segmentation"))
        shape = nib.load(image).shape
        print(f"{case.name}: {shape[0]} x {shape[1]} x {shape[2]}, {image.stat().st_size / 1e6:.0f} MB\n")
        compare(
            "reading (ours in C order, nibabel's as it is and brought into that order)",
            reading(image),
            arguments.rounds,
            {"get_fdata": 5, "get_fdata, C order": 5, "asanyarray": 2, "asanyarray, C order": 2},
        )
        compare(
            "preparing (read both, transpose, write)",
            preparing(case, image, labels, work),
            arguments.rounds,
            {"nibabel float64 + npy": 3, "nibabel int16 + npy": 1.8},
        )
        volume = read_image(image)
        part, spacing = volume.array[: arguments.resampled].copy(), volume.grid.spacing_mm
        truth = read_labels(labels).array[: arguments.resampled].copy()
        del volume
        grid = resampled_shape(part.shape, spacing, TARGET_MM)
        print(f"{part.shape} of {np.round(spacing, 3)} mm to {grid} of {TARGET_MM} mm")
        compare(
            "linear resampling",
            linear(part, spacing, grid),
            arguments.rounds,
            {"scipy zoom order 1": 8, "SimpleITK linear": 5, "MONAI Spacing": 15},
            "HU",
        )
        compare("label resampling, nearest", nearest(truth, grid), arguments.rounds, {}, "labels")


def make_case(folder, n_slices):
    """Make a body of noise in air, with as many voxels as a CT, and in the body a block of kidney with tumor."""
    rng = np.random.default_rng(0)
    shape, spacing = (n_slices, 512, 512), (1.0, 0.855, 0.855)
    image, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = (y / 0.6) ** 2 + (x / 0.8) ** 2 < 1
    for k in range(n_slices):
        image[k] = np.where(body, 40 + 12 * rng.standard_normal((512, 512)), -1000)
    labels[n_slices // 3 : n_slices // 2, 220:300, 120:400] = 1
    labels[n_slices // 3 : n_slices // 2, 240:270, 130:170] = 2
    write_image(folder / "imaging.nii.gz", image, spacing)
    write_image(folder / "segmentation.nii.gz", labels, spacing)
    return folder


def reading(path):
    return {
        "ours": lambda: read_image(path).array,
        "get_fdata": lambda: nib.load(path).get_fdata(),
        "get_fdata, C order": lambda: np.ascontiguousarray(nib.load(path).get_fdata()),
        "asanyarray": lambda: np.asanyarray(nib.load(path).dataobj),
        "asanyarray, C order": lambda: np.ascontiguousarray(nib.load(path).dataobj),
    }


def preparing(case, image, labels, work):
    (work / "one").mkdir()
    (work / "one" / case.name).symlink_to(case.absolute())

    def ours():
        shutil.rmtree(work / "cache", ignore_errors=True)
        preprocess_cases(work / "one", work / "cache", SPEC)

    def whole(load):
        # only in C order is a slice one contiguous read; np.save would keep the order of the file
        for name, path in (("image", image), ("labels", labels)):
            np.save(work / f"{name}.npy", np.ascontiguousarray(load(nib.load(path))))

    return {
        "ours": ours,
        "nibabel float64 + npy": lambda: whole(lambda file: file.get_fdata()),
        "nibabel int16 + npy": lambda: whole(lambda file: np.asanyarray(file.dataobj)),
    }


def linear(volume, spacing, grid):
    factors = [m / n for n, m in zip(volume.shape, grid)]

    def ours():
        out = np.empty(grid, np.float32)
        for k, plane in enumerate(resample_slices(volume, grid, (0, 0, 0), grid, linear=True)):
            out[k] = plane
        return out

    jobs = {
        "ours": ours,
        "scipy zoom order 1": lambda: zoom(
            volume.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True
        ),
    }
    new_mm = [s * n / m for s, n, m in zip(spacing, volume.shape, grid)]  # that make this grid exactly
    if sitk := installed("SimpleITK"):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        scan = sitk.GetImageFromArray(volume)
        scan.SetSpacing([float(s) for s in spacing[::-1]])
        origin = [(new - old) / 2 for new, old in zip(new_mm[::-1], spacing[::-1])]  # half-pixel centers
        size, step = [int(m) for m in grid[::-1]], [float(s) for s in new_mm[::-1]]
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize(size)
        resampler.SetOutputSpacing(step)
        resampler.SetOutputOrigin(origin)
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetOutputPixelType(sitk.sitkFloat32)
        resampler.SetUseNearestNeighborExtrapolator(True)
        jobs["SimpleITK linear"] = lambda: sitk.GetArrayFromImage(resampler.Execute(scan))
    if transforms := installed("monai.transforms"):
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        meta = importlib.import_module("monai.data").MetaTensor
        affine = torch.diag(torch.tensor([*map(float, spacing), 1.0], dtype=torch.float64))
        tensor = meta(torch.from_numpy(volume[None].astype(np.float32)), affine=affine)
        # Spacing itself would choose another grid (91 slices, not 90), so the resampler that it calls is timed instead
        wanted = torch.diag(torch.tensor([*map(float, new_mm), 1.0], dtype=torch.float64))
        wanted[:3, 3] = torch.tensor([(new - old) / 2 for new, old in zip(new_mm, spacing)])
        resample = transforms.SpatialResample(mode="bilinear", padding_mode="border", align_corners=False)
        jobs["MONAI Spacing"] = lambda: resample(tensor, dst_affine=wanted, spatial_size=grid)[0].numpy()
    return jobs


def nearest(labels, grid):
    factors = [m / n for n, m in zip(labels.shape, grid)]

    def ours():
        return np.stack(list(resample_slices(labels, grid, (0, 0, 0), grid, linear=False)))

    return {
        "ours": ours,
        "scipy zoom order 0": lambda: zoom(labels, factors, order=0, mode="nearest", grid_mode=True),
    }


def installed(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: left out")
        return None


def seconds(work):
    """Processor time: that of all threads, and none of what else runs on the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(title, jobs, rounds, targets, unit=None):
    """Time the jobs in turn; where a unit is given, also print how far their results lie from ours."""
    notes = dict.fromkeys(jobs, "")
    if unit:
        ours = jobs["ours"]()
        for name, job in jobs.items():
            notes[name] = difference(job(), ours, unit) if name != "ours" else ""
        del ours
    else:
        for job in jobs.values():
            job()  # imports, page cache
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(seconds(job))
    print(title)
    for name, values in times.items():
        line = f"  {name:24}{statistics.median(values):8.2f} s"
        if name != "ours":
            ratio = statistics.median(a / b for a, b in zip(values, times["ours"]))
            line += f"{ratio:8.1f} times ours"
            if name in targets:
                met = (
                    "met"
                    if ratio >= targets[name]
                    else f"missed by {100 * (1 - ratio / targets[name]):.0f} %"
                )
                line += f" (target {targets[name]}: {met})"
        print(line + notes[name])
    print()


def difference(found, ours, unit):
    if found.shape != ours.shape:
        return f"; another shape, {found.shape}"
    if unit == "labels":
        return f"; {np.count_nonzero(found != ours)} of {ours.size} labels differ"
    return f"; largest difference {np.abs(found - ours).max():.2g} {unit}"


if __name__ == "__main__":
    main()
