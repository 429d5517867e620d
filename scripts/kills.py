"""Stop commands at random moments, call them again, and see that they end in what an uninterrupted call gives.

    python scripts/kills.py                                  # 30 times in each command; three quarters of an hour
    python scripts/kills.py --kills 5 --seed 7 synthesize download

Every trial starts a command in a process of its own and sends a signal to the process: SIGKILL, SIGTERM or SIGINT. The
command's workers get SIGINT too, as they would from a terminal. The moment is drawn over the time that an uninterrupted
call takes. Then the command is called again, in the way that its help describes for going on. The folder must now hold
the files of an uninterrupted call, equal in all but times. No hidden file, no lock, no half-written file and no process
may be left. The same seed gives the same signals at the same shares of the time.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
from support.fault_server import fault_server  # noqa: E402  # from the folder above

__all__ = ["COMMANDS", "Command", "difference", "run"]

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
TIMES = {
    "seconds",
    "finished",
    "modified_ns",
    "stamp",
    "share",
    "sha256",
    "model_sha256",
    "versions_resumed",
    "milliseconds",
}
CALM = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "no_proxy": "*"}


@dataclass(frozen=True)
class Command:
    """One command to be stopped.

    Attributes:
        first: its arguments, for the folder of the inputs and the folder of the result.
        again: the same where something is there already; None: as ``first``.
        needs: names of the commands whose results are its inputs.
    """

    first: Callable[[Path, Path], list[object]]
    again: Callable[[Path, Path], list[object]] | None = None
    needs: tuple[str, ...] = ()


def _resumed(command: Callable[[Path, Path], list[object]]) -> Callable[[Path, Path], list[object]]:
    def again(i: Path, out: Path) -> list[object]:
        return [*command(i, out), *(["--resume"] if (out / "run.json").is_file() else [])]

    return again


def _train(i: Path, out: Path) -> list[object]:
    return ["train", "unet2d:micro", i / "preprocess", out, "--epochs", "4"]


def _prune(i: Path, out: Path) -> list[object]:
    return ["prune", i / "train", i / "preprocess", out, "--sparsity", "0.5", "--epochs", "2"]


def _shrink(i: Path, out: Path) -> list[object]:
    return ["shrink", i / "train", i / "preprocess", out, "--keep", "0.5", "--multiple", "2", "--epochs", "2"]


def _folds(i: Path, out: Path) -> list[object]:
    return ["cross-validate", "unet2d:micro", i / "preprocess", out, "--folds", "2", "--epochs", "1", "--data",
            i / "synthesize"]  # fmt: skip


def _from_server(i: Path, out: Path) -> list[object]:
    url = (i / "url").read_text(encoding="utf-8")
    return ["download", out, "--cases", "210-217", "--images-url", f"{url}/{{case}}.nii.gz"]


PATIENTS = ("synthesize", "preprocess")
COMMANDS = {
    "synthesize": Command(
        lambda i, out: ["synthesize", out, "--cases", "4", "--size", "12,48,48", "--seed", "3"]
    ),
    "preprocess": Command(
        lambda i, out: ["preprocess", "unet2d:micro", i / "synthesize", out], needs=("synthesize",)
    ),
    "download": Command(_from_server),
    "download-from": Command(lambda i, out: ["download", out, "--from", i / "scans"]),
    "train": Command(_train, _resumed(_train), PATIENTS),
    "prune": Command(_prune, _resumed(_prune), (*PATIENTS, "train")),
    "shrink": Command(_shrink, _resumed(_shrink), (*PATIENTS, "train")),
    "predict": Command(
        lambda i, out: ["predict", i / "train", i / "synthesize", "--out", out], needs=(*PATIENTS, "train")
    ),
    "export": Command(
        lambda i, out: ["export", i / "train", "--out", out / "net.tflite", "--size", "64,64"],
        needs=(*PATIENTS, "train"),
    ),
    "cross-validate": Command(_folds, needs=PATIENTS),
}


# ---- processes -----------------------------------------------------------------------------------------------------


class Forks:
    """Starts commands as forks of a process that has imported all they need."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.server = subprocess.Popen(
            [sys.executable, "-m", "support.forked_commands"],
            cwd=TESTS,
            env=os.environ | CALM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, arguments: list[object]) -> int:
        """Start a command; returns the number of its process, which leads a group of its own."""
        self.log.unlink(missing_ok=True)
        assert self.server.stdin
        self.server.stdin.write(json.dumps([list(map(str, arguments)), str(self.log)]).encode() + b"\n")
        self.server.stdin.flush()
        return self._answer()

    def ended(self, seconds: float | None = None) -> int | None:
        """Wait for the command that was started last: its exit code, or None if it still runs after ``seconds``."""
        assert self.server.stdout
        if seconds is not None and not select.select([self.server.stdout], [], [], seconds)[0]:
            return None
        return self._answer()

    def _answer(self) -> int:
        assert self.server.stdout
        return int(self.server.stdout.readline())

    def finish(self, arguments: list[object]) -> float:
        """Run a command to its end; returns the seconds it took. Raises: RuntimeError with its output if it fails.

        One failure is allowed: if a training had finished before the signal came, ``--resume`` says that there is
        nothing to resume, and removes leftovers of the training.
        """
        began = time.monotonic()
        self.start(arguments)
        code, said = self.ended(), self.log.read_text(encoding="utf-8", errors="replace")
        if code and not ("--resume" in arguments and "this run has finished" in said):
            raise RuntimeError(f"kitsseg {' '.join(map(str, arguments))}: exit code {code}: {said[-800:]}")
        return time.monotonic() - began

    def stop_at(self, arguments: list[object], seconds: float, number: signal.Signals) -> bool:
        """Start a command and send it the signal ``number`` after ``seconds``; returns whether the signal stopped it.

        Raises: RuntimeError if the exit code does not fit this signal, or if a process of the command is left.
        """
        process = self.start(arguments)
        code = self.ended(seconds)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGINT else os.kill)(process, number)
            code, allowed = self.ended(), (0, 130, -number)  # 0: it was at its last line
            if code not in allowed:
                said = self.log.read_text(encoding="utf-8", errors="replace")[-800:]
                raise RuntimeError(f"{number.name}: expected exit code {allowed}, found {code}: {said}")
        elif code:
            raise RuntimeError(f"exit code {code}: {self.log.read_text(errors='replace')[-800:]}")
        last = time.monotonic() + 20  # workers end after what they are at
        while time.monotonic() < last:
            try:
                os.killpg(process, 0)
            except ProcessLookupError:
                return code != 0
            time.sleep(0.05)
        raise RuntimeError("a process is left")

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()


# ---- what may differ -----------------------------------------------------------------------------------------------


def _without_times(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item, folder) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_without_times(item, folder) for item in value]
    return value.replace(str(folder), "OUT") if isinstance(value, str) else value


def _weights(data: bytes) -> dict[str, Any]:
    found = {}
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
    ):
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def _numbers(text: str) -> list[list[Any]]:
    def cell(value: str) -> Any:
        try:
            return float(value)
        except ValueError:
            return value

    return [[cell(value) for value in row] for row in csv.reader(text.splitlines())]


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-4, atol=1e-6))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-4, atol=1e-5))
    return bool(one == other)


def difference(found: Path, expected: Path) -> str | None:
    """How a folder differs from another one, but for times; None if it does not."""
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (found, expected)
    ]
    if names[0] != names[1]:
        return f"too much: {sorted(names[0] - names[1])[:5]}, missing: {sorted(names[1] - names[0])[:5]}"
    for name in sorted(names[0]):
        one, other = found / name, expected / name
        if one.is_dir():
            continue
        data = one.read_bytes(), other.read_bytes()
        if data[0] == data[1] or one.suffix in (".html", ".md"):  # these show times and seconds
            continue
        if one.suffix == ".json":
            values = [
                _without_times(json.loads(d), folder)
                for d, folder in zip(data, (found, expected), strict=True)
            ]
        elif one.suffix == ".keras":
            values = [_weights(d) for d in data]
        elif one.suffix == ".csv":
            values = [_numbers(d.decode()) for d in data]
        elif one.name.endswith(".nii.gz"):
            values = [gzip.decompress(d) for d in data]
        else:
            return f"{name} differs"
        if not _alike(*values):
            return f"{name} differs"
    return None


# ---- the trials ----------------------------------------------------------------------------------------------------

SCANS = range(210, 218)  # cases without label maps, whose hashes nobody has published


def scan(number: int) -> bytes:
    """A scan for ``download``: made up, and none of kitsseg's phantoms, which it refuses."""
    import nibabel as nib

    hu = np.random.default_rng(number).integers(-1000, 1000, (64, 64, 12)).astype(np.int16)
    image = nib.Nifti1Image(hu, np.diag([0.8, 0.8, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 1)


@contextlib.contextmanager
def scans_to_fetch(inputs: Path) -> Iterator[None]:
    """A folder of scans, and a server that gives each in pieces, with a pause after each of them."""
    scans = {f"case_{number:05d}": scan(number) for number in SCANS}
    for name, data in scans.items():
        (inputs / "scans" / name).mkdir(parents=True)
        (inputs / "scans" / name / "imaging.nii.gz").write_bytes(data)
    with fault_server() as server:
        server.files = {f"/{name}.nii.gz": data for name, data in scans.items()}
        server.always = dict.fromkeys(server.files, "drip")
        server.drip_bytes = 3000
        (inputs / "url").write_text(server.url(""), encoding="utf-8")
        yield


def run(name: str, inputs: Path, forks: Forks, kills: int, seed: int) -> Counter[str]:
    """Stop a command ``kills`` times; counts the trials by the moment of the signal, and the "wrong" results."""
    command = COMMANDS[name]
    expected, timed = inputs / name, inputs / f"{name}-timed"
    took = forks.finish(command.first(inputs, timed))
    counts: Counter[str] = Counter()
    if problem := difference(timed, expected):
        raise RuntimeError(f"two uninterrupted calls of {name} differ: {problem}")
    for trial in range(kills):
        rng = np.random.default_rng([seed, trial])
        share, number = rng.uniform(0, 1.03), SIGNALS[int(rng.integers(len(SIGNALS)))]
        out = inputs / f"{name}-{trial}"
        try:
            stopped = forks.stop_at(command.first(inputs, out), share * took, number)
            begun = any(path.is_file() for path in out.rglob("*"))
            counts["after the end" if not stopped else "at work" if begun else "before any file"] += 1
            forks.finish((command.again or command.first)(inputs, out))
            problem = difference(out, expected)
        except RuntimeError as error:
            problem = str(error)
        if problem:
            counts["wrong"] += 1
            print(
                f"WRONG {name} {trial}, {number.name} at {share:.3f} of {took:.2f} s: {problem}", flush=True
            )
        shutil.rmtree(out, ignore_errors=True)
    return counts


def prepare(names: list[str], inputs: Path, forks: Forks) -> None:
    """Run the commands to be stopped, and the commands whose results they need, once without interruption."""
    for name, command in COMMANDS.items():
        if name in names or any(name in COMMANDS[other].needs for other in names):
            forks.finish(command.first(inputs, inputs / name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)} (default: all)"
    )
    parser.add_argument("--kills", type=int, default=30, help="in each command (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = arguments.commands or list(COMMANDS)
    if unknown := set(names) - set(COMMANDS):
        parser.error(f"expected commands of {', '.join(COMMANDS)}; found {', '.join(sorted(unknown))}")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kitsseg-kills-") as temporary, scans_to_fetch(Path(temporary)):
        inputs = Path(temporary)
        forks = Forks(inputs)
        prepare(names, inputs, forks)
        for name in names:
            began = time.monotonic()
            counts = run(name, inputs, forks, arguments.kills, arguments.seed)
            wrong += counts["wrong"]
            when = ", ".join(f"{counts[w]} {w}" for w in ("before any file", "at work", "after the end"))
            print(
                f"{name:14} {arguments.kills} trials ({when}): {arguments.kills - counts['wrong']} ended as "
                f"uninterrupted, {counts['wrong']} other ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
        forks.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
