"""``kitsseg compare``: several runs on the same patients, case by case.

Two networks are compared by the differences of their scores for each patient, not by their means, because patients
differ far more from each other than two networks do on the same patient. Patients that were used for training or for
choosing the best epoch of any run are left out, and named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import wilcoxon

from kitsseg.errors import InputError
from kitsseg.files.tables import csv_path, write_rows
from kitsseg.records.run import read_run, seen_patients
from kitsseg.scoring.dice import bootstrap_intervals
from kitsseg.scoring.scores_file import read_scores
from kitsseg.scoring.slices import holds_slice_scores, read_slice_scores
from kitsseg.scoring.summary import Summary

if TYPE_CHECKING:
    from kitsseg.scoring.summary import Provenance

__all__ = ["Comparison", "compare_scores", "rank_runs"]

METRICS = ("tk_dice", "tu_dice", "composite")


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare_scores``.

    Attributes:
        cases: names of the patients compared.
        means: name -> metric -> (mean, low, high), with the 95 % interval by bootstrap over patients.
        differences: dicts of first, second, metric, difference (second minus first), low, high, and p of Wilcoxon's
            two-sided signed-rank test, which is 1 if no patient differs.
        left_out: patient -> the reason why it is not compared.
        phantom: whether all patients compared are synthetic.
        synthetic: names of the patients compared that are synthetic.
        unchecked: names of the runs whose folder does not exist or is not recorded, so that the patients that they
            have seen are unknown.
        of_slices: whether the scores of a patient are means over single slices instead of scores of a whole case.
    """

    cases: tuple[str, ...]
    means: dict[str, dict[str, tuple[float, float, float]]]
    differences: list[dict[str, Any]]
    left_out: dict[str, str]
    phantom: bool
    unchecked: tuple[str, ...]
    of_slices: bool = False
    synthetic: tuple[str, ...] = ()


def compare_scores(
    files: Mapping[str, str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Comparison:
    """Compare runs on the patients they were all scored on.

    Args:
        files: dict from a name for each run to its scores.csv (``kitsseg evaluate``), at least two.
        out: .csv file for the differences, if wanted.

    Returns: Comparison.
    Raises: InputError if fewer than two runs are given, two truths of a patient differ in volume, or fewer than two
        patients are left.
    """
    if len(files) < 2:
        raise InputError(f"compare: expected at least two scores.csv, found {len(files)}.")
    if out is not None:
        out = csv_path(out, "comparison")
    slices = {name: holds_slice_scores(Path(path)) for name, path in files.items()}
    if len(set(slices.values())) > 1:
        one, other = (
            next(path for name, path in files.items() if slices[name] == kind) for kind in (True, False)
        )
        raise InputError(
            f"compare: expected scores of one kind, found slice scores ({one}) and case scores ({other}): they are not "
            "comparable."
        )
    of_slices = all(slices.values())
    read_file = read_slice_scores if of_slices else read_scores
    read = {name: read_file(Path(path)) for name, path in files.items()}
    tables = {name: {row["case"]: row for row in rows} for name, (rows, _) in read.items()}
    left_out = _left_out(tables, {name: summary for name, (_, summary) in read.items()})
    cases = tuple(sorted(set.union(*map(set, tables.values())) - set(left_out)))
    if len(cases) < 2:
        reasons = "; ".join(f"{case}: {why}" for case, why in sorted(left_out.items())[:3])
        raise InputError(
            f"compare: expected at least two patients scored by every run, found {len(cases)} ({reasons}). "
            "Score all runs on the same test patients: kitsseg train --split FILE."
        )
    _same_truth(tables, cases, files)
    values = {
        name: {metric: np.array([rows[case][metric] for case in cases]) for metric in METRICS}
        for name, rows in tables.items()
    }
    changes = {
        (first, second, metric): values[second][metric] - values[first][metric]
        for first, second in combinations(values, 2)
        for metric in METRICS
    }
    columns = [column for of_run in values.values() for column in of_run.values()]
    intervals = iter(bootstrap_intervals([*columns, *changes.values()]))
    means = {
        name: {metric: (float(column.mean()), *next(intervals)) for metric, column in of_run.items()}
        for name, of_run in values.items()
    }
    differences = []
    for (first, second, metric), change in changes.items():
        low, high = next(intervals)
        p = float(wilcoxon(change).pvalue) if np.any(change) else 1.0
        differences.append(
            {"first": first, "second": second, "metric": metric, "difference": float(change.mean())}
            | {"low": low, "high": high, "p": p, "patients": len(cases)}
        )
    synthetic = _synthetic(cases, [summary for _, summary in read.values()])
    if out is not None:
        write_rows(out, differences)
    unchecked = tuple(name for name, (_, summary) in read.items() if not _knows_its_patients(summary))
    phantom = synthetic == cases
    return Comparison(cases, means, differences, left_out, phantom, unchecked, of_slices, synthetic)


def _synthetic(cases: tuple[str, ...], summaries: Iterable[Provenance]) -> tuple[str, ...]:
    """The cases that any of the summaries says to be synthetic."""
    known: set[str] = set()
    for summary in summaries:
        if summary.phantom:
            return cases
        known |= set(summary.synthetic) if isinstance(summary, Summary) else set()
    return tuple(case for case in cases if case in known)


def rank_runs(entries: Mapping[str, Sequence[float]]) -> list[tuple[str, int, int, float]]:
    """Rank runs as KiTS21 and KiTS23 do.

    Args:
        entries: dict of run -> (mean Dice, mean surface Dice, mean tumor Dice), means over cases and classes.

    Returns: list of (run, rank by Dice, rank by surface Dice, mean of both ranks), best first. Equal values share the
        best of their ranks; equal means are ordered by the tumor Dice.
    """

    def rank(index: int, run: str) -> int:
        return 1 + sum(other[index] > entries[run][index] for other in entries.values())

    ranks = [(run, rank(0, run), rank(1, run)) for run in entries]
    table = [(run, first, second, (first + second) / 2) for run, first, second in ranks]
    return sorted(table, key=lambda row: (row[3], -entries[row[0]][2]))


def _knows_its_patients(summary: Provenance) -> bool:
    return bool(summary.run and (Path(summary.run) / "run.json").is_file())


def _left_out(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]], summaries: Mapping[str, Provenance]
) -> dict[str, str]:
    """Patients that are not compared: not every run was scored on them, or a run has seen them."""
    found: dict[str, str] = {}
    for name, summary in summaries.items():
        if summary.run and _knows_its_patients(summary):
            record = read_run(summary.run)
            parts = record.split.cases
            for part, words in (("train", "trained on"), ("validation", "chosen by")):
                for case in getattr(parts, part):
                    found.setdefault(case, f"{name} was {words} it")
            for case in sorted(set.union(*seen_patients(record).values())):
                found.setdefault(case, f"{name} started from a run that has seen it")
    everything = set.union(*map(set, tables.values()))
    for name, rows in tables.items():
        for case in sorted(everything - set(rows)):
            found.setdefault(case, f"not scored by {name}")
    return {case: why for case, why in found.items() if case in everything}


def _same_truth(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
    cases: Iterable[str],
    files: Mapping[str, str | os.PathLike[str]],
) -> None:
    first, *others = tables
    for case in cases:
        for volume in ("truth_kidney_ml", "truth_tumor_ml"):
            expected = tables[first][case][volume]
            for name in others:
                found = tables[name][case][volume]
                if abs(found - expected) > 1e-3 * max(expected, 1e-3):
                    raise InputError(
                        f"{files[name]}: {case} has a {volume} of {found:g}, in {files[first]} it is {expected:g}: "
                        "the truth is not the same. Score both against the same label maps."
                    )
