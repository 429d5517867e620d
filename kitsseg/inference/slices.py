"""Segment single slices: each slice of a patient is segmented separately, because they need not be neighbors."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.slices import SliceImage, read_slices
from kitsseg.data.geometry.geometry import spec_of_slices
from kitsseg.errors import InputError
from kitsseg.inference.ensemble import Ensemble
from kitsseg.inference.scan import Member, ensemble_labels, prepare_scan
from kitsseg.recipe import ReassignSmall, RemoveFar

__all__ = ["check_2d", "label_slices", "names_of_patients", "narrow_windows", "slice_file"]

_Refine = RemoveFar | ReassignSmall | None


def label_slices(
    items: Sequence[SliceImage], members: Sequence[Member], postprocess: _Refine
) -> npt.NDArray[np.uint8]:
    """Segment slices of one patient with the mean of several networks.

    Args:
        items: images of one size.
        members, postprocess: from ``open_ensemble``.

    Returns: labels (images, rows, columns).
    Raises: InputError as ``read_slices``.
    """
    stack = read_slices(items)
    spacing = stack.grid.spacing_mm
    members = [replace(member, spec=spec_of_slices(member.spec)) for member in members]
    labels = np.empty(stack.array.shape, np.uint8)
    for k in range(len(labels)):
        prepared = prepare_scan(stack.array[k : k + 1], spacing, members)
        labels[k] = ensemble_labels(prepared, spacing, postprocess)[0]
    return labels


def slice_file(item: SliceImage) -> str:
    """Name of a slice's label map: a PNG of the image's name."""
    return f"{item.name}.png"


def check_2d(ensemble: Ensemble, items: Collection[SliceImage]) -> None:
    """Refuse 3D networks, and slices of unknown pixel size if a network needs the pixel size.

    Raises: InputError.
    """
    for run, network in zip(ensemble.runs, ensemble.networks, strict=True):
        if items and network.inference.tile_3d:
            raise InputError(
                f"{run}: expected a 2D network for single slices such as {next(iter(items)).name}, found the 3D "
                f"network {network.record.recipe}. It needs whole scans."
            )
        unknown = next((item for item in items if item.spacing_mm is None), None)
        if unknown and any(network.preprocess.spacing_mm[1:]):
            raise InputError(
                f"{unknown.image}: expected its pixel spacing, since {network.record.recipe} resamples; found "
                "none. Add spacing_mm_rows and spacing_mm_columns to slices.csv."
            )


def narrow_windows(ensemble: Ensemble, items: Sequence[SliceImage]) -> tuple[str, ...]:
    """A warning if images were clipped to a narrower HU window than the networks have seen, else nothing."""
    for network in ensemble.networks:
        seen = network.preprocess.seen_hu
        for item in items:
            low, high = item.hu_window or (-np.inf, np.inf)
            if seen is None or low > seen[0] or high < seen[1]:
                sees = "all HU" if seen is None else f"HU {seen[0]:g} to {seen[1]:g}"
                return (
                    f"{item.image}: its HU were clipped to {low:g} to {high:g}; {network.record.recipe} was "
                    f"trained to see {sees}. Expect worse labels than of unclipped images.",
                )
    return ()


def names_of_patients(items: Mapping[str, SliceImage], patients: Iterable[str]) -> set[str]:
    """Names of the slices of these patients.

    Raises: InputError for a slice without a patient.
    """
    patients = set(patients)
    if unknown := [item for item in items.values() if item.patient is None]:
        raise InputError(
            f"{unknown[0].image}: expected its patient in slices.csv, as --part needs, found none."
        )
    return {name for name, item in items.items() if item.patient in patients}
