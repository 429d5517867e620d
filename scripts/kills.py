"""Kill commands at random moments, call them again, and see that they end in what an uninterrupted call gives.

    python scripts/kills.py                                  # 30 kills in each command; an hour or two
    python scripts/kills.py --kills 5 --seed 7 synthesize download

Every trial starts a command in a process of its own, kills it (SIGKILL) at a random moment, and repeats the command, as
its help says to go on, until it ends by itself. Then the folder must hold what an uninterrupted call has made: the same
files, equal in all but times; no hidden file, no lock, nothing half made. The same seed gives the same moments as
shares of the time that the command takes.
"""

import argparse
import csv
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ["COMMANDS", "Command", "difference", "run"]

TIMES = {
    "seconds",
    "finished",
    "modified_ns",
    "share",
    "sha256",
    "model_sha256",
    "versions_resumed",
    "milliseconds",
}
CALM = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Command:
    """One command to be killed.

    Attributes:
        first: its arguments, for the folder of the inputs and the folder of the result.
        again: the same where something is there already; None: as ``first``.
        needs: names of the commands whose results are its inputs.
    """

    first: Callable[[Path, Path], list[object]]
    again: Callable[[Path, Path], list[object]] | None = None
    needs: tuple[str, ...] = ()


def _resumed(arguments: list[object], out: Path) -> list[object]:
    return [*arguments, "--resume"] if (out / "run.json").is_file() else arguments


def _train(i: Path, out: Path) -> list[object]:
    return ["train", "unet2d:tiny", i / "preprocess", out, "--epochs", "8"]


def _prune(i: Path, out: Path) -> list[object]:
    return ["prune", i / "train", i / "preprocess", out, "--sparsity", "0.5", "--epochs", "2"]


def _shrink(i: Path, out: Path) -> list[object]:
    return ["shrink", i / "train", i / "preprocess", out, "--keep", "0.5", "--epochs", "1"]


def _folds(i: Path, out: Path) -> list[object]:
    return ["cross-validate", "unet2d:tiny", i / "preprocess", out, "--folds", "2", "--epochs", "1", "--data",
            i / "synthesize"]  # fmt: skip


COMMANDS = {
    "synthesize": Command(
        lambda i, out: ["synthesize", out, "--cases", "6", "--size", "16,64,64", "--seed", "3"]
    ),
    "preprocess": Command(
        lambda i, out: ["preprocess", "unet2d:tiny", i / "synthesize", out], needs=("synthesize",)
    ),
    "download": Command(lambda i, out: ["download", out, "--from", i / "scans", "--cases", "210-229"]),
    "train": Command(_train, lambda i, out: _resumed(_train(i, out), out), ("synthesize", "preprocess")),
    "prune": Command(
        _prune, lambda i, out: _resumed(_prune(i, out), out), ("synthesize", "preprocess", "train")
    ),
    "shrink": Command(
        _shrink, lambda i, out: _resumed(_shrink(i, out), out), ("synthesize", "preprocess", "train")
    ),
    "predict": Command(
        lambda i, out: ["predict", i / "train", i / "synthesize", "--out", out],
        needs=("synthesize", "preprocess", "train"),
    ),
    "export": Command(
        lambda i, out: ["export", i / "train", "--out", out / "net.tflite", "--size", "64,64"],
        needs=("synthesize", "preprocess", "train"),
    ),
    "cross-validate": Command(_folds, needs=("synthesize", "preprocess")),
}


def make_scans(folder: Path) -> None:
    """Scans for ``download --from``: made up, and none of kitsseg's phantoms, which it refuses."""
    from kitsseg.data.formats.nifti import write_image

    for number in range(210, 230):
        hu = np.random.default_rng(number).integers(-1000, 1000, (30, 128, 128)).astype(np.int16)
        write_image(folder / f"case_{number:05d}" / "imaging.nii.gz", hu, (3.0, 0.8, 0.8))


def start(arguments: list[object]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kitsseg", *map(str, arguments)],
        env=os.environ | CALM,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(arguments: list[object]) -> float:
    """Run a command to its end; returns the seconds. Raises: RuntimeError with what it said, if it fails."""
    began = time.monotonic()
    process = start(arguments)
    said = process.communicate()[0].decode("utf-8", "replace")
    if process.returncode:
        raise RuntimeError(
            f"kitsseg {' '.join(map(str, arguments))}: exit code {process.returncode}: {said[-800:]}"
        )
    return time.monotonic() - began


def kill_at(arguments: list[object], seconds: float) -> bool:
    """Start a command and kill it after so many seconds; returns whether it was still at work."""
    process = start(arguments)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


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


def run(name: str, inputs: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill a command so often; (kills that met it at work, trials that ended in anything else)."""
    command = COMMANDS[name]
    expected = inputs / name
    took = finish(command.first(inputs, inputs / f"{name}-timed"))
    hit = wrong = 0
    for number in range(kills):
        moment = np.random.default_rng([seed, number]).uniform(0.2, 1.05) * took
        out = inputs / f"{name}-{number}"
        hit += kill_at(command.first(inputs, out), moment)
        try:
            done = not _only_finished(name, out)
            if done:
                finish((command.again or command.first)(inputs, out))
            problem = difference(out, expected)
        except RuntimeError as error:
            problem = str(error)
        if problem:
            wrong += 1
            print(f"WRONG {name} {number}, killed after {moment:.2f} of {took:.2f} s: {problem}", flush=True)
        shutil.rmtree(out, ignore_errors=True)
    return hit, wrong


def _only_finished(name: str, out: Path) -> bool:
    """Whether a training ended before it was killed: there is nothing to resume then, and the command says so."""
    if name not in ("train", "prune", "shrink") or not (out / "run.json").is_file():
        return False
    finished = json.loads((out / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    return finished and not (out / "checkpoint").exists()


def prepare(names: list[str], inputs: Path) -> None:
    """What uninterrupted calls make, of the commands to be killed and of those whose results they need."""
    make_scans(inputs / "scans")
    for name, command in COMMANDS.items():
        if name in names or any(name in COMMANDS[other].needs for other in names):
            finish(command.first(inputs, inputs / name))


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
    failed = 0
    with tempfile.TemporaryDirectory(prefix="kitsseg-kills-") as temporary:
        prepare(names, Path(temporary))
        for name in names:
            began = time.monotonic()
            hit, wrong = run(name, Path(temporary), arguments.kills, arguments.seed)
            failed += wrong
            print(
                f"{name:14} {arguments.kills} trials, {hit} killed at work: {arguments.kills - wrong} ended as "
                f"uninterrupted, {wrong} other ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
