"""Compare the files of one case with each other, with the manifest and with the recorded hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kitsseg.data.formats.grid import Grid, kits_affine, on_the_same_voxels
from kitsseg.data.kits19.manifest import ManifestCase
from kitsseg.data.kits19.trusted_hashes import HASHES_FILE, RecordedHash

__all__ = ["Finding", "Known", "compare_grid", "compare_image", "compare_labels", "compare_pair"]

GRID_TOLERANCE = 1e-3  # mm: less is the rounding of a header


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        level: ``error`` (do not train on this case), ``warning``, or ``note`` (something was not checked, and why).
        case: name of the case.
        check: name of the check.
        found, expected, advice: in words.
        folds: True if the table may show the finding in one line for all cases that have it.
    """

    level: str
    case: str
    check: str
    found: str
    expected: str
    advice: str
    folds: bool = True


@dataclass(frozen=True)
class Known:
    """The values with which the cases of a folder are compared.

    Attributes:
        manifest: name -> ManifestCase.
        recorded: name of a case -> RecordedHash of its image.
        seen: SHA-256 of an image -> first case that has it; grows as cases are checked.
    """

    manifest: Mapping[str, ManifestCase]
    recorded: Mapping[str, RecordedHash]
    seen: dict[str, str] = field(default_factory=dict)

    def owner_of_labels(self, sha256: str | None) -> str | None:
        """The case whose labels were released with this hash, or None."""
        return next((row.case for row in self.manifest.values() if row.label_sha256 == sha256), None)

    def owner_of_image(self, sha256: str, case: str) -> str | None:
        """Another case that has this image: by the hashes of 2019, the recorded hashes, or the cases checked so far."""
        owners = [row.case for row in self.manifest.values() if row.image_sha256_2019 == sha256]
        owners += [name for name, file in self.recorded.items() if file.sha256 == sha256]
        owners.append(self.seen.setdefault(sha256, case))
        return next((owner for owner in owners if owner != case), None)


def compare_labels(path: Path, sha256: str, row: ManifestCase, known: Known) -> list[Finding]:
    """Compare a label file of KiTS19 with the released one, byte for byte.

    Args:
        path: of the file.
        sha256: of the file.
        row: ManifestCase.
        known: Known.
    """
    if row.label_sha256 is None or sha256 == row.label_sha256:
        return []
    owner = known.owner_of_labels(sha256)
    found = f"the label map of {owner}" if owner else _file(path.stat().st_size, sha256)
    advice = "Download the labels again; keep maps of your own under another case name"
    if not owner and "relabeled-2019-12-20" in row.flags:
        advice += ". These may be the labels from before the correction of 2019-12-20"
    expected = _file(row.label_bytes, row.label_sha256)
    return [Finding("error", row.case, "hash of the labels", found, expected, advice)]


def compare_grid(what: str, grid: Grid, row: ManifestCase, known: Known) -> list[Finding]:
    """Compare shape and spacing of a file of KiTS19 with the manifest.

    Args:
        what: "image" or "labels".
        grid: Grid of the file.
        row: ManifestCase.
        known: Known.
    """
    if row.shape is None or not (difference := _grid_difference(grid, row)):
        return []
    others = [
        other.case for other in known.manifest.values() if other.shape and not _grid_difference(grid, other)
    ]
    advice = "Download it again"
    if others:
        more = f" or {len(others) - 3} others" if len(others) > 3 else ""
        advice += f"; this is the grid of {', '.join(others[:3])}{more}"
    return [Finding("error", row.case, f"grid of the {what}", *difference, advice)]


def compare_pair(case: str, image: Grid, labels: Grid) -> list[Finding]:
    """Check that image and labels have the same voxels in the patient; the axes of their files may differ.

    Args:
        case: name of the case.
        image, labels: Grid of each file.
    """
    if image.shape != labels.shape:
        expected, found = (f"shape {_numbers(grid.shape)}" for grid in (image, labels))
    elif not _equal_mm(image.spacing_mm, labels.spacing_mm):
        expected, found = (f"spacing {_numbers(grid.spacing_mm)} mm" for grid in (image, labels))
    elif not on_the_same_voxels(labels, image):
        expected, found = (f"affine {kits_affine(grid)[:3].round(3).tolist()}" for grid in (image, labels))
    else:
        return []
    advice = (
        "Are these two files of the same scan? Download both again, or resample the labels onto the image"
    )
    return [Finding("error", case, "grid of the labels against the image", found, expected, advice)]


def compare_image(
    case: str, path: Path, sha256: str, row: ManifestCase | None, known: Known
) -> tuple[list[Finding], bool]:
    """Compare the hash of an image with the hash of 2019, the recorded hash, and the hashes of the other cases.

    Args:
        case: name of the case.
        path: of the image.
        sha256: of the image.
        row: ManifestCase; None for a phantom or a case that is not part of KiTS19.
        known: Known.

    Returns: (findings, whether the hash is new and should be recorded).
    """
    recorded = known.recorded.get(case)
    of_2019 = row is not None and sha256 == row.image_sha256_2019
    found, check = _file(path.stat().st_size, sha256), "hash of the image"
    if owner := known.owner_of_image(sha256, case):
        advice = "Download or copy the right one; one patient under two names makes a split leak"
        finding = Finding("error", case, check, f"the image of {owner}", f"the image of {case}", advice)
        return [finding], False
    if recorded and recorded.sha256 != sha256 and not of_2019:
        expected = f"{_file(recorded.bytes, recorded.sha256)}, as recorded"
        advice = f"Download or copy it again; if you replaced it on purpose, remove it from {HASHES_FILE}"
        return [Finding("error", case, check, found, expected, advice)], False
    if recorded and recorded.sha256 == sha256:
        return [], False
    if row is None or row.image_sha256_2019 is None or of_2019:
        return [], True
    expected = f"{_file(row.image_bytes_2019, row.image_sha256_2019)}, as of 2019"
    advice = "Nothing, if it comes from today's host: it is recorded and trusted from now on"
    return [Finding("warning", case, check, found, expected, advice)], True


def _grid_difference(grid: Grid, row: ManifestCase) -> tuple[str, str] | None:
    """(found, expected) in words if a grid differs from the manifest, else None."""
    if row.shape is not None and grid.shape != row.shape:
        return f"shape {_numbers(grid.shape)}", f"shape {_numbers(row.shape)}"
    if row.spacing_mm is not None and not _equal_mm(grid.spacing_mm, row.spacing_mm):
        return f"spacing {_numbers(grid.spacing_mm)} mm", f"spacing {_numbers(row.spacing_mm)} mm"
    return None


def _equal_mm(left: npt.ArrayLike, right: npt.ArrayLike) -> bool:
    return np.allclose(left, right, atol=GRID_TOLERANCE, rtol=0)


def _file(size: int | None, sha256: str) -> str:
    """Size and hash of a file in words; an unknown size is left out."""
    return f"{'' if size is None else f'{size:,} bytes, '}SHA-256 {sha256[:12]}…"


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)
