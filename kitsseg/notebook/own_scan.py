"""A scan of the user's own: uploaded or named, segmented by the run just trained and by the starter, and shown."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.errors import InputError
from kitsseg.files.archives import unpack
from kitsseg.files.atomic import atomic_folder

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = ["show_own_scan"]


def show_own_scan(run: str | os.PathLike[str], scan: str, upload: bool = False) -> HTML | None:
    """Segment a scan twice, by a run and by the starter network, and show both on one page under the other.

    Slices are scrolled with wheel, keys or the slider; a box hides the outlines. The label maps lie in the folder
    ``own`` beside the run.

    Args:
        run: folder of a finished run.
        scan: a NIfTI file, a folder of a DICOM series, a .zip archive of one; empty: none, unless one is uploaded.
        upload: ask for a file, on Colab.

    Returns: ``IPython.display.HTML``; None, after a line that says what to do, if there is no scan.
    Raises: InputError if there is no such file, no scan in it, or ``upload`` is asked for outside Colab.
    """
    from IPython.display import HTML

    from kitsseg.files.checksums import sha256_of_all
    from kitsseg.inference.cohort import predict_cohort
    from kitsseg.notebook.views import page_frame
    from kitsseg.records.starter import STARTER
    from kitsseg.report.report import write_report
    from kitsseg.runtime.console import console, progress_bar

    path = _uploaded() if upload else Path(scan) if scan else None
    if path is None:
        console.print(
            "No scan given: name one in SCAN, or set UPLOAD, and run this cell again.", markup=False
        )
        return None
    if not path.exists():
        raise InputError(
            f"{path}: expected a NIfTI file, a folder of a DICOM series or a .zip archive, found nothing. Check SCAN."
        )
    pages = []
    # by its contents: another scan of the same name has a folder of its own
    folder = Path(run).parent / "own" / sha256_of_all(path)[:12]
    if zipfile.is_zipfile(path):
        path = _unpacked(path, folder / "scan")  # the pictures need the scan again
    for title, network in (("The run just trained", Path(run)), ("The starter network", STARTER)):
        out = folder / ("starter" if network == STARTER else "run")
        with progress_bar("scans") as progress:
            outcome = predict_cohort(network, [path], out, progress=progress)
        for text in (*outcome.warnings, *outcome.notes):
            console.print(f"warning: {text}", markup=False)
        if outcome.failed:
            raise InputError(" ".join(outcome.failed.values()))
        page = page_frame(write_report(out, out / "report.html"), height=760)
        pages.append(f"<h3>{title}</h3>{page}")
    console.print(f"The label maps are in {folder}.", markup=False)
    return HTML("".join(pages))


def _unpacked(archive: Path, folder: Path) -> Path:
    """The contents of an archive in a folder of their own."""
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as temporary:
            unpack(archive, temporary)
    except ValueError as error:
        raise InputError(f"{archive}: damaged or no archive of scans ({error}). Make it again.") from error
    return folder


def _uploaded() -> Path | None:
    """A file that the user chooses; None if nothing is chosen."""
    try:
        from google.colab import files
    except ImportError as error:
        raise InputError(
            "UPLOAD: expected to run on Colab, found no google.colab. Set it to False, and name the file in SCAN."
        ) from error
    names = list(files.upload())
    if len(names) > 1:
        raise InputError(
            f"UPLOAD: expected one file, found {len(names)}. Put a series of DICOM files into one .zip archive."
        )
    return Path(names[0]) if names else None
