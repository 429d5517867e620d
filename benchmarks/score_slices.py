"""Score a network on the real KiTS19 slices: python benchmarks/score_slices.py RUN_OR_EXPORT SHARED [--aside]

SHARED is the folder that holds ``kits19_slices``: 79 slices of 28 patients, chosen by somebody else, HU clipped to
0..255. Seven of the patients are kept aside (``phantom_statistics.ASIDE``): with ``--aside`` they are scored and no
others, which is done once, at the end. Each slice is a scan of one slice. Kidney with tumor (TK) and tumor (TU) Dice
of a slice are averaged over a patient's slices, then over patients; TU over slices that show a tumor.
"""

import argparse
from pathlib import Path

import numpy as np
from phantom_statistics import read_slices

from kitsseg.inference.ensemble import ensemble_of, open_ensemble
from kitsseg.inference.scan import ensemble_labels, prepare_scan


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks; two empty ones agree."""
    total = np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(found & truth) / total if total else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="folder of a run, or an exported file")
    parser.add_argument("shared", type=Path)
    parser.add_argument(
        "--aside", action="store_true", help="the seven patients kept aside instead of the others"
    )
    arguments = parser.parse_args()
    members, postprocess, _ = open_ensemble(ensemble_of([arguments.network]))
    scores: dict[str, list[tuple[float, float]]] = {}
    for item in read_slices(arguments.shared / "kits19_slices", arguments.aside):
        spacing = (3.0, *item.spacing_mm)
        prepared = prepare_scan(item.image[None], spacing, members)
        found = ensemble_labels(prepared, spacing, postprocess)[0]
        tumor = dice(found == 2, item.labels == 2) if (item.labels == 2).any() else np.nan
        scores.setdefault(item.case, []).append((dice(found > 0, item.labels > 0), tumor))
    means = []
    for case, values in sorted(scores.items()):
        tumors = [tu for _, tu in values if not np.isnan(tu)]
        means.append((np.mean([tk for tk, _ in values]), np.mean(tumors) if tumors else np.nan))
        print(f"{case}  {len(values):2d} slices  TK {means[-1][0]:.3f}  TU {means[-1][1]:.3f}")
    tk, tu = (np.array(column) for column in zip(*means))
    rng = np.random.default_rng(0)
    for name, values in (("TK", tk), ("TU", tu[~np.isnan(tu)])):
        drawn = rng.choice(values, (2000, len(values))).mean(axis=1)
        low, high = np.percentile(drawn, (2.5, 97.5))
        print(f"{name} {values.mean():.3f} (95 % over {len(values)} patients: {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
