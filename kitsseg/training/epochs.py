"""Epochs of a phase, from its rows of the history: number of steps, best epoch, whether it is finished, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.optimizers.schedules import plateau_stops
from kitsseg.recipe import Plateau
from kitsseg.training.progressive import read_rounds

if TYPE_CHECKING:
    from kitsseg.recipe import Phase, Recipe

__all__ = [
    "best_epoch",
    "checkpoint",
    "checkpoints_of",
    "kept_epoch",
    "losses_of",
    "needed_checkpoints",
    "needed_files",
    "phase_finished",
    "pruning_state",
    "steps_of",
]


def checkpoints_of(run: Path) -> Path:
    """The folder in a run that holds the checkpoints of its epochs during training."""
    return run / "checkpoint"


def steps_of(phase: Phase) -> int:
    """Number of training steps of a phase, in all its rounds together."""
    rounds = phase.progressive.rounds if phase.progressive else 1
    return rounds * phase.epochs * phase.steps_per_epoch


def needed_checkpoints(folder: Path, phase: Phase, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Checkpoints of the last epoch of a phase, and of the epoch that is kept.

    Args:
        folder: from ``checkpoints_of``.
        phase: Phase.
        rows: of the phase in the history.
    """
    numbers = [rows[-1]["epoch"], kept_epoch(phase, rows)] if rows else []
    return [checkpoint(folder, phase, number) for number in numbers]


def checkpoint(folder: Path, phase: Phase, epoch: int) -> Path:
    """Path of the checkpoint of weights and optimizer after an epoch of a phase.

    Args:
        folder: from ``checkpoints_of``.
        phase: name of the phase or round.
        epoch: counted from 1.
    """
    return folder / f"{phase.name}-{epoch:05d}.keras"


def pruning_state(path: Path) -> Path:
    """Path of the pruning masks that belong to a checkpoint."""
    return path.with_suffix(".npz")


def kept_epoch(phase: Phase, rows: Sequence[Mapping[str, Any]]) -> int:
    """Number of the epoch whose weights are kept and handed on, of those that are over.

    Args:
        phase: Phase.
        rows: of the phase, at least one.
    """
    return int(rows[-1]["epoch"]) if phase.kept_epoch == "last" else best_epoch(rows, phase.first_choice)


def best_epoch(rows: Sequence[Mapping[str, Any]], first: int = 1) -> int:
    """Number of the epoch with the lowest validation loss, the first of equals.

    Args:
        rows: of a phase, at least one.
        first: only this epoch and later ones may be the best; if there is none yet, the last epoch is returned.
    """
    choice = [row for row in rows if row["epoch"] >= first] or rows[-1:]
    return int(min(choice, key=lambda row: row["val_loss"])["epoch"])


def phase_finished(phase: Phase, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a phase with these rows in its history has done all its epochs, or has stopped by its schedule."""
    if len(rows) >= phase.epochs:
        return True
    return (
        isinstance(phase.schedule, Plateau)
        and len(rows) >= phase.first_choice
        and plateau_stops(phase.learning_rate, losses_of(rows), phase.schedule)
    )


def losses_of(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Validation loss of each epoch."""
    return [row["val_loss"] for row in rows]


def needed_files(recipe: Recipe, run: Path, history: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The files that training needs to go on after these rows of the history.

    They belong to the last phase in the history: the checkpoints of its best epoch and, unless the phase is finished,
    of its last epoch. In a progressive phase it is the checkpoint of the round's last epoch, unless the round is
    finished; ``run_rounds`` checks the files of finished rounds.

    Args:
        recipe: Recipe with the epochs of the options.
        run: folder of the run.
        history: rows of ``history.csv``, at least one.
    """
    name, folder = history[-1]["phase"], checkpoints_of(run)
    for phase in recipe.phases:
        number = name.removeprefix(f"{phase.name}-")
        if phase.progressive and number != name and number.isdecimal():
            over = int(number) < len(read_rounds(run))
            return [] if over else needed_checkpoints(folder, replace(phase, name=name), history[-1:])[:1]
        if name == phase.name:
            rows = [row for row in history if row["phase"] == name]
            files = needed_checkpoints(folder, phase, rows)[phase_finished(phase, rows) :]
            return [*files, *map(pruning_state, files)] if phase.pruning else files
    return []
