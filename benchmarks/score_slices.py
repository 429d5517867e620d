"""Slice scores of two groups of patients: python benchmarks/score_slices.py SLICE_SCORES.csv

SLICE_SCORES.csv is what ``kitsseg evaluate`` writes for the 79 real slices of 28 patients, chosen by somebody else. The
slices of 21 patients tuned the synthetic patients; seven patients were set aside (``phantom_statistics.ASIDE``). It
prints, for both groups and for all patients, the means of kidney with tumor (TK) and tumor (TU): the Dice of each slice
(both masks empty: 1, exactly one empty: 0), its mean by patient, and the mean over patients with its 95 % interval.
Beside them it prints what an empty label map scores on the same slices: 1 where the truth is empty, else 0.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from phantom_statistics import ASIDE

from kitsseg.files.tables import read_rows
from kitsseg.scoring.dice import bootstrap_intervals

SCORES = {"TK": "slice_tk_dice", "TU": "slice_tu_dice"}
TRUTH = {"TK": ("truth_kidney_pixels", "truth_tumor_pixels"), "TU": ("truth_tumor_pixels",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", type=Path, help="slice scores as kitsseg evaluate writes them")
    kinds = {"patient": str} | dict.fromkeys([*SCORES.values(), *TRUTH["TK"]], float)
    rows = read_rows(
        parser.parse_args().scores, kinds, None, "slice scores", "Make them by kitsseg evaluate."
    )
    patients = sorted({row["patient"] for row in rows})
    groups = {
        "set aside": [patient for patient in patients if patient in ASIDE],
        "tuned the synthetic patients": [patient for patient in patients if patient not in ASIDE],
        "all": patients,
    }
    for row in rows:
        for score, truth in TRUTH.items():
            row[f"empty {score}"] = float(not any(row[column] for column in truth))
    for name, some in groups.items():
        for score, column in SCORES.items():
            print(f"{name}, {len(some)} patients: {score} {_mean(rows, some, column)}")
            print(f"{name}, an empty label map: {score} {_mean(rows, some, f'empty {score}')}")


def _mean(rows: list[dict[str, Any]], patients: list[str], column: str) -> str:
    """Mean over patients, with its interval."""
    values = np.array(
        [np.mean([row[column] for row in rows if row["patient"] == patient]) for patient in patients]
    )
    [(low, high)] = bootstrap_intervals([values])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
