"""What ``kitsseg predict`` takes for a whole scan with a paper's network: python benchmarks/whole_scan.py [NETWORK ...]

NETWORK is a run of kitsseg train, or the name of a recipe; without one, all recipes of papers are measured. The network
of a recipe gets random weights, and calls every voxel background: its time is real, its labels mean nothing. (Labels at
random would reach the border of the region, and the whole scan would be taken after it.) The scan is a rendered patient
of ``--slices`` slices of 512 x 512, or ``--scan FILE``.

Each network labels the whole scan, and the region around the kidneys that the coarse pass finds (``--coarse on``), both
in float32 and in bfloat16. Every measurement is a process of its own on one core;
all of them run in turn within a round. Printed are medians: CPU time and wall time of the process from its start until
it ends, its peak memory, and how many times less CPU time it takes than the first line of its network.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from predict_process import measure

RECIPES = ("unet2d", "wp_unet", "squeeze_unet", "enhanced_unet", "deeplab3d")
WHOLE, REGION = ("--coarse", "off"), ("--coarse", "on")
WAYS = {
    "whole scan": WHOLE,
    "region": REGION,
    "whole scan, bfloat16": (*WHOLE, "--precision", "bfloat16"),
    "region, bfloat16": (*REGION, "--precision", "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=RECIPES)
    parser.add_argument("--slices", type=int, default=119, help="of the rendered scan (default: 119)")
    parser.add_argument("--scan", type=Path, help="a scan instead of the rendered one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        make_run(a.make[0], Path(a.make[1]))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scan = a.scan or rendered(folder / "data", a.slices)
        jobs = {}
        for name in a.networks:
            trained = Path(name).is_dir()
            run = Path(name).resolve() if trained else folder / name
            if not trained:
                subprocess.run([sys.executable, __file__, "--make", name, run], check=True)
            jobs |= {(name, way): run for way in WAYS}
        spent = {job: [] for job in jobs}
        for number in range(a.rounds):
            for index, ((name, way), run) in enumerate(jobs.items()):
                out = folder / f"out-{number}-{index}"
                spent[name, way].append(measure(run, scan, out, WAYS[way]))
                print(f"{name}, {way}: {spent[name, way][-1][1]:.1f} s of CPU", file=sys.stderr, flush=True)
    print_table(spent)


def rendered(data: Path, slices: int) -> Path:
    """A rendered patient, made by another process: the peak of a started process holds the memory of its starter."""
    make = (
        f"from kitsseg.data import synthesize_cases; synthesize_cases({str(data)!r}, 1, ({slices}, 512, 512))"
    )
    subprocess.run([sys.executable, "-c", make], check=True)
    return next(data.glob("case_*"))


def make_run(name: str, run: Path) -> None:
    """A finished run of a recipe whose network has random weights."""
    from dataclasses import replace

    from inference import random_statistics

    from kitsseg import recipes
    from kitsseg.data.splits import CaseSplit
    from kitsseg.files.checksums import sha256_of
    from kitsseg.records.run import create_run, read_run, update_run

    recipe = recipes.get(name)
    create_run(run, recipe, CaseSplit("none", (), (), ()), 0, {"phantom": True})
    settings = {key: None if key == "weights" else value for key, value in recipe.model.items()}
    model = random_statistics(recipe.build_model(**settings))
    classes = model.outputs[-1].shape[-1]
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None and layer.bias.shape == (classes,):
            layer.bias.assign([1000.0] + [0.0] * (classes - 1))
    model.save(run / "model.keras")
    done = replace(read_run(run), status="finished", model_sha256=sha256_of(run / "model.keras"))
    update_run(run, done)


def print_table(spent: dict[tuple[str, str], list[tuple[float, float, float]]]) -> None:
    print("| network | what it sees | CPU s | wall s | peak MB | times less CPU |\n|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for (name, way), values in spent.items():
        wall, cpu, megabytes = (statistics.median(column) for column in zip(*values, strict=True))
        ratio = first.setdefault(name, cpu) / cpu
        print(f"| {Path(name).name} | {way} | {cpu:.1f} | {wall:.1f} | {megabytes:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
