"""The checks before a commit that scripts/hooks.py makes."""

import json
import shutil
import subprocess
import sys

import pytest
from support import ROOT

HOOKS = ROOT / "scripts" / "hooks.py"
pytestmark = pytest.mark.skipif(not HOOKS.is_file(), reason="not a source tree")


def hook(kind, names, cwd):
    done = subprocess.run(
        [sys.executable, HOOKS, kind, *names], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a clone")
@pytest.mark.parametrize(("kind", "pattern"), [("large", "*"), ("notebooks", "*.ipynb")])
def test_every_file_of_the_repository_passes(kind, pattern):
    listed = subprocess.run(["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]
    assert names
    assert hook(kind, names, ROOT) == (0, [])


def test_only_the_file_above_the_limit_is_named(tmp_path):
    for name, size in (("a.bin", 500_000), ("b.bin", 500_001)):
        (tmp_path / name).write_bytes(bytes(size))
    code, lines = hook("large", ["a.bin", "b.bin"], tmp_path)
    assert code == 1
    assert lines == ["b.bin: 500,001 bytes, at most 500,000"]


def test_the_starter_network_may_be_larger_but_not_without_limit(tmp_path):
    name = "kitsseg/records/starter.tflite"
    (tmp_path / name).parent.mkdir(parents=True)
    for size, code in ((1_100_000, 0), (1_100_001, 1)):
        (tmp_path / name).write_bytes(bytes(size))
        assert hook("large", [name], tmp_path)[0] == code


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ({"outputs": [], "execution_count": None}, 0),
        ({"source": ["text"]}, 0),
        ({"outputs": [{"text": "1"}], "execution_count": None}, 1),
        ({"outputs": [], "execution_count": 3}, 1),
    ],
)
def test_a_notebook_with_an_output_or_a_count_is_named(cell, code, tmp_path):
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [{"source": []}, cell]}))
    found, lines = hook("notebooks", ["n.ipynb"], tmp_path)
    assert found == code
    assert [line.split(":")[0] for line in lines] == ["n.ipynb"] * code
