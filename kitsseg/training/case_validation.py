"""Score whole validation cases during training: TK and TU Dice of each case, on the grid of the cache.

The validation loss of an epoch comes from a few slices or patches of each case, most of which were chosen because they
hold kidney or tumor. False tumors elsewhere do not change this loss; the score of a whole case shows them. These scores
decide which round of a progressive training is kept, and nothing else.

After an epoch whole cases are labeled as cheaply as the recipe allows: whole slices even if the recipe states
overlapping tiles, and no mirroring. The scores are for comparing epochs; they are not official scores, which are
computed on the scan's own grid.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.files.tables import read_rows, write_rows
from kitsseg.inference.scan import score_cached_cases
from kitsseg.records.run import WholeCases

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.inference.scan import Member
    from kitsseg.recipe import InferenceSpec, Phase, ReassignSmall, RemoveFar
    from kitsseg.records.run import RunRecord

__all__ = ["COLUMNS", "CaseLog", "cheap_inference", "chosen_cases", "is_due"]

SLICES = 4  # whole ones at once, without mirroring: one alone leaves a GPU idle
COLUMNS = {"phase": str, "epoch": int, "case": str, "tk_dice": float, "tu_dice": float}


def is_due(phase: Phase, epoch: int) -> bool:
    """Whether whole cases are scored after this epoch of a phase, counted from 1."""
    return phase.validate_cases_every is not None and epoch % phase.validate_cases_every == 0


def chosen_cases(names: Sequence[str], count: int | None) -> tuple[str, ...]:
    """``count`` of the names, spread evenly, always the same ones; all for None."""
    count = len(names) if count is None else min(count, len(names))
    return tuple(names[int((i + 0.5) * len(names) / count)] for i in range(count))


def cheap_inference(inference: InferenceSpec) -> InferenceSpec:
    """An InferenceSpec without mirroring, and without overlapping tiles of slices."""
    tiles_of_slices = inference.tile is not None and len(inference.tile) == 2
    return replace(inference, mirror_axes=(), tile=None if tiles_of_slices else inference.tile)


class CaseLog:
    """RUN/validation_cases.csv: a row for each whole case and each epoch it was scored after.

    Args:
        run: folder of the run; if the file exists, new rows are added to it.
        cases: dict from name to CachedCase.
        record: of the run; ``record.whole_case_validation.seconds`` counts the seconds of scoring.
    """

    def __init__(
        self, run: str | os.PathLike[str], cases: Mapping[str, CachedCase], record: RunRecord
    ) -> None:
        self.path, self.cases, self.record = Path(run) / "validation_cases.csv", cases, record
        self.rows = self._read()

    def score(
        self,
        phase: str,
        epoch: int,
        names: Iterable[str],
        member: Member,
        postprocess: RemoveFar | ReassignSmall | None,
        *,
        look: Callable[[CachedCase, npt.NDArray[np.uint8]], object] | None = None,
    ) -> list[dict[str, Any]]:
        """Score cases and write their rows, which replace earlier rows of the same phase and epoch.

        Args:
            phase: name of the phase or round.
            epoch: number of the epoch in it, counted from 1.
            names: of the cases.
            member, postprocess, look: as in ``score_cached_cases``.

        Returns: the rows.
        """
        started, cases = time.monotonic(), [self.cases[name] for name in names]
        scores = score_cached_cases(cases, member, postprocess, at_once=SLICES, look=look)
        rows = [{"phase": phase, "epoch": epoch} | score for score in scores]
        # an epoch that was interrupted after it was scored is trained and scored once more
        self.rows = [row for row in self.rows if (row["phase"], row["epoch"]) != (phase, epoch)] + rows
        write_rows(self.path, self.rows, list(COLUMNS))
        if self.record.whole_case_validation is None:
            self.record.whole_case_validation = WholeCases(seconds=0.0)
        spent = self.record.whole_case_validation
        spent.seconds = round(spent.seconds + time.monotonic() - started, 3)
        return rows

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        return read_rows(
            self.path,
            COLUMNS,
            None,
            "a row for each whole validation case",
            "Remove it, or start the run again; nothing but this file is lost.",
        )
