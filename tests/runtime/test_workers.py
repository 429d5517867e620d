"""Several processes: every item is done once, errors come back, nobody is left behind."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from kitsseg.errors import InputError
from kitsseg.runtime.workers import in_processes, one_by_one


def work(item):
    """Do what an item says: write the file at this path, or fail in this way."""
    if item == "bad":
        raise InputError("bad: expected something else.")
    if item == "broken":
        raise KeyError("a mistake")
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    folder, _, seconds = item.partition("?")
    Path(folder).write_text(str(os.getpid()))
    if seconds:
        try:
            time.sleep(float(seconds))
        finally:
            Path(f"{folder}-cleared").touch()


def test_every_item_is_done_once_by_some_process(tmp_path):
    items = [str(tmp_path / str(i)) for i in range(5)]
    done = dict(in_processes(work, items, 2))
    assert done == dict.fromkeys(items)
    pids = {Path(item).read_text() for item in items}
    assert 1 <= len(pids) <= 2
    assert str(os.getpid()) not in pids


@pytest.mark.parametrize("how", [one_by_one, lambda f, items: in_processes(f, items, 2)], ids=["one", "two"])
def test_a_bad_item_does_not_hold_up_the_others(how, tmp_path):
    items = ["bad", str(tmp_path / "a"), str(tmp_path / "b")]
    found = dict(how(work, items))
    assert str(found.pop("bad")) == "bad: expected something else."
    assert found == dict.fromkeys(items[1:])
    assert all(Path(item).exists() for item in items[1:])


def test_another_error_ends_all(tmp_path):
    with pytest.raises(KeyError, match="a mistake") as caught:
        list(in_processes(work, ["broken"], 2))
    assert "workers.py" in caught.value.__notes__[0]  # where it happened
    with pytest.raises(InputError, match=r"^killed: .* ended with code -9, .* Use fewer workers"):
        list(in_processes(work, ["killed", str(tmp_path / "a")], 1))


def test_whoever_stops_early_stops_the_processes_which_clear_up(tmp_path):
    items = [str(tmp_path / "quick"), f"{tmp_path / 'long'}?60"]
    started = time.monotonic()
    with closing(in_processes(work, items, 2)) as results:
        item, _ = next(results)
        assert item == items[0]
        while not (tmp_path / "long").exists():
            time.sleep(0.01)
    assert time.monotonic() - started < 30
    assert (tmp_path / "long-cleared").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "long").read_text()), 0)


def test_nothing_to_do():
    assert list(in_processes(work, [], 2)) == list(one_by_one(work, [])) == []
