"""KiTS19 to a cache without its scans on the disk: a few cases are fetched, prepared and forgotten, then the next few.

    DATA/case_00000/segmentation.nii.gz     stays, of every case: scores are taken against it
    DATA/hashes.json                        what each scan was: when it comes again it must be the same
    DATA/.passing/case_00000/...            the scans under way; the folder goes with the last of them
    CACHE/preprocess-<digest>/case_00000    what training needs

After a call that was stopped, however it was, the next one goes on: what has arrived of a file is kept, and a case
that is in the cache is not fetched again. Scans that lie in DATA already are taken from there, and stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.data.cache.build import fill_cache, plan_of_cases
from kitsseg.data.cache.case_file import check_specification, read_case
from kitsseg.data.cache.cases import cache_folder
from kitsseg.data.cache.plan import CachePlan, cached_bytes
from kitsseg.data.cache.sources import unchanged
from kitsseg.data.download.catalog import LABELS_URL, wanted_files
from kitsseg.data.download.download import download_files
from kitsseg.data.download.http import HostError
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.kits19.trusted_hashes import read_hashes, record_hash
from kitsseg.data.layouts.kits import Case
from kitsseg.errors import InputError
from kitsseg.files.locks import folder_lock

if TYPE_CHECKING:
    from kitsseg.data.download.catalog import KitsFile
    from kitsseg.data.download.http import Patience
    from kitsseg.data.kits19.manifest import ManifestCase
    from kitsseg.interfaces import Progress
    from kitsseg.recipe import PreprocessSpec

__all__ = ["FromHost", "preprocess_from_host"]

PASSING = ".passing"
IN_VAIN = 3  # so many fetches in succession that bring nothing: the host has no more for now


@dataclass(frozen=True, kw_only=True)
class FromHost:
    """Cases of KiTS19 that are fetched, and how.

    Attributes:
        names: of training cases (``parse_cases``).
        images_url, labels_url, manifest: as for ``choose_files``.
        patience: a Patience, other than the usual one.
        say: called as say(text): the license of the data, remarks, doubtful scans.
    """

    names: Sequence[str]
    images_url: str | None = None
    labels_url: str = LABELS_URL
    manifest: Mapping[str, ManifestCase] | None = None
    patience: Patience | None = None
    say: Callable[[str], object] | None = None


def preprocess_from_host(
    data: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    spec: PreprocessSpec,
    wanted: FromHost,
    *,
    workers: int = 1,
    compress: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, list[str], list[str]]:
    """Preprocess cases of KiTS19 without ever keeping more than ``workers`` of their scans.

    A case that cannot be preprocessed, or whose scan arrives damaged, does not hold up the others.

    Args:
        data: folder for the label maps, which stay.
        cache, spec, workers, compress: as for ``preprocess_cases``.
        wanted: which cases, and where from.
        progress: called as progress(description, cases done, cases in total).

    Returns: (folder of the cache, names of the cases done now, names of those that were there).
    Raises: InputError for cases without public labels, a disk that is too small for the cache, cases that failed, and
        a cached case of other files; HostError if the host does not answer. All that is done is kept.
    """
    data, names, say, patience = Path(data), list(wanted.names), wanted.say, wanted.patience
    known = read_manifest() if wanted.manifest is None else wanted.manifest
    rows = [known[name] for name in names]
    labels = wanted_files(rows, True, wanted.images_url, wanted.labels_url)
    paths = {file.path for file in labels}
    images = {
        file.path.split("/")[0]: file
        for file in wanted_files(rows, False, wanted.images_url, wanted.labels_url)
        if file.path not in paths
    }
    tell, report = say or (lambda text: None), progress or (lambda *_: None)
    with folder_lock(data, "passing", wait=False, doing="fetching and preparing"):
        report("label maps", 0, len(names))
        download_files(data, labels, patience=patience, say=tell)
        folder, missing = cache_folder(cache, spec), []
        if (folder / "spec.json").exists():
            check_specification(folder, spec)
        for name in names:
            if (folder / name).exists():
                _check_kept(folder / name, data, images[name], compress)
            else:
                missing.append(name)
        _plan(folder, data, [known[name] for name in missing], spec, compress).check_space()
        failed: dict[str, InputError] = {}
        in_vain = 0
        for first in range(0, len(missing), workers):
            batch = missing[first : first + workers]
            done = len(names) - len(missing) + first
            report(f"fetch {', '.join(batch)}", done, len(names))
            arrived = _fetch(data, [images[name] for name in batch], patience, tell, failed)
            report(f"prepare {', '.join(arrived)}", done + 0.5 * len(batch), len(names))
            if arrived:
                try:
                    with _told(say):
                        cases = [_under_way(data / PASSING / name) for name in arrived]
                        plan = plan_of_cases(cases, cache, spec, compress=compress)
                        fill_cache(plan, workers=workers)
                except InputError as error:
                    failed |= {name: error for name in arrived if not (folder / name).exists()}
            for name in arrived:
                shutil.rmtree(data / PASSING / name, ignore_errors=True)
            in_vain = 0 if arrived else in_vain + 1
            if in_vain == IN_VAIN:
                break
        if not failed:
            shutil.rmtree(data / PASSING, ignore_errors=True)
            report("prepared", len(names), len(names))
    if failed:
        reasons = " ".join(list(dict.fromkeys(str(failed[name]) for name in sorted(failed)))[:3])
        raise InputError(
            f"{len(failed)} of {len(names)} cases could not be fetched and prepared ({', '.join(sorted(failed)[:5])}); "
            f"{'the host gave nothing any more' if in_vain == IN_VAIN else 'the others are done'}. {reasons}"
        )
    return folder, missing, [name for name in names if name not in set(missing)]


def _fetch(
    data: Path,
    files: Sequence[KitsFile],
    patience: Patience | None,
    say: Callable[[str], object],
    failed: dict[str, InputError],
) -> list[str]:
    """Bring some scans, with their label maps beside them; returns the names of the cases whose scan is there."""
    passing = data / PASSING
    wanted = [file.path.split("/")[0] for file in files]
    if passing.is_dir():
        for scan in passing.glob("*/imaging.nii.gz"):  # of a call that was stopped, for other cases
            if scan.parent.name not in wanted:
                shutil.rmtree(scan.parent)
    recorded = read_hashes(data)
    for file in files:
        if there := recorded.get(file.path):
            record_hash(passing, file.path, there.sha256, there.bytes)
    own = [file for file in files if (data / file.path).is_file()]
    others = [file for file in files if file not in own]
    for group, source in ((own, data), (others, None)):
        if not group:
            continue
        try:
            download_files(passing, group, source, len(group), patience, _unlicensed(say))
        except HostError:
            raise
        except InputError as error:
            failed |= {
                file.path.split("/")[0]: error for file in group if not (passing / file.path).is_file()
            }
    hashes = read_hashes(passing)
    arrived = [file for file in files if (passing / file.path).is_file()]
    for file in arrived:
        now = hashes[file.path]
        record_hash(data, file.path, now.sha256, now.bytes)
        name = file.path.split("/")[0]
        target = passing / name / "segmentation.nii.gz"
        target.unlink(missing_ok=True)
        shutil.copy2(data / name / "segmentation.nii.gz", target)
    return [file.path.split("/")[0] for file in arrived]


def _under_way(folder: Path) -> Case:
    """A case whose scan has arrived."""
    return Case(folder.name, folder / "imaging.nii.gz", folder / "segmentation.nii.gz")


def _plan(
    folder: Path, data: Path, rows: Sequence[ManifestCase], spec: PreprocessSpec, compress: bool
) -> CachePlan:
    """What these cases will take on the disk, by the shapes in the manifest."""
    cases = [Case(row.case, data / row.case / "imaging.nii.gz", None) for row in rows]
    size = sum(
        cached_bytes(row.shape, row.spacing_mm, spec, compress)
        for row in rows
        if row.shape and row.spacing_mm
    )
    return CachePlan(folder, spec, cases, cases, size, compress)


def _check_kept(folder: Path, data: Path, image: KitsFile, compress: bool) -> None:
    """Refuse a cached case that was made of other files than those of the data folder, or in another form."""
    cached = read_case(folder)
    source, recorded = cached.sources, read_hashes(data).get(image.path)
    labels = data / folder.name / "segmentation.nii.gz"
    another_scan = recorded and source.image and source.image.bytes != recorded.bytes
    if cached.phantom or not source.labels or not unchanged(source.labels, labels) or another_scan:
        raise InputError(
            f"{folder}: expected a case made of KiTS19's files as {data} records them, found one made of others. "
            "Remove this folder to prepare the case again, or use another cache folder."
        )
    if compress != (cached.chunks is not None):
        option = "without" if compress else "with"
        raise InputError(
            f"{folder}: this cache was made {option} --compress. Run the command {option} --compress, or use "
            "another cache folder."
        )


def _unlicensed(say: Callable[[str], object]) -> Callable[[str], object]:
    """Say what is told, but not the license once more for the folder of the scans under way."""
    return lambda text: None if text.startswith("The KiTS19 data are under") else say(text)


def _told(say: Callable[[str], object] | None) -> AbstractContextManager[None]:
    """In this block warnings about a scan are told without the place of the scan, which is removed afterwards."""
    from kitsseg.runtime.warning_lines import warnings_as_lines

    if say is None:
        return nullcontext()
    return warnings_as_lines(lambda text: say(text.replace(f"{PASSING}{os.sep}", "")))
