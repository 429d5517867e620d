"""The network that comes with the package: ``kitsseg predict starter SCAN``.

It is a small 2D U-Net of Chen and Jin's kind, trained on procedural synthetic patients only, so that nothing of KiTS19
or of any patient is in it. ``scripts/train_starter.py`` trains it; docs/starter.md is its model card.
"""

import os
from importlib import resources
from pathlib import Path

from kitsseg.errors import InputError, did_you_mean

__all__ = ["NO_PAPER", "STARTER", "STARTER_NOTE", "is_starter", "network_path"]

STARTER = "starter"
STARTER_NOTE = (
    "starter: a network trained on synthetic patients only, for contrast CT, and for kidneys rather than tumors. Mean "
    "Dice on 79 real slices of 28 patients, chosen by somebody else: kidney with tumor 0.619 on the 7 patients set "
    "aside and 0.755 on the 21 whose slices tuned the synthetic patients, tumor 0.437 and 0.342."
)


NO_PAPER = "starter: the network in the package, trained on synthetic patients only; not a result of a paper"
_FILE = ("kitsseg", "records", "starter.tflite")


def is_starter(run: str | os.PathLike[str]) -> bool:
    """Whether the path of a network, as a record has it, is that of the network in the package.

    The package of another environment or machine, in which the record was written, counts too.
    """
    return Path(run).parts[-len(_FILE) :] == _FILE


def network_path(run: str | os.PathLike[str]) -> Path:
    """Where a network lies: ``starter`` is the one in the package, unless a file or folder has that name.

    Args:
        run: folder of a run, an exported network, or ``starter``.

    Raises: InputError if nothing is there.
    """
    path = Path(run)
    if path.exists():
        return path
    if str(run) != STARTER:
        raise InputError(
            f"{run}: expected the folder of a run, an exported network or {STARTER}, found nothing there. Check the "
            f"path.{did_you_mean(str(run), [STARTER])}"
        )
    return Path(str(resources.files("kitsseg.records") / "starter.tflite"))
