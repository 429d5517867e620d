"""Archives of scans: all that is in them is unpacked, or the damage is named; nothing vanishes without a word."""

import errno
import io
import os
import random
import zipfile
from pathlib import PurePosixPath

import pytest

from kitsseg.files.archives import check_archive, damage_named, unpack

FILES = {"a/one.bin": bytes(range(200)), "b/two.txt": b"x" * 500, "three": b"hello"}


def packed(files=FILES, remark=b"", **options):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            with archive.open(name, "w", **options) as entry:
                entry.write(data)
        archive.comment = remark
    return content.getvalue()


def unpacked(content, folder):
    """What comes out of an archive, by name."""
    out = folder / "out"
    out.mkdir(parents=True)
    (folder / "scans.zip").write_bytes(content)
    unpack(folder / "scans.zip", out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content",
    [
        packed(),
        packed(remark=b"exported by a PACS"),
        packed(force_zip64=True),
        b"a program in front of it" * 20 + packed(),
        packed({f"{k}.dcm": b"%d" % k for k in range(300)}),
    ],
    ids=["plain", "remark", "zip64", "self-extracting", "many"],
)
def test_all_files_come_out(content, tmp_path):
    found = unpacked(content, tmp_path)
    assert found == (FILES if "three" in found else {f"{k}.dcm": b"%d" % k for k in range(300)})


def test_entries_that_only_the_larger_record_counts(tmp_path, monkeypatch):
    """As of 65,536 files and more: the old record says 65,535."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    content = bytearray(packed())
    content[-14:-10] = b"\xff" * 4
    assert unpacked(content, tmp_path / "whole") == FILES
    assert content[-98:-94] == b"PK\6\6"
    content[-98 + 32] += 1
    with pytest.raises(ValueError, match="its directory is damaged"):
        unpacked(content, tmp_path / "damaged")


def test_any_changed_byte_of_the_directory_is_named_or_changes_nothing(tmp_path):
    """A changed length makes zipfile skip entries; a changed name can become that of a folder."""
    content = packed()
    draw, refused = random.Random(0), 0
    for place in range(content.index(b"PK\1\2"), len(content)):
        for value in {0, 255, content[place] ^ 128, draw.randrange(256)} - {content[place]}:
            damaged = bytearray(content)
            damaged[place] = value
            try:
                found = unpacked(damaged, tmp_path / f"{place}-{value}")
            except ValueError as error:
                refused += 1
                assert str(error)
                assert "\n" not in str(error)
            else:
                assert found == FILES, f"byte {place} made {value}"
    assert refused > 300


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.8, 0.95, 0.99])
def test_an_archive_that_was_cut_off_is_named(share, tmp_path):
    content = packed()
    with pytest.raises(ValueError, match="."):
        unpacked(content[: int(share * len(content))], tmp_path)


def test_a_place_that_no_file_has_is_damage_and_a_broken_disk_is_not(tmp_path):
    with pytest.raises(ValueError, match="its directory is damaged"), damage_named():
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    with pytest.raises(OSError, match="Input/output"), damage_named():
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    "reader", [check_archive, lambda path: unpack(path, path.parent)], ids=["check", "unpack"]
)
def test_both_readers_count_the_entries(reader, tmp_path):
    damaged = bytearray(packed())
    damaged[-12] += 1  # entries in all
    (tmp_path / "scans.zip").write_bytes(damaged)
    with pytest.raises(ValueError, match="its directory is damaged"):
        reader(tmp_path / "scans.zip")


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("a", {"a/1.dcm", "a/deep/2.dcm"}),
        ("a/deep", {"a/deep/2.dcm"}),
        ("ab/1.dcm", {"ab/1.dcm"}),
        ("dot/x.nii", {"dot/x.nii"}),
    ],
)
def test_one_file_or_folder_is_unpacked_alone(tmp_path, only, expected):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for name in ("a/1.dcm", "a/deep/2.dcm", "ab/1.dcm", "./dot/x.nii", "1.dcm", "__MACOSX/a/1.dcm"):
            archive.writestr(name, name)
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "scans.zip", tmp_path / "out", PurePosixPath(only))
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert found == expected


def test_an_archive_that_would_do_harm_is_refused_whatever_of_it_is_asked_for(tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.dcm", "x")
        archive.writestr("bomb", bytes(100 << 20))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="would unpack to"):
        unpack(tmp_path / "scans.zip", tmp_path / "out", PurePosixPath("a"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a/1.dcm", "x")
    for only in ("b", "a/2.dcm", "../a", "/a", "a/1.dcm/x"):
        with pytest.raises(ValueError, match="it does not hold"):
            unpack(tmp_path / "other.zip", tmp_path / "out", PurePosixPath(only))
    assert not any((tmp_path / "out").iterdir())
