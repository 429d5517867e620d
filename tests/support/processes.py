"""Commands in processes of their own that tests stop in the middle."""

import signal
import subprocess
import sys
import time

__all__ = ["contents", "hidden", "start", "stop_when"]


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
    def listen():  # whoever started the tests in the background may have made them deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        preexec_fn=listen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hidden(folder):
    return list(folder.rglob(".*"))


def contents(folder, names):
    return {
        str(path.relative_to(folder)): path.read_bytes() for n in names for path in (folder / n).iterdir()
    }
