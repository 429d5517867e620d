"""Segment one scan, and write its label map on the scan's own voxels."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.cache.sources import source_of
from kitsseg.data.formats.doubts import doubts_about, doubts_about_slices
from kitsseg.data.formats.nifti import is_phantom, read_image, write_labels
from kitsseg.data.formats.slices import SliceImage, read_slices, write_mask
from kitsseg.data.geometry.geometry import spec_of_slices
from kitsseg.data.layouts.names import prediction_name
from kitsseg.data.layouts.scans import Scan
from kitsseg.errors import InputError, one_line
from kitsseg.files.checksums import crc32_of
from kitsseg.inference.coarse import find_region
from kitsseg.inference.ensemble import Ensemble, open_ensemble
from kitsseg.inference.familiar import unlike_kits19
from kitsseg.inference.plan import odd_name
from kitsseg.inference.precision import agreement
from kitsseg.inference.region import labels_at_border, wider_region
from kitsseg.inference.same_labels import View
from kitsseg.inference.scan import ensemble_labels, prepare_scan
from kitsseg.labels.volumes import cleaned
from kitsseg.records.precision import PrecisionCheck
from kitsseg.records.predictions import FailedScan, PredictedScan
from kitsseg.records.scan_part import part_of
from kitsseg.runtime.memory import give_back_memory, too_little_memory

if TYPE_CHECKING:
    from kitsseg.inference.scan import Member
    from kitsseg.recipe import ReassignSmall, RemoveFar

__all__ = ["for_slices", "opened", "predict_scan", "views_of"]


def predict_scan(
    ensemble: Ensemble,
    name: str,
    scan: Scan,
    out: Path,
    progress: Callable[[int, int], object] | None = None,
    item: SliceImage | None = None,
    sample: Sequence[SliceImage] = (),
) -> tuple[PredictedScan | FailedScan, str]:
    """Segment one scan and write its label map; the networks stay loaded for the next.

    Args:
        ensemble: Ensemble.
        name: of the case.
        scan: Scan.
        out: folder for the label map.
        progress: called as progress(done, total) in slices.
        item: the SliceImage, if the scan is a single slice.
        sample: slices on which a lower precision is compared with float32, if the scan is a single slice; none: itself.

    Returns: (PredictedScan, engine), or (FailedScan, engine) if the scan cannot be read or segmented.
    Raises: InputError if a network cannot be loaded, which concerns all scans. OSError if writing fails.
    """
    members, postprocess, engine = opened(ensemble)
    started, where = time.monotonic(), str(scan.place)
    try:
        # before it is read: a change in the meantime is noticed the next time
        source = source_of(scan.path)
        volume = read_image(scan.path, scan.series) if item is None else read_slices([item])
        if item is not None:
            members = [replace(member, spec=spec_of_slices(member.spec)) for member in members]
        grid = volume.grid
        clips = {member.spec.clip_hu for member in members}
        clip_hu = clips.pop() if len(clips) == 1 else None
        found = doubts_about(volume, clip_hu) if item is None else doubts_about_slices([item], volume)
        unlike = () if item is not None else unlike_kits19(grid, [member.spec for member in members])
        region = None
        if item is None and any(member.inference.coarse for member in members):
            region = find_region(volume.array, grid.spacing_mm)
        seen_so = ensemble if item is None else for_slices(ensemble)
        checked = _checked_precision(seen_so, engine, View(volume.array, grid.spacing_mm, region), sample)
        prepared = prepare_scan(volume.array, grid.spacing_mm, members, region)
        del volume  # its memory too, unless what was prepared needs it
        give_back_memory()
        labels = ensemble_labels(prepared, grid.spacing_mm, postprocess, progress)
        cut_in_plane = any(member.spec.slice_size is None for member in members)
        while region is not None and (
            faces := labels_at_border(
                labels,
                grid.spacing_mm,
                region,
                in_parts=any(one.parts for one in prepared),
                in_plane=cut_in_plane,
            )
        ):
            region = wider_region(region, faces, grid.spacing_mm, labels.shape)
            again = read_image(scan.path, scan.series).array
            prepared = prepare_scan(again, grid.spacing_mm, members, region)
            del again
            labels = ensemble_labels(prepared, grid.spacing_mm, postprocess, progress)
        if ensemble.cleanup is not None:
            labels = cleaned(labels, grid.spacing_mm, ensemble.cleanup)
    except _OfAllScans:
        raise
    except Exception as error:  # whatever it is, the other scans may be fine
        if text := too_little_memory(error):
            smaller = "" if item is not None else ", or compute the region of the kidneys alone: --coarse on"
            reason = f"{where}: not enough memory ({text}). Use a larger machine{smaller}."
            return FailedScan(image=where, reason=reason), engine
        if isinstance(error, InputError | OSError):
            return FailedScan(image=where, reason=_as_shown(str(error), scan)), engine
        reason = f"{scan.place}: {type(error).__name__}: {one_line(error)}"
        return FailedScan(image=where, reason=reason, traceback=traceback.format_exc()), engine
    target = Path(out) / prediction_name(name)
    try:
        if item is None:
            write_labels(target, labels, grid)
        else:
            write_mask(target, labels[0], item.mask_values)
    except OSError as error:
        return FailedScan(image=where, reason=odd_name(error, target, name)), engine
    entry = PredictedScan(
        file=target.name,
        image=where,
        source=source,
        crc32=crc32_of(target),
        phantom=is_phantom(grid.header),
        doubts=tuple(map(str, found)),
        unlike=unlike,
        coarse=region,
        precision=checked,
        seconds=round(time.monotonic() - started, 2),
        part=part_of(scan),
    )
    if item is not None:
        entry = replace(entry, patient=item.patient, mask_values=item.mask_values)
    return entry, engine


def for_slices(ensemble: Ensemble) -> Ensemble:
    """The ensemble for single slices."""
    networks = (
        replace(network, preprocess=spec_of_slices(network.preprocess)) for network in ensemble.networks
    )
    return replace(ensemble, networks=tuple(networks))


class _OfAllScans(InputError):
    """What concerns all scans, though the first of them shows it."""


_agreeing: set[Ensemble] = set()  # whose precision was checked in this process
_sampled: set[Ensemble] = set()  # whose precision was looked at on slices of the whole call


def _checked_precision(
    ensemble: Ensemble, engine: str, view: View, sample: Sequence[SliceImage]
) -> tuple[PrecisionCheck, ...] | None:
    """Checks of the networks' lower precision that this scan was needed for; None if there were none."""
    if ensemble.precision == "float32" or ensemble in _agreeing:
        return None
    views = [view]
    if sample and ensemble not in _sampled:
        # once: if nothing is found on the sample, each slice is looked at by itself
        _sampled.add(ensemble)
        views = views_of(sample)
    made, open_questions = [], False
    for alone in ensemble.single_networks():
        try:
            check, now = agreement(alone, engine, views)
        except InputError as error:
            raise _OfAllScans(str(error)) from error
        open_questions |= check is None
        if check is not None and now:
            made.append(check)
    if not open_questions:
        _agreeing.add(ensemble)
    return tuple(made) or None


@functools.lru_cache(maxsize=1)
def opened(ensemble: Ensemble) -> tuple[list[Member], RemoveFar | ReassignSmall | None, str]:
    """As ``open_ensemble``; the last ensemble stays loaded until ``opened.cache_clear()``."""
    return open_ensemble(ensemble)


def _as_shown(text: str, scan: Scan) -> str:
    """A message in which the scan has the path that the user knows."""
    return text.replace(str(scan.path), str(scan.shown)) if scan.shown else text


def views_of(items: Iterable[SliceImage]) -> list[View]:
    """The slices that can be read; when its turn comes, one that cannot fails, and says why."""
    found = []
    for item in items:
        with suppress(Exception):
            volume = read_slices([item])
            found.append(View(volume.array, volume.grid.spacing_mm))
    return found
