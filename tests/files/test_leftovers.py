"""What a killed process left half made goes; what another one is at work on, and what is the user's, stays."""

import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import cache_folder
from kitsseg.files import locks as leftovers
from kitsseg.files.atomic import atomic_folder
from kitsseg.files.locks import at_work, remove_unfinished

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shared locks of files")

HOLD = """
import sys, time
from pathlib import Path
from kitsseg.files.atomic import atomic_folder
from kitsseg.files.locks import at_work
file = Path(sys.argv[1])
with at_work(file), atomic_folder(file.parent / "case_00007") as temporary:
    (temporary / "image.npy").write_text("half")
    print(temporary.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    return tmp_path / "spec.json"


def unfinished(folder, name=".case_00001-0123abcd"):
    (folder / name).mkdir()
    (folder / name / "image.npy").write_text("half")
    return folder / name


def test_only_what_atomic_folder_names_so_is_removed(file, tmp_path):
    left = unfinished(tmp_path)
    kept = [unfinished(tmp_path, name) for name in ("case_00001", ".case_00001-x7a", ".git", "a-0123abcd")]
    (tmp_path / ".note-0123abcd").write_text("a file")
    (tmp_path / ".case_00002-0123abcd").symlink_to(kept[0])
    assert remove_unfinished(file) == [left]
    assert not left.exists()
    assert all((folder / "image.npy").exists() for folder in kept)
    assert (tmp_path / ".note-0123abcd").exists()
    assert (tmp_path / ".case_00002-0123abcd").is_symlink()
    with atomic_folder(tmp_path / "case_00003") as temporary:  # the names are those of today
        assert remove_unfinished(file) == [temporary]
        temporary.mkdir()


def test_what_another_process_is_at_work_on_stays_until_it_is_killed(file, tmp_path):
    left = unfinished(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        its = tmp_path / process.stdout.readline().strip()
        assert (its / "image.npy").exists()
        with at_work(file):  # several may be at work at once
            assert remove_unfinished(file) == []
        assert remove_unfinished(file) == []
        assert left.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert its.exists()  # nobody could clear up
    assert remove_unfinished(file) == sorted([left, its])
    assert not its.exists()


def test_where_nothing_can_be_locked_nothing_is_removed(file, tmp_path, monkeypatch):
    left = unfinished(tmp_path)
    assert remove_unfinished(tmp_path / "nowhere" / "spec.json") == []
    with at_work(tmp_path / "nowhere" / "spec.json"):
        pass

    class NoLocks:
        LOCK_SH, LOCK_EX, LOCK_NB = 1, 2, 4

        @staticmethod
        def flock(file, flags):
            raise OSError(37, "No locks available")

    for system in (None, NoLocks):
        monkeypatch.setattr(leftovers, "fcntl", system)
        with at_work(file):
            assert remove_unfinished(file) == []
        assert left.exists()


def test_an_error_at_work_comes_through_and_gives_the_lock_back(file, tmp_path):
    left = unfinished(tmp_path)
    with pytest.raises(OSError, match="disk"), at_work(file):
        raise OSError("disk")
    assert remove_unfinished(file) == [left]


def test_preprocess_clears_up_but_not_while_another_is_at_work(data, spec, tmp_path):
    folder = cache_folder(tmp_path / "cache", spec)
    preprocess_cases(data, tmp_path / "cache", spec)
    left = unfinished(folder)
    with ExitStack() as another:
        another.enter_context(at_work(folder / "spec.json"))
        preprocess_cases(data, tmp_path / "cache", spec)
        assert left.exists()
    preprocess_cases(data, tmp_path / "cache", spec)
    assert not left.exists()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        f"case_{i:05d}" for i in range(9)
    ]
