"""Recipes' tiny variants, shrunk further, stopped in the middle of each phase and continued to their end."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from support.cases import read_json
from support.recipes import CASES, EPOCHS, MODELS, SHAPE, STEPS, StopAt, micro, split_of_cases, stages

from kitsseg import recipes
from kitsseg.data.formats.nifti import read_labels
from kitsseg.inference.cohort import predict_cases
from kitsseg.optimizers.schedules import one_cycle
from kitsseg.recipe import OneCycle
from kitsseg.records.run import read_history
from kitsseg.training import train
from kitsseg.training.monitor import Monitor
from kitsseg.training.options import TrainOptions
from kitsseg.training.phase_setup import compiled_network
from kitsseg.training.progressive import read_rounds

pytestmark = pytest.mark.usefixtures("eagerly")


def check_finished(recipe, run, source, tmp_path):
    """Every phase and round once, nothing of the interruptions left, and a network that predicts."""
    with (run / "history.csv").open(newline="") as file:
        rows = [(row["phase"], int(row["epoch"])) for row in csv.DictReader(file)]
    assert rows == [(name, epoch) for name in stages(recipe) for epoch in range(1, EPOCHS + 1)]
    rounds = [row["round"] for row in read_rounds(run)]
    assert rounds == [
        i for phase in recipe.phases if phase.progressive for i in range(phase.progressive.rounds)
    ]
    left = {"history.csv", "model.keras", "model_card.md", "run.json", "split.json"} | (
        {"rounds.csv", "validation_cases.csv"} if rounds else set()
    )
    left |= {"pruning.npz", "sparsity.csv"} if recipe.phases[-1].pruning else set()
    assert {path.name for path in run.iterdir()} == left
    assert read_json(run / "run.json")["status"] == "finished"
    (path,) = predict_cases(run, [source / "data" / CASES[4]], tmp_path / "predictions")
    assert read_labels(path).array.shape == SHAPE


def test_micro_recipes_are_all_there():
    assert sorted(MODELS) == recipes.names()
    assert {name: stages(micro(name)) for name in MODELS} == {
        "deeplab3d": ["scratch", "finetune"],
        "enhanced_unet": ["progressive-0", "progressive-1"],
        "squeeze_unet": ["frozen", "unfrozen"],
        "unet2d": ["train"],
        "unet3d": ["train"],
        "wp_unet": ["train", "prune"],
    }


def stop(*_):
    raise KeyboardInterrupt


# the others are stopped, harder, in test_sigkill_resume.py
@pytest.fixture(scope="module", params=["enhanced_unet", "squeeze_unet", "unet3d"])
def resumed(request, source, tmp_path_factory):
    """A run stopped in the middle of each phase: (recipe, run folder, steps each part of it has seen)."""
    recipe, folder, seen = micro(request.param), tmp_path_factory.mktemp(request.param), []
    arguments = (recipe, source / "cache", split_of_cases(), folder / "run")
    # 5 is the second step of a phase's second epoch; 8 that of the next phase's first, which has no checkpoint yet
    stops = [5, 8] if len(stages(recipe)) == 2 else [2, 5]
    if recipe.phases[0].progressive:
        stops.insert(1, "score")
    for number, step in enumerate(stops):
        progress = StopAt(step)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if step == "score":
                patch.setattr(Monitor, "round_scores", stop)
            train.train_recipe(*arguments, TrainOptions(seed=7, resume=number > 0, progress=progress))
        assert not (folder / "run" / "model.keras").exists()
        seen.append(progress.seen)
    progress = StopAt()
    train.train_recipe(*arguments, TrainOptions(seed=7, resume=True, progress=progress))
    assert progress.totals == {STEPS * EPOCHS * len(stages(recipe))}
    return recipe, folder / "run", [*seen, progress.seen]


@pytest.mark.slow
def test_a_recipe_stopped_in_the_middle_of_each_phase_ends_with_each_done_once(resumed, source, tmp_path):
    recipe, run, seen = resumed
    check_finished(recipe, run, source, tmp_path)
    # each goes on after the last whole epoch; a round that was stopped while it was scored is not trained again
    if recipe.phases[0].progressive:
        assert seen == [[1, 2, 3, 4, 5], [4, 5, 6], [7, 8], [7, 8, 9, 10, 11, 12]]
    elif len(stages(recipe)) == 2:
        assert seen == [[1, 2, 3, 4, 5], [4, 5, 6, 7, 8], [7, 8, 9, 10, 11, 12]]
    else:
        assert seen == [[1, 2], [1, 2, 3, 4, 5], [4, 5, 6]]
    history = read_history(run)
    assert all(np.isfinite([row["loss"], row["val_loss"]]).all() for row in history)
    cycles = {phase.name: phase for phase in recipe.phases if isinstance(phase.schedule, OneCycle)}
    for row in history:
        if row["phase"] in cycles:  # the rate of an epoch's last step, whatever was interrupted
            phase = cycles[row["phase"]]
            rate, _ = one_cycle(row["epoch"] * STEPS - 1, EPOCHS * STEPS, phase.learning_rate, phase.schedule)
            assert row["learning_rate"] == pytest.approx(rate)


@pytest.mark.slow
def test_enhanced_unet_history_holds_the_four_heads(resumed):
    """Deep supervision through the loop: loss = 0.2, 0.2, 0.2 and 0.4 times those of the heads, bottom to top."""
    recipe, run, _ = resumed
    if recipe.name != "enhanced_unet:micro":
        assert not [key for key in read_history(run)[0] if key.endswith("_loss") and key != "val_loss"]
        return
    heads = [f"{output.name}_loss" for output in heads_of(recipe)]
    assert len(set(heads)) == 4
    for row in read_history(run):
        for prefix in ("", "val_"):
            parts = [row[f"{prefix}{head}"] for head in heads]
            assert len(set(parts)) == 4
            assert row[f"{prefix}loss"] == pytest.approx(np.dot((0.2, 0.2, 0.2, 0.4), parts), rel=1e-5)


def heads_of(recipe):
    model = recipe.build_model(**recipe.model)
    return [model.get_layer(name) for name in model.output_names]


LOADED = """
import sys
from kitsseg.training.phase_setup import load_checkpoint
for path in sys.argv[1:]:
    model = load_checkpoint(path, compile=True)
    print(type(model.loss[0] if isinstance(model.loss, list) else model.loss).__name__, model.jit_compile)
"""


@pytest.mark.slow
def test_a_new_process_knows_the_classes_of_every_checkpoint(tmp_path):
    """It has built neither networks nor losses of its own when it loads one to go on."""
    paths = []
    for name in sorted(MODELS):
        recipe = micro(name)
        model = compiled_network(train.Training(recipe=recipe), recipe.phases[0], [], None)
        paths.append(str(tmp_path / f"{name}.keras"))
        model.save(paths[-1])
    done = subprocess.run([sys.executable, "-c", LOADED, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = ["TverskyFocal", "FocalTversky", "SparseCategoricalCrossentropy", *["CrossEntropySoftDice"] * 3]
    assert [line.split()[0] for line in done.stdout.splitlines()] == names
