"""A scan is read again as it was found: alone, one of several series in a folder, in an archive."""

import errno
import re
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.dicom_files import noise, write_series

from kitsseg.data.formats.nifti import read_image, write_image
from kitsseg.data.layouts.search import find_scans
from kitsseg.errors import InputError
from kitsseg.records.scan_part import ScanPart, part_of, read_scan, scan_is_there


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder, and another one for temporary files, which is empty in the end."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    folder = tmp_path / "here"
    folder.mkdir()
    yield folder
    assert not any(temporary.iterdir())


def series(folder, uid, seed=0, localizer=False):
    def change(_, dataset):
        dataset.SeriesInstanceUID, dataset.PatientID, dataset.SeriesNumber = uid, "anna", uid[-1]
        if localizer:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    stored = noise((1 if localizer else 4, 6, 5), seed=seed)
    for path in write_series(folder / "new", stored, change=change).iterdir():
        path.rename(folder / f"{uid}-{path.name}")
    (folder / "new").rmdir()
    return np.sort(stored.astype(int).ravel() - 1024)


def nifti(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(-900, 900, (3, 8, 9)).astype(np.int16)
    write_image(path, array, (3, 1, 1))
    return np.sort(array.astype(int).ravel())


def pack(folder, archive, skip=0):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.write(path, Path(*path.relative_to(folder).parts[skip:]))
    return archive


def found(given, tmp_path):
    """Name -> (path, part) of each scan, and its values as predict reads them."""
    with tempfile.TemporaryDirectory() as unpacked:
        scans = find_scans([given], None, lambda: Path(tempfile.mkdtemp(dir=unpacked))).scans
        return {
            name: (scan.place, part_of(scan), np.sort(read_image(scan.path, scan.series).array.ravel()))
            for name, scan in scans.items()
        }


def check(given, tmp_path, expected):
    scans = found(given, tmp_path)
    assert len(scans) == len(expected)
    for values in expected:  # each scan has values of its own
        [(place, part, read)] = [scan for scan in scans.values() if np.array_equal(scan[2], values)]
        assert scan_is_there(place, part)
        np.testing.assert_array_equal(np.sort(read_scan(place, part).array.ravel()), read)
    return [part for _, part, _ in scans.values()]


def test_a_scan_alone_needs_nothing_but_its_path(here):
    one = nifti(here / "a.nii.gz")
    assert check(here, here, [one]) == [None]
    two = series(here / "ct", "1.1")
    assert check(here / "ct", here, [two]) == [None]


def test_a_series_beside_a_scout_and_two_series_in_one_folder_are_read_by_their_uid(here):
    one = series(here / "ct", "1.1")
    series(here / "ct", "1.9", localizer=True)
    assert check(here / "ct", here, [one]) == [ScanPart(series="1.1")]
    two = series(here / "ct", "1.2", seed=1)
    assert check(here / "ct", here, [one, two]) == [ScanPart(series="1.1"), ScanPart(series="1.2")]


def test_scans_in_an_archive_are_unpacked_one_by_one(here):
    expected = [nifti(here / "made" / "p 1" / "ct.nii.gz"), series(here / "made" / "p2" / "SE1", "1.1")]
    expected.append(series(here / "made" / "p2" / "SE2", "1.2", seed=1))
    series(here / "made" / "p2" / "SE2", "1.9", localizer=True)
    archive = pack(here / "made", here / "in.zip")
    parts = check(archive, here, expected)
    assert set(parts) == {
        ScanPart(inside="p 1/ct.nii.gz"),
        ScanPart(inside="p2/SE1"),
        ScanPart(inside="p2/SE2", series="1.2"),
    }


def test_files_at_the_root_of_an_archive_that_lies_in_a_folder(here):
    one = series(here / "made" / "x", "1.1")
    (here / "data" / "deep").mkdir(parents=True)
    pack(here / "made", here / "data" / "deep" / "One.ZIP", skip=1)
    assert check(here / "data", here, [one]) == [ScanPart(inside=".")]


def test_a_record_of_an_older_version_leads_into_an_archive_too(here):
    one = nifti(here / "made" / "p" / "ct.nii.gz")
    archive = pack(here / "made", here / "in.zip")
    np.testing.assert_array_equal(np.sort(read_scan(archive / "p" / "ct.nii.gz").array.ravel()), one)


def test_what_is_missing_or_damaged_is_named_with_the_path_that_the_user_knows(here):
    nifti(here / "made" / "p" / "ct.nii.gz")
    series(here / "made" / "ct", "1.1")
    archive = pack(here / "made", here / "in.zip")
    part = ScanPart(inside="p/ct.nii.gz")
    with pytest.raises(InputError, match=r"in\.zip: cannot be unpacked: .*not hold p/other\.nii"):
        read_scan(archive / "p" / "other.nii", replace(part, inside="p/other.nii"))
    with pytest.raises(InputError, match=rf"^{archive}/ct: .*files of the series 1\.7"):
        read_scan(archive / "ct", ScanPart(inside="ct", series="1.7"))
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(InputError, match=rf"^{archive}: cannot be unpacked: .*make it anew\.$"):
        read_scan(archive / "p" / "ct.nii.gz", part)
    archive.unlink()
    assert not scan_is_there(archive / "p" / "ct.nii.gz", part)
    with pytest.raises(FileNotFoundError) as caught:
        read_scan(archive / "p" / "ct.nii.gz", part)
    assert caught.value.filename == str(archive)


def test_a_full_disk_is_the_reason_and_names_the_archive(here, monkeypatch):
    nifti(here / "made" / "p" / "ct.nii.gz")
    archive = pack(here / "made", here / "in.zip")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space", "/tmp/kitsseg-x/ct.nii.gz")

    monkeypatch.setattr("kitsseg.records.scan_part.unpack", full)
    with pytest.raises(InputError, match=rf"^{archive}: .*unpacked: No space\."):
        read_scan(archive / "p" / "ct.nii.gz", ScanPart(inside="p/ct.nii.gz"))


@pytest.mark.parametrize(
    "inside", ["../../etc/hostname", "/etc/hostname", "x", "p/../../x", ".." + "/.." * 50]
)
def test_a_path_in_an_archive_that_leads_elsewhere_is_refused(here, inside):
    nifti(here / "made" / "p" / "ct.nii.gz")
    archive = pack(here / "made", here / "in.zip")
    with pytest.raises(InputError, match=f"path that ends with {re.escape(inside)}"):
        read_scan(archive / "p" / "ct.nii.gz", ScanPart(inside=inside))
