"""Only one process works in a folder, and a second process is told which one. No lock file stays.

File systems without locks are tested too.
"""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from kitsseg.errors import InputError
from kitsseg.files import locks
from kitsseg.files.locks import folder_lock

HOLD = """
import sys, time
from kitsseg.files.locks import folder_lock
with folder_lock(sys.argv[1], "train", wait=False, doing="training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_message_says_who_holds_it_and_what_it_does(holder, tmp_path):
    with (
        pytest.raises(InputError, match=f"run: another process.* training here .process {holder.pid} on "),
        folder_lock(tmp_path / "run", "train", wait=False, doing="training"),
    ):
        pytest.fail("two at once")
    with folder_lock(tmp_path / "run", "another", wait=False):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path / "run", "train", wait=False):
        if sys.platform != "win32":
            assert f"process {os.getpid()} " in (tmp_path / "run" / ".train.lock").read_text()
    if sys.platform != "win32":
        assert list((tmp_path / "run").iterdir()) == []


def test_nothing_stays_and_a_folder_that_was_made_for_nothing_goes(tmp_path):
    with folder_lock(tmp_path / "new", "x"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with folder_lock(tmp_path / "used", "x"):
        (tmp_path / "used" / "result").touch()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["result"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyError), folder_lock(tmp_path / "empty", "x"):
        raise KeyError
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: expected a folder"), folder_lock(tmp_path / "file", "x"):
        pass


def test_many_threads_one_after_the_other(tmp_path):
    inside, most, made = [], [], []

    def work():
        for _ in range(20):
            with folder_lock(tmp_path, "x"):
                inside.append(1)
                most.append(len(inside))
                made.append(1)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(made) == 80


@pytest.mark.skipif(sys.platform == "win32", reason="simulates what other systems say")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_without_locks_of_the_file_system_it_goes_on_with_one_warning(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    said = []
    for _ in range(2):
        with (
            folder_lock(tmp_path, "x", wait=False, say=said.append),
            pytest.raises(InputError, match="another process.* working here"),
            folder_lock(tmp_path, "x", wait=False),
        ):
            pytest.fail("two threads of this process at once")
    assert len(said) == 1
    assert str(tmp_path) in said[0]
    assert "has no locks" in said[0]
    assert list(tmp_path.iterdir()) == []
