"""An archive of a cache: cases come back as they were, and damaged parts of the archive are never used."""

import os
import shutil
import sys
import zipfile
from dataclasses import replace

import pytest
from support.cases import StopAfter, make_case, make_cases_and_cache, spec_of_tests
from support.processes import contents

from kitsseg.data.cache import archive as archives
from kitsseg.data.cache.archive import archive_folder, bring_back, keep_cases
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import cache_folder, open_cache
from kitsseg.errors import InputError

NAMES = [f"case_{i:05d}" for i in range(5)]
SPEC = spec_of_tests()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_cases_and_cache(tmp_path_factory.mktemp("made"), NAMES, SPEC)


@pytest.fixture
def kept(made, tmp_path, monkeypatch):
    """An archive of five cases in three volumes."""
    monkeypatch.setattr(archives, "VOLUME_CASES", 2)
    assert keep_cases(made / "cache", SPEC, tmp_path / "drive", NAMES) == NAMES
    return tmp_path / "drive"


def volumes(archive):
    """By the cases in them, in order."""
    found = {}
    for path in archive_folder(archive, SPEC).glob("*.zip"):
        with zipfile.ZipFile(path) as volume:
            found[tuple(sorted({name.split("/")[0] for name in volume.namelist()}))] = path
    return dict(sorted(found.items()))


def back(archive, folder, names=NAMES, **options):
    return bring_back(archive, folder / "cache", SPEC, names, **options)


def same(made, folder, names=NAMES):
    there, here = (cache_folder(place / "cache", SPEC) for place in (made, folder))
    assert contents(here, names) == contents(there, names)
    assert set(open_cache(folder / "cache", SPEC)) == set(names)
    assert sorted(path.name for path in here.iterdir()) == sorted([*names, "spec.json"])


def test_what_comes_back_is_what_was_kept(made, kept, tmp_path):
    assert list(volumes(kept)) == [tuple(NAMES[:2]), tuple(NAMES[2:4]), tuple(NAMES[4:])]
    told = []
    assert back(kept, tmp_path, progress=lambda *now: told.append(now)) == NAMES
    same(made, tmp_path)
    assert told[-1][1] == told[-1][2] == sum(path.stat().st_size for path in volumes(kept).values())
    # preprocessing keeps the restored cases as if it had made them
    assert preprocess_cases(made / "data", tmp_path / "cache", SPEC)[1:] == ([], NAMES)


def test_only_what_is_asked_for_and_not_there_comes_back(made, kept, tmp_path):
    assert back(kept, tmp_path, NAMES[1:3]) == NAMES[1:3]
    same(made, tmp_path, NAMES[1:3])
    assert back(kept, tmp_path) == [NAMES[0], *NAMES[3:]]
    same(made, tmp_path)
    assert back(kept, tmp_path) == []
    assert back(tmp_path / "nowhere", tmp_path / "other") == [] and not (tmp_path / "other").exists()


def test_what_is_kept_is_not_kept_again(made, kept):
    before = {path: path.stat().st_mtime_ns for path in volumes(kept).values()}
    assert keep_cases(made / "cache", SPEC, kept, reversed(NAMES)) == []
    assert {path: path.stat().st_mtime_ns for path in volumes(kept).values()} == before


def test_a_call_that_was_stopped_loses_one_volume(made, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "VOLUME_CASES", 2)
    with pytest.raises(KeyboardInterrupt):
        keep_cases(made / "cache", SPEC, tmp_path / "drive", NAMES, progress=StopAfter(2))
    assert list(volumes(tmp_path / "drive")) == [tuple(NAMES[:2])]
    assert keep_cases(made / "cache", SPEC, tmp_path / "drive", NAMES) == NAMES[2:]
    assert back(tmp_path / "drive", tmp_path) == NAMES
    same(made, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("where", ["packing", "copying"])
def test_a_process_killed_while_it_writes_leaves_no_volume(where, made, tmp_path, monkeypatch):
    child = os.fork()
    if child == 0:
        if where == "packing":
            monkeypatch.setattr(archives, "sha256_of", lambda path: os.kill(os.getpid(), 9))
        else:

            def half(source, target):
                target.write_bytes(source.read_bytes()[:1000])
                os.kill(os.getpid(), 9)

            monkeypatch.setattr(archives.shutil, "copyfile", half)
        keep_cases(made / "cache", SPEC, tmp_path / "drive", NAMES)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert not list(tmp_path.rglob("cases-*"))
    assert keep_cases(made / "cache", SPEC, tmp_path / "drive", NAMES) == NAMES
    assert [path.name for path in archive_folder(tmp_path / "drive", SPEC).iterdir()] == [
        next(iter(volumes(tmp_path / "drive").values())).name
    ]
    assert not (cache_folder(made / "cache", SPEC) / ".archive").exists()


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "a bit":
        data[len(data) // 2] ^= 1
    elif how == "half":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["a bit", "half", "empty"])
def test_a_damaged_volume_is_named_left_out_and_made_again(how, made, kept, tmp_path):
    bad = volumes(kept)[tuple(NAMES[2:4])]
    damaged(bad, how)
    said = []
    assert back(kept, tmp_path, say=said.append) == [*NAMES[:2], NAMES[4]]
    assert len(said) == 1 and bad.name in said[0] and not bad.exists()
    same(made, tmp_path, [*NAMES[:2], NAMES[4]])
    preprocess_cases(made / "data", tmp_path / "cache", SPEC)
    assert keep_cases(tmp_path / "cache", SPEC, kept, NAMES) == NAMES[2:4]
    shutil.rmtree(tmp_path / "cache")
    assert back(kept, tmp_path) == NAMES
    same(made, tmp_path)


def test_a_case_that_was_damaged_before_it_was_packed_is_not_used(made, tmp_path):
    shutil.copytree(made / "cache", tmp_path / "source")
    folder = cache_folder(tmp_path / "source", SPEC)
    labels = folder / NAMES[1] / "labels.npy"
    damaged(labels, "a bit")
    keep_cases(tmp_path / "source", SPEC, tmp_path / "drive", NAMES)
    said = []
    assert back(tmp_path / "drive", tmp_path, say=said.append) == [NAMES[0], *NAMES[2:]]
    assert len(said) == 1 and NAMES[1] in said[0] and volumes(tmp_path / "drive") == {}


def test_a_case_made_from_another_label_map_is_not_used(made, kept, tmp_path):
    shutil.copytree(made / "data", tmp_path / "data")
    make_case(tmp_path / "data" / NAMES[4], positive=(1, 5))
    (tmp_path / "data" / NAMES[0] / "segmentation.nii.gz").unlink()
    said = []
    assert back(kept, tmp_path, data=tmp_path / "data", say=said.append) == NAMES[1:4]
    assert [
        name in text
        for name, text in zip((NAMES[0], NAMES[4]), sorted(said, key=lambda t: NAMES[4] in t), strict=True)
    ]
    assert list(volumes(kept)) == [tuple(NAMES[2:4])]


def test_another_specification_or_version_is_never_brought_back(made, kept, tmp_path, monkeypatch):
    other = replace(SPEC, hu_window=(-80.0, 304.0))
    assert bring_back(kept, tmp_path / "cache", other, NAMES) == []
    monkeypatch.setattr(archives, "CACHE_VERSION", 99)
    assert back(kept, tmp_path) == []
    assert archive_folder(kept, SPEC).name.endswith("-v99")


def test_compressed_caches_are_kept_as_they_are(made, tmp_path):
    pytest.importorskip("blosc2")
    preprocess_cases(made / "data", tmp_path / "packed", SPEC, compress=True)
    keep_cases(tmp_path / "packed", SPEC, tmp_path / "drive", NAMES)
    assert back(tmp_path / "drive", tmp_path) == NAMES
    there, here = (cache_folder(tmp_path / name, SPEC) for name in ("packed", "cache"))
    assert contents(here, NAMES) == contents(there, NAMES)


def test_a_disk_too_small_is_said_on_both_sides(made, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "free_bytes", lambda folder: 1000)
    with pytest.raises(InputError, match=r"5 of 5 cases take .* GB free"):
        monkeypatch.setattr(archives, "VOLUME_CASES", 32)
        keep_cases(made / "cache", SPEC, tmp_path / "small", NAMES)
    assert not list((tmp_path / "small").rglob("*.zip"))
    with pytest.raises(InputError, match=r"cases-.* take .* GB free"):
        back(kept, tmp_path)
    assert len(volumes(kept)) == 3
    monkeypatch.undo()
    assert back(kept, tmp_path) == NAMES


def test_a_case_that_is_not_in_the_cache_is_named(made, tmp_path):
    with pytest.raises(InputError, match="case_00077"):
        keep_cases(made / "cache", SPEC, tmp_path / "drive", ["case_00077"])


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_volume_with_a_file_without_a_name_is_removed(made, kept, tmp_path, name):
    path = next(iter(volumes(kept).values()))
    with zipfile.ZipFile(path, "a") as volume:
        volume.writestr(zipfile.ZipInfo(name), b"")
    said = []
    assert back(kept, tmp_path, say=said.append) == NAMES[2:]
    assert len(said) == 1
    assert f"warning: {path}: damaged (a file is called" in said[0]
    assert not path.exists()
    assert keep_cases(made / "cache", SPEC, kept, NAMES) == NAMES[:2]
