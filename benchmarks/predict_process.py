"""What ``kitsseg predict MODEL SCAN`` takes as a whole process: python benchmarks/predict_process.py [MODEL ...]

Measured are wall time, CPU time and peak memory of the process on one core, from its start until the label map is
written and the process ends. A scan of two slices of 512 x 512, the fewest that a scan may have, shows the time to the
first result; a longer scan shows the cost of further slices. The targets are 1 s to the first result, and 300 MB. MODEL
is a file of kitsseg export or a run. A run that holds network.onnx is measured with it and, in turn, with --engine
tensorflow; the last lines tell how many times as long the second takes. Without a MODEL the paper's WP-UNet with random
weights is measured, as LiteRT (float32, int8-weights, int8) and ONNX; its speed is real, its labels mean nothing.

The first round is not counted, because its processes may have to compile byte code.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kitsseg.data import write_image

TARGET_S, TARGET_MB = 1.0, 300.0
FEWEST = 2  # slices
BY_KERAS = ("--engine", "tensorflow")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--slices", type=int, default=20, help="of the longer scan (default: 20)")
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    on_one_core()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = [path.resolve() for path in a.models]
        if not models:  # in a process of its own: this one stays small
            subprocess.run([sys.executable, __file__, "--make", folder], check=True, capture_output=True)
            models = sorted(folder.glob("wp_unet-*"))
        scans = [make_scan(folder, n) for n in dict.fromkeys((FEWEST, a.slices))]
        ways = [(model, ()) for model in models]
        ways += [(model, BY_KERAS) for model in models if (model / "network.onnx").is_file()]
        measured = {(way, scan): [] for way in ways for scan in scans}
        for number in range(a.rounds + 1):  # in turn: what else the machine does meets all of them
            for index, (((model, options), scan), values) in enumerate(measured.items()):
                spent = measure(model, scan, folder / f"out-{number}-{index}", options)
                if number:
                    values.append(spent)
    print(f"{'model':44}{'slices':>8}{'wall s':>9}{'slowest':>9}{'CPU s':>8}{'peak MB':>9}  first result")
    missed = False
    for ((model, options), scan), values in measured.items():
        wall, cpu, megabytes = (statistics.median(column) for column in zip(*values, strict=True))
        slowest, slices, verdict = max(value[0] for value in values), int(scan.name.split("-")[1]), ""
        if slices == FEWEST:
            met = wall <= TARGET_S and megabytes <= TARGET_MB
            missed |= not met and options != BY_KERAS
            verdict = f"within {TARGET_S:g} s and {TARGET_MB:g} MB: {'yes' if met else 'no'}"
        name = " ".join([model.name, *options])
        print(f"{name:44}{slices:8}{wall:9.3f}{slowest:9.3f}{cpu:8.3f}{megabytes:9.1f}  {verdict}")
    for ((model, options), scan), values in measured.items():
        if options == BY_KERAS:
            pairs = zip(values, measured[(model, ()), scan], strict=True)
            wall, cpu = (
                statistics.median(column)
                for column in zip(*((a[0] / b[0], a[1] / b[1]) for a, b in pairs), strict=True)
            )
            print(
                f"{model.name}, {scan.name.split('-')[1]} slices: by TensorFlow {wall:.2f} times the wall time and "
                f"{cpu:.2f} times the CPU time (medians of the ratios of each round)"
            )
    return int(missed)


def on_one_core():
    """This process and those that it starts compute on the last of its cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])


def measure(model, scan, out, options=()):
    """(wall seconds, CPU seconds, peak megabytes) of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "kitsseg", "predict", model, scan, "--out", out, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    complaint = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(complaint)
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return wall, usage.ru_utime + usage.ru_stime, kilobytes * 1024 / 1e6


def make_scan(folder, slices):
    rng = np.random.default_rng(0)
    path = folder / f"scan-{slices}-slices.nii.gz"
    write_image(path, rng.integers(-1000, 1000, (slices, 512, 512)).astype(np.int16), (3.0, 0.8, 0.8))
    return path


def make_models(folder):
    """The full network in every exported form there is a package for, with the metadata of kitsseg export."""
    from dataclasses import replace

    from inference import PACKAGES, installed, random_statistics

    from kitsseg import recipes
    from kitsseg.export.writers import ExportOptions, write_network

    recipe = recipes.get("wp_unet")
    rows, columns, _ = shape = recipe.model["input_shape"]
    tiled = replace(recipe, inference=replace(recipe.inference, tile=(rows, columns)))
    metadata = metadata_of(tiled, shape)
    network = random_statistics(recipe.build_model(**recipe.model))
    noise = [np.random.default_rng(i).uniform(size=(1, *shape)).astype("float32") for i in range(8)]
    for precision in ("float32", "int8-weights", "int8"):
        path = folder / f"wp_unet-{precision}.tflite"
        options = ExportOptions(format="litert", precision=precision)
        write_network(network, path, shape, metadata, options, noise)
    if installed(PACKAGES["onnxruntime"]):
        write_network(network, folder / "wp_unet-float32.onnx", shape, metadata, ExportOptions(format="onnx"))


def metadata_of(recipe, shape, weights_sha256=None):
    """What a file says of the network of a recipe that was never trained; ``shape`` is that of an image."""
    from dataclasses import asdict

    from kitsseg import __version__
    from kitsseg.records.exported import ExportedInput, ExportedOutput, ExportedSplit, ExportMetadata

    example = (1, *(n or 64 for n in shape)) if None in shape else None
    return ExportMetadata(
        kitsseg=__version__,
        recipe=recipe.name,
        split=ExportedSplit(name="none", hash="none"),
        settings={
            "preprocess": asdict(recipe.preprocess),
            "inference": asdict(recipe.inference),
            "postprocess": None,
        },
        input=ExportedInput(shape=(1, *shape), example=example),
        output=ExportedOutput(softmax=False, content="logits"),
        precision="float32",
        weights_sha256=weights_sha256,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make_models(Path(sys.argv[2]))
    else:
        sys.exit(main())
