"""The weights of a run are those that its own training wrote."""

import json
import re
import shutil

import keras
import pytest

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.records.networks import finished_run
from kitsseg.records.run import read_run, update_run

OTHERS = r"model\.keras: .*weights.*training.*found others"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.run, tmp_path / "run")


def noisy(run):
    """Other weights of the same network."""
    network = keras.models.load_model(run / "model.keras", compile=False)
    network.set_weights([weight + 0.01 for weight in network.get_weights()])
    network.save(run / "model.keras")


def larger(run):
    """A network of another form that takes the same images."""
    image = keras.Input((None, None, 1))
    keras.Model(image, keras.layers.Conv2D(3, 3, padding="same")(image)).save(run / "model.keras")


def longer(run):
    with (run / "model.keras").open("ab") as file:
        file.write(bytes(100))


def test_a_run_records_the_hash_of_its_weights(run):
    assert read_run(run).model_sha256 == sha256_of(run / "model.keras")
    assert finished_run(run).source == run / "model.keras"


@pytest.mark.parametrize("change", [noisy, larger, longer])
def test_other_weights_in_a_run_are_refused(change, run):
    change(run)
    with pytest.raises(InputError, match=OTHERS):
        finished_run(run)


@pytest.mark.parametrize("command", ["predict", "export", "prune", "shrink"])
def test_every_command_that_takes_a_run_refuses_other_weights(
    command, run, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    noisy(run)
    words = {
        "predict": ["predict", run, trained.data, "--out", tmp_path / "out"],
        "export": ["export", run, "--out", tmp_path / "out.tflite"],
        "prune": ["prune", run, trained.cache, tmp_path / "out", "--sparsity", "0.5"],
        "shrink": ["shrink", run, trained.cache, tmp_path / "out"],
    }[command]
    assert main([str(word) for word in words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(OTHERS, line)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.tflite").exists()


def test_a_run_without_the_hash_is_still_read(run):
    """Of an earlier version, or one whose training is only about to finish."""
    record = read_run(run)
    record.model_sha256 = None
    update_run(run, record)
    assert finished_run(run).source == run / "model.keras"
    record.model_sha256, record.status = "0" * 64, "training"
    update_run(run, record)
    assert finished_run(run).source == run / "model.keras"


def test_a_record_of_two_recipes_is_refused(run):
    values = json.loads((run / "run.json").read_text())
    for other in ("deeplab3d:tiny", "foo"):
        (run / "run.json").write_text(json.dumps(values | {"recipe": other}))
        with pytest.raises(InputError, match=f"run.json: expected one recipe, found {other} and"):
            finished_run(run)
