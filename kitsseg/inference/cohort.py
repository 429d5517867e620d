"""From scans to label maps on the scans' own voxels: one scan or a cohort, here or on a cluster."""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.cache.sources import source_record
from kitsseg.data.formats.doubts import doubts_about
from kitsseg.data.formats.nifti import is_phantom, read_image, write_labels
from kitsseg.data.formats.slices import SliceImage, read_slices, write_mask
from kitsseg.data.geometry.geometry import spec_of_slices
from kitsseg.data.layouts.find import Layout, find_scans
from kitsseg.data.layouts.names import prediction_name
from kitsseg.data.layouts.slices import slices_of_inputs
from kitsseg.errors import InputError
from kitsseg.files.checksums import crc32_of
from kitsseg.files.paths import as_given
from kitsseg.inference.ensemble import Ensemble, cases_of_run_part, describe, ensemble_of, open_ensemble
from kitsseg.inference.scan import (
    ensemble_labels,
    prepare_scan,
)
from kitsseg.inference.slices import check_2d, names_of_patients, narrow_windows, slice_file
from kitsseg.interfaces import Progress
from kitsseg.records.predictions import FailedScan, PredictedScan, Predictions, PredictionsRecord, Source
from kitsseg.runtime.cluster import on_cluster
from kitsseg.runtime.memory import give_back_memory

if TYPE_CHECKING:
    from kitsseg.inference.scan import Member
    from kitsseg.recipe import ReassignSmall, RemoveFar

__all__ = [
    "NAMED",
    "Outcome",
    "PredictOptions",
    "check_all_done",
    "failures",
    "predict_cases",
    "predict_cohort",
    "predict_scan",
]

OF_A_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # errors that concern one scan
Result = tuple[str, PredictedScan | FailedScan, str | None]  # name, entry, engine
NAMED = 3  # failed scans in the message; all are in predictions.json


@dataclass(frozen=True)
class Outcome:
    """What became of a cohort.

    Attributes:
        written: label maps of all scans that have one now, in order.
        kept: how many of them were there already.
        failed: case name -> reason, in order.
        engine: what computed the networks; None where no label map was ever made.
        renewed: names of scans that have changed since their label maps were made, which were made anew.
        record: what ``predictions.json`` says of the folder now, with absolute paths.
        warnings: sentences for the user; one names the file of a scan that is doubtful.
    """

    written: list[Path]
    kept: int
    failed: dict[str, str]
    record: PredictionsRecord
    engine: str | None = None
    renewed: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How scans are segmented; the same for one scan and for a cohort, here and on a cluster.

    Attributes:
        whole_slices: take slices in one piece even where the recipe states overlapping tiles; about three times
            faster, slightly different at the tiles' borders.
        mirror: True or False overrides the recipe's test-time mirroring (of rows and columns).
        refine_labels: False leaves the recipe's post-processing out, True insists that there is some.
        engine: what computes the network, one of ``engines.ENGINES``; None: see ``open_network``. ``predictions.json``
            names it.
        also: more runs, of the same or other recipes: probabilities are averaged on the scan's voxels, every run
            counts the same, and the post-processing is that of the first run.
        shard: (i, n): the i-th of n jobs, from 1, that share the scans and the folder.
        scheduler: address of a Dask scheduler whose workers segment the scans.
    """

    whole_slices: bool = False
    mirror: bool | None = None
    refine_labels: bool | None = None
    engine: str | None = None
    also: Sequence[str | os.PathLike[str]] = ()
    shard: tuple[int, int] | None = None
    scheduler: str | None = None


def predict_cases(
    run: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    part: str | None = None,
    options: PredictOptions | None = None,
    *,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """As ``predict_cohort``; returns the paths of the label maps, and warns of scans that are doubtful.

    Raises: InputError if any scan failed, after all others are done.
    """
    outcome = predict_cohort(run, inputs, out, part, options, layout=layout, progress=progress)
    check_all_done(outcome, out)
    return outcome.written


def predict_cohort(
    run: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    part: str | None = None,
    options: PredictOptions | None = None,
    *,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Segment scans and write one label map each.

    A scan whose label map is there already, whole and made of the same scan by the same networks and settings, is left
    out; one that fails is put down, with the reason, and the others go on. A call that was stopped goes on where it
    was. Several calls may write to one folder at once. A label map of another scan of the same name is not replaced:
    that scan fails.

    Args:
        run: folder of a finished run, or a network from ``kitsseg export``; TensorFlow and Keras are imported for a
            run and for a SavedModel only.
        inputs: scans (``.nii``, ``.nii.gz``), case folders, folders of cases in any layout of ``find_cases``, or of
            DICOM series. Or folders of single slices (``kitsseg.data.layouts.slices``) and images of such: each gets a
            PNG of its own name, with the values of the masks.
        out: folder for the label maps, named as KiTS19 asks for them, and for ``predictions.json``.
        part: "train", "validation" or "test": only those of the scans that are in this part of the run's split.
        options: PredictOptions; the recipe's own way by default.
        layout: where a folder alone does not say which files are scans.
        progress: called as progress(description, done, total).

    Returns: Outcome.
    Raises: InputError for an unfinished run, an engine that cannot compute it, inputs without scans, and a folder
        that holds predictions made in another way.
    """
    options = options or PredictOptions()
    inputs = list(inputs)
    slices = {slice_file(item): item for item in slices_of_inputs(inputs, layout or Layout()) or ()}
    scans = {name: item.image for name, item in slices.items()} or find_scans(inputs, layout)
    ensemble = ensemble_of(
        (run, *options.also),
        whole_slices=options.whole_slices,
        mirror=options.mirror,
        refine_labels=options.refine_labels,
        engine=options.engine,
    )
    check_2d(ensemble, slices.values())
    if part is not None:
        wanted = cases_of_run_part(ensemble, part)
        scans = _only(scans, names_of_patients(slices, wanted) if slices else wanted, part)
    if options.shard is not None:
        scans = _share(scans, *options.shard)
    out = Path(out)
    record = Predictions(out, describe(ensemble, part))
    new_folder = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    made = 0
    failed: dict[str, str] = {}
    renewed: list[str] = []
    try:
        todo, failed = _todo(scans, record, progress, slices)
        before = {name for name in todo if isinstance(record.entries.get(name), PredictedScan)}
        results: Iterable[Result] = ()
        if todo:
            work = _Work(ensemble, todo, slices, record, failed)
            results = (
                _by_cluster(options.scheduler, work, progress)
                if options.scheduler
                else _one_by_one(work, progress)
            )
        for name, entry, engine_used in results:
            if engine_used:
                record.made_by(engine_used)
            if isinstance(entry, FailedScan):
                failed[name] = entry.reason
                record.forget_file(name)
            elif name in before and entry.source != getattr(record.entries[name], "source", None):
                renewed.append(name)
            made += isinstance(entry, PredictedScan)
            record.add(name, entry)
    except BaseException:
        record.give_up()
        raise
    else:
        lost = record.finish()
    finally:
        record.close()
        if new_folder:
            with suppress(OSError):
                out.rmdir()  # empty: nothing came of it
    failed |= lost
    failed = {name: failed[name] for name in scans if name in failed}
    written = [record.label_map(name) for name in scans if name not in failed]
    warned = narrow_windows(ensemble, [item for name, item in slices.items() if name in scans])
    warned = (
        *warned,
        *(
            f"{image}: {doubt}"
            for name, image in scans.items()
            if isinstance(done := record.entries.get(name), PredictedScan) and name not in failed
            for doubt in done.doubts
        ),
    )
    kept = len(written) - made + len(lost)
    return Outcome(written, kept, failed, record.content(), record.header.engine, renewed, warned)


def check_all_done(outcome: Outcome, out: str | os.PathLike[str]) -> None:
    """Warn of scans that are doubtful, and raise InputError if any failed."""
    for text in outcome.warnings:
        warnings.warn(text, stacklevel=3)
    if outcome.failed:
        raise InputError(failures(outcome, out))


def failures(outcome: Outcome, out: str | os.PathLike[str]) -> str:
    """One sentence about the scans that failed."""
    total = len(outcome.written) + len(outcome.failed)
    if total == 1:
        return next(iter(outcome.failed.values()))
    named = "; ".join(f"{name} ({reason})" for name, reason in list(outcome.failed.items())[:NAMED])
    more = f"; and {len(outcome.failed) - NAMED} more" if len(outcome.failed) > NAMED else ""
    return (
        f"{len(outcome.failed)} of {total} scans failed, the others are done: {named}{more}. "
        f"{Path(out) / 'predictions.json'} lists them; the same command tries them again."
    )


def _todo(
    scans: Mapping[str, Path],
    record: Predictions,
    progress: Progress | None,
    slices: Mapping[str, SliceImage],
) -> tuple[dict[str, Path], dict[str, str]]:
    """Scans without a whole label map, and those whose label map may not be replaced, with the reason."""
    todo, failed = {}, {}
    for index, (name, image) in enumerate(scans.items()):
        if progress:
            progress("look for label maps that are there", index, len(scans))
        try:
            if not record.is_whole(name, image) or _other_values(slices.get(name), record.entries[name]):
                todo[name] = image
        except InputError as error:
            failed[name] = str(error)
        except OSError as error:
            failed[name] = _odd_name(error, record.label_map(name), name)
            record.fail(name, image, failed[name])
    return todo, failed


def _other_values(item: SliceImage | None, entry: PredictedScan | FailedScan) -> bool:
    """Whether the label map of a slice has other values than are asked for now."""
    if item is None:
        return False
    return not isinstance(entry, PredictedScan) or entry.mask_values != tuple(item.mask_values)


def _odd_name(error: OSError, target: Path, name: str) -> str:
    """Why a label map cannot have the name of its case. Raises: the error, if it is not about the name."""
    if error.errno not in OF_A_NAME:
        raise error
    return (
        f"{target}: {(error.strerror or str(error)).lower()}. Give the case a name that this file system takes, as "
        f"of fewer letters ({len(name)})."
    )


def _begun(
    todo: Mapping[str, Path], record: Predictions, failed: dict[str, str]
) -> Iterator[tuple[str, Path]]:
    """The scans that nobody else has done in the meantime, each after it was put down as begun."""
    for name, image in todo.items():
        try:
            if record.begin(name, image):
                yield name, image
        except InputError as error:
            failed[name] = str(error)


@dataclass(frozen=True)
class _Work:
    """The scans that a call segments: who does it, the scans by name, single slices among them, and where they go."""

    ensemble: Ensemble
    todo: dict[str, Path]
    slices: dict[str, SliceImage]
    record: Predictions
    failed: dict[str, str]


def _one_by_one(work: _Work, progress: Progress | None) -> Iterator[Result]:
    try:
        if progress:
            progress("load the network", 0, len(work.todo))
        *_, engine = _opened(work.ensemble)
        work.record.made_by(engine)
        for index, (name, image) in enumerate(_begun(work.todo, work.record, work.failed)):

            def within(done: int, total: int, index: int = index, name: str = name) -> None:
                if progress:
                    progress(f"predict {name}", index + done / total, len(work.todo))

            item = work.slices.get(name)
            yield name, *predict_scan(work.ensemble, name, image, work.record.out, within, item)
    finally:
        _opened.cache_clear()


def _by_cluster(address: str, work: _Work, progress: Progress | None) -> Iterator[Result]:
    out = as_given(work.record.out)
    jobs = [
        (work.ensemble, name, as_given(image), out, None, work.slices.get(name))
        for name, image in _begun(work.todo, work.record, work.failed)
    ]
    if progress:
        progress("wait for the cluster", 0, len(jobs))
    for done, (job, result, error) in enumerate(on_cluster(address, predict_scan, jobs), 1):
        if progress:
            progress(f"predicted {job[1]}", done, len(jobs))
        dead = FailedScan(image=str(job[2]), reason=f"its worker died ({error})")
        yield job[1], *(result or (dead, None))


_one_at_a_time = threading.Lock()  # a Dask worker has several threads; the memory is for one scan


def predict_scan(
    ensemble: Ensemble,
    name: str,
    image: Path,
    out: Path,
    progress: Callable[[int, int], object] | None = None,
    item: SliceImage | None = None,
) -> tuple[PredictedScan | FailedScan, str]:
    """Segment one scan and write its label map; the networks stay loaded for the next.

    Args:
        ensemble: Ensemble. name: of the case. image: its path. out: folder for the label map.
        progress: called as progress(done, total) in slices.
        item: the slice, if the image is a single one.

    Returns: (PredictedScan, engine), or (FailedScan, engine) if the scan cannot be read or segmented.
    Raises: InputError for what concerns all scans: a network that cannot be loaded. OSError if writing fails.
    """
    with _one_at_a_time:
        members, postprocess, engine = _opened(ensemble)
        started, where = time.monotonic(), str(as_given(image))
        try:
            # before it is read: a change in the meantime is noticed the next time
            source = Source(**source_record(Path(image)))
            scan = read_image(image) if item is None else read_slices([item])
            if item is not None:
                members = [replace(member, spec=spec_of_slices(member.spec)) for member in members]
            grid = scan.grid
            clips = {member.spec.clip_hu for member in members}
            clip_hu = clips.pop() if len(clips) == 1 else None
            # single slices say what their numbers are, and need not show a whole patient
            doubts = () if item is not None else tuple(map(str, doubts_about(scan, clip_hu)))
            prepared = prepare_scan(scan.array, grid.spacing_mm, members)
            del scan  # its memory too, unless what was prepared needs it
            give_back_memory()
            labels = ensemble_labels(prepared, grid.spacing_mm, postprocess, progress)
        except (InputError, OSError) as error:
            return FailedScan(image=where, reason=str(error)), engine
        except Exception as error:  # whatever it is, the other scans may be fine
            reason = f"{image}: {type(error).__name__}: {error}"
            return FailedScan(image=where, reason=reason, traceback=traceback.format_exc()), engine
        target = Path(out) / prediction_name(name)
        try:
            if item is None:
                write_labels(target, labels, grid)
            else:
                write_mask(target, labels[0], item.mask_values)
        except OSError as error:
            return FailedScan(image=where, reason=_odd_name(error, target, name)), engine
        entry = PredictedScan(
            file=target.name,
            image=where,
            source=source,
            crc32=crc32_of(target),
            phantom=is_phantom(grid.header),
            doubts=doubts,
            seconds=round(time.monotonic() - started, 2),
        )
        if item is not None:
            entry = replace(entry, patient=item.patient, mask_values=item.mask_values)
        return entry, engine


@functools.lru_cache(maxsize=1)
def _opened(ensemble: Ensemble) -> tuple[list[Member], RemoveFar | ReassignSmall | None, str]:
    return open_ensemble(ensemble)


def _only(scans: Mapping[str, Path], wanted: Collection[str], part: str) -> dict[str, Path]:
    chosen = {name: path for name, path in scans.items() if name in wanted}
    if not chosen:
        raise InputError(
            f"--part {part}: expected some of the {len(wanted)} {part} cases of the run's split, "
            f"found none among {len(scans)} scans. Give the folder the run was trained on."
        )
    return chosen


def _share(scans: Mapping[str, Path], number: int, count: int) -> dict[str, Path]:
    if not 1 <= number <= count:
        raise InputError(f"--shard {number}/{count}: expected a number from 1 to {count}.")
    names = sorted(scans)[number - 1 :: count]
    return {name: scans[name] for name in names}
