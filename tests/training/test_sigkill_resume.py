"""Training that SIGKILL ends three times gives the same bits as uninterrupted training.

This is tested for the recipe of each paper.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support import TESTS
from support.cases import make_case, read_json
from support.killed_training import SIZES, cut_down
from support.recipes import CASES, SHAPE

from kitsseg.data.cache.build import preprocess_cases
from kitsseg.models.loading import read_network
from kitsseg.records.run import read_history
from kitsseg.training.progressive import read_rounds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no processes of that kind"),
]

# Killed in the first epoch, while the results of an epoch are written, and late in the last phase or round. unet2d and
# deeplab3d have plateau schedules, squeeze_unet has one-cycle and frozen layers, deeplab3d and wp_unet have dropout.
KILLED = {
    # a checkpoint of the second phase is written, but not under its name yet
    "deeplab3d": [{"step": 1}, {"file": "finetune-00001.keras", "nth": 1, "before": True}, {"step": 4}],
    # the first round is over and its weights are kept, but rounds.csv does not say so yet
    "enhanced_unet": [{"step": 1}, {"file": "rounds.csv", "nth": 1, "before": True}, {"step": 4}],
    # the checkpoint of the second epoch is there, but not in the history
    "squeeze_unet": [{"step": 2}, {"file": "history.csv", "nth": 2, "before": True}, {"step": 5}],
    # the second epoch is in the history: at its boundary
    "unet2d": [{"step": 1}, {"file": "history.csv", "nth": 2, "before": False}, {"step": 5}],
    # the network after the first epoch of pruning is there, its masks are not
    "wp_unet": [{"step": 1}, {"file": "prune-00001.npz", "nth": 1, "before": True}, {"step": 7}],
}
# number of epochs in history.csv after each kill
EPOCHS_THEN = {
    "deeplab3d": [0, 1, 3],
    "enhanced_unet": [0, 2, 3],
    "squeeze_unet": [0, 1, 2],
    "unet2d": [0, 2, 2],
    "wp_unet": [0, 1, 3],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for i, name in enumerate(CASES):
        make_case(folder / "data" / name, SHAPE, seed=i, positive=(2, 7 + i % 3))
    for spec in {cut_down(name).preprocess for name in KILLED}:
        preprocess_cases(folder / "data", folder / "cache", spec)
    return folder


@pytest.fixture(scope="module")
def trainer(source):
    """A function of recipe, run folder and moment to be killed at; returns the exit code of the process."""
    script = TESTS / "support" / "killed_training.py"
    environment = os.environ | {
        "PYTHONPATH": str(TESTS),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    # errors to a file: a pipe that nobody reads would fill up
    with (
        (source / "stderr.txt").open("w") as errors,
        subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):

        def train(name, run, when=None):
            job = {"recipe": name, "cache": str(source / "cache"), "run": str(run), "when": when}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer and int(answer) != 1, (source / "stderr.txt").read_text()
            return int(answer)

        yield train
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("name", sorted(KILLED))
def test_three_kills_change_nothing(name, trainer, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trainer(name, whole) == 0
    for when, epochs in zip(KILLED[name], EPOCHS_THEN[name], strict=True):
        assert trainer(name, killed, when) == -9
        assert len(read_history(killed)) == epochs
        assert read_json(killed / "run.json")["status"] == "training"
    assert trainer(name, killed) == 0
    recipe = cut_down(name)
    check_what_was_exercised(recipe, read_history(whole))
    assert (killed / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    assert read_rounds(killed) == read_rounds(whole)
    ours, theirs = (read_network(run / "model.keras") for run in (killed, whole))
    assert len(ours.weights) == len(theirs.weights) > 10
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        assert np.array_equal(np.asarray(a.numpy()), np.asarray(b.numpy())), a.path
    if recipe.phases[-1].pruning:
        with np.load(killed / "pruning.npz") as a, np.load(whole / "pruning.npz") as b:
            assert sorted(a) == sorted(b)
            assert all(np.array_equal(a[key], b[key]) for key in a)
        assert (killed / "sparsity.csv").read_bytes() == (whole / "sparsity.csv").read_bytes()
    records = [read_json(run / "run.json") for run in (killed, whole)]
    for record in records:
        assert record["status"] == "finished"
        record.pop("seconds")
        record.pop("model_sha256")  # of a file that holds the time of its making
        record.pop("whole_case_validation", None)  # seconds too
    assert records[0] == records[1]
    assert not list(killed.glob(".*"))


def check_what_was_exercised(recipe, history):
    """The cut-down recipe still does what makes resuming hard."""
    name = recipe.name.removesuffix(":micro")
    by_phase = {}
    for row in history:
        by_phase.setdefault(row["phase"], []).append(row)
    rates = {phase: [row["learning_rate"] for row in rows] for phase, rows in by_phase.items()}
    if name in ("unet2d", "deeplab3d"):
        first, second, third = rates[recipe.phases[-1].name]  # two at the full rate, then a drop
        assert (second, third) == (first, pytest.approx(first * recipe.phases[-1].schedule.factor))
    elif name == "squeeze_unet":
        assert [len(set(found)) for found in rates.values()] == [1, 2]
    elif name == "wp_unet":  # steps 1 to 4 of six raise the sparsity to 0.5
        sparsity = [row["sparsity"] for row in by_phase["prune"]]
        assert sparsity[0] < sparsity[1] == pytest.approx(0.5, abs=0.01)
        assert sparsity[2] == sparsity[1]
    else:
        assert list(by_phase) == ["progressive-0", "progressive-1"]
    epochs = SIZES[name][0] * (2 if name == "enhanced_unet" else 1)
    assert tuple(map(len, by_phase.values())) == epochs
