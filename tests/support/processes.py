"""Commands in processes of their own that tests stop in the middle."""

import json
import signal
import subprocess
import sys
import time

__all__ = ["contents", "hidden", "start", "start_held", "stop_when"]

# Runs kitsseg, but waits a minute before a file or folder whose path matches the first argument gets its final name.
_HELD = """
import re, sys, time
from contextlib import contextmanager
from kitsseg.files import atomic

def held(writing):
    @contextmanager
    def waiting(path):
        with writing(path) as temporary:
            yield temporary
            if re.search(sys.argv[1], str(path)):
                time.sleep(60)
    return waiting

atomic.atomic_path, atomic.atomic_folder = held(atomic.atomic_path), held(atomic.atomic_folder)
from kitsseg.cli import main
sys.exit(main(sys.argv[2:]))
"""


def stop_when(process, reached, number):
    """Send a signal once ``reached()``; returns (exit code, standard output, standard error)."""
    last = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"it ended before it got that far: {process.communicate()}"
        assert time.monotonic() < last, "it never got that far"
        time.sleep(0.0005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def start(arguments, folder):
    def listen():  # tests that were started in the background may ignore Ctrl-C; the command must not
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        preexec_fn=listen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_held(where, arguments, folder):
    """Start a command that waits before it finishes a path matching ``where``, so that a test can stop it in time."""
    return start(["-c", _HELD, where, *arguments], folder)


def hidden(folder):
    return list(folder.rglob(".*"))


def contents(folder, names):
    return {
        str(path.relative_to(folder)): _without_stamp(path) for n in names for path in (folder / n).iterdir()
    }


def _without_stamp(path):
    """The bytes of a file. The record of a cached case tells when its scan was changed, unless that was just before."""
    if path.name != "case.json":
        return path.read_bytes()
    record = json.loads(path.read_text())
    for source in record["sources"].values():
        source.pop("stamp", None)
    del record["sha256"]  # of the record itself
    return record
