"""Pruning of finished runs, its command, and pruning phases that are killed and go on."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from support import TESTS
from support.cases import read_json

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.errors import InputError
from kitsseg.inference.cohort import predict_cases
from kitsseg.pruning.weights import prunable_weights
from kitsseg.recipe import Phase, Plateau, Progressive, Pruning
from kitsseg.records.networks import finished_run
from kitsseg.records.run import read_history
from kitsseg.training.epochs import best_epoch
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.prune import prune_run

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_model_optimization")
pytestmark = pytest.mark.usefixtures("eagerly")


def zeros_of(run):
    model = keras.models.load_model(run / "model.keras", compile=False)
    return {
        variable.path: variable.numpy().size - np.count_nonzero(variable.numpy())
        for _, variable in prunable_weights(model)
    }


def sizes_of(run):
    with (run / "sparsity.csv").open(newline="") as file:
        return {row["weights"]: (int(row["size"]), int(row["zeros"])) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def pruned(trained, tmp_path_factory):
    """The micro run, pruned to 80 % in two epochs."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    assert (
        prune_run(FromRun(trained.recipe, trained.run, trained.cache), out, 0.8, TrainOptions(epochs=2))
        == out
    )
    return out


def test_a_pruned_run_is_a_run_like_any_other(trained, pruned, tmp_path):
    assert {path.name for path in pruned.iterdir()} == {
        *("history.csv", "model.keras", "model_card.md", "pruning.npz", "run.json"),
        *("sparsity.csv", "split.json"),
    }
    record = read_json(pruned / "run.json")
    assert record["status"] == "finished"
    assert (pruned / record["parent"]["run"]).samefile(trained.run)
    assert record["recipe"] == record["parent"]["recipe"] == "unet2d:micro"
    assert (record["seed"], record["split"]["hash"]) == (5, trained.split.hash)
    assert record["phantom"] is False
    assert record["sparsity"]["sparsity"] == pytest.approx(0.8, abs=0.005)
    found = zeros_of(pruned)
    assert {name: zeros for name, (_, zeros) in sizes_of(pruned).items()} == found
    assert sum(found.values()) == record["sparsity"]["zeros"]
    assert record["sparsity"]["gzip_bytes"] < 0.5 * record["sparsity"]["bytes"]
    with np.load(pruned / "pruning.npz") as state:
        assert state["step"] == 12  # two epochs of six
    case = trained.data / trained.split.test[0]
    assert len(predict_cases(pruned, [case], tmp_path / "predictions")) == 1


def test_only_epochs_at_the_final_sparsity_can_be_the_best(pruned):
    """The sparsity rises in the first six of twelve steps, so that the first epoch already ends at the target."""
    rows = read_history(pruned)
    assert [(row["phase"], row["epoch"]) for row in rows] == [("prune", 1), ("prune", 2)]
    assert [row["sparsity"] for row in rows] == pytest.approx([0.8, 0.8], abs=0.005)
    assert [row["learning_rate"] for row in rows] == pytest.approx([3e-3, 3e-3])
    words = {"name": "prune", "sampler": None, "learning_rate": 1e-3, "steps_per_epoch": 10}
    phase = Phase(**words, epochs=10, pruning=Pruning(sparsity=0.5, until=0.34, frequency=4))
    assert phase.pruning_steps == 32  # the last multiple of 4 up to 34
    assert phase.first_choice == 4  # which holds the steps 31 to 40
    rows = [{"epoch": i, "val_loss": loss} for i, loss in enumerate((1.0, 2, 3, 6, 5, 7), 1)]
    assert best_epoch(rows, phase.first_choice) == 5
    assert best_epoch(rows[:3], phase.first_choice) == 3  # no epoch may be chosen yet: the last one is taken
    assert best_epoch(rows) == 1
    one_shot = Phase(**words, epochs=10, pruning=Pruning(sparsity=0.5, schedule="one-shot"))
    assert (one_shot.pruning_steps, one_shot.first_choice) == (1, 1)


def test_words_of_pruning_that_contradict_each_other():
    for words, message in (
        ({"sparsity": 1.0}, r"sparsity: .*number from 0 and below 1, found 1\.0"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "initial_sparsity: expected a number from 0 to 0.5"),
        (
            {"sparsity": 0.5, "schedule": "linear"},
            "schedule: .* one-shot, polynomial, found 'linear'",
        ),
        ({"sparsity": 0.5, "scope": "all"}, "scope: .* layer, global, found 'all'"),
        ({"sparsity": 0.5, "until": 0.0}, r"until: .*number above 0 and up to 1, found 0\.0"),
        ({"sparsity": 0.5, "block": 1}, "block: .*whole number from 2.*found 1"),
        ({"sparsity": 0.5, "block": 2, "scope": "global"}, "only one of m_by_n, block and scope"),
        ({"sparsity": 0.8, "schedule": "one-shot", "m_by_n": (2, 4)}, "goes with sparsity m / n"),
    ):
        with pytest.raises(ValueError, match=message):
            Pruning(**words)
    words = {"name": "prune", "sampler": None, "learning_rate": 1e-3, "epochs": 2, "steps_per_epoch": 10}
    with pytest.raises(ValueError, match=r"no multiple .*frequency, 11 steps, .* 0\.5 of its 20"):
        Phase(**words, pruning=Pruning(sparsity=0.5, frequency=11))
    rounds = Progressive(rounds=1, subset=1.0, round_decay=1.0, min_delta=0.0, patience=1)
    with pytest.raises(ValueError, match="pruning in progressive rounds"):
        Phase(**words, pruning=Pruning(sparsity=0.5, frequency=1), progressive=rounds)


def test_a_plateau_does_not_end_pruning_before_the_final_sparsity(trained, tmp_path):
    """After the second epoch the rate is below ``stop_below``, but the phase goes on: epoch 3 reaches the sparsity."""
    phase = replace(
        trained.recipe.phases[0],
        epochs=4,
        steps_per_epoch=2,
        learning_rate=1e-6,
        schedule=Plateau(factor=0.1, patience=1, min_delta=10.0, stop_below=5e-7),
        pruning=Pruning(sparsity=0.5, until=0.75, frequency=3),
    )
    run = train_recipe(
        replace(trained.recipe, phases=(phase,)),
        trained.cache,
        trained.split,
        tmp_path / "run",
        TrainOptions(seed=1),
    )
    assert [row["epoch"] for row in read_history(run)] == [1, 2, 3]
    assert read_json(run / "run.json")["sparsity"]["sparsity"] == pytest.approx(0.5, abs=0.005)


def test_the_command_prunes_further_and_says_what_is_left(trained, pruned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    out = tmp_path / "out"
    arguments = ["prune", str(trained.run), str(trained.cache), str(out), "--epochs", "1"]
    assert main([*arguments, "--preset", "paper"]) == 0
    said = capsys.readouterr().out
    assert "(50.0% zeros in " in said
    assert f"next: kitsseg predict {out} DATA --out PREDICTIONS --part test" in said
    assert all(name in said for name in sizes_of(out))
    record = read_json(out / "run.json")
    assert record["settings"]["phases"][0]["pruning"]["schedule"] == "one-shot"
    further = tmp_path / "further"
    arguments = ["prune", str(pruned), str(trained.cache), str(further), "--epochs", "1", "--sparsity"]
    assert main([*arguments, "0.9", "--method", "block", "--block", "4"]) == 0
    phase = read_json(further / "run.json")["settings"]["phases"][0]
    assert phase["pruning"]["block"] == 4
    assert phase["pruning"]["initial_sparsity"] == pytest.approx(0.8, abs=0.005)
    assert read_json(further / "run.json")["sparsity"]["sparsity"] == pytest.approx(0.9, abs=0.005)
    assert main([*arguments, "0.7"]) == 1
    assert "sparser already, 80.0% against 70.0%" in capsys.readouterr().err


def test_bad_arguments_of_the_command(trained, pruned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    arguments = ["prune", str(trained.run), str(trained.cache), str(tmp_path / "out")]
    for options, message in (
        ([], "give --sparsity, such as"),
        (["--sparsity", "0.5", "--preset", "fast"], "give --sparsity, such as"),
        (["--preset", "fast", "--schedule", "one-shot"], "preset has its own"),
        (["--sparsity", "0.5", "--block", "2"], "--block goes with --method block"),
        (["--sparsity", "0.5", "--resume"], "found no run.json"),
    ):
        assert main([*arguments, *options]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["prune", str(trained.run), str(trained.cache), str(pruned), "--sparsity", "0.5"]) == 1
    assert re.search(f"{pruned}: .*new or empty", capsys.readouterr().err)


def test_a_run_of_another_recipe_or_an_unfinished_one_is_refused(trained, tmp_path):
    other = replace(trained.recipe, model={**trained.recipe.model, "start_filters": 8})
    with pytest.raises(InputError, match="other model settings.* unet2d:micro"):
        prune_run(FromRun(other, trained.run, trained.cache), tmp_path / "out", 0.5)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained.run, unfinished)
    (unfinished / "model.keras").unlink()
    with pytest.raises(InputError, match="Finish .*: kitsseg train unet2d:micro CACHE .*unfinished --resume"):
        prune_run(FromRun(trained.recipe, unfinished, trained.cache), tmp_path / "out", 0.5)
    record = read_json(unfinished / "run.json") | {"parent": {"run": "/there"}}
    (unfinished / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="Finish .*: kitsseg prune /there CACHE .*unfinished --resume"):
        finished_run(unfinished)
    shrink = {"keep": 0.5, "by": "magnitude", "multiple": 8, "parameters_before": 2, "parameters": 1}
    (unfinished / "run.json").write_text(json.dumps(record | {"shrink": shrink}))
    with pytest.raises(InputError, match="Finish .*: kitsseg shrink /there CACHE .*unfinished --resume"):
        finished_run(unfinished)


KILLED = """
import os, signal, sys
import tensorflow as tf
sys.path.insert(0, sys.argv[1])
from support.cases import spec_of_tests
from support.recipes import micro_recipe_of_tests
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.prune import prune_run
tf.config.run_functions_eagerly(True)
def progress(_, done, total):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
origin = FromRun(micro_recipe_of_tests(spec_of_tests()), sys.argv[2], sys.argv[3])
prune_run(origin, "out", 0.8, TrainOptions(epochs=2, progress=progress))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_pruning_ends_as_the_uninterrupted_one(trained, pruned, tmp_path):
    """SIGKILL at the third step of the second epoch; another process goes on after the first."""
    tests = str(TESTS)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tests, str(trained.run), str(trained.cache)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = tmp_path / "out"
    assert len(read_history(out)) == 1
    assert not (out / "model.keras").exists()
    origin, options = FromRun(trained.recipe, trained.run, trained.cache), TrainOptions(epochs=2, resume=True)
    with pytest.raises(InputError, match="started with another recipe"):
        prune_run(origin, out, 0.7, options)
    prune_run(origin, out, 0.8, options)
    with np.load(out / "pruning.npz") as ours, np.load(pruned / "pruning.npz") as theirs:
        assert sorted(ours) == sorted(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], name)
    models = [keras.models.load_model(run / "model.keras", compile=False) for run in (out, pruned)]
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
    assert read_history(out) == read_history(pruned)
