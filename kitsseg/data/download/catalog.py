"""The files of KiTS19: their addresses today, their places in common folders, and the check that a file is right."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.data.formats.nifti import says_phantom
from kitsseg.data.kits19.manifest import ManifestCase
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of

try:
    from isal import igzip, isal_zlib  # 2-3 times faster inflation; optional

    _gzip_open: Callable[..., Any] = igzip.open
    _DAMAGE: tuple[type[Exception], ...] = (
        igzip.BadGzipFile,
        isal_zlib.IsalError,  # type: ignore[assignment]  # a class, whatever its stubs say
    )
except ImportError:
    _gzip_open, _DAMAGE = gzip.open, ()
_NOT_WHOLE: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, EOFError, *_DAMAGE)

if TYPE_CHECKING:
    from kitsseg.data.kits19.manifest import ManifestCase

__all__ = [
    "LABELS_URL",
    "DamagedFile",
    "KitsFile",
    "check_file",
    "find_local",
    "parse_cases",
    "wanted_files",
]

# The imaging moved here from kits19.sfo2.digitaloceanspaces.com/master_00000.nii.gz in 2026; the account is that of the
# challenge's first author. The sizes that others report for case_00000 and case_00001, 225,959,569 and 276,387,358
# bytes, are those of the files of 2019.
IMAGES_REPOSITORY = "neheller/KiTS-Challenge-Imaging"
LABELS_URL = "https://raw.githubusercontent.com/neheller/kits19/master/data/{case}/segmentation.nii.gz"

# KiTS19, a clone of its repository, KiTS21 and KiTS23, the imaging data set, the host of 2019, nnU-Net
_IMAGE_PLACES = (
    "{case}/imaging.nii.gz",
    "data/{case}/imaging.nii.gz",
    "dataset/{case}/imaging.nii.gz",
    "images/{case}.nii.gz",
    "{case}.nii.gz",
    "master_{number}.nii.gz",
    "imagesTr/{case}_0000.nii.gz",
    "imagesTs/{case}_0000.nii.gz",
    "{case}_0000.nii.gz",
)
_LABEL_PLACES = (
    "{case}/segmentation.nii.gz",
    "data/{case}/segmentation.nii.gz",
    "labels/{case}.nii.gz",
    "labelsTr/{case}.nii.gz",
)


_LARGEST = 4 << 30  # of a case whose size is not known: KiTS19's largest scan would have 2.2 GB as float64
_SPARE = 1 << 20  # a header; a page that says what is wrong should be seen


class DamagedFile(Exception):
    """A file is not whole, or it is whole but another file; the message says which."""

    def __init__(self, message: str, whole: bool = True) -> None:
        super().__init__(message)
        self.whole = whole


@dataclass(frozen=True)
class KitsFile:
    """One file of the data set.

    Attributes:
        path: below the data folder, such as ``case_00000/imaging.nii.gz``.
        url: where it is served.
        places: paths in common layouts of KiTS19 where the file may lie, in the order in which they are tried.
        bytes, sha256: of the released file; None for the imaging of the 90 test cases.
        strict: True for labels, which must be the released file; the imaging may differ from the release of 2019.
        not_sha256: the hash of this case's other file, which must not be taken for this one.
        most_bytes: upper limit of the file's size; no more than this is fetched.
        most_unpacked: upper limit of its size when it is decompressed.
    """

    path: str
    url: str
    places: tuple[str, ...]
    bytes: int | None
    sha256: str | None
    strict: bool
    not_sha256: str | None = None
    most_bytes: int = _LARGEST
    most_unpacked: int = _LARGEST


def parse_cases(text: str, manifest: Mapping[str, ManifestCase]) -> list[str]:
    """Names of cases from ``0,3-7`` or ``all-training``, in order, each once.

    Args:
        manifest: name of a case -> ManifestCase.

    Raises: InputError if the text has another form, or names a case that KiTS19 does not have.
    """
    if text == "all-training":
        return [name for name, case in manifest.items() if case.label_sha256]
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(?:case_)?([0-9]{1,5})(?:-(?:case_)?([0-9]{1,5}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise InputError(
                f"--cases {text}: expected numbers such as 0,3-7 or all-training, found {part!r}."
            )
        numbers.update(range(first, last + 1))
    names = [f"case_{number:05d}" for number in sorted(numbers)]
    unknown = [name for name in names if name not in manifest]
    if unknown:
        raise InputError(
            f"--cases {text}: KiTS19 has {len(manifest)} cases, {next(iter(manifest))} to {list(manifest)[-1]}; "
            f"found {unknown[0]}. Give other numbers."
        )
    return names


def wanted_files(
    cases: Iterable[ManifestCase],
    labels_only: bool = False,
    images_url: str | None = None,
    labels_url: str = LABELS_URL,
) -> list[KitsFile]:
    """The files of some cases, labels first, because they are small.

    Args:
        cases: ManifestCase of each case.
        labels_only: no imaging.
        images_url: address of the imaging, with ``{case}`` in it; None: its repository on the Hub.
        labels_url: address of the label maps, with ``{case}`` in it.

    Raises: InputError if an address lacks ``{case}`` or is no address, or if ``labels_only`` is True and the labels of
        a case are not public.
    """
    place = "--images-url" if images_url else "HF_ENDPOINT"
    images_url = images_url or _hub_url()
    for option, url in ((place, images_url), ("--labels-url", labels_url)):
        if not url.startswith(("https://", "http://")) or "{case}" not in url:
            raise InputError(f"{option}: expected an address such as {LABELS_URL}, found {url}.")
    labels, images = [], []
    for row in cases:
        names = {"case": row.case, "number": row.case.removeprefix("case_")}
        if row.label_sha256:
            places = tuple(place.format(**names) for place in _LABEL_PLACES)
            url = labels_url.replace("{case}", row.case)
            path = f"{row.case}/segmentation.nii.gz"
            most = (row.label_bytes or _LARGEST) + _SPARE, _unpacked(row, 2)
            labels.append(KitsFile(path, url, places, row.label_bytes, row.label_sha256, True, None, *most))
        elif labels_only:
            raise InputError(
                f"{row.case}: the labels of the 90 test cases are not public. Choose cases from 0 to 209."
            )
        places = tuple(place.format(**names) for place in _IMAGE_PLACES)
        url = images_url.replace("{case}", row.case)
        size, sha256 = row.image_bytes_2019, row.image_sha256_2019
        path = f"{row.case}/imaging.nii.gz"
        unpacked = _unpacked(row, 8)
        file = KitsFile(path, url, places, size, sha256, False, row.label_sha256, unpacked, unpacked)
        images.append(file)
    return labels if labels_only else labels + images


def _hub_url() -> str:
    """Address of the imaging in its repository on the Hub, or on the mirror that HF_ENDPOINT names."""
    from huggingface_hub import hf_hub_url

    url: str = hf_hub_url(IMAGES_REPOSITORY, "images/CASE.nii.gz", repo_type="dataset")
    return url.replace("CASE", "{case}")


def _unpacked(row: ManifestCase, bytes_of_voxel: int) -> int:
    """Upper limit of a case's file when decompressed: its voxels, with ``bytes_of_voxel`` bytes each, and a header."""
    return math.prod(row.shape) * bytes_of_voxel + _SPARE if row.shape else _LARGEST


def find_local(folder: str | os.PathLike[str], file: KitsFile) -> Path | None:
    """Where ``file`` lies below a folder in any usual layout, or None."""
    return next((path for path in (Path(folder) / place for place in file.places) if path.is_file()), None)


def check_file(
    path: str | os.PathLike[str], file: KitsFile, announced: str | None = None
) -> tuple[str, str | None]:
    """Check that ``path`` is the whole and right ``file``.

    Args:
        path: of the file on this disk.
        file: which file of KiTS19 it should be.
        announced: the SHA-256 that the host announces for the file, or None.

    Returns: (SHA-256, remark). The remark is None unless the file is imaging that is whole but differs from 2019.
    Raises: DamagedFile if it is not whole or not the right file.
    """
    sha256 = sha256_of(path)
    if sha256 == file.sha256:
        return sha256, None
    if sha256 == file.not_sha256:
        raise DamagedFile("it is the label map of this case, not its imaging")
    size = Path(path).stat().st_size
    of_size = "" if size == file.bytes or file.bytes is None else f" of {file.bytes:,} bytes"
    _check_whole(path, file.most_unpacked)
    if file.strict:
        raise DamagedFile(f"expected the released label map{of_size}, found another one of {size:,} bytes")
    if says_phantom(path):
        raise DamagedFile("it is a phantom, made by kitsseg synthesize, and no patient of KiTS19")
    if announced is not None and sha256 != announced:
        raise DamagedFile(f"its SHA-256 is not the one its host announces, {announced[:12]}...")
    if file.sha256 is None:
        return sha256, None
    return sha256, f"{file.path}: whole, but not the file of 2019{of_size}; trusted on first use"


def _check_whole(path: str | os.PathLike[str], most_unpacked: int) -> None:
    """Read a file to its end, so that gzip's checksum is compared, and compare its length with the NIfTI header.

    The hash that a host announces does not tell whether the file is a scan: a log-in page may have a hash, too.
    """
    with Path(path).open("rb") as opened:
        start = opened.read(64).lstrip()
    if start.startswith(b"<"):
        raise DamagedFile(
            "found a web page instead of the file; does a proxy ask you to log in?", whole=False
        )
    if start.startswith(b"version https://git-lfs"):
        raise DamagedFile("found a Git LFS pointer instead of the file", whole=False)
    try:
        with _gzip_open(path, "rb") as opened:
            header = opened.read(540)
            size = len(header)
            while chunk := opened.read(1 << 20):
                size += len(chunk)
                if size > most_unpacked:
                    raise DamagedFile(f"it unpacks to more than the {most_unpacked:,} bytes that it can hold")
    except _NOT_WHOLE as error:
        raise DamagedFile(f"not a whole gzip file ({error})", whole=False) from error
    stated = _nifti_bytes(header)
    if size < stated:  # several gzip files in one, of which the last are missing
        raise DamagedFile(f"not whole: it holds {size:,} bytes, its header states {stated:,}", whole=False)


def _nifti_bytes(header: bytes) -> int:
    """Size of an uncompressed NIfTI-1 or NIfTI-2 file, from the fields of its header."""
    for order in "<>":
        if len(header) >= 352 and struct.unpack_from(f"{order}i", header)[0] == 348:
            dims, (bits,) = (
                struct.unpack_from(f"{order}8h", header, 40),
                struct.unpack_from(f"{order}h", header, 72),
            )
            (start,) = struct.unpack_from(f"{order}f", header, 108)
            if not 0 <= start < 1 << 30:  # written so that NaN fails too
                raise DamagedFile(f"its header says that the voxels begin at byte {start:g}")
            offset = int(start)
        elif len(header) >= 540 and struct.unpack_from(f"{order}i", header)[0] == 540:
            dims, (bits,) = (
                struct.unpack_from(f"{order}8q", header, 16),
                struct.unpack_from(f"{order}h", header, 14),
            )
            (offset,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        size: int = offset + math.prod(dims[1 : 1 + dims[0]]) * bits // 8
        return size
    raise DamagedFile("a whole gzip file, but not of a NIfTI image")
