"""The rounds of progressive training (He et al.): the subset of a round, when to stop, and the loop over rounds."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kitsseg.files.tables import read_rows, write_rows

if TYPE_CHECKING:
    from kitsseg.recipe import Progressive

__all__ = ["best_round", "draw_subset", "read_rounds", "rounds_finished", "run_rounds"]


def draw_subset(cases: Sequence[str], share: float, seed: int, round_number: int) -> tuple[str, ...]:
    """The training cases of a round, drawn without replacement.

    Args:
        cases: names of all training cases.
        share: of the cases; their number is rounded up.
        seed: of the run.
        round_number: of the round; it changes the draw.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, round_number]))
    chosen = rng.choice(len(cases), math.ceil(share * len(cases)), replace=False)
    return tuple(cases[i] for i in sorted(chosen))


def best_round(scores: Sequence[float], min_delta: float) -> int | None:
    """Number of the round whose weights are kept after these scores; None before the first."""
    best, kept = -math.inf, None
    for number, score in enumerate(scores):
        if score > best + min_delta:
            best, kept = score, number
    return kept


def rounds_finished(scores: Sequence[float], progressive: Progressive) -> bool:
    """Whether training stops after rounds with these validation scores."""
    if not scores:
        return False
    kept = best_round(scores, progressive.min_delta)
    stale = len(scores) - (0 if kept is None else kept + 1)
    return stale >= progressive.patience or len(scores) >= progressive.rounds


def run_rounds(
    progressive: Progressive,
    folder: str | os.PathLike[str],
    cases: Sequence[str],
    seed: int,
    train_round: Callable[[int, tuple[str, ...]], dict[str, Any]],
    score_round: Callable[[int], Mapping[str, float]],
    keep_round: Callable[[int], object],
) -> list[dict[str, Any]]:
    """Train round after round until the score no longer rises. Rounds in ``rounds.csv`` are not trained again.

    Args:
        progressive: Progressive.
        folder: of the run; ``rounds.csv`` is replaced as a whole after each round.
        cases: names of all training cases.
        seed: of the subsets.
        train_round: called as train_round(round number, names of the subset); returns a dict for the row.
        score_round: called after it with the number of the round; returns a dict with "composite", the score by which
            rounds are compared.
        keep_round: called with the number of a round that is the best so far, before its row is written.

    Returns: the rows of all rounds.
    """
    rows = read_rounds(folder)
    while not rounds_finished([row["composite"] for row in rows], progressive):
        number = len(rows)
        subset = draw_subset(cases, progressive.subset, seed, number)
        digest = hashlib.sha256(" ".join(subset).encode()).hexdigest()[:12]
        row = {"round": number, "subset": digest, **train_round(number, subset), **score_round(number)}
        scores = [r["composite"] for r in [*rows, row]]
        row["kept"] = int(best_round(scores, progressive.min_delta) == number)
        if row["kept"]:
            keep_round(number)
        rows.append(row)
        write_rows(Path(folder) / "rounds.csv", rows)
    return rows


def read_rounds(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of ``rounds.csv`` with numbers as numbers; empty if there is none."""
    path = Path(folder) / "rounds.csv"
    if not path.is_file():
        return []
    kinds = {"round": int, "kept": int, "subset": str}
    return read_rows(path, kinds, float, "a row for each round", "Train again.")
