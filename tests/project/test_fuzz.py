"""A short run of the fuzzer: whatever is damaged, a command refuses in one line or gives the right result."""

import importlib.util
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import kitsseg

SCRIPT = Path(kitsseg.__file__).parent.parent / "scripts" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    if not SCRIPT.is_file():
        pytest.skip("not a source tree")
    spec = importlib.util.spec_from_file_location("kitsseg_fuzz", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TRAININGS = {"npy", "npz", "torch"}  # each trial that is accepted trains
STARTING = {
    "run",
    "cache",
    "scores",
    "keras",
    "keras-inside",
    "tflite",
    "onnx",
}  # need a trained run, or Keras


def check_counts(fuzz, kinds, count):
    """Run the script for some kinds; nothing may end in another way. Returns (clean lines, right results)."""
    command = [sys.executable, str(SCRIPT), "--count", str(count), "--seed", "1", "--seconds", "120", *kinds]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    rows = re.findall(
        rf"^(\S+) +{count} trials: (\d+) clean line, (\d+) right result, 0 other", done.stdout, re.M
    )
    assert [row[0] for row in rows] == kinds
    assert all(int(row[1]) + int(row[2]) == count for row in rows)
    return sum(int(row[1]) for row in rows), sum(int(row[2]) for row in rows)


def test_damaged_scans_are_refused_in_one_line_or_read_rightly(fuzz):
    lines, results = check_counts(fuzz, [name for name in fuzz.KINDS if name not in TRAININGS | STARTING], 3)
    assert lines >= 4
    assert results >= 4


@pytest.mark.slow
def test_damaged_files_are_refused_in_one_line_or_read_rightly(fuzz):
    assert set(fuzz.KINDS) > TRAININGS | STARTING
    lines, results = check_counts(fuzz, [name for name in fuzz.KINDS if name not in TRAININGS], 6)
    assert lines >= 8
    assert results >= 8


@pytest.mark.slow
def test_damaged_files_that_trainings_read(fuzz):
    lines, _ = check_counts(fuzz, [name for name in fuzz.KINDS if name in TRAININGS], 5)
    assert lines >= 5


def refuted(folder):
    raise AssertionError("another affine")


def unnamed(folder, rng):
    return ["verify", str(folder.parent / "elsewhere")]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"confirm": refuted}, "AssertionError: another affine"),
        ({"command": unnamed}, "code 1"),
    ],
)
def test_what_is_wrong_is_counted_as_other_and_printed(fuzz, capsys, broken, words):
    kind = replace(fuzz.KINDS["nifti1"], damage=lambda folder, rng: "nothing", **broken)
    counts = fuzz.run("nifti1", kind, 2, 0, 30, None)
    assert counts == {"other": 2}
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (lambda arguments: {}["key"], "KeyError"),
        (lambda arguments: sys.exit(2), "exit 2"),
        (lambda arguments: print("kitsseg: one\nkitsseg: two", file=sys.stderr) or 1, "code 1"),
        (lambda arguments: print("a warning", file=sys.stderr) or 0, "on stderr"),
        (lambda arguments: time.sleep(5), "took more than 0.2 s"),
    ],
)
def test_a_command_that_ends_in_another_way_is_counted_as_other(fuzz, monkeypatch, capsys, main, words):
    monkeypatch.setattr(fuzz, "kitsseg", main)
    assert fuzz.run("nifti1", fuzz.KINDS["nifti1"], 1, 0, 0.2, None) == {"other": 1}
    assert words in capsys.readouterr().out


def test_the_same_seed_gives_the_same_damage(fuzz, tmp_path):
    np = fuzz.np
    content = bytes(range(256)) * 4
    one, other = (fuzz.damaged_bytes(content, np.random.default_rng([3, 7])) for _ in range(2))
    assert one == other
    assert len({fuzz.damaged_bytes(content, np.random.default_rng([3, k]))[0] for k in range(30)}) > 25
