"""Where a scan lies, if its path alone does not say it: one of several DICOM series of a folder, a path in an archive.

``kitsseg predict`` records it with each scan, and whoever shows the scan later reads it by this record.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from kitsseg.data.formats.grid import Volume
from kitsseg.data.formats.nifti import read_image
from kitsseg.data.layouts.scans import Scan
from kitsseg.errors import InputError
from kitsseg.files.archives import unpack

__all__ = ["ScanPart", "part_of", "read_scan", "scan_is_there"]


@dataclass(frozen=True, kw_only=True)
class ScanPart:
    """What is needed to read a scan beside its path.

    Attributes:
        series: the SeriesInstanceUID, if the folder holds several series.
        inside: the path in an archive, with ``/``. The path of the scan is that of the archive, followed by this one.
    """

    series: str | None = None
    inside: str | None = None


def part_of(scan: Scan) -> ScanPart | None:
    """The ScanPart of a scan that was found; None if its path alone is enough."""
    archive = None if scan.shown is None else _archive_above(scan.place)
    if archive is None and scan.series is None:
        return None
    inside = None if archive is None else scan.place.relative_to(archive).as_posix()
    return ScanPart(series=scan.series, inside=inside)


def scan_is_there(image: Path, part: ScanPart | None) -> bool:
    """Whether the file or folder of a scan, or the archive that holds it, exists."""
    return (_archive_of(image, part) or image).exists()


def read_scan(image: Path, part: ScanPart | None = None) -> Volume:
    """Read a scan as ``kitsseg predict`` read it. One in an archive is unpacked, it alone, into a temporary folder.

    Args:
        image: its path; in an archive, the archive and the path in it.
        part: ScanPart. None, as of records that hold none: the path alone; it may lead into an archive.

    Raises: InputError for a scan that is damaged, or an archive that cannot be unpacked. FileNotFoundError, with the
        path that is missing, if the scan or its archive does not exist. Another OSError if the scan cannot be read.
    """
    archive = _archive_of(image, part)
    if not (there := archive or image).exists():
        raise FileNotFoundError(2, "", str(there))
    series = None if part is None else part.series
    if archive is None:
        return read_image(image, series)
    inside = image.relative_to(archive)
    with ExitStack() as stack:
        # messages name the archive instead of this folder
        target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kitsseg-")))
        try:
            unpack(archive, target, None if inside == PurePath() else PurePosixPath(*inside.parts))
        except (ValueError, OSError) as error:  # of the system such as that of a full disk
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise InputError(
                f"{archive}: cannot be unpacked: {reason}. Unpack it yourself, or make it anew."
            ) from error
        try:
            return read_image(target / inside, series)
        except InputError as error:
            raise InputError(str(error).replace(str(target), str(archive))) from error


def _archive_of(image: Path, part: ScanPart | None) -> Path | None:
    """The archive that a scan lies in; None: it lies in none."""
    if part is None:
        return None if image.exists() else _archive_above(image)
    if part.inside is None:
        return None
    inside = PurePosixPath(part.inside).parts
    if inside and image.parts[-len(inside) :] != inside:
        raise InputError(
            f"{image}: expected a path that ends with {part.inside}, the path in the archive. Predict the scan again."
        )
    return Path(*image.parts[: len(image.parts) - len(inside)])


def _archive_above(image: Path) -> Path | None:
    """The zip archive in the path of a scan; None if no part of the path is one."""
    return next(
        (path for path in (image, *image.parents) if path.suffix.lower() == ".zip" and path.is_file()), None
    )
