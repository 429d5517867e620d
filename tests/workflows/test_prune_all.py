"""kitsseg prune, as one types it, on a run of each of the five papers' networks."""

import csv
from dataclasses import replace

import keras
import numpy as np
import pytest
from support.cases import make_case, read_json
from support.recipes import micro

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.splits import make_split
from kitsseg.models.loading import read_network
from kitsseg.pruning.callback import PruneLowMagnitude
from kitsseg.pruning.masks import n_kept
from kitsseg.pruning.weights import prunable_weights
from kitsseg.records.run import read_history
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_model_optimization")
pytestmark = pytest.mark.usefixtures("eagerly")
PAPERS = ("deeplab3d", "enhanced_unet", "squeeze_unet", "unet2d", "wp_unet")
QUICK = {"unet2d", "wp_unet"}
TIES = 3  # of many float32 weights some are equal, and equals at the threshold all stay
CASES = tuple(f"case_{i:05d}" for i in range(3))


def one_phase(name, steps):
    """The micro recipe with its last phase that does not prune, in one epoch of so many steps."""
    recipe = micro(name)
    phase = [phase for phase in recipe.phases if not phase.pruning][-1]
    return replace(recipe, phases=(replace(phase, epochs=1, steps_per_epoch=steps, progressive=None),))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for i, name in enumerate(CASES):
        make_case(folder / "data" / name, (12, 36, 40), seed=i, positive=(2, 7 + i % 3))
    for spec in {micro(name).preprocess for name in PAPERS}:
        preprocess_cases(folder / "data", folder / "cache", spec)
    return folder


# of the five two are quick enough; tests/pruning/test_pruning.py prunes all five without the command
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PAPERS]
)
def test_the_command_reaches_the_target_on_the_step_of_the_schedule(
    name, source, tmp_path, monkeypatch, capsys
):
    """An epoch of four steps, the target at half of them, masks drawn at each step up to there.

    PolynomialDecay from 0 to 0.5 in 2 steps: 0.5 - 0.5 * (1 - 1/2)^3 = 0.4375 at the first, 0.5 at the second.
    """
    recipe, drawn = one_phase(name, 4), []
    split = replace(make_split(CASES), train=CASES[:1], validation=CASES[1:2], test=CASES[2:])
    dense = train_recipe(
        one_phase(name, 1), source / "cache", split, tmp_path / "dense", TrainOptions(seed=0)
    )
    draw = PruneLowMagnitude._draw

    def watched(pruning, sparsity):
        draw(pruning, sparsity)
        kept = [int(mask.sum()) for mask in pruning.masks]
        np.testing.assert_allclose(
            kept, [n_kept(mask.size, sparsity) for mask in pruning.masks], rtol=0, atol=TIES
        )
        drawn.append((pruning.step, float(sparsity)))

    monkeypatch.setattr(PruneLowMagnitude, "_draw", watched)
    monkeypatch.setattr(recipes, "of_record", lambda record, path: recipe)  # with more steps than the run
    out = tmp_path / "pruned"
    arguments = ["prune", dense, source / "cache", out, "--sparsity", "0.5", "--epochs", "1"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "% zeros in " in capsys.readouterr().out
    assert drawn == [(1, 0.4375), (2, 0.5)]
    assert read_json(out / "run.json")["settings"]["phases"][0]["pruning"]["sparsity"] == 0.5
    network = read_network(out / "model.keras")
    weights = {
        variable.path: keras.ops.convert_to_numpy(variable) for _, variable in prunable_weights(network)
    }
    zeros = {path: value.size - np.count_nonzero(value) for path, value in weights.items()}
    for path, value in weights.items():
        assert value.size - n_kept(value.size, 0.5) == pytest.approx(zeros[path], abs=TIES)
    with (out / "sparsity.csv").open(newline="") as file:
        rows = {row["weights"]: int(row["zeros"]) for row in csv.DictReader(file) if row["pruned"] == "yes"}
    assert rows == zeros
    share = sum(zeros.values()) / sum(value.size for value in weights.values())
    assert [row["sparsity"] for row in read_history(out)] == pytest.approx([share])
    assert share == pytest.approx(0.5, abs=0.005)
