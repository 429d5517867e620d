"""Whether a network labels in bfloat16 what it labels in float32: found out once for a run, and refused where not.

bfloat16 has three digits. Hardware that multiplies in it (x86 with AMX or AVX512-BF16, GPUs from Ampere on) takes half
the time; other CPUs emulate it and take longer. How far the labels of a network move depends on the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kitsseg.errors import InputError
from kitsseg.inference.ensemble import Ensemble, open_ensemble
from kitsseg.inference.same_labels import View, compared
from kitsseg.records.precision import PrecisionCheck, keep_check, kept_check

__all__ = ["agreement", "check_precision"]

LEAST = 0.995  # Dice between both


def agreement(alone: Ensemble, engine: str, views: Sequence[View]) -> tuple[PrecisionCheck | None, bool]:
    """How far the labels of a run in a lower precision agree with those in float32.

    Args:
        alone: one network, of ``Ensemble.single_networks``. engine: what computes it in that precision.
        views: of a scan or of a few single slices, looked at where the run folder holds no check.

    Returns: (PrecisionCheck, whether it was made now, of these views); (None, True) where neither finds anything there.
    Raises: InputError if a Dice is below ``LEAST``.
    """
    [run], [sha256] = alone.runs, alone.sha256
    if kept := kept_check(run, alone.precision, sha256, engine):
        return kept, False
    found = check_precision(alone, engine, views)
    if found is not None:
        keep_check(run, found)
    return found, True


def check_precision(alone: Ensemble, engine: str, views: Sequence[View]) -> PrecisionCheck | None:
    """Compare the labels of a few slices, or of one tile of a 3D network, with those of float32.

    Args: as ``agreement``.

    Returns: PrecisionCheck; None where neither finds anything there.
    Raises: InputError if a Dice is below ``LEAST``.
    """
    ([here], *_), ([there], *_) = open_ensemble(alone), open_ensemble(replace(alone, precision="float32"))
    slices, tk, tu = compared(views, here, there)
    if tk is None:
        return None
    found = PrecisionCheck(
        precision=alone.precision,
        weights_sha256=alone.sha256[0],
        engine=engine,
        slices=slices,
        tk_dice=tk,
        tu_dice=tu,
    )
    if found.lowest < LEAST:
        raise InputError(
            f"--precision {alone.precision}: {alone.runs[0]} gives other labels than in float32: {found}; at least "
            f"{LEAST} expected. Predict in float32."
        )
    return found
