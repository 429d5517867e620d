"""Several sparsities of one run in one table."""

import csv
import os

import numpy as np
import pytest

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.models.loading import read_network
from kitsseg.models.macs import count_macs
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.sweep import COLUMNS, sweep_run

pytest.importorskip("tensorflow_model_optimization")
pytestmark = pytest.mark.usefixtures("eagerly")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(trained, tmp_path_factory):
    """The micro run at two sparsities, one epoch each, by the command."""
    out = tmp_path_factory.mktemp("swept") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "get", lambda name: trained.recipe)
        arguments = ["prune", trained.run, trained.cache, out, "--sparsity", "0.5,0.9", "--epochs", 1]
        assert main([str(argument) for argument in arguments]) == 0
    return out


def test_the_table(trained, swept):
    dense, half, most = rows = read(swept / "sweep.csv")
    assert tuple(dense) == COLUMNS
    assert [row["network"] for row in rows] == ["dense", "magnitude-0.5", "magnitude-0.9"]
    assert [float(row["sparsity"]) for row in rows] == pytest.approx([0, 0.5, 0.9], abs=0.005)
    assert dense["parameters"] == half["parameters"] == most["parameters"]
    for row in rows:
        # the table's counts against the file's
        run = trained.run if row["network"] == "dense" else swept / row["network"]
        network = read_network(run / "model.keras")
        weights = [np.array(weight) for weight in network.trainable_weights]
        assert int(row["parameters"]) == sum(weight.size for weight in weights)
        # biases and betas may be zero too; only matrices are counted
        zeros = sum(np.count_nonzero(weight == 0) for weight in weights if weight.ndim > 1)
        assert int(row["nonzero_parameters"]) == int(row["parameters"]) - zeros
        assert int(row["effective_mac"]) == count_macs(network, (40, 48, 1), nonzero_only=True)
        assert float(row["milliseconds"]) > 0 and 0 <= float(row["tk"]) <= 1
    assert float(dense["gzip_mb"]) > float(half["gzip_mb"]) > float(most["gzip_mb"])


def origin_of(trained):
    return FromRun(trained.recipe, trained.run, trained.cache)


def test_finished_networks_are_kept(trained, swept):
    before = {path: path.stat().st_mtime_ns for path in swept.glob("*/model.keras")}
    again = sweep_run(origin_of(trained), swept, [0.5, 0.9], TrainOptions(epochs=1))
    assert {path: path.stat().st_mtime_ns for path in swept.glob("*/model.keras")} == before
    for row, old in zip(again, read(swept / "sweep.csv"), strict=True):
        assert str(row["nonzero_parameters"]) == old["nonzero_parameters"]


def test_whole_channels(trained, tmp_path):
    dense, small = sweep_run(
        origin_of(trained), tmp_path / "out", [0.5], TrainOptions(epochs=1), method="channel"
    )
    assert small["network"] == "channel-0.5" and small["parameters"] < dense["parameters"]
    assert small["effective_mac"] < dense["effective_mac"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "0.5,1"], "shares between 0 and 1"),
        (["--sparsity", "0.5,0.5"], "shares between 0 and 1"),
        (["--sparsity", "0.5,0.8", "--schedule", "one-shot"], "sparsities has its own"),
        (["--sparsity", "0.5", "--method", "channel"], "use kitsseg shrink"),
    ],
)
def test_options_that_make_no_table(trained, tmp_path, capsys, options, message):
    arguments = [
        "prune",
        os.fspath(trained.run),
        os.fspath(trained.cache),
        os.fspath(tmp_path / "o"),
        *options,
    ]
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code and message in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
