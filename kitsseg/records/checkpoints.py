"""Go back to an earlier epoch of an unfinished run if its checkpoints are damaged or missing.

A phase keeps the checkpoints of its last epoch and of the epoch before, and for each of these two epochs the best
weights up to it. If the checkpoint of the last epoch is damaged, training goes on from the epoch before.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kitsseg.errors import InputError
from kitsseg.files.archives import is_whole

__all__ = ["check_there", "go_back"]


def go_back(
    folder: str | os.PathLike[str],
    history: list[dict[str, Any]],
    needed: Callable[[list[dict[str, Any]]], Sequence[str | os.PathLike[str]]],
) -> str | None:
    """Find the epoch from which an unfinished run can go on, and remove the later epochs from its history.

    The removed epochs are trained again with the same result, so that only their time is lost.

    Args:
        folder: of the run.
        history: rows of ``history.csv``; the rows of epochs that must be repeated are removed from this list.
        needed: called with the first rows of the history; returns paths of the files that training needs to go on
            after these rows.

    Returns: a sentence that says which epochs are repeated, and why; None if all checkpoints are whole.
    Raises: InputError if all epochs of a run with more than one epoch would have to be repeated.
    """
    rows = list(history)
    damaged: list[str | os.PathLike[str]] = []
    while rows and (broken := [path for path in needed(rows) if not is_whole(path)]):
        damaged = damaged or broken
        rows.pop()
    if not damaged:
        return None
    newest = Path(damaged[0])
    what = f"{newest}: {'damaged' if newest.exists() else 'gone'}"
    if not rows and len(history) > 1:
        raise InputError(
            f"{what}, and so is every checkpoint before it; training cannot go on after {len(history)} epochs. Bring "
            f"{newest.parent} back if it was moved or is not mounted, or start again in another folder."
        )
    first = history[len(rows)]
    again = len(history) - len(rows)
    del history[len(rows) :]
    return (
        f"{what}; going on with the checkpoint before it: {again} epoch{'s' * (again > 1)} from epoch "
        f"{first['epoch']} of phase {first['phase']} on {'are' if again > 1 else 'is'} trained again."
    )


def check_there(folder: str | os.PathLike[str]) -> None:
    """Raise InputError if a run folder has vanished during training, because new files would stand there alone."""
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "checkpoint").is_dir():
        raise InputError(
            f"{folder}: expected the run that is being trained, found that it or its checkpoint folder has vanished. "
            "Bring it back (is the drive still mounted?) and go on with --resume, which takes the last whole epoch."
        )
