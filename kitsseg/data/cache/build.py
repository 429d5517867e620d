"""Plan and fill a cache of preprocessed cases. Each process holds one scan as int16 in memory, and little else.

A KiTS19 case of 834 x 512 x 512 voxels needs about 0.5 GiB. TensorFlow and Keras are never imported.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kitsseg.data.cache.case_file import check_specification, read_case, write_specification
from kitsseg.data.cache.case_sources import sources_unchanged
from kitsseg.data.cache.cases import cache_folder
from kitsseg.data.cache.compressed import require_blosc2
from kitsseg.data.cache.one_case import preprocess_case
from kitsseg.data.cache.plan import CachePlan, planned_bytes
from kitsseg.data.cache.slice_checks import check_slices
from kitsseg.data.cache.sources import size_of
from kitsseg.data.layouts.find import find_cases
from kitsseg.data.layouts.kits import empty_case_folders
from kitsseg.errors import InputError, one_line
from kitsseg.files.atomic import atomic_folder, remove_unfinished
from kitsseg.files.paths import as_given
from kitsseg.runtime.cluster import on_cluster
from kitsseg.runtime.workers import in_processes, one_by_one

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Case, Layout
    from kitsseg.interfaces import Progress
    from kitsseg.recipe import PreprocessSpec

__all__ = ["fill_cache", "plan_cache", "plan_of_cases", "preprocess_cases"]


def preprocess_cases(
    data: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    spec: PreprocessSpec,
    *,
    progress: Progress | None = None,
    layout: Layout | None = None,
    workers: int = 1,
    compress: bool = False,
) -> tuple[Path, list[str], list[str]]:
    """Preprocess every case of a folder. Cases that are in the cache already are left alone.

    If a case cannot be preprocessed, the other cases are preprocessed first, and then the error is raised. The
    unfinished files of a killed process are removed.

    Args:
        data: folder of cases, labels included (``find_cases``).
        cache: folder for the result; a sub-folder named by the digest of ``spec`` is made in it.
        spec: PreprocessSpec.
        progress: called as progress(description, done, total).
        layout: where the files of the cases lie; None finds this out from the folder.
        workers: number of processes; each holds one scan at a time. With more than one, a script must call this
            function under ``if __name__ == "__main__":``, because every process imports the script.
        compress: make a cache that is about half as large, and several times as slow to read.

    Returns: (folder of the cache, names of the cases done now, names of the cases that were there already).
    Raises: InputError if the disk is too small, a case cannot be read, a cached case is damaged or its source files
        have changed, or the cache has another version; InputError if ``compress`` is True and blosc2 is missing.
    Warns: UserWarning for each doubtful scan of the cache, such as one whose numbers are hardly HU, for each doubtful
        label map, such as one without kidney, and for folders of cases that hold no files.
    """
    plan = plan_cache(data, cache, spec, layout=layout, compress=compress)
    return fill_cache(plan, progress=progress, workers=workers)


def fill_cache(
    plan: CachePlan, *, progress: Progress | None = None, workers: int = 1, scheduler: str | None = None
) -> tuple[Path, list[str], list[str]]:
    """Preprocess the cases of a plan, as ``preprocess_cases`` does.

    Args:
        plan: from ``plan_cache`` or ``plan_of_cases``.
        scheduler: address of a Dask scheduler, whose workers preprocess the cases instead; each holds one scan at a
            time, and must see the same files under the same paths.
        progress, workers: as for ``preprocess_cases``.

    Returns: as ``preprocess_cases``.
    Raises: InputError as ``preprocess_cases``.
    Warns: as ``preprocess_cases``.
    """
    folder, spec, cases, missing = plan.folder, plan.spec, plan.cases, plan.missing
    if plan.empty:
        more = f" and {len(plan.empty) - 1} more" if len(plan.empty) > 1 else ""
        warnings.warn(
            f"{plan.empty[0]}{more}: no files in the folder of a case; left out. Complete or remove the folder.",
            stacklevel=2,
        )
    if folder.is_dir():
        remove_unfinished(folder)  # before the space is counted
    plan.check_space()
    check_slices(missing, spec)
    folder.mkdir(parents=True, exist_ok=True)
    write_specification(folder, spec)

    jobs = [_Job(case, folder / case.name, spec, plan.compress) for case in missing]
    if (scheduler or workers > 1) and len(jobs) > 1:
        # the largest first: the last one to end is then a small one
        jobs.sort(key=lambda job: -_size(job.case))
    if scheduler:
        results = _on_cluster(scheduler, jobs)
    elif workers > 1 and len(jobs) > 1:
        results = in_processes(_do, jobs, workers)
    else:
        results = one_by_one(_do, jobs)
    failed, done = {}, len(cases) - len(missing)
    report = progress or (lambda *_: None)
    report("preprocess", done, len(cases))
    with closing(results):
        for job, error in results:
            done += 1
            report(f"preprocessed {job}", done, len(cases))
            if error is not None:
                failed[job.case.name] = error
    for case in cases:
        if case.name in failed:
            continue
        cached = read_case(folder / case.name)
        for path, doubts in ((case.image, cached.doubts), (case.labels, cached.label_doubts)):
            for doubt in doubts:
                warnings.warn(f"{path}: {doubt}", stacklevel=2)
    if failed:
        raise _all_of(failed, len(cases))
    made = [case.name for case in missing]
    return folder, made, [case.name for case in cases if case.name not in set(made)]


def plan_cache(
    data: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    spec: PreprocessSpec,
    *,
    layout: Layout | None = None,
    compress: bool = False,
) -> CachePlan:
    """Plan what ``preprocess_cases`` does with these arguments. Nothing is written.

    Args: as ``preprocess_cases``.
    Returns: CachePlan.
    Raises: InputError as ``preprocess_cases``, except for a disk that is too small and for errors within the scans.
    """
    cases = find_cases(data, layout=layout, slices=True)
    plan = plan_of_cases(cases, cache, spec, compress=compress)
    return replace(plan, empty=empty_case_folders(Path(data), cases))


def plan_of_cases(
    cases: Sequence[Case], cache: str | os.PathLike[str], spec: PreprocessSpec, *, compress: bool = False
) -> CachePlan:
    """Plan the preprocessing of some cases, whatever else lies beside them.

    Args:
        cases: Case of each, with scan and label map.
        cache, spec, compress: as for ``preprocess_cases``.

    Returns: CachePlan.
    Raises: InputError as ``plan_cache``.
    """
    if compress:
        require_blosc2()
    folder, missing = cache_folder(cache, spec), []
    if (folder / "spec.json").exists() or any(folder.glob("[!.]*/case.json")):
        check_specification(folder, spec)
    for case in cases:
        if (folder / case.name).exists():
            _check_cached(case, folder / case.name, compress)
        else:
            missing.append(case)
    return CachePlan(folder, spec, list(cases), missing, planned_bytes(missing, spec, compress), compress)


class _Job(NamedTuple):
    case: Case
    target: Path
    spec: PreprocessSpec
    compress: bool

    def __str__(self) -> str:
        return self.case.name


def _on_cluster(address: str, jobs: Sequence[_Job]) -> Generator[tuple[_Job, InputError | None], None, None]:
    """As ``one_by_one``, on the workers of a Dask scheduler."""
    absolute = [(job._replace(case=_absolute(job.case), target=as_given(job.target)),) for job in jobs]
    for (job,), error, death in on_cluster(address, _try, absolute):
        if death is not None:
            error = InputError(
                f"{job.target}: its worker died ({one_line(death)}), perhaps because of too little memory. The same "
                "command tries it again."
            )
        yield job, error


def _absolute(case: Case) -> Case:
    """A case that other machines find, if they see the same folders."""

    def given(path: Path | None) -> Path | None:
        return None if path is None else as_given(path)

    slices = tuple(
        replace(item, image=as_given(item.image), labels=given(item.labels)) for item in case.slices
    )
    return replace(case, image=given(case.image), labels=given(case.labels), slices=slices)


def _try(job: _Job) -> InputError | None:
    """``_do`` on a worker: a case that cannot be preprocessed does not stop the others."""
    try:
        _do(job)
    except InputError as error:
        return error
    return None


def _do(job: _Job) -> None:
    try:
        with atomic_folder(job.target) as temporary:
            preprocess_case(job.case, temporary, job.spec, job.compress)
    except OSError as error:
        if error.errno not in (EEXIST, ENOTEMPTY):
            raise
        # another process that fills the same cache was quicker: if it took the same files, its case is as good
        _check_cached(job.case, job.target, job.compress)


def _check_cached(case: Case, folder: Path, compress: bool) -> None:
    cached = read_case(folder)
    values = cached.label_values  # a label beyond these did not occur: it would have been refused
    if not sources_unchanged(case, cached.sources) or case.label_values[: len(values)] != values:
        raise InputError(
            f"{folder}: made from other files than those in {case.scan.parent} (contents or meaning of labels "
            "differ). Remove this folder to preprocess the case again, or use another cache folder."
        )
    if compress != (cached.chunks is not None):
        was, option = ("not compressed", "without") if compress else ("compressed", "with")
        raise InputError(
            f"{folder}: was {was}, and a cache is one or the other. Go on {option} --compress, or use another "
            "cache folder."
        )


def _size(case: Case) -> int:
    return sum(size_of(path) for path in [item.image for item in case.slices] or [case.scan])


def _all_of(failed: Mapping[str, InputError], n_cases: int) -> InputError:
    """One error for all cases that failed."""
    if len(failed) == 1:
        return next(iter(failed.values()))
    reasons = " ".join(str(failed[name]) for name in sorted(failed))
    return InputError(
        f"{len(failed)} of {n_cases} cases could not be preprocessed; the others are done. {reasons}"
    )
