"""What bfloat16 does to the Dice of real slices: python benchmarks/slice_precision.py RUN [RUN ...] --slices SLICES

The runs are the folds of a network in setting b of real_slices.py (OUT/jobs/unet2d/b-fold*-seed0/run): each labels the
slices of its own test patients, in float32 and in bfloat16, by ``kitsseg predict --part test`` on one core. Printed
are TK and TU Dice, means over the patients of all runs, the difference of these means, and that of slices: its mean,
and the slices that lose and gain most. A run whose bfloat16 is refused ends the benchmark with the reason.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from coarse_dice import change
from predict_process import measure, on_one_core
from real_slices import HU

from kitsseg.data.layouts.find import Layout
from kitsseg.scoring.slices import evaluate_slices

WAYS = {"float32": (), "bfloat16": ("--precision", "bfloat16")}
METRICS = ("slice_tk_dice", "slice_tu_dice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--slices", type=Path, required=True)
    a = parser.parse_args()
    on_one_core()
    window = ",".join(f"{value:g}" for value in HU)
    part = ("--part", "test", "--engine", "tensorflow", "--hu-window", window)
    with tempfile.TemporaryDirectory() as scratch:
        rows = {way: [] for way in WAYS}
        for number, run in enumerate(a.runs):
            copy = Path(scratch) / f"{number}-run"  # a comparison of precisions is recorded in it
            shutil.copytree(run, copy)
            for way, options in WAYS.items():
                out = Path(scratch) / f"{number}-{way}"
                measure(copy, a.slices, out, (*part, *options))
                found = evaluate_slices(out, a.slices, out.with_suffix(".csv"), layout=Layout(hu_window=HU))
                rows[way] += found.rows
    names = {way: [row["slice"] for row in found] for way, found in rows.items()}
    if names["float32"] != names["bfloat16"] or len(set(names["float32"])) != len(names["float32"]):
        raise SystemExit("expected each slice once in each precision; are the runs folds of one network?")
    dice = {
        way: np.array([[row[key] for key in METRICS] for row in found], float) for way, found in rows.items()
    }
    patients = np.array([row["patient"] for row in rows["float32"]])
    print(
        f"{len(patients)} slices of {len(set(patients))} patients\n\n| Dice | float32 | bfloat16 | patients | slices |"
    )
    print("|---|---|---|---|---|")
    for index, name in enumerate(("TK", "TU")):
        means = [of_patients(dice[way][:, index], patients) for way in WAYS]
        of_slices = change(dice["bfloat16"][:, index] - dice["float32"][:, index])
        print(f"| {name} | {means[0]:.4f} | {means[1]:.4f} | {means[1] - means[0]:+.4f} | {of_slices} |")


def of_patients(values: np.ndarray, patients: np.ndarray) -> float:
    return float(np.mean([values[patients == patient].mean() for patient in sorted(set(patients))]))


if __name__ == "__main__":
    main()
