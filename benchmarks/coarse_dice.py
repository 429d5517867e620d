"""What the coarse pass and bfloat16 do to Dice: python benchmarks/coarse_dice.py RUN [RUN ...] [--phantoms 24]

RUN is a folder of kitsseg train. The scans are procedural patients of 60 x 256 x 256 voxels; their seeds are from 1000
on, with which neither the starter network was trained nor a run whose patients come from ``kitsseg synthesize
--seed 0``. Each run labels all scans in several ways, each of which is a process of ``kitsseg predict`` on one core:

    whole scan                  --coarse off
    whole scan, pieces removed  the same with --remove-small 1000, which also takes away what was found elsewhere
    region                      --coarse on
    region, pieces removed      --coarse on --remove-small 1000
    whole scan, bfloat16        --coarse off --precision bfloat16
    region, bfloat16            --coarse on --precision bfloat16
    region, OpenVINO, bfloat16  for a run with network.onnx, if OpenVINO is installed

Printed are for each way the CPU time and the peak memory of the process, how many times less CPU time it takes than
the whole scan, mean TK and TU Dice of the scans, and its difference from the whole scan (for ways that remove pieces:
from the whole scan, pieces removed): the mean, and the scans that lose and gain most. The figures in bfloat16 hold the
comparison with float32 that a run makes once.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from predict_process import measure, on_one_core
from whole_scan import WAYS as WHOLE_SCANS
from whole_scan import WAYS_2D, has_openvino

from kitsseg.scoring.evaluate import evaluate_folders

SMALL = ("--remove-small", "1000")
FIRST, CLEANED = "whole scan", "whole scan, pieces removed"
WAYS = {
    FIRST: WHOLE_SCANS[FIRST],
    CLEANED: (*WHOLE_SCANS[FIRST], *SMALL),
    "region": WHOLE_SCANS["region"],
    "region, pieces removed": (*WHOLE_SCANS["region"], *SMALL),
    **{way: WHOLE_SCANS[way] for way in ("whole scan, bfloat16", "region, bfloat16")},
}
BY_OPENVINO = {way: WAYS_2D[way] for way in ("region, OpenVINO, bfloat16",)}
SHAPE, SEED = (60, 256, 256), 1000
METRICS = ("tk_dice", "tu_dice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--phantoms", type=int, default=24)
    a = parser.parse_args()
    on_one_core()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scans = folder / "scans"
        scans.mkdir()
        for seed in range(SEED, SEED + a.phantoms):  # each patient by its own seed, as in coarse_region.py
            synthesize(scans / f"case_{seed:05d}", seed, folder / "one")
        print(
            "| network | way | CPU s | peak MB | times less CPU | TK | TU | TK against the whole scan | TU against it |"
        )
        print("|---" * 9 + "|")
        for run in a.runs:
            compare(run, scans, folder / run.name)


def synthesize(case: Path, seed: int, folder: Path) -> None:
    """By another process: the peak of a process that is started later holds the memory of its starter."""
    size = ",".join(map(str, SHAPE))
    command = ["synthesize", folder, "--cases", "1", "--size", size, "--seed", str(seed), "--quiet"]
    subprocess.run([sys.executable, "-m", "kitsseg", *command], check=True)
    next(folder.glob("case_*")).rename(case)
    shutil.rmtree(folder)


def compare(run: Path, scans: Path, out: Path) -> None:
    """The rows of one run; its folder is copied, since a comparison of precisions is recorded in it."""
    copy = out / "run"
    shutil.copytree(run, copy)
    ways = WAYS | (BY_OPENVINO if has_openvino(run) else {})
    spent: dict[str, float] = {}
    dice: dict[str, np.ndarray] = {}
    for number, (way, options) in enumerate(ways.items()):
        labels = out / f"labels-{number}"
        try:
            _, cpu, megabytes = measure(copy, scans, labels, options)
        except SystemExit as refusal:  # of bfloat16
            print(f"| {run.name} | {way} | {str(refusal).strip().splitlines()[-1]} |" + " |" * 6, flush=True)
            continue
        rows = evaluate_folders(labels, scans, out / f"scores-{number}.csv").rows
        spent[way], dice[way] = cpu, np.array([[row[metric] for metric in METRICS] for row in rows], float)
        if len(rows) != len(list(scans.iterdir())):
            sys.exit(f"{labels}: {len(rows)} scans have scores")
        before = dice[CLEANED] if "removed" in way else dice[FIRST]
        changes = [
            change(dice[way][:, i] - before[:, i]) if way != FIRST else "" for i in range(len(METRICS))
        ]
        tk, tu = dice[way].mean(axis=0)
        print(
            f"| {run.name} | {way} | {cpu:.0f} | {megabytes:.0f} | {spent[FIRST] / cpu:.2f} | {tk:.4f} | {tu:.4f} | "
            + " | ".join(changes)
            + " |",
            flush=True,
        )


def change(differences: np.ndarray) -> str:
    return f"{differences.mean():+.4f} ({differences.min():+.4f} to {differences.max():+.4f})"


if __name__ == "__main__":
    main()
