"""A batch or a scan that the memory cannot hold is one line that names the option, and nothing finished is lost."""

import keras
import numpy as np
import pytest
from support.recipes import micro, split_of_cases

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.errors import InputError
from kitsseg.inference.cohort import predict_cohort
from kitsseg.recipe import changed
from kitsseg.training.epoch_log import EpochLog
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

pytestmark = pytest.mark.usefixtures("eagerly")


def exhausted():
    import tensorflow as tf

    return tf.errors.ResourceExhaustedError(
        None, None, "OOM when allocating tensor with shape[9,9] and type float on /job:x"
    )


def of_a_constant():
    import tensorflow as tf

    text = "Graph execution error:\n\nCannot parse tensor from proto: goo.gle/debugproto\ndtype: DT_FLOAT"
    return tf.errors.InvalidArgumentError(None, None, text)


def of_jax():
    from jax.errors import JaxRuntimeError

    return JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7441153832 bytes.")


ERRORS = [exhausted, of_a_constant, of_jax, lambda: MemoryError("Unable to allocate 9 GiB")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_that_does_not_fit_is_one_line_that_names_the_option(
    error, trained, tmp_path, monkeypatch, capsys
):
    def fit(*_, **__):
        raise error()

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    run = tmp_path / "run"
    assert (
        main(["train", "micro", str(trained.cache), str(run), "--batch-size", "1000000", "--steps", "1"]) == 1
    )
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"kitsseg: {run}: not enough memory for batches of 1000000 images, computed in 1 part ("
    )
    assert " a smaller --batch-size, " in line and "--accumulate" in line
    assert f"remove {run}" in line


def test_patches_and_batches_of_one_image_are_told_what_helps_them(trained, source, tmp_path, monkeypatch):
    phase = trained.recipe.phases[0]

    def fit(*_, **__):
        raise exhausted()

    monkeypatch.setattr(keras.Model, "fit", fit)
    sampler = f"phases.{phase.name}.sampler"
    one = changed(trained.recipe, {f"{sampler}.batch_size": 1, f"{sampler}.positive": 1}, {})
    with pytest.raises(InputError, match="batches of 1 images, .* more memory") as caught:
        train_recipe(one, trained.cache, trained.split, tmp_path / "one")
    assert "--batch-size" not in str(caught.value)
    with pytest.raises(
        InputError, match=r"batches of 3 images, .* --set phases\.scratch\.sampler\.cases_per_batch"
    ):
        train_recipe(micro("deeplab3d"), source / "cache", split_of_cases(), tmp_path / "patches")
    # each image alone already
    with pytest.raises(InputError, match="batches of 7 images, computed in 7 parts .* more memory"):
        train_recipe(trained.recipe, trained.cache, trained.split, tmp_path / "7", TrainOptions(accumulate=7))


def test_finished_epochs_are_kept_and_resumed(trained, tmp_path, monkeypatch):
    ended = EpochLog.on_epoch_end

    def second(self, epoch, logs=None):
        if epoch == 1:
            raise exhausted()
        ended(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(EpochLog, "on_epoch_end", second)
        with pytest.raises(InputError, match="finished epochs are kept.* --resume"):
            train_recipe(trained.recipe, trained.cache, trained.split, tmp_path / "run", TrainOptions(seed=5))
    train_recipe(
        trained.recipe, trained.cache, trained.split, tmp_path / "run", TrainOptions(seed=5, resume=True)
    )
    weights = [
        keras.saving.load_model(run / "model.keras", compile=False).get_weights()
        for run in (tmp_path / "run", trained.run)
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*weights, strict=True))


def test_other_errors_of_training_stay_what_they_are(trained, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr(keras.Model, "fit", fit)
    with pytest.raises(ZeroDivisionError):
        train_recipe(trained.recipe, trained.cache, trained.split, tmp_path / "run")


@pytest.mark.parametrize("error", ERRORS)
def test_a_scan_that_does_not_fit_fails_with_one_line_and_the_others_are_done(
    error, trained, tmp_path, monkeypatch
):
    from kitsseg.inference import one_scan

    computed = one_scan.ensemble_labels

    def labels(prepared, *rest):
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            raise error()
        return computed(prepared, *rest)

    monkeypatch.setattr(one_scan, "ensemble_labels", labels)
    cases = [trained.data / f"case_0000{i}" for i in range(2)]
    outcome = predict_cohort(trained.run, cases, tmp_path / "out")
    assert [path.name for path in outcome.written] == ["prediction_00001.nii.gz"]
    [(name, reason)] = outcome.failed.items()
    assert name == "case_00000"
    assert reason.startswith(f"{cases[0] / 'imaging.nii.gz'}: not enough memory (")
    assert "--coarse on" in reason
    assert "\n" not in reason
    assert outcome.record.failed[name].traceback is None


@pytest.mark.parametrize("error", ERRORS)
def test_any_other_command_says_it_in_one_line(error, monkeypatch, capsys):
    def info(_):
        raise error()

    monkeypatch.setattr("kitsseg.commands.information._info", info)
    assert main(["info"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("kitsseg: not enough memory (")
