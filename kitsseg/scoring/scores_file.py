"""Write and read scores.csv (a row per case) and scores.json together; two files that do not match are refused."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import as_json, read_with_absolute_paths
from kitsseg.files.paths import relative_paths
from kitsseg.files.tables import read_rows, write_rows
from kitsseg.scoring.cases import columns_of
from kitsseg.scoring.dice import SCORES, VOLUMES
from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.slices import holds_slice_scores
from kitsseg.scoring.summary import Summary

__all__ = ["Evaluation", "read_scores", "write_scores"]

TEXT_COLUMNS = ("case", "empty", "label_release", "split_hash")
AGAIN = "Run kitsseg evaluate again."


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of cases: ``rows`` as in scores.csv, ``summary`` as in scores.json but with absolute paths."""

    rows: list[dict[str, Any]]
    summary: Summary


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Write a scores.csv and the scores.json of the same stem beside it: both files or neither."""
    summary = evaluation.summary
    columns = columns_of(summary.classes or "kits19", summary.surface is not None)
    text = as_json(summary, lambda values: relative_paths(values, path.parent))
    with atomic_path(path.with_suffix(".json")) as beside:
        beside.write_text(text, encoding="utf-8")
        write_rows(path, evaluation.rows, columns)


def read_scores(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], Summary]:
    """The rows of a scores.csv with numbers as numbers (None where a value is not defined), and its scores.json
    with the paths in it made absolute.

    Raises: InputError if either is missing, or not written by ``kitsseg evaluate``.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    if holds_slice_scores(path):
        raise InputError(
            f"{path}: expected scores of whole cases, found slice scores, which mean something else. Compare slice "
            "scores with each other: kitsseg compare."
        )
    if path.suffix != ".csv" and path.is_file():
        raise InputError(
            f"{path}: expected the scores.csv of kitsseg evaluate, found another file. Check the path."
        )
    if not beside.is_file():
        raise InputError(f"{beside}: expected the summary of {path.name} beside it, found nothing. {AGAIN}")
    kinds: dict[str, Callable[[str], Any]] = {
        "case": str,
        **dict.fromkeys((*SCORES, *VOLUMES), _number),
        "empty": str,
    }
    text = dict.fromkeys(TEXT_COLUMNS, str)
    rows = read_rows(path, kinds, _number, "the scores of kitsseg evaluate", AGAIN, text)
    summary = read_with_absolute_paths(beside, Summary, "the summary of kitsseg evaluate", AGAIN)
    names = sorted(row["case"] for row in rows)
    if not rows or sorted(summary.cases) != names:
        raise InputError(
            f"{path}: has {len(names)} cases, {beside.name} beside it {len(summary.cases)} others. {AGAIN}"
        )
    _check_ladders(summary, beside)
    for name in SCORES:
        mean = getattr(summary.scores, name).mean
        # written so that NaN fails too
        if not abs(mean - sum(row[name] for row in rows) / len(rows)) <= 1e-9:
            raise InputError(f"{path}: the mean of {name} is not the {mean:.6g} of {beside.name}. {AGAIN}")
    return rows, summary


def _check_ladders(summary: Summary, path: Path) -> None:
    """Raise InputError if a definition is missing, or has no value although it is always defined."""
    for which in ("prediction", "all_background"):
        values = getattr(summary.beside_all_background, which)
        for key in RUNGS:
            if values.get(key) is None and not (key in values and ("skipped" in key or "pooled_t" in key)):
                raise InputError(
                    f"{path}: expected a number as beside_all_background.{which}.{key}, found "
                    f"{'null' if key in values else 'nothing'}. {AGAIN}"
                )


def _number(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{cell} is not finite")
    return value
