"""AdamW by groups of layers, against Keras' own and against NumPy; freezing (SqueezeNet U-Net §3)."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from kitsseg import recipes
from kitsseg.optimizers.group_adamw import GroupAdamW, factor_of, freeze

RATES = (("encoder_first", 0.01), ("encoder_", 0.1))


def small_net(seed=0):
    """Two "encoder" layers, one with batch normalization, and a head; no bias before the normalization."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, activation="tanh", name="encoder_first")(image)
    x = layers.Conv2D(4, 3, use_bias=False, name="encoder_conv")(x)
    x = layers.BatchNormalization(name="encoder_bn")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Activation("tanh", name="tanh")(x))
    return keras.Model(image, layers.Dense(2, name="head")(x))


def batch(seed=0, n=8):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6, 6, 2)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)


def train(model, steps, first=0):
    for step in range(first, first + steps):
        model.train_on_batch(*batch(step))


def values(model):
    return {v.path: np.array(v) for v in model.weights}


def test_one_group_equals_keras_adamw():
    """Twenty steps. Keras divides by sqrt(square) + epsilon before it corrects the bias of the square, fastai (and
    the Adam paper's text) after: with a negligible epsilon both are the same."""
    ours, theirs = small_net(), small_net()
    ours.compile(GroupAdamW(1e-2, beta_1=0.9, beta_2=0.98, epsilon=1e-12, weight_decay=0.05), "mse")
    adamw = keras.optimizers.AdamW(1e-2, beta_1=0.9, beta_2=0.98, epsilon=1e-12, weight_decay=0.05)
    adamw.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    theirs.compile(adamw, "mse")
    before = values(ours)
    train(ours, 20)
    train(theirs, 20)
    for path, value in values(ours).items():
        np.testing.assert_allclose(value, values(theirs)[path], rtol=2e-4, atol=2e-6, err_msg=path)
        if "moving" not in path:
            assert np.abs(value - before[path]).max() > 0.01, path


def numpy_adamw(start, gradients, rate, factor, betas_1, beta_2, epsilon, decay):
    """fastai's step, written down once more in float64."""
    p, mean, square = start.astype(np.float64), 0.0, 0.0
    for step, (gradient, beta_1) in enumerate(zip(gradients, betas_1, strict=True), start=1):
        p = p * (1 - rate * factor * decay)
        mean = beta_1 * mean + (1 - beta_1) * gradient
        square = beta_2 * square + (1 - beta_2) * gradient**2
        root = np.sqrt(square / (1 - beta_2**step))
        p = p - rate * factor * mean / (1 - beta_1**step) / (root + epsilon)
    return p


def test_groups_and_a_moving_beta_1_equal_numpy():
    """Also with an epsilon that counts: it is added after the correction, as fastai does."""
    rng, model = np.random.default_rng(1), small_net()
    variables = model.trainable_variables
    optimizer = GroupAdamW(1e-2, RATES, beta_2=0.99, epsilon=0.1, weight_decay=0.3)
    optimizer.build(variables)
    starts = [np.array(v) for v in variables]
    gradients = [[rng.normal(size=v.shape).astype(np.float32) for v in variables] for _ in range(20)]
    betas_1 = np.linspace(0.95, 0.85, 20)
    for step, beta_1 in zip(gradients, betas_1, strict=True):
        optimizer.beta_1.assign(beta_1)
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
    for i, variable in enumerate(variables):
        layer, name = variable.path.split("/")
        factor = {"encoder_first": 0.01, "encoder_conv": 0.1, "encoder_bn": 0.1, "head": 1.0}[layer]
        decay = 0.3 if name == "kernel" else 0.0
        expected = numpy_adamw(
            starts[i], [step[i] for step in gradients], 1e-2, factor, betas_1, 0.99, 0.1, decay
        )
        np.testing.assert_allclose(np.array(variable), expected, rtol=1e-5, atol=1e-6, err_msg=variable.path)


def test_only_kernels_decay():
    """Without a gradient Adam stands still: a kernel shrinks by 1 - rate * factor * decay, the rest stays."""
    model = small_net()
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, 2.0))
    optimizer = GroupAdamW(0.1, RATES, weight_decay=0.5)
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    found = {v.path: float(np.unique(np.array(v)).item()) for v in model.trainable_variables}
    assert found == {
        "encoder_first/kernel": pytest.approx(2 * (1 - 0.1 * 0.01 * 0.5)),
        "encoder_first/bias": 2.0,
        "encoder_conv/kernel": pytest.approx(2 * (1 - 0.1 * 0.1 * 0.5)),
        "encoder_bn/gamma": 2.0,
        "encoder_bn/beta": 2.0,
        "head/kernel": pytest.approx(2 * (1 - 0.1 * 0.5)),
        "head/bias": 2.0,
    }


def test_frozen_layers_stay_and_their_batch_normalization_learns():
    """Moving statistics, scale and shift are learned in frozen layers too, as with fastai's ``freeze``."""
    frozen = (("encoder_", 0.0),)
    model = small_net()
    freeze(model, frozen)
    model.compile(GroupAdamW(1e-2, frozen), "mse")
    assert [v.path for v in model.trainable_variables] == [
        "encoder_bn/gamma",
        "encoder_bn/beta",
        "head/kernel",
        "head/bias",
    ]
    before = values(model)
    train(model, 5)
    change = {path: np.abs(value - before[path]).max() for path, value in values(model).items()}
    still = {path for path, by in change.items() if by == 0}
    assert still == {"encoder_first/kernel", "encoder_first/bias", "encoder_conv/kernel"}
    # a tenth of the rate, as fastai gives the groups it freezes: at most some 5 steps of 1e-3
    assert 1e-3 < change["encoder_bn/gamma"] < 1e-2 < change["head/kernel"]


def test_freezing_nothing_and_unfreezing_by_building_anew():
    model = small_net()
    freeze(model, ())
    freeze(model, RATES)
    assert all(layer.trainable for layer in model.layers)
    freeze(model, (("encoder_", 0.0),))
    anew = small_net(1)
    anew.set_weights(model.get_weights())  # how a phase hands its weights on: the order is that of the layers
    assert len(anew.trainable_variables) == 7
    assert all((values(anew)[path] == value).all() for path, value in values(model).items())


def test_the_first_prefix_that_fits_counts():
    assert [factor_of(name, RATES) for name in ("encoder_first", "encoder_first2", "encoder_x", "up1")] == [
        0.01,
        0.01,
        0.1,
        1.0,
    ]
    assert factor_of("encoder_first", RATES[::-1]) == 0.1


def test_squeeze_unet_practical_has_fastai_s_groups():
    """fastai splits SqueezeNet at features[0:5] | features[5:] | rest and spreads 1e-5, 1e-4, 1e-3 over them."""
    recipe = recipes.get("squeeze_unet:practical")
    model = recipe.build_model(**recipe.model | {"weights": None, "input_shape": (64, 64, 3)})
    frozen, unfrozen = recipe.phases
    groups = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        index = int(layer.name.split("_")[2]) if layer.name.startswith("encoder_features_") else None
        groups.setdefault("rest" if index is None else "early" if index < 5 else "late", set()).add(
            factor_of(layer.name, unfrozen.rate_factors)
        )
        assert factor_of(layer.name, frozen.rate_factors) == (1.0 if index is None else 0.0)
    assert groups == {"early": {0.01}, "late": {0.1}, "rest": {1.0}}
    early = [layer for layer in model.layers if factor_of(layer.name, unfrozen.rate_factors) == 0.01]
    # torchvision: 1,792 of the first convolution, 11,408 and 12,432 of the first two fire modules
    assert sum(layer.count_params() for layer in early) == 1_792 + 11_408 + 12_432
    freeze(model, frozen.rate_factors)
    encoder = sum(np.prod(v.shape) for v in model.non_trainable_variables if v.path.startswith("encoder_"))
    assert encoder == 722_496


def test_config_round_trip():
    optimizer = GroupAdamW(3e-3, RATES, beta_1=0.8, beta_2=0.9, epsilon=1e-6, weight_decay=0.2)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, GroupAdamW)
    assert again.get_config() == optimizer.get_config()
    assert again.rate_factors == RATES  # tuples again, not JSON's lists
    assert float(again.learning_rate) == pytest.approx(3e-3)
    assert again.decay == 0.2


def test_a_saved_network_trains_on_exactly_as_it_would_have(tmp_path):
    """Means, squares, step and the moved beta_1 are all in the file."""
    model = small_net()
    freeze(model, (("encoder_first", 0.0),))
    model.compile(GroupAdamW(1e-2, (("encoder_first", 0.0), ("encoder_", 0.1))), "mse")
    train(model, 3)
    model.optimizer.beta_1.assign(0.87)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert float(again.optimizer.beta_1) == pytest.approx(0.87)
    assert not again.get_layer("encoder_first").trainable
    for net in (model, again):
        train(net, 3, first=3)
    assert int(again.optimizer.iterations) == 6
    for path, value in values(model).items():
        np.testing.assert_array_equal(values(again)[path], value, err_msg=path)
