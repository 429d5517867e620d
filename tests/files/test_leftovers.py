"""Unfinished files of killed processes are removed. Files of running processes and files of the user stay."""

import signal
import subprocess
import sys

import pytest

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import cache_folder
from kitsseg.files import atomic
from kitsseg.files.atomic import atomic_folder, atomic_path, remove_unfinished

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of folders")

HOLD = """
import sys, time
from pathlib import Path
from kitsseg.files.atomic import atomic_folder, atomic_path
folder = Path(sys.argv[1])
with atomic_folder(folder / "case_00007") as temporary, atomic_path(folder / "net.tflite") as file:
    (temporary / "image.npy").write_text("half")
    file.write_text("half")
    print(temporary.name, file.name, flush=True)
    time.sleep(60)
"""


def unfinished(folder, name=".case_00001-kitsseg-0123abcd"):
    (folder / name).mkdir()
    (folder / name / "image.npy").write_text("half")
    return folder / name


OF_OTHERS = ("case_00001", ".case_00001-x7a", ".case_00001-0123abcd", ".git", "a-kitsseg-0123abcd")


def test_only_hidden_names_of_ours_are_removed(tmp_path):
    left = [unfinished(tmp_path), tmp_path / ".net-kitsseg-89abcdef.tflite"]
    left[1].write_text("half")
    kept = [unfinished(tmp_path, name) for name in OF_OTHERS]
    for name in (".note-0123abcd", ".note-kitsseg-0123abc", ".note-kitsseg-0123ABCD.txt", "net.tflite"):
        (tmp_path / name).write_text("a file")
        kept.append(tmp_path / name)
    link = tmp_path / ".case_00002-kitsseg-0123abcd"
    link.symlink_to(kept[0])
    assert remove_unfinished(tmp_path) == sorted([*left, link])
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)  # also the target of the link
    assert not link.is_symlink()


@pytest.mark.parametrize(
    "name", ["net.tflite", "run.json", "prediction_00001.nii.gz", "x" * 240 + ".csv", "no suffix"]
)
def test_the_next_writer_of_a_folder_removes_what_a_killed_one_left(name, tmp_path):
    left = tmp_path / ".other-kitsseg-0123abcd.nii.gz"
    left.write_text("half")
    folder = unfinished(tmp_path)
    with atomic_path(tmp_path / name) as temporary:
        assert not left.exists()
        assert not folder.exists()
        temporary.write_text("whole")
        with atomic_path(tmp_path / "beside.txt") as another:  # nor does it remove its own
            another.write_text("whole")
        assert temporary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "beside.txt"])


def test_what_another_process_is_at_work_on_stays_until_it_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        its = [tmp_path / name for name in process.stdout.readline().split()]
        with atomic_path(tmp_path / "mine.txt") as temporary:  # several may be at work at once
            temporary.write_text("whole")
        assert remove_unfinished(tmp_path) == []
        assert all(path.exists() for path in its)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert all(path.exists() for path in its)  # nobody could clear up
    assert remove_unfinished(tmp_path) == sorted(its)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_where_nothing_can_be_locked_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    left = unfinished(tmp_path)

    class NoLocks:
        LOCK_SH, LOCK_EX, LOCK_NB = 1, 2, 4

        @staticmethod
        def flock(file, flags):
            raise OSError(37, "No locks available")

    for system in (None, NoLocks):
        monkeypatch.setattr(atomic, "fcntl", system)
        with atomic_path(tmp_path / "new.txt") as temporary:
            temporary.write_text("whole")
        assert (tmp_path / "new.txt").read_text() == "whole"
        assert remove_unfinished(tmp_path) == []
        assert left.exists()


def test_an_error_comes_through_and_gives_the_lock_back(tmp_path):
    with pytest.raises(OSError, match="disk"), atomic_path(tmp_path / "new.txt"):
        raise OSError("disk")
    left = unfinished(tmp_path)
    assert remove_unfinished(tmp_path) == [left]


def test_preprocess_clears_up_but_not_while_another_is_at_work(data, spec, tmp_path):
    folder = cache_folder(tmp_path / "cache", spec)
    preprocess_cases(data, tmp_path / "cache", spec)
    with atomic_folder(folder / "case_00009"):
        left = unfinished(folder)
        preprocess_cases(data, tmp_path / "cache", spec)
        assert left.exists()
    preprocess_cases(data, tmp_path / "cache", spec)
    assert not left.exists()
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == [f"case_{i:05d}" for i in range(10)]
