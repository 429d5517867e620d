"""A file that was replaced is noticed whatever its size and time; a copy of it is the same; nothing is read in vain."""

import gzip
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from kitsseg.data.cache import sources
from kitsseg.data.cache.sources import Source, same_contents, size_of, source_of, unchanged
from kitsseg.files.json_records import as_builtins, converted

DATA = np.random.default_rng(0).integers(0, 256, 1 << 18).astype(np.uint8).tobytes()


def make(path, kind):
    """A file, or a folder of slices."""
    if kind == "series":
        path.mkdir(parents=True)
        for k in range(4):
            (path / f"IM{k}").write_bytes(bytes(128) + b"DICM" + bytes([k]) * 300)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(DATA, 0, mtime=0) if kind == "gz" else DATA)
    return path


KINDS = ["gz", "nii", "series"]


def changed_in_the_middle(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def with_times_of(path, stat):
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been there for long when it was recorded."""
    monkeypatch.setattr(sources, "_SETTLED_NS", -(10**12))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_while_stat_tells_the_same(tmp_path, monkeypatch, kind):
    path = make(tmp_path / "scan", kind)
    source = source_of(path)

    def read(*_):
        raise AssertionError("read")

    monkeypatch.setattr(sources, "crc32_of", read)
    monkeypatch.setattr(sources._Seen, "ends_sha256", read)
    monkeypatch.setattr(sources._Seen, "contents", read)
    assert unchanged(source, path)
    assert same_contents(source, path)
    assert size_of(path) == source.bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["in place", "renamed over it"])
@pytest.mark.parametrize("settled", [False, True])
def test_other_contents_of_the_same_size_and_time_are_noticed(tmp_path, monkeypatch, kind, how, settled):
    if settled:
        monkeypatch.setattr(sources, "_SETTLED_NS", -(10**12))
    path = make(tmp_path / "scan", kind)
    files = [path / "IM2"] if kind == "series" else [path]
    for file in [path] if kind != "series" else sorted(path.iterdir()):
        os.utime(file, ns=(10**18, 10**18))
    source = source_of(path)
    for file in files:
        stat = file.stat()
        data = gzip.compress(changed_in_the_middle(DATA), 0, mtime=0)
        data = data if kind == "gz" else changed_in_the_middle(file.read_bytes())
        target = file if how == "in place" else file.with_name(".new")
        target.write_bytes(data)
        with_times_of(target, stat)
        target.replace(file)
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        while settled and file.stat().st_ctime_ns == stat.st_ctime_ns:  # until its clock makes a step
            with_times_of(file, stat)
    assert not unchanged(source, path)
    assert not same_contents(source, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_with_kept_times_is_unchanged(tmp_path, kind):
    path = make(tmp_path / "data" / "scan", kind)
    source = source_of(path)
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copy2)
    assert unchanged(source, tmp_path / "copy" / "scan")
    assert same_contents(source, tmp_path / "copy" / "scan")
    path.chmod(0o700)
    assert unchanged(source, path)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert unchanged(source, tmp_path / "moved" / "scan")


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_with_another_time_has_the_same_contents(tmp_path, kind):
    path = make(tmp_path / "data" / "scan", kind)
    source = source_of(path)
    for file in sorted(path.iterdir()) if kind == "series" else [path]:
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert same_contents(source, path)
    assert unchanged(source, path)
    of_older_version = replace(source, contents=None, stamp=None)
    assert unchanged(of_older_version, path) == (kind == "gz")  # a checksum of its own tells


def test_a_series_of_the_same_size_and_other_slices_has_other_contents(tmp_path):
    path = make(tmp_path / "scan", "series")
    source = source_of(path)
    (path / "IM1").rename(path / "other name")
    assert same_contents(source, path)
    (path / "other name").write_bytes(changed_in_the_middle((path / "other name").read_bytes()))
    assert size_of(path) == source.bytes
    assert not same_contents(source, path)


BESIDE = {
    "._IM3": b"fork",
    ".DS_Store": b"x" * 99,
    "notes.txt": b"x",
    "DICOMDIR": bytes(128) + b"DICM",
    "a.png": b"p",
}


@pytest.mark.parametrize("name", [*BESIDE, ".hidden/IM9", "pictures/a.png"])
def test_a_file_that_reading_ignores_changes_no_series(tmp_path, name):
    path = make(tmp_path / "scan", "series")
    source = source_of(path)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(BESIDE.get(name, b"x"))
    assert unchanged(source, path)
    assert size_of(path) == source.bytes
    (path / name).unlink()
    assert unchanged(source, path)


@pytest.mark.parametrize("name", ["IM4", "IM4.txt", "more/IM4"])
def test_a_slice_more_or_less_is_another_series(tmp_path, name):
    path = make(tmp_path / "scan", "series")
    source = source_of(path)
    (path / name).parent.mkdir(exist_ok=True)
    shutil.copy2(path / "IM3", path / name)
    assert not unchanged(source, path)
    (path / name).unlink()
    assert unchanged(source, path)
    (path / "IM3").unlink()
    assert not unchanged(source, path)


def of_older_version(source):
    return converted(
        {name: value for name, value in as_builtins(source).items() if name not in ("contents", "stamp")},
        Source,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_older_versions_are_read_as_they_were_meant(tmp_path, kind):
    path = make(tmp_path / "scan", kind)
    older = of_older_version(source_of(path))
    assert (older.contents, older.stamp) == (None, None)
    assert unchanged(older, path)
    assert same_contents(older, path)
    file = path / "IM1" if kind == "series" else path
    stat = file.stat()
    file.write_bytes(file.read_bytes() + b"x")
    with_times_of(file, stat)
    assert not unchanged(older, path)
    assert not same_contents(older, path)


def test_a_series_with_hidden_files_that_an_older_version_recorded_is_unchanged(tmp_path):
    """It counted them."""
    path = make(tmp_path / "scan", "series")
    (path / ".DS_Store").write_bytes(b"x")
    seen = sources._Seen(path, of_older_version=True)
    older = Source(bytes=seen.bytes, modified_ns=seen.modified_ns, ends_sha256=seen.ends_sha256())
    assert older.bytes == size_of(path) + 1
    assert unchanged(older, path)


def test_what_changed_a_moment_before_it_was_recorded_has_no_stamp(tmp_path, monkeypatch):
    path = make(tmp_path / "scan", "nii")
    assert source_of(path).stamp is None
    monkeypatch.setattr(sources, "_SETTLED_NS", -(10**12))
    assert source_of(path).stamp


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_comes_back_from_its_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "_SETTLED_NS", -(10**12))
    source = source_of(make(tmp_path / "scan", kind))
    back = converted(as_builtins(source), Source)
    assert (back, back.stamp) == (source, source.stamp)
