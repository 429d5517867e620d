"""Averages of the weights: by hand, by an independent sum over the steps, validated and kept, resumed to the bit."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from support.cases import read_json
from support.recipes import StopAt, check_alike, micro, split_of_cases

from kitsseg.errors import InputError
from kitsseg.optimizers.ema import ValidateAverages, averaged_weights, averages, keep_averages
from kitsseg.records.run import read_history
from kitsseg.training import train
from kitsseg.training.epochs import best_epoch
from kitsseg.training.options import TrainOptions
from kitsseg.training.phase_setup import load_checkpoint


def one_weight(momentum=0.5, parts=1):
    """A network of one weight. Its loss is the square of the weight, so that a step of rate 1/4 halves the weight."""
    inputs = keras.Input((1,))
    weight = layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(8))
    model = keras.Model(inputs, weight(inputs))
    optimizer = keras.optimizers.SGD(0.25)
    if parts > 1:
        optimizer.gradient_accumulation_steps = parts
    keep_averages(optimizer, momentum, parts)
    model.compile(optimizer, "mse")
    return model


def test_by_hand():
    """8 -> 4, 2, 1; the average 4, (4 + 2) / 2 = 3, (3 + 1) / 2 = 2."""
    model = one_weight()
    for expected in (4, 3, 2):
        model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
        assert averaged_weights(model)[0].item() == expected
    assert model.get_weights()[0].item() == 1


def test_by_hand_in_two_parts():
    """The average is a copy of the weight until the first step. Then each part averages with momentum sqrt(1/2).

    The weight changes at the second part of a batch, so that the first part averages the weight before the step.
    """
    model = one_weight(parts=2)
    seen = []
    for _ in range(4):
        model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
        seen.append(averaged_weights(model)[0].item())
    root = 0.5**0.5
    assert seen == pytest.approx([8, 4, 4, 4 * root + 2 * (1 - root)])


def test_a_network_without_averages_is_as_it_is():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    np.testing.assert_array_equal(averaged_weights(model)[0], model.get_weights()[0])
    model.compile("adam", "mse")
    assert not list(averages(model.optimizer))
    np.testing.assert_array_equal(averaged_weights(model)[0], model.get_weights()[0])


def test_validation_sees_the_averages_and_training_does_not_notice():
    """The weights equal, to the bit, those of training without validation; validation losses are of the averages."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6)).astype(np.float32), rng.normal(size=(12, 3)).astype(np.float32)

    def trained(**validation):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        hidden = layers.BatchNormalization()(layers.Dense(5, activation="tanh")(inputs))
        model = keras.Model(inputs, layers.Dense(3)(hidden))
        optimizer = keras.optimizers.Adam(0.03)
        keep_averages(optimizer, 0.9)
        model.compile(optimizer, "mse")
        looked = []

        class Look(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                looked.append((averaged_weights(self.model), self.model.get_weights(), logs.get("val_loss")))

        callbacks = [ValidateAverages(), Look()]
        model.fit(x, y, batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=callbacks, **validation)
        return model, looked

    (model, with_validation), (_, without) = trained(validation_data=(x, y)), trained()
    for (found, weights, loss), (expected, others, _) in zip(with_validation, without, strict=True):
        for one, other in zip([*found, *weights], [*expected, *others], strict=True):
            np.testing.assert_array_equal(one, other)
        model.set_weights(found)
        assert model.evaluate(x, y, batch_size=4, verbose=0) == pytest.approx(loss, rel=1e-5)
        model.set_weights(weights)
        assert model.evaluate(x, y, batch_size=4, verbose=0) != pytest.approx(loss, rel=1e-3)


def test_what_a_run_keeps_is_the_average_over_its_steps(eager, source, tmp_path, monkeypatch):
    """NumPy averages the weights of every step. The run keeps the averages of the epoch that validates best."""
    steps, kept = [], {}

    class Record(ValidateAverages):
        def on_train_batch_end(self, batch, logs=None):
            steps.append([v.numpy().copy() for v in self.model.trainable_variables])

        def on_epoch_end(self, epoch, logs=None):
            average = steps[0]
            for weights in steps[1:]:
                average = [0.8 * a + 0.2 * w for a, w in zip(average, weights)]
            kept[epoch + 1] = average

    monkeypatch.setattr(train, "ValidateAverages", Record)
    recipe = micro("unet2d")
    recipe = replace(recipe, phases=(replace(recipe.phases[0], epochs=3),))
    run = train.train_recipe(
        recipe, source / "cache", split_of_cases(), tmp_path / "run", TrainOptions(ema=0.8)
    )
    assert len(steps) == 9
    assert read_json(run / "run.json")["ema"] == 0.8
    expected = kept[best_epoch(read_history(run))]
    found = load_checkpoint(run / "model.keras").trainable_variables
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6)
    assert any(np.abs(ours.numpy() - last).max() > 1e-4 for ours, last in zip(found, steps[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [("wp_unet", "float32"), ("enhanced_unet", "float32"), ("squeeze_unet", "mixed_float16")],
)
def test_a_stopped_run_goes_on_with_its_averages(name, precision, eager, source, tmp_path):
    """Pruning, rounds, a scaled loss: weights and history are those of a run that nobody stopped."""
    # averages do not depend on the kind of network, so the fastest network is used
    full = micro(name)
    recipe = replace(micro("unet2d"), phases=full.phases, build_optimizer=full.build_optimizer)
    options = {"precision": precision, "ema": 0.7}
    runs = [tmp_path / "whole", tmp_path / "stopped"]
    whole, stopped = ((recipe, source / "cache", split_of_cases(), run) for run in runs)
    train.train_recipe(*whole, TrainOptions(seed=3, **options))
    with pytest.raises(KeyboardInterrupt):
        train.train_recipe(*stopped, TrainOptions(seed=3, progress=StopAt(5), **options))
    with pytest.raises(InputError, match="started with another ema"):
        train.train_recipe(*stopped, TrainOptions(seed=3, resume=True, precision=precision))
    with pytest.raises(KeyboardInterrupt):
        train.train_recipe(*stopped, TrainOptions(seed=3, resume=True, progress=StopAt(8), **options))
    train.train_recipe(*stopped, TrainOptions(seed=3, resume=True, **options))
    one, other = (load_checkpoint(run / "model.keras").get_weights() for run in runs)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(*(read_history(run) for run in runs), strict=True):
        check_alike(ours, theirs)
    if name == "wp_unet":  # the averages are masked as the weights are
        assert read_json(runs[0] / "run.json")["sparsity"]["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("momentum", [0, 1, -0.5, 1.5])
def test_a_momentum_that_is_none_is_refused(momentum, source, tmp_path):
    arguments = (micro("unet2d"), source / "cache", split_of_cases(), tmp_path / "run")
    with pytest.raises(InputError, match="--ema: .*between 0 and 1"):
        train.train_recipe(*arguments, TrainOptions(ema=momentum))
    assert not (tmp_path / "run").exists()
