"""Labels of single slices: a patient's stack is segmented image by image, since its slices are no neighbors."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.slices import SliceImage, read_slices
from kitsseg.data.geometry.geometry import spec_of_slices
from kitsseg.errors import InputError
from kitsseg.inference.scan import Member, ensemble_labels, prepare_scan
from kitsseg.recipe import ReassignSmall, RemoveFar

__all__ = ["label_slices"]


def label_slices(
    items: Sequence[SliceImage],
    members: Sequence[Member],
    postprocess: RemoveFar | ReassignSmall | None,
) -> npt.NDArray[np.uint8]:
    """Segment the slices of one patient with the mean of some networks.

    Args:
        items: images of one size.
        members, postprocess: of ``open_ensemble``.

    Returns: labels (images, rows, columns).
    Raises: InputError for a 3D network, and as ``read_slices``.
    """
    if any(member.inference.tile is not None and len(member.inference.tile) == 3 for member in members):
        raise InputError(f"{items[0].image}: expected a whole scan for a 3D network, found a single slice.")
    stack = read_slices(items)
    spacing = stack.grid.spacing_mm
    members = [replace(member, spec=spec_of_slices(member.spec)) for member in members]
    labels = np.empty(stack.array.shape, np.uint8)
    for k in range(len(labels)):
        prepared = prepare_scan(stack.array[k : k + 1], spacing, members)
        labels[k] = ensemble_labels(prepared, spacing, postprocess)[0]
    return labels
