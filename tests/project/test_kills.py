"""A short run of the script that kills commands: the second call ends as an uninterrupted call does.

The script would notice another result.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kitsseg

SCRIPT = Path(kitsseg.__file__).parent.parent / "scripts" / "kills.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(scope="module")
def kills():
    if not SCRIPT.is_file():
        pytest.skip("not a source tree")
    spec = importlib.util.spec_from_file_location("kitsseg_kills", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_killed_commands_end_as_uninterrupted_ones_when_they_are_called_again(kills):
    command = [sys.executable, str(SCRIPT), "--kills", "1", "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(\S+) +1 trials \(.*\): 1 ended as uninterrupted, 0 other", done.stdout, re.M)
    assert rows == list(kills.COMMANDS)


def test_what_differs_is_noticed_and_times_are_not(kills, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "case").mkdir(parents=True)
        (folder / "run.json").write_text(
            json.dumps({"loss": 0.5, "seconds": len(name), "where": str(folder)})
        )
        (folder / "history.csv").write_text("epoch,loss\n1,0.5\n")
    one, two = tmp_path / "one", tmp_path / "two"
    (two / "run.json").write_text(json.dumps({"loss": 0.5, "seconds": 9, "where": str(two)}))
    assert kills.difference(one, two) is None
    (two / "history.csv").write_text("epoch,loss\n1,0.6\n")
    assert kills.difference(one, two) == "history.csv differs"
    (two / "history.csv").write_text("epoch,loss\n1,0.5\n")
    (one / ".history-kitsseg-0123abcd.csv").touch()
    assert "too much: ['.history-kitsseg-0123abcd.csv']" in kills.difference(one, two)
    (one / ".history-kitsseg-0123abcd.csv").unlink()
    (one / "case").rmdir()
    assert "missing: ['case']" in kills.difference(one, two)
