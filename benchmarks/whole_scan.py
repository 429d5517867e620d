"""What ``kitsseg predict`` takes for a whole scan with a paper's network: python benchmarks/whole_scan.py [NETWORK ...]

NETWORK is a run of kitsseg train, or the name of a recipe; without one, all recipes of papers are measured. The network
of a recipe gets random weights, and calls every voxel background: its time is real, its labels mean nothing. (Labels at
random would reach the border of the region, and the whole scan would be taken after it.) The scan is a rendered patient
of ``--slices`` slices of 512 x 512, or ``--scan FILE``.

Each network labels the whole scan, and the region around the kidneys that the coarse pass finds (``--coarse on``), both
in float32 and in bfloat16 by TensorFlow. If the packages of the extras export and openvino are installed, a 2D network
labels the region by ONNX Runtime and OpenVINO too. The comparison of bfloat16 with float32, which a run makes once,
is not part of the figures. Every measurement is a process of its own on one core; all of them run in turn within a
round. Printed are medians: CPU time and wall time of the process from its start until it ends, its peak memory, and how
many times less CPU time it takes than the first line of its network.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from predict_process import measure, metadata_of, on_one_core

from kitsseg.inference.ensemble import ensemble_of
from kitsseg.records.precision import PrecisionCheck, keep_check, kept_check
from kitsseg.records.predictions import read_predictions
from kitsseg.records.run import read_run

RECIPES = ("unet2d", "wp_unet", "squeeze_unet", "enhanced_unet", "deeplab3d")
TENSORFLOW, OPENVINO = ("--engine", "tensorflow"), ("--engine", "openvino")
WHOLE, REGION = ("--coarse", "off"), ("--coarse", "on")
BFLOAT16 = ("--precision", "bfloat16")
WAYS = {
    "whole scan": (*WHOLE, *TENSORFLOW),
    "region": (*REGION, *TENSORFLOW),
    "whole scan, bfloat16": (*WHOLE, *TENSORFLOW, *BFLOAT16),
    "region, bfloat16": (*REGION, *TENSORFLOW, *BFLOAT16),
}
WAYS_2D = {
    "region, ONNX Runtime": (*REGION, "--engine", "onnxruntime"),
    "region, OpenVINO": (*REGION, *OPENVINO),
    "region, OpenVINO, bfloat16": (*REGION, *OPENVINO, *BFLOAT16),
}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        make_run(a.make[0], Path(a.make[1]))
        return
    on_one_core()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scan = a.scan or rendered(folder / "data", a.slices)
        jobs = {
            (name, way): job
            for name in a.networks
            for way, job in jobs_of(finished_run(name, folder), folder, a.ways).items()
        }
        spent = {job: [] for job in jobs}
        for number in range(a.rounds):
            for index, ((name, way), (run, options)) in enumerate(jobs.items()):
                out = folder / f"out-{number}-{index}"
                spent[name, way].append(measure(run, scan, out, options))
                note = f"{name}, {way}: {spent[name, way][-1][1]:.1f} s of CPU"
                for case, scan_record in read_predictions(out).cases.items():
                    if (seen := scan_record.coarse) and seen.whole:
                        note += f"; {case} was labelled as a whole ({seen.whole})"
                    elif seen and seen.widened:
                        note += f"; the region of {case} was made wider ({seen.widened})"
                print(note, file=sys.stderr, flush=True)
    print_table(spent)


def parser_of(about: str) -> argparse.ArgumentParser:
    """The arguments that choose the networks, the scan and the ways; ``about`` is the text of the script."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=RECIPES)
    parser.add_argument("--slices", type=int, default=119, help="of the rendered scan (default: 119)")
    parser.add_argument("--scan", type=Path, help="a scan instead of the rendered one")
    every = {**WAYS, **WAYS_2D}
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=every,
        default=list(every),
        help="rows of the table to measure (default: all)",
    )
    return parser


def finished_run(name: str, folder: Path) -> Path:
    """The run of that name, or a new one of that recipe in ``folder``."""
    if Path(name).is_dir():
        return Path(name).resolve()
    subprocess.run([sys.executable, __file__, "--make", name, folder / name], check=True)
    return folder / name


def has_openvino(run: Path) -> bool:
    """Whether OpenVINO can compute the run."""
    return (run / "network.onnx").is_file() and find_spec("openvino") is not None


def jobs_of(run: Path, folder: Path, wanted: list[str]) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Way -> (the run or a copy of it, the options of predict), of the ways that this run can be computed in."""
    ways = WAYS | (WAYS_2D if has_openvino(run) else {})
    own = Path(tempfile.mkdtemp(dir=folder))  # a recipe and a run may have one name
    return {
        way: (compared(run, own / f"{run.name}, {way}", options), options)
        for way, options in ways.items()
        if way in wanted
    }


def rendered(data: Path, slices: int) -> Path:
    """A rendered patient, made by another process: the peak of a started process holds the memory of its starter."""
    make = (
        f"from kitsseg.data import synthesize_cases; synthesize_cases({str(data)!r}, 1, ({slices}, 512, 512))"
    )
    subprocess.run([sys.executable, "-c", make], check=True)
    return next(data.glob("case_*"))


def compared(run: Path, copy: Path, options: tuple[str, ...]) -> Path:
    """The run; for bfloat16 a copy of it in which the comparison with float32 is recorded."""
    if "bfloat16" not in options:
        return run
    shutil.copytree(run, copy)
    engine = "openvino" if "openvino" in options else "tensorflow"
    check = PrecisionCheck(
        precision="bfloat16",
        weights_sha256=ensemble_of((copy,)).sha256[0],
        engine=f"{engine} in bfloat16",
        slices=8,
        tk_dice=1.0,
        tu_dice=None,
    )
    keep_check(copy, check)
    if kept_check(copy, check.precision, check.weights_sha256, check.engine) is None:
        raise SystemExit(f"{copy}: the comparison is not kept there, so that its time would be measured too")
    return copy


def make_run(name: str, run: Path) -> None:
    """A finished run of a recipe whose network has random weights."""
    from inference import random_statistics

    from kitsseg import recipes

    recipe = recipes.get(name)
    settings = {key: None if key == "weights" else value for key, value in recipe.model.items()}
    model = random_statistics(recipe.build_model(**settings))
    classes = model.outputs[-1].shape[-1]
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None and layer.bias.shape == (classes,):
            layer.bias.assign([1e6] + [0.0] * (classes - 1))  # far above any logit
    save_run(model, run, recipe)


def save_run(model: Any, run: Path, recipe: Any) -> None:
    """A finished run of this network, of a 2D network with network.onnx."""
    from dataclasses import replace

    from kitsseg.data.splits import CaseSplit
    from kitsseg.files.checksums import sha256_of
    from kitsseg.records.run import create_run, update_run

    create_run(run, recipe, CaseSplit("none", (), (), ()), 0, {"phantom": True})
    model.save(run / "model.keras")
    done = replace(read_run(run), status="finished", model_sha256=sha256_of(run / "model.keras"))
    update_run(run, done)
    if not recipe.is_3d and all(map(find_spec, ("tf2onnx", "onnxruntime"))):
        write_onnx(model, run, recipe)


def write_onnx(model: Any, run: Path, recipe: Any) -> None:
    """The file for a quick start; kitsseg export compares it with the network, where this network finds nothing."""
    import keras

    from kitsseg.export.writers import ExportOptions, write_network

    size = recipe.inference.tile or recipe.preprocess.slice_size or (None, None)
    shape = (*size, model.input_shape[-1])
    metadata = metadata_of(recipe, shape, read_run(run).model_sha256)
    last = keras.Model(model.input, model.outputs[-1])
    write_network(last, run / "network.onnx", shape, metadata, ExportOptions(format="onnx"))


def print_table(spent: dict[tuple[str, str], list[tuple[float, float, float]]]) -> None:
    print("| network | what it sees | CPU s | wall s | peak MB | times less CPU |\n|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for (name, way), values in spent.items():
        wall, cpu, megabytes = (statistics.median(column) for column in zip(*values, strict=True))
        ratio = first.setdefault(name, cpu) / cpu
        print(f"| {Path(name).name} | {way} | {cpu:.1f} | {wall:.1f} | {megabytes:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
