"""The folds of a cross-validation: their cases, their settings, and the check that no run scores cases it has seen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kitsseg.data.splits import CaseSplit, make_split
from kitsseg.errors import InputError
from kitsseg.files.json_records import as_builtins
from kitsseg.recipe import given_settings
from kitsseg.records.run import (
    FoldPlan,
    FoldsPlan,
    PartsOfSplit,
    RunRecord,
    SplitOfRun,
    read_run,
    update_run,
    versions,
)
from kitsseg.version import __version__

if TYPE_CHECKING:
    from kitsseg.recipe import Recipe

__all__ = ["FoldRun", "Folds", "check_unseen", "fold_splits", "is_trained", "start_folds"]

VALIDATION = 0.1  # ours: of the cases that are not in the fold


@dataclass(frozen=True)
class FoldRun:
    """A trained fold: its folder, the split that it was trained with, and its record."""

    folder: Path
    split: CaseSplit
    record: RunRecord


@dataclass(frozen=True)
class Folds:
    """A cross-validation in which all folds are trained: its FoldsPlan, and the run of each fold."""

    plan: RunRecord
    runs: tuple[FoldRun, ...]


def fold_splits(cases: Iterable[str], folds: int = 5) -> tuple[CaseSplit, ...]:
    """Divide cases into folds, and make for each fold the split of which it is the test part.

    For all 210 cases of KiTS19 these are the named splits ``5-fold-0`` to ``5-fold-4``.

    Args:
        cases: names; their order does not matter. The same names give the same folds on every machine.
        folds: from 2 to the number of cases.

    Returns: CaseSplit of each fold. A tenth of the cases outside the fold is its validation part.
    Raises: InputError for too few cases.
    """
    cases = sorted(cases)
    if not 2 <= folds <= len(cases):
        raise InputError(f"--folds: expected 2 to {len(cases)}, as many as there are cases; found {folds}.")
    if (others := len(cases) - -(-len(cases) // folds)) < 2:
        raise InputError(
            f"--folds {folds}: with {len(cases)} cases {others} is outside a fold; expected at least 2, one for "
            "training and one for validation. Add cases."
        )
    order = [cases[i] for i in np.random.Generator(np.random.Philox(key=[0, 1])).permutation(len(cases))]
    splits = []
    for number in range(folds):
        test = tuple(sorted(order[number::folds]))
        inner = make_split(set(cases) - set(test), (1 - VALIDATION, VALIDATION, 0.0))
        name = f"fold {number} of {folds}, {len(cases)} cases"
        splits.append(CaseSplit(name, inner.train, inner.validation, test, "drawn with seed 0"))
    return tuple(splits)


def start_folds(out: Path, recipe: Recipe, splits: Sequence[CaseSplit], shared: Mapping[str, Any]) -> None:
    """Write the settings that all folds share, or check that they equal the settings that were written before.

    Args:
        out: folder of the cross-validation.
        recipe: Recipe.
        splits: CaseSplit of each fold.
        shared: options that must be the same for all folds, "seed" among them.

    Raises: InputError if ``out`` holds anything else, or was started with other settings.
    """
    everything = tuple(sorted(case for split in splits for case in split.test))
    digest = hashlib.sha256(" ".join(split.hash for split in splits).encode()).hexdigest()[:12]
    name = f"{len(splits)} folds of {len(everything)} cases"
    plan = RunRecord(
        kitsseg=__version__,
        recipe=recipe.name,
        paper=recipe.paper,
        reported=dict(recipe.reported),
        settings=as_builtins(recipe.as_dict()),
        given=given_settings(recipe),
        seed=shared["seed"],
        versions=versions(),
        split=SplitOfRun(
            name=name, hash=digest, cases=PartsOfSplit(train=[], validation=[], test=list(everything))
        ),
        status="training",
        cross_validation=FoldsPlan(
            options=dict(shared),
            folds=[FoldPlan(hash=split.hash, test=list(split.test)) for split in splits],
        ),
    )
    if not (out / "run.json").is_file():
        # another job may have begun between these two lines, so that run.json is looked for again
        others = [path.name for path in out.iterdir() if path.name[0] != "."] if out.exists() else []
        if others and not (out / "run.json").is_file():
            raise InputError(
                f"{out}: expected a new or empty folder, found {min(others)} in it. Choose another."
            )
        if not others:
            update_run(out, plan)  # several jobs at once write the same
    there = _read_plan(out)
    for key, what in (
        ("settings", "recipe or settings"),
        ("split", "cases or --folds"),
        ("cross_validation", "options"),
    ):
        if getattr(there, key) != getattr(plan, key):
            raise InputError(
                f"{out}: this cross-validation was started with other {what}: {_then(there, plan, key)}. Give the same "
                "values as at its start, or choose another folder."
            )


def _then(there: RunRecord, plan: RunRecord, key: str) -> str:
    """The old value of an entry that differs between the folds and this call, in words."""
    if key == "settings":
        if there.recipe != plan.recipe:
            return there.recipe
        given = ", ".join(f"{name} = {value}" for name, value in (there.given or {}).items())
        return given or (f"those of {plan.recipe}" if plan.given else f"kitsseg {there.kitsseg}")
    if key == "split":
        return f"{there.split.name}, now {plan.split.name}"
    before, now = _folds_of(there).options, _folds_of(plan).options
    return ", ".join(f"{name} {before.get(name)}" for name in now if before.get(name) != now[name])


def _folds_of(record: RunRecord) -> FoldsPlan:
    if record.cross_validation is None:
        raise ValueError("expected the record of a cross-validation, found that of one run.")
    return record.cross_validation


def _read_plan(out: Path) -> RunRecord:
    """Read the record that ``start_folds`` wrote.

    Raises: InputError if ``out`` is not the folder of a cross-validation.
    """
    record = read_run(out)
    if record.cross_validation is None:
        raise InputError(
            f"{out}: expected the folder of a cross-validation, found another run. Choose another folder."
        )
    return record


def is_trained(run: Path, split: CaseSplit) -> bool:
    """Whether a fold is trained.

    Raises: InputError if it was trained with another split.
    """
    if not (run / "run.json").is_file():
        return False
    record = read_run(run)
    if (found := record.split.hash) != split.hash:
        raise InputError(f"{run}: expected a run with the split {split.hash}, found {found}. Remove it.")
    return record.status == "finished"


def check_unseen(out: str | os.PathLike[str]) -> Folds:
    """Check, from the records of the runs, that each case is the test case of exactly one run, which has not seen it.

    Returns: Folds; the record of each run is read once.
    Raises: InputError, naming the case or the fold, if a run is missing, unfinished or trained with another split, if
        a run has used one of its test cases for training or validation, or if a case is a test case of two runs or of
        none.
    """
    out = Path(out)
    plan = _read_plan(out)
    runs: list[FoldRun] = []
    tested: dict[str, Path] = {}
    for number, expected in enumerate(_folds_of(plan).folds):
        run = out / f"fold-{number}"
        if not (run / "run.json").is_file():
            raise InputError(
                f"{run}: this fold is not trained yet. Give the command without --data to train it."
            )
        record = read_run(run)
        if record.status != "finished":
            raise InputError(
                f"{run}: this fold is not finished. Give the command without --data to go on with it."
            )
        parts = record.split.cases
        split = CaseSplit(record.split.name, tuple(parts.train), tuple(parts.validation), tuple(parts.test))
        for case in split.test:
            if case in tested:
                raise InputError(
                    f"{run}: {case} is a test case of {tested[case]}, too. Remove the run, and train it again."
                )
            tested[case] = run
        if split.hash != expected.hash:
            seen = sorted(set(expected.test) & {*split.train, *split.validation})
            what = f"it has seen {seen[0]}, which it should score" if seen else f"its hash is {split.hash}"
            raise InputError(
                f"{run}: expected the split of fold {number}, hash {expected.hash}, found another: {what}. "
                "Remove the run, and train the fold again."
            )
        runs.append(FoldRun(run, split, record))
    if missing := sorted(set(plan.split.cases.test) - set(tested)):
        raise InputError(f"{out}: no run has {missing[0]} as a test case. Start again in a new folder.")
    return Folds(plan, tuple(runs))
