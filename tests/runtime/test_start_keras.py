"""If Keras cannot use a backend, one line says where that backend was chosen. A valid backend is used."""

import json
import os
import re
import subprocess
import sys

import pytest
from support.cases import make_case

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.errors import InputError
from kitsseg.runtime.start_keras import start_keras

WITHOUT_JAX = "raise ModuleNotFoundError(\"No module named 'jax'\", name='jax')\n"
SAY = "from kitsseg.runtime.start_keras import start_keras; start_keras(); import keras; print(keras.backend.backend())"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A command that would train. Its cache is there: a missing one is told before Keras starts."""
    folder = tmp_path_factory.mktemp("start_keras")
    for case in range(3):
        make_case(folder / "data" / f"case_{case:05d}", seed=case)
    preprocess_cases(folder / "data", folder / "cache", recipes.get("unet2d:tiny").preprocess)
    return ("train", "unet2d:tiny", str(folder / "cache"), "run", "--epochs", "1")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of Keras' configuration, empty; no variable chooses the backend."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def complaint(train, capsys):
    assert main(list(train)) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


def process(tmp_path, settings, *command):
    """Run Python in a new process, because Keras chooses its backend when it is imported for the first time."""
    return subprocess.run(
        [sys.executable, *command], env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "name", ["nonsense", "TensorFlow", "TensorFlow2", "torch", "numpy", "jax,tensorflow", " "]
)
def test_a_backend_that_is_none_is_named(name, home, train, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", name)
    line = complaint(train, capsys)
    assert line.startswith(f"kitsseg: KERAS_BACKEND={name.strip()}")
    assert "backend tensorflow or jax" in line


def test_a_backend_that_is_not_installed_is_named(home, train, tmp_path):
    (tmp_path / "site" / "jax").mkdir(parents=True)
    (tmp_path / "site" / "jax" / "__init__.py").write_text(WITHOUT_JAX)
    settings = {"KERAS_BACKEND": "jax", "PYTHONPATH": str(tmp_path / "site")}
    done = process(tmp_path, settings, "-m", "kitsseg", *train)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert re.search("KERAS_BACKEND=jax: .*jax cannot be imported", line)
    assert "pip install jax" in line


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "null", '{"backend": ["jax"]}', '{"backend": "theano"}']
)
def test_a_configuration_that_cannot_be_used_is_named(text, home, train, capsys):
    (home / "keras.json").write_text(text)
    assert complaint(train, capsys).startswith(f"kitsseg: {home / 'keras.json'}")


def test_so_is_one_with_another_wrong_setting(home, train, tmp_path):
    (home / "keras.json").write_text(json.dumps({"floatx": "float99"}))
    done = process(tmp_path, {}, "-m", "kitsseg", *train)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"kitsseg: {home / 'keras.json'}: Keras cannot use it")


@pytest.mark.parametrize("text", [None, "{"])
def test_no_configuration_or_one_that_keras_leaves_out_gives_the_default(text, home, tmp_path):
    if text is not None:
        (home / "keras.json").write_text(text)
    done = process(tmp_path, {}, "-c", SAY)
    assert (done.returncode, done.stdout.strip()) == (0, "tensorflow"), done.stderr


# oneDNN: TensorFlow leaves it out on many CPUs, where a step of training then takes longer


@pytest.mark.parametrize(
    ("machine", "of_user", "trains", "expected"),
    [
        ("x86_64", None, True, "1"),
        ("AMD64", None, True, "1"),  # as Windows calls it
        ("x86_64", "0", True, "0"),
        ("x86_64", None, False, None),
        ("aarch64", None, True, None),
        ("arm64", "1", True, "1"),
    ],
)
def test_a_training_has_onednn_unless_the_user_says_otherwise(
    machine, of_user, trains, expected, home, monkeypatch
):
    name = "TF_ENABLE_ONEDNN_OPTS"
    monkeypatch.setenv(name, of_user or "")  # so that it is as before in the end
    if of_user is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr("platform.machine", lambda: machine)
    start_keras(trains=trains)
    assert os.environ.get(name) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["prune", "run", "cache", "out", "--sparsity", "0.5"],
        ["shrink", "run", "cache", "out"],
        ["cross-validate", "unet2d:tiny", "cache", "folds"],
        ["demo"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_trains_says_so_when_it_starts_keras(words, train, monkeypatch, tmp_path):
    said = []

    def started(trains=False):
        said.append(trains)
        raise InputError("no further")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kitsseg.runtime.start_keras.start_keras", started)
    monkeypatch.setattr("kitsseg.records.run.read_run", lambda folder: None)
    monkeypatch.setattr("kitsseg.recipes.of_record", lambda record, path: recipes.get("unet2d:tiny"))
    assert main(list(train) if words == ["train"] else words) == 1
    assert said == [True]
