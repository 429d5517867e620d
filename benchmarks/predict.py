"""What prediction costs around the network, against others: python benchmarks/predict.py [--labels FILE] [--slices N]

    pip install "kitsseg[bench]"

Two kinds of work are measured. The first turns class probabilities on a grid of 3 x 0.78 x 0.78 mm into labels on the
scan's own voxels. The second stitches overlapping tiles with Gaussian weights into probabilities, in 2D and in 3D, with
a network that costs nothing. Every row runs in a process of its own, on one core where the system allows it; the rows
run in turn within each round. Times are processor times without the imports, as medians over the rounds. Peak memory is
that of the whole process. ``--labels`` takes a label map of
KiTS19; otherwise two ellipsoids and a ball stand for kidneys and tumor in a scan of 512 x 512 pixels.

nnU-Net resamples in its own way: it takes the nearest slice where slices are thick. Its labels therefore differ from
ours. The tables name the peers that are not installed or that need more memory than is free.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from process_memory import status_mib

GRID_MM = (3.0, 0.78162497, 0.78162497)
TARGET = 50
TILE_2D, TILE_3D = (224, 224), (64, 128, 128)
SLICES_2D = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, help="a label map")
    parser.add_argument("--slices", type=int, default=270, help="of the scan that is made without one")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        labels, spacing = read(arguments.labels) if arguments.labels else made(arguments.slices)
        shape, grid = labels.shape, write_probabilities(folder, labels, spacing)
        del labels
        print(f"scan {shape}, {spacing} mm; grid {grid}")
        case = {"folder": folder, "scan": shape, "spacing": spacing, "grid": grid}
        table("back to the scan's voxels", BACK, case, arguments.rounds, TARGET)
        table(f"2D tiles {TILE_2D}, {SLICES_2D} slices", STITCH_2D, case, arguments.rounds)
        table(f"3D tiles {TILE_3D}, the whole grid", STITCH_3D, case, arguments.rounds)


def read(path):
    from kitsseg.data import read_labels

    volume = read_labels(path)
    return volume.array, volume.grid.spacing_mm


def made(slices):
    shape, spacing = (slices, 512, 512), (1.0, 0.8, 0.8)
    labels = np.zeros(shape, np.uint8)
    y, x = np.ogrid[: shape[1], : shape[2]]
    for k in range(slices):
        z = (k - slices / 2) / (slices / 5)
        for left in (150, 360):
            labels[k][z**2 + ((y - 300) / 60) ** 2 + ((x - left) / 45) ** 2 < 1] = 1
        labels[k][(2 * z) ** 2 + ((y - 260) / 30) ** 2 + ((x - 160) / 30) ** 2 < 1] = 2
    return labels, spacing


def write_probabilities(folder, labels, spacing):
    """One-hot labels, interpolated to the grid, with noise so that no two classes tie: float32, slice by slice."""
    from kitsseg.data.geometry.resample import resample_slices, resampled_shape

    grid, rng = resampled_shape(labels.shape, spacing, GRID_MM), np.random.default_rng(0)
    planes = [resample_slices(labels == c, grid, (0, 0, 0), grid, linear=True) for c in range(3)]
    with (folder / "probabilities").open("wb") as file:
        for classes in zip(*planes, strict=True):
            soft = np.stack(classes, axis=-1) + rng.uniform(0, 0.05, (*grid[1:], 3)).astype(np.float32)
            (soft / soft.sum(axis=-1, keepdims=True)).tofile(file)
    return grid


def probabilities(case):
    """Slice by slice from the file, as a network would give them."""
    shape = (*case["grid"][1:], 3)
    with (case["folder"] / "probabilities").open("rb") as file:
        for _ in range(case["grid"][0]):
            yield np.fromfile(file, np.float32, int(np.prod(shape))).reshape(shape)


# each gives labels on the scan


def ours(case):
    from kitsseg.data.geometry.geometry import Geometry, labels_on_scan

    geometry = Geometry(case["scan"], case["spacing"], case["grid"], (0, 0, 0), case["grid"])
    return labels_on_scan(probabilities(case), geometry)


def whole(case):
    return np.stack(list(probabilities(case)))


def scipy_zoom(case):
    from scipy.ndimage import zoom

    volume, factors = whole(case), [n / m for n, m in zip(case["scan"], case["grid"], strict=True)]
    best, value = np.zeros(case["scan"], np.uint8), None
    for c in range(3):
        channel = zoom(volume[..., c], factors, order=1, mode="nearest", grid_mode=True)
        if value is None:
            value = channel
        else:
            best[channel > value] = c
            np.maximum(value, channel, out=value)
    return best


def torch_interpolate(case):
    import torch

    torch.set_num_threads(1)
    volume = torch.from_numpy(whole(case)).permute(3, 0, 1, 2)[None]
    return (
        torch.nn.functional.interpolate(volume, case["scan"], mode="trilinear", align_corners=False)[0]
        .argmax(0)
        .to(torch.uint8)
        .numpy()
    )


def nnunet(case):
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    volume = np.ascontiguousarray(np.moveaxis(whole(case), -1, 0))
    found = resample_data_or_seg_to_shape(
        volume, case["scan"], GRID_MM, case["spacing"], order=1, order_z=0, force_separate_z=None
    )
    return found.argmax(0).astype(np.uint8)


def nnunet_torch(case):
    import torch
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    volume = torch.from_numpy(whole(case)).permute(3, 0, 1, 2)
    found = resample_torch_fornnunet(volume, case["scan"], GRID_MM, case["spacing"], num_threads=1)
    return found.argmax(0).to(torch.uint8).numpy()


# each gives the number of voxels of probabilities that it has stitched


def tile_of(shape):
    """The answer of the network that costs nothing: always the same array, made beforehand, for float32 inputs."""
    return np.full((1, *shape, 3), 1 / 3, np.float32)


def ours_2d(case):
    from kitsseg.inference.windows2d import slice_probabilities
    from kitsseg.recipe import InferenceSpec

    spec, answer = InferenceSpec(tile=TILE_2D, gaussian=True), tile_of(TILE_2D)
    plane = np.zeros((512, 512, 1), np.float32)
    return sum(slice_probabilities(plane, lambda batch: answer, spec)[..., 0].size for _ in range(SLICES_2D))


def ours_3d(case):
    from kitsseg.inference.tiles3d import overlapping_probabilities
    from kitsseg.recipe import InferenceSpec

    answer, volume = tile_of(TILE_3D), np.zeros(case["grid"], np.float32)
    planes = overlapping_probabilities(
        volume, lambda tile: tile[..., None], lambda batch: answer, InferenceSpec(tile=TILE_3D, gaussian=True)
    )
    return sum(plane[..., 0].size for plane in planes)


def monai(inputs, tile):
    import torch
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(1)
    answer = torch.full((1, 3, *tile), 1 / 3)
    with torch.no_grad():
        found = sliding_window_inference(
            torch.from_numpy(inputs), tile, 1, lambda batch: answer, overlap=0.5, mode="gaussian"
        )
    return found[:, 0].numel()


def monai_2d(case):
    """Slice by slice too: in one batch it would hold the probabilities of all."""
    return sum(monai(np.zeros((1, 1, 512, 512), np.float32), TILE_2D) for _ in range(SLICES_2D))


def monai_3d(case):
    return monai(np.zeros((1, 1, *case["grid"]), np.float32), TILE_3D)


BACK = {
    "kitsseg": ours,
    "scipy zoom, whole volume": scipy_zoom,
    "torch trilinear, whole volume": torch_interpolate,
    "nnU-Net resampling": nnunet,
    "nnU-Net resampling in torch": nnunet_torch,
}
IMPORTS = {
    "ours": ["kitsseg.data.geometry.geometry"],
    "ours_2d": ["kitsseg.recipe", "kitsseg.inference.windows2d"],
    "ours_3d": ["kitsseg.inference.tiles3d"],
    "scipy_zoom": ["scipy.ndimage"],
    "torch_interpolate": ["torch"],
    "nnunet": ["nnunetv2.preprocessing.resampling.default_resampling"],
    "nnunet_torch": ["nnunetv2.preprocessing.resampling.resample_torch"],
    "monai_2d": ["monai.inferers"],
    "monai_3d": ["monai.inferers"],
}
STITCH_2D = {"kitsseg": ours_2d, "MONAI sliding_window_inference": monai_2d}
STITCH_3D = {"kitsseg": ours_3d, "MONAI sliding_window_inference": monai_3d}


def table(title, works, case, rounds, target=None):
    """Print CPU seconds and peak memory of each; ``target`` holds for scipy and torch."""
    found = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            if isinstance(found[name], list):
                result = in_a_process(work, case)
                found[name] = result if isinstance(result, str) else found[name] + [result]
    print(f"\n{title}, {rounds} rounds")
    print(f"{'':<34}{'CPU s':>8}{'peak MiB':>10}{'ours is':>9}{'other voxels':>14}")
    own = found["kitsseg"]
    for name, results in found.items():
        if isinstance(results, str):
            print(f"{name:<34}{results}")
            continue
        seconds = statistics.median(r["seconds"] for r in results)
        ratio = statistics.median(r["seconds"] / o["seconds"] for r, o in zip(results, own, strict=True))
        text = f"{name:<34}{seconds:>8.2f}{max(r['mib'] for r in results):>10.0f}"
        if name != "kitsseg":
            other = "" if results[0]["other"] is None else f"{results[0]['other']}"
            text += f"{ratio:>8.1f}x{other:>14}"
            if target and name.startswith(("scipy", "torch")):
                missed = results[0]["other"] or ratio < target
                text += f"  target {target}x with equal labels: {'missed' if missed else 'reached'}"
        print(text)


def in_a_process(work, case):
    """{"seconds", "mib", "other": voxels unlike ours}, or why there are none."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there, work.__name__, case))
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        result = "died"
    process.join()
    return result


def measure(connection, name, case):
    leave_memory_to_others()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:  # the first import is not what is measured
        for module in IMPORTS[name]:
            importlib.import_module(module)
    except ImportError:
        connection.send("not installed")
        return
    before = time.process_time()
    try:
        result = globals()[name](case)
    except (MemoryError, RuntimeError) as error:  # torch's for want of memory
        connection.send(f"not within the memory that was free ({type(error).__name__})")
        return
    seconds, other = time.process_time() - before, None
    mib = status_mib("VmHWM") or float("nan")
    if isinstance(result, np.ndarray):
        file = case["folder"] / "labels.npy"
        if name == "ours":
            np.save(file, result)
        else:
            other = int(np.count_nonzero(result != np.load(file, mmap_mode="r")))
    connection.send({"seconds": seconds, "mib": mib, "other": other})


def leave_memory_to_others(share=0.6):
    """Limit this process to a share of the free memory; a peer that needs 20 GB then fails before the system does."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
        [free] = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        resource.setrlimit(resource.RLIMIT_DATA, (int(share * free), int(share * free)))


if __name__ == "__main__":
    main()
