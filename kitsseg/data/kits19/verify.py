"""Check a data folder: files, hashes, grids, labels and HU of every case, and that each case has its right name.

An image whose hash is not the one of 2019 is trusted on first use: its hash is recorded in the folder, and from then on
the file must not change. A label map of KiTS19 must be the released one, byte for byte. The manifest does not hold
phantoms and other patients; their files are compared with each other only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib

from kitsseg.data.formats.doubts import doubts_about
from kitsseg.data.formats.grid import Doubt
from kitsseg.data.formats.label_doubts import LabelSummary, doubts_about_labels, share_in_air, summary_of
from kitsseg.data.formats.nifti import read_image, read_labels, says_phantom
from kitsseg.data.kits19.findings import (
    Finding,
    Known,
    compare_grid,
    compare_image,
    compare_labels,
    compare_pair,
)
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.kits19.trusted_hashes import HASHES_FILE, read_hashes, record_hash
from kitsseg.data.layouts.find import Case, Layout, find_cases
from kitsseg.data.layouts.names import IMAGE_NAMES, in_case_folder
from kitsseg.data.layouts.nnunet import nnunet_root
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.paths import as_given

if TYPE_CHECKING:
    from kitsseg.data.formats.grid import Grid, Volume
    from kitsseg.data.kits19.manifest import ManifestCase
    from kitsseg.interfaces import Progress

__all__ = ["Finding", "verify_data"]


def verify_data(
    folder: str | os.PathLike[str],
    cases: Iterable[str] | None = None,
    manifest: Mapping[str, ManifestCase] | None = None,
    labels_only: bool = False,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> tuple[list[Finding], list[str]]:
    """Check the cases of a folder.

    Every file is read to its end, one at a time. Hashes of the images of cases without an error are recorded in the
    folder (``trusted_hashes``), except for phantoms.

    Args:
        folder: of cases in KiTS19 layout, or another that ``find_cases`` knows; or of one case.
        cases: names of the cases to check; all by default.
        manifest: name -> ManifestCase to compare with; the package's own by default. With an empty dict nothing is
            compared.
        labels_only: images are neither expected nor read.
        layout: where the files lie, if the folder alone does not tell it.
        progress: called as ``progress(description, done, total)``.

    Returns: (findings: list of Finding in the order of the cases, names of the cases that were checked).
    Raises: InputError if the folder holds no cases or its record of hashes cannot be read.
    """
    layout = Layout() if layout is None else layout
    options = ("--labels",) if labels_only else ("--images", "--labels")
    found = {case.name: case for case in find_cases(folder, False, False, layout, options)}
    root = _root(Path(folder), next(iter(found.values())))
    wanted = set(cases or ())
    if layout == Layout():  # folders of cases without any of their files
        wanted |= {sub.name for sub in root.glob("case_*") if sub.is_dir() and root == Path(folder)}
    absent = {name: Case(name, root / name / IMAGE_NAMES[0], None) for name in wanted - found.keys()}
    names = sorted(found.keys() | absent.keys()) if cases is None else sorted(set(cases))
    hashes = read_hashes(root)
    recorded = {
        name: file
        for name, case in found.items()
        if case.image and (file := hashes.get(_place(case.image, root)))
    }
    known = Known(read_manifest() if manifest is None else manifest, recorded)
    findings = []
    for done, name in enumerate(names):
        if progress:
            progress(f"verify {name}", done, len(names))
        findings += _verify_case(found.get(name) or absent[name], known, labels_only, root)
    if progress:
        progress("verified", len(names), len(names))
    return findings, names


def _root(folder: Path, case: Case) -> Path:
    """The folder that holds ``hashes.json``: the folder of all cases, even if only one case or one part is given."""
    here, file = as_given(folder), case.image or case.truth
    if file.parent == here and in_case_folder(file):
        return here.parent
    nnunet = nnunet_root(folder)
    return nnunet[0] if nnunet and file.is_relative_to(nnunet[0]) else folder


def _place(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix()


def _verify_case(case: Case, known: Known, labels_only: bool, root: Path) -> list[Finding]:
    row = known.manifest.get(case.name)
    image, labels, findings = _files(case, row, labels_only)
    phantom = case.image is not None and case.image.is_file() and says_phantom(case.image)
    findings += _not_compared(case, row, phantom)
    image_row = None if phantom else row
    image_grid = label_grid = image_sha256 = None
    summary: LabelSummary | None = (
        None  # stays when the labels go: two volumes at once would need more memory
    )
    in_air = 0.0

    def judge_labels(volume: Volume) -> list[Doubt]:
        nonlocal summary
        summary = summary_of(volume)
        return []

    def judge_image(volume: Volume) -> list[Doubt]:
        nonlocal in_air
        if summary is not None:
            in_air = share_in_air(summary, volume)
        return doubts_about(volume)

    if labels:
        reader = partial(read_labels, values=case.label_values)
        label_grid, sha256, more = _read(labels, case.name, "labels", reader, judge_labels)
        findings += more
        # labels drawn for a phantom are in no manifest, but a phantom's image may belong to real ones
        own = _has_cysts(case) or (phantom and known.owner_of_labels(sha256) is None)
        if row and sha256 and not own:
            findings += compare_labels(labels, sha256, row, known)
            findings += compare_grid("labels", label_grid, row, known) if label_grid else []
    if image:
        image_grid, image_sha256, more = _read(image, case.name, "image", read_image, judge_image)
        findings += more
    if summary is not None:
        findings += _warnings(case.name, doubts_about_labels(summary, in_air))
    if image_grid and image_row:
        findings += compare_grid("image", image_grid, image_row, known)
    if image_grid and label_grid:
        findings += compare_pair(case.name, image_grid, label_grid)
    if image and image_sha256:
        more, new = compare_image(case.name, image, image_sha256, image_row, known)
        if not new:
            findings += more
        elif not any(finding.level == "error" for finding in findings):
            findings += more
            findings += [] if phantom else _record(case, image_sha256, root)
    return findings


def _has_cysts(case: Case) -> bool:
    """Whether a label map is one of KiTS21 or KiTS23, whose images are those of KiTS19."""
    of_kits21 = case.labels is not None and case.labels.name.startswith("aggregated")
    return of_kits21 or len(case.label_values) > 3


def _not_compared(case: Case, row: ManifestCase | None, phantom: bool) -> list[Finding]:
    """A note that the manifest holds nothing about a case."""
    if phantom:
        found, advice = "a phantom", "Nothing to do: files, grids and values were checked"
    elif row is None:
        found = "no case of KiTS19"
        advice = "Nothing to do: files, grids, values and change since the first check were checked"
    elif _has_cysts(case):
        found = "labels of KiTS21 or KiTS23"
        advice = "The labels are checked by themselves, the image is compared"
    else:
        return []
    return [Finding("note", case.name, "manifest", found, "a case of the manifest", advice)]


def _files(
    case: Case, row: ManifestCase | None, labels_only: bool
) -> tuple[Path | None, Path | None, list[Finding]]:
    """(image, labels, findings): None for a file that does not exist, and a finding if it should exist."""
    image = case.image if case.image and case.image.exists() and not labels_only else None
    folder = (case.image or case.truth).parent
    if not folder.is_dir():
        there = "no such folder"
    else:
        names = [
            path.name + ("" if path.exists() else " (a link to nothing)") for path in sorted(folder.iterdir())
        ]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        there = f"the folder holds {', '.join(names[:4]) or 'nothing'}{more}"
    findings = []
    if image is None and not labels_only:
        name, advice = case.image.name if case.image else "an image", "Download it, or remove the case"
        findings.append(Finding("error", case.name, "files", there, name, advice))
    if case.labels is None and row is not None and row.label_sha256:
        findings.append(Finding("error", case.name, "files", there, "a label map", "Download it"))
    elif case.labels is None and row is None:
        advice = "Nothing, if the case is for prediction only"
        findings.append(Finding("warning", case.name, "files", there, "a label map", advice))
    return image, case.labels, findings


def _read(
    path: Path,
    case: str,
    what: str,
    reader: Callable[[Path], Volume],
    judge: Callable[[Volume], list[Doubt]],
) -> tuple[Grid | None, str | None, list[Finding]]:
    """(grid, SHA-256, findings) of a file; grid and hash are None if the file cannot be read."""
    expected = {"image": "a whole CT in HU", "labels": "a whole map of the labels 0, 1, 2"}[what]
    grid = sha256 = None
    findings = []
    try:
        sha256 = sha256_of(path) if path.is_file() else None
        volume = reader(path)
        grid = volume.grid
        findings += _warnings(case, judge(volume))
    except InputError as error:  # PATH: what is wrong. What to do.
        found, _, advice = str(error).removeprefix(f"{path}: ").partition(". ")
        advice = advice.rstrip(".") or "Download or export it again"
        findings.append(Finding("error", case, what, found.rstrip("."), expected, advice))
    except OSError as error:
        found, advice = error.strerror or str(error), "Check the disk and the permissions"
        findings.append(Finding("error", case, what, found, expected, advice))
    if grid and what == "labels" and (stored := _stored_as(grid.header)):
        found = f"whole numbers, but stored {stored}"
        advice = "kitsseg reads them; other programs may interpolate them. Save them as uint8"
        findings.append(Finding("warning", case, what, found, "an integer type", advice))
    return grid, sha256, findings


def _warnings(case: str, doubts: Iterable[Doubt]) -> list[Finding]:
    return [
        Finding("warning", case, doubt.check, doubt.found, doubt.expected, doubt.advice, folds=False)
        for doubt in doubts
    ]


def _stored_as(header: nib.Nifti1Header) -> str | None:
    """How labels are stored if other programs may take them for an image; None if they are stored as integers."""
    if header.get_slope_inter() not in ((None, None), (1.0, 0.0)):
        return f"with a scale factor (scl_slope {header.get_slope_inter()[0]:g})"
    dtype = header.get_data_dtype()
    return f"as {dtype}" if dtype.kind == "f" else None


def _record(case: Case, sha256: str, root: Path) -> list[Finding]:
    try:
        record_hash(root, _place(case.scan, root), sha256, case.scan.stat().st_size)
    except OSError as error:
        advice = "Make the folder writable; until then a later change of the image goes unnoticed"
        expected = f"its hash in {HASHES_FILE}"
        found = error.strerror or str(error)
        return [Finding("warning", case.name, "record of the image", found, expected, advice)]
    return []
