"""``precision.json`` of a run: how far its labels in a lower precision agree with those in float32, found out once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kitsseg.files.json_records import read_record, write_record
from kitsseg.version import __version__

__all__ = ["PrecisionCheck", "keep_check", "kept_check"]

FILE = "precision.json"


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck:
    """How a network labels a few slices in a lower precision, against its own labels in float32.

    Attributes:
        precision: the lower one.
        weights_sha256: of the network. engine: what computed it.
        slices: how many were compared.
        tk_dice, tu_dice: between both, of kidney with tumor and of tumor; None where neither has any tumor.
    """

    precision: str
    weights_sha256: str
    engine: str
    slices: int
    tk_dice: float
    tu_dice: float | None
    kitsseg: str = __version__
    version: int = 1

    @property
    def lowest(self) -> float:
        """The lower Dice of both."""
        return min(self.tk_dice, 1.0 if self.tu_dice is None else self.tu_dice)

    def __str__(self) -> str:
        tumor = "neither finds tumor" if self.tu_dice is None else f"{self.tu_dice:.4f} of tumor"
        return (
            f"Dice between the labels in {self.precision} and in float32 {self.tk_dice:.4f} of kidney with tumor, "
            f"{tumor}, on {self.slices} slice{'' if self.slices == 1 else 's'}"
        )


def kept_check(
    run: str | os.PathLike[str], precision: str, weights_sha256: str, engine: str
) -> PrecisionCheck | None:
    """The check that a run folder holds of these weights, computed like this; None without one.

    Args:
        run: its folder.
        precision: such as "bfloat16".
        weights_sha256: SHA-256 of the file of the weights.
        engine: that computed them.

    Raises: InputError for a damaged file.
    """
    path = Path(run) / FILE
    try:
        found = read_record(path, PrecisionCheck, "the check of a run's precision", "Remove that file.")
    except FileNotFoundError:
        return None
    same = (found.precision, found.weights_sha256, found.engine) == (precision, weights_sha256, engine)
    return found if same and found.kitsseg == __version__ else None


def keep_check(run: str | os.PathLike[str], check: PrecisionCheck) -> None:
    """Put a check down in a run folder. Where nobody may write there, the next call finds out anew."""
    with suppress(OSError):
        write_record(Path(run) / FILE, check)
