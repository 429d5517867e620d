"""What becomes of an unfinished run whose checkpoints are damaged or gone.

Of each phase the last epoch is kept, the one before, and the best as of each: if the newest file is damaged, training
goes on from the one before.
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
    """Where an unfinished run can go on: before the epochs at the end whose checkpoints are damaged or gone.

    What is repeated gives the same again, so that nothing but its time is lost.

    Args:
        folder: of the run.
        history: its rows; those of the epochs to be repeated are removed from this list.
        needed: called with rows such as these; returns paths of the files without which training cannot go on
            after them.

    Returns: a sentence about what is repeated, and why; None if everything is whole.
    Raises: InputError if that would be everything, of more than one epoch.
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
            f"{what}, and so is every checkpoint before it; {len(history)} epochs cannot be gone on from. Bring "
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
    """Raise InputError if a run folder has vanished while the run goes on: files would be written beside a gap."""
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "checkpoint").is_dir():
        raise InputError(
            f"{folder}: expected the run that is being trained, found that it or its checkpoint folder has vanished. "
            "Bring it back (is the drive still mounted?) and go on with --resume, which takes the last whole epoch."
        )
