"""Segment one scan or a cohort, here or on a cluster, and write label maps on the scans' own voxels."""

from __future__ import annotations

import functools
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.cache.sources import source_of
from kitsseg.data.formats.doubts import doubts_about, doubts_about_slices
from kitsseg.data.formats.nifti import is_phantom, read_image, write_labels
from kitsseg.data.formats.slices import SliceImage, read_slices, write_mask
from kitsseg.data.geometry.geometry import spec_of_slices
from kitsseg.data.layouts.names import prediction_name
from kitsseg.data.layouts.scans import Scan
from kitsseg.errors import InputError, one_line, some_of
from kitsseg.files.checksums import crc32_of
from kitsseg.files.paths import as_given
from kitsseg.inference.coarse import find_region
from kitsseg.inference.ensemble import Ensemble, ensemble_of, open_ensemble
from kitsseg.inference.familiar import unlike_kits19
from kitsseg.inference.fastest import AUTO, as_known, choices_of, measure
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.plan import Plan, odd_name, planned
from kitsseg.inference.precision import agreement
from kitsseg.inference.products import (
    check_products,
    check_statistics,
    with_volumes,
    write_dicom_seg,
    write_statistics,
)
from kitsseg.inference.region import labels_at_border
from kitsseg.inference.same_labels import View, few_of
from kitsseg.inference.scan import (
    ensemble_labels,
    prepare_scan,
)
from kitsseg.inference.slices import narrow_windows
from kitsseg.interfaces import Progress
from kitsseg.labels.volumes import cleaned
from kitsseg.records.precision import PrecisionCheck, kept_check
from kitsseg.records.predictions import (
    CoarsePass,
    FailedScan,
    PredictedScan,
    Predictions,
    PredictionsRecord,
)
from kitsseg.records.scan_part import part_of
from kitsseg.records.starter import STARTER, network_path
from kitsseg.runtime.cluster import on_cluster
from kitsseg.runtime.memory import give_back_memory, too_little_memory

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Layout
    from kitsseg.inference.scan import Member
    from kitsseg.recipe import ReassignSmall, RemoveFar

__all__ = [
    "NAMED",
    "Outcome",
    "carry_out",
    "check_all_done",
    "failures",
    "plan_cohort",
    "predict_cases",
    "predict_cohort",
    "predict_scan",
]

Result = tuple[str, PredictedScan | FailedScan, str | None]  # name, entry, engine
NAMED = 3  # scans in a message, with a sentence each; all are in predictions.json
MOST_NAMES = 20  # scans in a message that gives only their names


@dataclass(frozen=True)
class Outcome:
    """The result for a cohort.

    Attributes:
        written: label maps of all scans that have one now, in order.
        kept: number of these label maps that existed before.
        failed: case name -> reason, in order.
        engine: what computed the networks; None where no label map was ever made.
        renewed: names of scans that have changed since their label maps were made, which were made anew.
        record: what ``predictions.json`` says of the folder now, with absolute paths.
        warnings: sentences for the user; one for each scan that is doubtful, with its name.
        notes: sentences for the user about networks and scans that do not fit together, but may be meant, and about
            scans of which the networks saw the whole though a coarse pass was asked for.
        agreement: sentences about the agreement of the networks' lower precision with float32.
        choices: sentences about the engines that were chosen for the networks.
    """

    written: list[Path]
    kept: int
    failed: dict[str, str]
    record: PredictionsRecord
    engine: str | None = None
    renewed: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    agreement: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def made(self) -> int:
        """How many label maps this call has written."""
        return len(self.written) - self.kept


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
    failed |= lost
    failed = {name: failed[name] for name in scans if name in failed}
    written = [record.label_map(name) for name in scans if name not in failed]
    done = {
        name: one
        for name in scans
        if isinstance(one := record.entries.get(name), PredictedScan) and name not in failed
    }
    warned = (
        *narrow_windows(plan.ensemble, [item for name, item in plan.slices.items() if name in scans]),
        *(f"{name}: {' '.join(entry.doubts)}" for name, entry in done.items() if entry.doubts),
    )
    notes = _notes(plan, done)
    agreeing = tuple(_agreement(plan, record.header.engine, done))
    failed |= {what: f"{what}: {why}" for what, why in plan.wrong}
    failed |= {str(scan.place): why for _, scan, why in plan.clashing}
    kept = len(written) - made + len(lost)
    content = record.content()
    choices = tuple(choices_of(plan.ensemble)) if options.engine == AUTO else ()
    return Outcome(
        written,
        kept,
        failed,
        content,
        record.header.engine,
        renewed,
        warned,
        notes,
        agreeing,
        choices,
    )


def _notes(plan: Plan, done: Mapping[str, PredictedScan]) -> tuple[str, ...]:
    said = []
    real = [name for name, entry in done.items() if not entry.phantom]
    for run, network in zip(plan.ensemble.runs, plan.ensemble.networks, strict=True):
        # of the network in the package something better is said
        if network.record.phantom and real and Path(run) != network_path(STARTER).resolve():
            which = (
                f"{real[0]}, which is"
                if len(real) == 1
                else f"{len(real)} scans, such as {real[0]}, which are"
            )
            said.append(
                f"{run}: a network that has seen synthetic patients; its labels of {which} not synthetic, show that "
                f"the road works, and nothing about the patient{'s' * (len(real) > 1)}"
            )
    said += [f"{name}: {remark}" for name, entry in done.items() if (remark := entry.unlike_remark)]
    return *_seen_whole(done), *said


def _seen_whole(done: Mapping[str, PredictedScan]) -> Iterator[str]:
    """One sentence about the scans whose coarse pass found no region."""
    whole = [
        f"{name} ({entry.coarse.whole})"
        for name, entry in done.items()
        if entry.coarse is not None and entry.coarse.whole is not None
    ]
    if whole:
        yield f"the networks saw the whole scan, not a region of it: {some_of(whole, NAMED, '; ')}"


def _agreement(plan: Plan, engine: str | None, done: Mapping[str, PredictedScan]) -> Iterator[str]:
    """A sentence about each run that was computed in a lower precision."""
    precision = plan.ensemble.precision
    if precision == "float32" or engine is None:
        return
    made = [check for entry in done.values() for check in entry.precision or ()]
    for run, sha256 in zip(plan.ensemble.runs, plan.ensemble.sha256, strict=True):
        own = [check for check in made if check.weights_sha256 == sha256]
        check = own[-1] if own else kept_check(run, precision, sha256, engine)
        yield f"{run}: {check or f'{precision} is not compared with float32 yet: neither finds anything to compare'}"


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


def check_all_done(outcome: Outcome, out: str | os.PathLike[str]) -> None:
    """Warn of scans that are doubtful, and raise InputError if any failed."""
    for text in outcome.warnings:
        warnings.warn(text, stacklevel=3)
    if outcome.failed:
        raise InputError(failures(outcome, out))


def failures(outcome: Outcome, out: str | os.PathLike[str], *, reasons: bool = True) -> str:
    """One sentence about the scans that failed.

    Args:
        outcome: Outcome.
        out: the folder of the label maps.
        reasons: give the reasons of the first scans too; False: only their names, where the reasons are told already.
    """
    total = len(outcome.written) + len(outcome.failed)
    if total == 1:
        return next(iter(outcome.failed.values()))
    told = [
        reason if reason.startswith(name) else f"{name} ({reason})"
        for name, reason in ((name, reason.removesuffix(".")) for name, reason in outcome.failed.items())
    ]
    named = some_of(told, NAMED, "; ") if reasons else some_of(list(outcome.failed), MOST_NAMES)
    others = ", the others are done" if outcome.written else ""
    # a scan that was never begun has no entry
    listed = sum(name in outcome.record.failed for name in outcome.failed)
    which = "them" if listed == len(outcome.failed) else f"{listed} of them"
    where = f"{Path(out) / 'predictions.json'} lists {which}; the" if listed else "The"
    return f"{len(outcome.failed)} of {total} scans failed{others}: {named}. {where} same command tries them again."


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
        *_, engine = _opened(ensemble)
        work.record.made_by(engine)
        sample = _sample(work)
        for index, (name, scan) in enumerate(_begun(work.todo, work.record, work.failed)):

            def within(done: int, total: int, index: int = index, name: str = name) -> None:
                if progress:
                    progress(f"predict {name}", index + done / total, len(work.todo))

            item = work.slices.get(name)
            yield name, *predict_scan(ensemble, name, scan, work.record.out, within, item, sample)
    finally:
        _opened.cache_clear()


def _with_engines(work: _Work) -> Ensemble:
    """The networks with the engines that compute them, which may have to be found out with the first scan."""
    ensemble = work.ensemble
    if ensemble.engine != AUTO:
        return ensemble
    views = _views(_sample(work)) if work.slices else _first_scan(work)
    if not views:
        return replace(ensemble, engine=None)
    measure(_of_slices(ensemble) if work.slices else ensemble, views)
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


def _views(items: Iterable[SliceImage]) -> list[View]:
    """The slices that can be read; when its turn comes, one that cannot fails, and says why."""
    found = []
    for item in items:
        with suppress(Exception):
            volume = read_slices([item])
            found.append(View(volume.array, volume.grid.spacing_mm))
    return found


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
    members, postprocess, engine = _opened(ensemble)
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
        seen_so = ensemble if item is None else _of_slices(ensemble)
        checked = _checked_precision(seen_so, engine, View(volume.array, grid.spacing_mm, region), sample)
        prepared = prepare_scan(volume.array, grid.spacing_mm, members, region)
        del volume  # its memory too, unless what was prepared needs it
        give_back_memory()
        labels = ensemble_labels(prepared, grid.spacing_mm, postprocess, progress)
        in_parts = any(one.parts for one in prepared)
        if region is not None and (border := labels_at_border(labels, grid.spacing_mm, region, in_parts)):
            region = CoarsePass(whole=f"labels reach the {border}", seconds=region.seconds)
            again = read_image(scan.path, scan.series).array
            prepared = prepare_scan(again, grid.spacing_mm, members)
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


def _of_slices(ensemble: Ensemble) -> Ensemble:
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
        views = _views(sample)
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
def _opened(ensemble: Ensemble) -> tuple[list[Member], RemoveFar | ReassignSmall | None, str]:
    return open_ensemble(ensemble)


def _as_shown(text: str, scan: Scan) -> str:
    """A message in which the scan has the path that the user knows."""
    return text.replace(str(scan.path), str(scan.shown)) if scan.shown else text
