"""Check that an exported network gives the labels of the network it came from, apart from the background."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError

__all__ = ["LEAST_AGREEMENT", "LEAST_DICE", "Agreement", "OtherLabels", "check", "check_loads", "compare"]

# Least Dice between the labels of both, pooled over the images: (kidney with tumor, tumor). Chosen (ours):
LEAST_DICE = {
    "float32": (0.999, 0.999),  # sums in another order move near ties only
    "float16": (0.99, 0.99),  # weights of 11 bits: near ties too
    "int8-weights": (0.99, 0.99),  # a weight moves by 0.4 % of its filter's largest at most: near ties too
    # two annotators of KiTS19 agree with each other as far (Heller et al. 2021): a file that stays closer to its
    # network differs from it less than the truth is known
    "int8": (0.983, 0.923),
}
LEAST_AGREEMENT = (
    0.9999  # of all voxels, float32 only: elsewhere it says little, most voxels being background
)
LOADS = """
import sys
from ai_edge_litert.interpreter import Interpreter
Interpreter(model_path=sys.argv[1]).allocate_tensors()
"""
FEW = 10  # voxels: so many may differ in all images, whatever share of a tiny tumor that is


class OtherLabels(InputError):
    """An exported network gives other labels than the network it came from."""


@dataclass(frozen=True)
class Agreement:
    """The comparison of an exported network with the network it came from.

    Attributes:
        images: number of slices (3D: tiles) compared.
        largest_difference: largest difference of the outputs (logits; probabilities if the softmax is inside).
        agreement: share of all voxels with equal labels.
        tk_dice: Dice between the two networks' kidney with tumor, all images pooled.
        tu_dice: the same for the tumor; None if neither network finds any.
        tk_differing, tu_differing: number of voxels with this label from only one of the two networks.
    """

    images: int
    largest_difference: float
    agreement: float
    tk_dice: float
    tu_dice: float | None
    tk_differing: int
    tu_differing: int


def check_loads(path: str | os.PathLike[str]) -> None:
    """Load an int8 LiteRT file in a separate process, because LiteRT ends the process if it cannot prepare the file.

    Raises: InputError for such a file.
    """
    done = subprocess.run([sys.executable, "-c", LOADS, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"LiteRT cannot prepare the int8 file (exit code {done.returncode}). The cause is a sum that "
            "is the same for every image, as after a dead layer. Choose --precision int8-weights, or train again."
        )


def compare(outputs: Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> Agreement:
    """Compare outputs of both networks for the same images.

    Args:
        outputs: pairs (output of the network, output of the exported one): arrays (..., 3), in which a higher number
            means a likelier class.

    Returns: Agreement.
    Raises: InputError for outputs of another shape or that are not finite, and if neither network finds kidney or tumor
        on any image, because then nothing can be compared.
    """
    images = equal = voxels = 0
    largest, common, differing = 0.0, np.zeros(2, int), np.zeros(2, int)
    for expected, found in outputs:
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise InputError(
                f"the exported network gives {found.shape}, expected {expected.shape}, or values that are no numbers."
            )
        largest = max(largest, float(np.abs(found - expected).max()))
        theirs, ours = expected.argmax(axis=-1), found.argmax(axis=-1)
        images, voxels, equal = images + 1, voxels + ours.size, equal + int((ours == theirs).sum())
        for i, (a, b) in enumerate(((theirs > 0, ours > 0), (theirs == 2, ours == 2))):
            common[i] += (a & b).sum()
            differing[i] += (a ^ b).sum()
    if not (common + differing)[0]:
        raise InputError(
            f"on {images} cached images neither the network nor the exported one finds any kidney or tumor, so there "
            "is nothing to compare. Train longer, or give --cache with other cases."
        )
    dice = [float(2 * c / (2 * c + d)) if c + d else None for c, d in zip(common, differing, strict=True)]
    if dice[0] is None:
        raise ValueError("compare: kidney with tumor was found, and has no Dice.")
    return Agreement(images, largest, equal / voxels, dice[0], dice[1], int(differing[0]), int(differing[1]))


def check(comparison: Agreement, precision: str) -> None:
    """Compare the agreement with the least that is allowed for this precision.

    Args:
        comparison: Agreement. precision: a key of ``LEAST_DICE``.

    Raises: OtherLabels if there is less.
    """
    c, reasons = comparison, []
    found = (("kidney with tumor", c.tk_dice, c.tk_differing), ("tumor", c.tu_dice, c.tu_differing))
    for (name, dice, differing), least in zip(found, LEAST_DICE[precision], strict=True):
        if dice is not None and dice < least and differing > FEW:
            reasons.append(f"Dice {dice:.3f} between both's {name}, expected {least}")
    if precision == "float32" and c.agreement < LEAST_AGREEMENT:
        reasons.append(f"equal labels on {c.agreement:.3%} of voxels, expected {LEAST_AGREEMENT:.2%}")
    if reasons:
        other = "int8-weights" if precision == "int8" else "float32"
        advice = "Train again." if precision == "float32" else f"Choose --precision {other}, or train longer."
        raise OtherLabels(
            f"its labels differ from those of the network on {c.images} cached images: {'; '.join(reasons)}. {advice}"
        )
