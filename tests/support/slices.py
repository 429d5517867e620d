"""Tiny folders of single slices with masks and a table of patients."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["WINDOW", "make_slices", "slice_of_tests", "write_table"]

WINDOW = (-100.0, 410.0)  # two HU for each gray value of 8 bits


def slice_of_tests(
    seed: int, shape: tuple[int, int] = (40, 48), tumor: bool = True
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Gray values and labels: kidney is brighter than 100, tumor than 200, the rest darker than 60."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    top, left = 6 + seed % 5, 5 + seed % 4
    labels[top : top + 14, left : left + 12] = 1
    if tumor:
        labels[top + 3 : top + 9, left + 3 : left + 8] = 2
    gray = rng.integers(20, 60, shape) + 80 * (labels == 1) + 160 * (labels == 2)
    return gray.astype(np.uint8), labels


def make_slices(
    folder: Path, patients: int = 9, each: int = 2, shape: tuple[int, int] = (40, 48), seed: int = 0
) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Write a folder of slices, two (``each``) of every patient; returns gray values and labels by name."""
    made, rows = {}, []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(patients * each):
        name, patient = f"p{number // each}_{number % each}", f"patient_{number // each}"
        made[name] = slice_of_tests(seed + number, shape)
        for kind, values in zip(("images", "labels"), made[name], strict=True):
            Image.fromarray(values).save(folder / kind / f"{name}.png")
        rows.append(
            {
                "file": f"{name}.png",
                "patient": patient,
                "spacing_mm_rows": 0.8,
                "spacing_mm_columns": 0.8,
                "hu_low": WINDOW[0],
                "hu_high": WINDOW[1],
            }
        )
    write_table(folder, rows)
    return made


def write_table(folder: Path, rows: list[dict[str, object]]) -> None:
    """Write slices.csv."""
    with (folder / "slices.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
