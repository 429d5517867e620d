"""Segment a cohort, here or on a cluster, and record what became of each scan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.formats.nifti import read_image
from kitsseg.data.formats.slices import SliceImage
from kitsseg.data.layouts.scans import Scan
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given
from kitsseg.inference.ensemble import Ensemble, ensemble_of
from kitsseg.inference.fastest import AUTO, as_known, measure
from kitsseg.inference.one_scan import for_slices, opened, predict_scan, views_of
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.outcome import Outcome, check_all_done, outcome_of
from kitsseg.inference.plan import Plan, planned
from kitsseg.inference.products import (
    check_products,
    check_statistics,
    with_volumes,
    write_dicom_seg,
    write_statistics,
)
from kitsseg.inference.same_labels import View, few_of
from kitsseg.interfaces import Progress
from kitsseg.records.predictions import FailedScan, PredictedScan, Predictions
from kitsseg.runtime.cluster import on_cluster

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Layout

__all__ = ["carry_out", "plan_cohort", "predict_cases", "predict_cohort"]

Result = tuple[str, PredictedScan | FailedScan, str | None]  # name, entry, engine


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
    """Segment scans as ``predict_cohort`` does, warn of doubtful scans, and return the paths of the label maps.

    Args: as ``predict_cohort``.
    Raises: InputError as ``predict_cohort``, and if any scan failed, after all others are done.
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

    A scan is left out if it has a whole label map that the same networks and settings made from the same scan. If a
    scan fails, the reason is recorded and the other scans are segmented. A call goes on where an earlier one stopped.
    Several calls may write to one folder at once. A label map of another scan with the same name is not replaced: the
    scan fails. So do scans whose label maps would have one name.

    Args:
        run: folder of a finished run, or a network from ``kitsseg export``; TensorFlow and Keras are imported for a
            run and for a SavedModel only.
        inputs: files, folders and archives of scans, as ``find_scans`` of ``kitsseg.data.layouts.search`` takes them;
            or folders of single slices (``kitsseg.data.layouts.slices``) and images in them. The label map of a slice
            is a PNG of the same name, with the values of the masks.
        out: folder for the label maps, which have the names that KiTS19 asks for, and for ``predictions.json``.
        part: "train", "validation" or "test": segment only the scans in this part of the run's split.
        options: PredictOptions; the settings of the recipe by default.
        layout: which files are scans, if a folder alone does not tell it.
        progress: called as progress(description, done, total).

    Returns: Outcome.
    Raises: InputError for an unfinished run, an engine that cannot compute it, inputs without scans, and a folder
        that holds predictions made in another way.
    """
    with plan_cohort(run, inputs, out, part, options, layout=layout, progress=progress) as plan:
        return carry_out(plan, options, progress=progress)


@contextmanager
def plan_cohort(
    run: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    part: str | None = None,
    options: PredictOptions | None = None,
    *,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> Iterator[Plan]:
    """Plan what ``predict_cohort`` does with the same arguments. Nothing is computed or written.

    Args: as ``predict_cohort``.
    Gives: Plan, for ``carry_out``, which must be called in this context.
    Raises: InputError as ``predict_cohort``.
    """
    options = options or PredictOptions()

    def open_networks() -> Ensemble:
        return ensemble_of((run, *options.also), options)

    with planned(open_networks, inputs, out, part, options, layout=layout, progress=progress) as plan:
        check_products(
            plan.scans,
            bool(plan.slices),
            dicom_seg=options.dicom_seg,
            others={
                "--statistics": options.statistics,
                "--remove-small": options.remove_small_mm3,
                "--tumors-on-kidneys": options.tumors_on_kidneys,
            },
        )
        if options.statistics:
            check_statistics(plan.record.out)
        yield plan


def carry_out(
    plan: Plan, options: PredictOptions | None = None, *, progress: Progress | None = None
) -> Outcome:
    """Segment the scans of a plan.

    Args:
        plan: from ``plan_cohort``.
        options: the same as for the plan.
        progress: called as progress(description, done, total).
    """
    options, record, scans = options or PredictOptions(), plan.record, plan.scans
    if options.scheduler and (packed := next((scan for scan in plan.todo.values() if scan.shown), None)):
        raise InputError(
            f"--scheduler: expected scans that the workers can read, found {packed.place} in an archive. Unpack it "
            "first."
        )
    out = record.out
    new_folder = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    made = 0
    failed = dict(plan.refused)
    renewed: list[str] = []
    try:
        for name in plan.badly_named:
            record.fail(name, scans[name].place, failed[name])
        before = {name for name in plan.todo if isinstance(record.entries.get(name), PredictedScan)}
        results: Iterable[Result] = ()
        if plan.todo:
            work = _Work(plan.ensemble, plan.todo, plan.slices, record, failed)
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
            record.add(name, _with_products(name, entry, plan, options, failed))
            made += name not in failed
        for name in scans:  # those that were there already
            there = record.entries.get(name)
            if name not in plan.todo and name not in failed and isinstance(there, PredictedScan):
                now = _with_products(name, there, plan, options, failed)
                if now != there:
                    record.add(name, now)
    except BaseException:
        record.give_up()
        raise
    else:
        lost = record.finish()
        if options.statistics:
            cases = {n: e for n, e in record.entries.items() if isinstance(e, PredictedScan)}
            write_statistics(out, cases)
    finally:
        record.close()
        if new_folder:
            with suppress(OSError):
                out.rmdir()  # empty: nothing came of it
    return outcome_of(plan, options, failed | lost, renewed, made - len(lost))


def _with_products(
    name: str,
    entry: PredictedScan | FailedScan,
    plan: Plan,
    options: PredictOptions,
    failed: dict[str, str],
) -> PredictedScan | FailedScan:
    """Write the files that the options ask for beside a label map.

    Returns: the entry of the scan, with the volumes if they were asked for. If a file cannot be made, the reason is
        added to ``failed``.
    """
    if isinstance(entry, FailedScan):
        return entry
    out, scan = plan.record.out, plan.scans[name]
    if options.dicom_seg and scan.is_dicom:
        recipe = plan.ensemble.networks[0].record.recipe or "network"
        try:
            write_dicom_seg(out, entry, scan, recipe)
        except InputError as error:
            failed[name] = f"its label map {out / entry.file} is done, its DICOM SEG is not: {error}"
    return with_volumes(out, entry) if options.statistics else entry


def _begun(
    todo: Mapping[str, Scan], record: Predictions, failed: dict[str, str]
) -> Iterator[tuple[str, Scan]]:
    """Yield the scans that no other process has done meanwhile, each after it was recorded as begun."""
    for name, scan in todo.items():
        try:
            if record.begin(name, scan.path, scan.place):
                yield name, scan
        except InputError as error:
            failed[name] = str(error)


@dataclass(frozen=True)
class _Work:
    """The work of a call: the networks, the scans by name, the single slices among them, and the record."""

    ensemble: Ensemble
    todo: dict[str, Scan]
    slices: dict[str, SliceImage]
    record: Predictions
    failed: dict[str, str]


def _one_by_one(work: _Work, progress: Progress | None) -> Iterator[Result]:
    try:
        if progress:
            progress("load the network", 0, len(work.todo))
        ensemble = _with_engines(work)
        *_, engine = opened(ensemble)
        work.record.made_by(engine)
        sample = _sample(work)
        for index, (name, scan) in enumerate(_begun(work.todo, work.record, work.failed)):

            def within(done: int, total: int, index: int = index, name: str = name) -> None:
                if progress:
                    progress(f"predict {name}", index + done / total, len(work.todo))

            item = work.slices.get(name)
            yield name, *predict_scan(ensemble, name, scan, work.record.out, within, item, sample)
    finally:
        opened.cache_clear()


def _with_engines(work: _Work) -> Ensemble:
    """The networks with the engines that compute them, which may have to be found out with the first scan."""
    ensemble = work.ensemble
    if ensemble.engine != AUTO:
        return ensemble
    views = views_of(_sample(work)) if work.slices else _first_scan(work)
    if not views:
        return replace(ensemble, engine=None)
    measure(for_slices(ensemble) if work.slices else ensemble, views)
    return as_known(ensemble)


def _first_scan(work: _Work) -> list[View]:
    """The first scan that can be read; when its turn comes, one that cannot fails, and says why."""
    for scan in work.todo.values():
        with suppress(Exception):
            volume = read_image(scan.path, scan.series)
            return [View(volume.array, volume.grid.spacing_mm)]
    return []


def _sample(work: _Work) -> tuple[SliceImage, ...]:
    """A few of the single slices, evenly spread; one alone may hold too few voxels to compare two ways of labelling."""
    items = [work.slices[name] for name in work.todo if name in work.slices]
    return tuple(items[number] for number in few_of(len(items)))


def _by_cluster(address: str, work: _Work, progress: Progress | None) -> Iterator[Result]:
    out = as_given(work.record.out)
    sample = _sample(work)
    jobs = [
        (
            work.ensemble,
            name,
            replace(scan, path=as_given(scan.path)),
            out,
            None,
            work.slices.get(name),
            sample,
        )
        for name, scan in _begun(work.todo, work.record, work.failed)
    ]
    if progress:
        progress("wait for the cluster", 0, len(jobs))
    for done, (job, result, error) in enumerate(on_cluster(address, predict_scan, jobs), 1):
        if progress:
            progress(f"predicted {job[1]}", done, len(jobs))
        dead = FailedScan(image=str(job[2].place), reason=f"its worker died ({error})")
        yield job[1], *(result or (dead, None))
