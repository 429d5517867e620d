"""The callback on every network and on both backends: run it with KERAS_BACKEND=jax too."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kitsseg import models
from kitsseg.errors import InputError
from kitsseg.pruning.callback import PruneLowMagnitude
from kitsseg.pruning.masks import n_kept
from kitsseg.pruning.schedules import at_step, constant_sparsity, polynomial_decay
from kitsseg.pruning.sparsity import gzip_size, sparsity_rows, sparsity_totals
from kitsseg.pruning.weights import prunable_weights

pytest.importorskip("tensorflow_model_optimization")
NETWORKS = {
    "unet2d": {"input_shape": (16, 16, 1), "start_filters": 4, "n_pools": 2},
    "wp_unet": {"input_shape": (16, 16, 1), "filters": (4, 8, 8, 8, 8)},
    "enhanced_unet": {"input_shape": (16, 16, 1), "base": 8},
    "squeeze_unet": {"input_shape": (32, 32, 3), "decoder": "lite"},
    "deeplab3d": {"input_shape": (8, 8, 8, 1), "width_divisor": 16},
}


def arrays(model):
    return [ops.convert_to_numpy(variable).copy() for _, variable in prunable_weights(model)]


def n_zeros(weights):
    return [int(w.size - np.count_nonzero(w)) for w in weights]


class Zeros(keras.callbacks.Callback):
    """Zeros of every prunable tensor after each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.seen.append(n_zeros(arrays(self.model)))


@pytest.mark.parametrize("stem", sorted(NETWORKS))
def test_every_network_reaches_the_target_on_the_step_the_schedule_says(stem):
    """With a learning rate of 0, the zeros after a step are the weights that were masked before the step."""
    keras.utils.set_random_seed(0)
    options = NETWORKS[stem]
    model = getattr(models, f"build_{stem}")(**options)
    last, _ = prunable_weights(model)[-1]
    for layer in model.layers:
        layer.trainable = layer is last  # less to compile, and both kinds of weights are pruned
    compiled(model, keras.optimizers.SGD(0.0))
    images = np.random.default_rng(0).random((2, *options["input_shape"]), "float32")
    targets = [np.zeros((2, *output.shape[1:]), "float32") for output in model.outputs]
    zeros, schedule = Zeros(), polynomial_decay(0.75, 2, 1)
    sizes = [w.size for w in arrays(model)]
    model.fit(
        images,
        targets if len(targets) > 1 else targets[0],
        batch_size=1,
        verbose=0,
        callbacks=[PruneLowMagnitude(schedule), zeros],
    )
    # 0.75 - 0.75 (1 - 1 / 2)^3 = 0.65625 at step 1; 0.75 at step 2
    halfway, all_of_it = ([n - n_kept(n, s) for n in sizes] for s in (0.65625, 0.75))
    # of a million float32 numbers some are equal, and equals at the threshold all stay
    np.testing.assert_allclose(zeros.seen, [halfway, all_of_it], rtol=0, atol=3)


def small():
    """A network with a layer of every kind; nested once."""
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(8, 1, name="inner")], name="nested")
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="tanh", name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = inner(x)
    x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x), name="small")


def compiled(model, optimizer="adam"):
    jax = keras.backend.backend() == "jax"  # without compilation JAX takes minutes, TensorFlow gains
    model.compile(optimizer, loss="mse", run_eagerly=not jax, jit_compile=jax)
    return model


def batches(n=8):
    rng = np.random.default_rng(2)
    return rng.normal(size=(n, 8, 8, 3)).astype("float32"), rng.normal(size=(n, 8, 8, 2)).astype("float32")


def fit(model, pruning, *others, epochs=1, **options):
    x, y = batches()
    return model.fit(
        x, y, batch_size=2, epochs=epochs, shuffle=False, verbose=0, callbacks=[pruning, *others], **options
    )


class EpochEnds(keras.callbacks.Callback):
    """Zeros of every prunable tensor as a callback that saves the model would find them."""

    def __init__(self):
        super().__init__()
        self.seen, self.dense_before = [], []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.last = n_zeros(arrays(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(n_zeros(arrays(self.model)))
        self.dense_before.append(self.last)


def test_masked_weights_are_exactly_zero_at_each_epoch_end():
    """Within an epoch masked weights are not zero: the optimizer updates them, so a later mask can restore them."""
    keras.utils.set_random_seed(3)
    model = compiled(small())
    before, ends = arrays(model), EpochEnds()
    pruning = PruneLowMagnitude(constant_sparsity(0.5))
    fit(model, pruning, ends, epochs=3)
    expected = [w.size - n_kept(w.size, 0.5) for w in before]
    assert ends.seen == [expected] * 3
    assert sum(map(sum, ends.dense_before)) < 0.5 * 3 * sum(expected)
    assert n_zeros(arrays(model)) == expected
    for weight, mask, old in zip(arrays(model), pruning.masks, before):
        assert (weight[~mask] == 0).all()
        assert not np.signbit(weight[~mask]).any()  # +0, which compresses better than a mixture with -0
        assert (weight[mask] != old[mask]).any()
        np.testing.assert_array_equal(
            mask, np.abs(old) >= np.sort(np.abs(old), axis=None)[mask.size - mask.sum()]
        )


def test_a_dropped_weight_can_come_back():
    """A later mask is drawn from the values that the optimizer gave to the dropped weights."""
    model = compiled(keras.Sequential([keras.Input((1, 1, 4)), layers.Conv2D(1, 1, use_bias=False)]), "sgd")
    model.set_weights([np.array([1, 2, 3, 4], "float32").reshape(1, 1, 4, 1)])
    from tensorflow_model_optimization.sparsity.keras import ConstantSparsity

    pruning = PruneLowMagnitude(ConstantSparsity(0.5, 1, 3, frequency=2))  # masks at steps 1 and 3
    x = np.zeros((3, 1, 1, 4), "float32")
    x[..., 0] = 30.0  # an error of 3000 times 30 times a rate of 0.01: the first weight takes off
    model.fit(x, np.full((3, 1, 1, 1), 3000.0), batch_size=1, verbose=0, shuffle=False, callbacks=[pruning])
    np.testing.assert_array_equal(pruning.masks[0].ravel(), [True, False, False, True])


def test_steps_and_masks_go_on_when_fit_is_called_again_after_evaluate_and_with_the_saved_model(tmp_path):
    keras.utils.set_random_seed(1)
    start, whole = compiled(small()), compiled(small())
    whole.set_weights(start.get_weights())
    alone = PruneLowMagnitude(polynomial_decay(0.5, 10, 2))
    fit(whole, alone, epochs=3)

    model, pruning = start, PruneLowMagnitude(polynomial_decay(0.5, 10, 2))
    fit(model, pruning)
    x, y = batches()
    model.evaluate(x, y, verbose=0, callbacks=[pruning])
    model.predict(x, verbose=0, callbacks=[pruning])
    fit(model, pruning)
    assert pruning.step == 8
    model.save(tmp_path / "model.keras")
    pruning.save(tmp_path / "pruning.npz")

    again = PruneLowMagnitude(polynomial_decay(0.5, 10, 2))  # as another process would
    again.load(tmp_path / "pruning.npz")
    assert again.step == 8
    for ours, theirs in zip(again.masks, pruning.masks):
        np.testing.assert_array_equal(ours, theirs)
    assert again.thresholds == pruning.thresholds
    assert [type(t) for t in again.thresholds] == [np.float32] * len(again.masks)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, again)
    assert again.step == alone.step == 12
    for ours, theirs in zip(again.masks, alone.masks):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(loaded.get_weights(), whole.get_weights()):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_moving_averages_are_masked_too():
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5)
    model = compiled(small(), optimizer)
    ends = EpochEnds()
    pruning = PruneLowMagnitude(constant_sparsity(0.75))
    fit(model, pruning, keras.callbacks.SwapEMAWeights(swap_on_epoch=True), ends, epochs=2)
    expected = [w.size - n_kept(w.size, 0.75) for w in arrays(model)]
    assert ends.seen == [expected] * 2
    assert n_zeros(arrays(pruning.strip())) == expected


@pytest.mark.parametrize(
    ("variant", "tensors", "zeros"), [("dw_unet", 23, 1_290_400), ("wp_unet", 16, 640_160)]
)
def test_wp_unet_zeros_of_the_full_networks(variant, tensors, zeros):
    keras.utils.set_random_seed(0)
    model = models.build_wp_unet((16, 16, 1), n_classes=1, variant=variant)
    pruning = PruneLowMagnitude(constant_sparsity(0.5))
    dense = gzip_size(model)[1]
    pruning.set_model(model)
    pruning.on_train_begin()
    pruning.on_train_batch_begin(0)
    rows = sparsity_rows(model, [variable for _, variable in prunable_weights(model)])
    pruned = [row for row in rows if row["pruned"] == "yes"]
    assert len(pruned) == len(pruning.masks) == tensors
    assert sum(row["zeros"] for row in pruned) == zeros
    totals = sparsity_totals(model, rows)
    assert totals["sparsity"] == pruning.sparsity == 0.5
    assert totals["parameters"] - totals["nonzero_parameters"] == zeros
    # half of the values cost 4 bytes at most, the other half about a bit
    assert totals["gzip_bytes"] < 0.65 * dense

    image = np.random.default_rng(0).random((1, 16, 16, 1), "float32")
    masked = model.predict_on_batch(image)
    stripped = pruning.strip()
    assert type(stripped) is type(model)
    np.testing.assert_array_equal(stripped.predict_on_batch(image), masked)


def names(model, **options):
    return [(layer.name, variable.name) for layer, variable in prunable_weights(model, **options)]


def test_kernels_are_pruned_and_depthwise_ones_only_if_asked():
    table = [("first", "kernel"), ("inner", "kernel"), ("separable", "pointwise_kernel"), ("head", "kernel")]
    model = small()
    assert names(model) == table
    assert names(model, first_last=False) == table[1:-1]
    assert names(model, exclude=("inner",)) == [table[0], *table[2:]]
    with_depthwise = names(model, depthwise=True)
    assert set(with_depthwise) - set(table) == {("separable", "depthwise_kernel"), ("depthwise", "kernel")}
    shared = layers.Dense(3, name="shared")
    inputs = keras.Input((3,))
    assert names(keras.Model(inputs, shared(shared(inputs)))) == [("shared", "kernel")]


def test_9_1_other_layers_of_the_table():
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 4, name="embed")(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attend")(x, x)
    x = layers.LSTM(3, name="lstm")(x)
    found = [name for name, _ in names(keras.Model(inputs, x))]
    assert found == ["embed", *["attend"] * 4, *["lstm"] * 2]


def test_every_head_of_a_network_with_several_stays_dense():
    model = models.build_enhanced_unet((16, 16, 1), base=8)
    dense = {name for name, _ in names(model)} - {name for name, _ in names(model, first_last=False)}
    assert set(model.output_names) < dense
    assert len(dense) == len(model.outputs) + 1


def drawn(model, **options):
    pruning = PruneLowMagnitude(constant_sparsity(0.5), **options)
    pruning.set_model(model)
    pruning.on_train_begin()
    pruning.on_train_batch_begin(0)
    return dict(zip((layer.name for layer, _ in prunable_weights(model)), pruning.masks)), pruning


def test_ours_blocks_are_for_pointwise_kernels_only():
    masks, _ = drawn(small(), block=2)
    for name in ("inner", "separable", "head"):
        pairs = masks[name].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
    pairs = masks["first"].reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).any()
    assert all(mask.mean() == pytest.approx(0.5, abs=0.1) for mask in masks.values())


def test_ours_one_ranking_for_all_layers():
    model = small()
    weights = model.get_layer("first").kernel
    weights.assign(ops.sign(weights) + 100 * weights)
    masks, pruning = drawn(model, scope="global")
    # 100 of 108 + 32 + 48 + 12 weights stay, all of them among the 108 of the first layer
    assert {name: mask.sum() for name, mask in masks.items()} == {
        "first": 100,
        "inner": 0,
        "separable": 0,
        "head": 0,
    }
    assert pruning.sparsity == 0.5
    assert len(set(pruning.thresholds)) == 1


def test_two_of_four_is_drawn_at_the_first_step_only():
    model = compiled(small(), keras.optimizers.SGD(0.5))
    pruning = PruneLowMagnitude(constant_sparsity(0.5, step=3), (2, 4))
    pruning.set_model(model)
    pruning.on_train_begin()
    pruning.on_train_batch_begin(0)
    first = [mask.copy() for mask in pruning.masks]
    fit(model, pruning)
    assert pruning.thresholds == [999.0] * 4
    assert all((a == b).all() for a, b in zip(first, pruning.masks))
    # 4 to 8 channels: two of four; three inputs and a zero: two of three stay; six inputs: four of six
    assert [round(float(1 - mask.mean()), 4) for mask in first] == [0.3333, 0.5, 0.5, 0.3333]


@keras.saving.register_keras_serializable(package="tests")
class Unknown(layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 2), name="matrix")

    def call(self, x):
        return ops.matmul(x, self.matrix)


def test_what_cannot_be_pruned_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Unknown(name="odd"), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"odd: .*not know .* Unknown\. .* exclude=\('odd',\)"):
        prunable_weights(model)
    assert names(model, exclude=("odd",))[0][1] == "kernel"
    pruning = PruneLowMagnitude(constant_sparsity(0.5))
    pruning.set_model(keras.Sequential([keras.Input((4,)), layers.ReLU()], name="empty"))
    with pytest.raises(ValueError, match="empty: no layer .*has weights"):
        pruning.on_train_begin()
    model = small()
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1.* Found 2"):
        fit(model, PruneLowMagnitude(constant_sparsity(0.5)))
    _, pruning = drawn(small())
    pruning.set_model(keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="other"))
    with pytest.raises(ValueError, match="other: .*masks .*another model"):
        pruning.on_train_begin()
    with pytest.raises(ValueError, match='scope is "layer" or "global"; found \'all\''):
        PruneLowMagnitude(constant_sparsity(0.5), scope="all")
    with pytest.raises(ValueError, match="give only one of"):
        PruneLowMagnitude(constant_sparsity(0.5), (2, 4), block=2)
    with pytest.raises(ValueError, match="tfmot has none for 1D and 3D"):
        three = models.build_deeplab3d((8, 8, 8, 1), width_divisor=16)
        drawn(three, sparsity_m_by_n=(2, 4))
    with pytest.raises(InputError, match=r"nothing\.npz: .*damaged state"):
        PruneLowMagnitude(constant_sparsity(0.5)).load(tmp_path / "nothing.npz")
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"half\.npz: .*damaged state"):
        PruneLowMagnitude(constant_sparsity(0.5)).load(tmp_path / "half.npz")


def test_any_schedule_object_will_do():
    import tensorflow as tf
    from tensorflow_model_optimization.sparsity.keras import PruningSchedule

    class Steps(PruningSchedule):
        def __call__(self, step):
            return tf.equal(step % 2, 0), tf.cast(step, tf.float32) / 10

        def get_config(self):
            return {}

    assert at_step(Steps(), 4) == (True, np.float32(0.4))
    model = compiled(keras.Sequential([keras.Input((5,)), layers.Dense(4)]))
    pruning = PruneLowMagnitude(Steps())
    model.fit(np.ones((7, 5)), np.ones((7, 4)), batch_size=1, verbose=0, callbacks=[pruning])
    assert n_zeros(arrays(model)) == [12]  # 0.6 of 20 at step 6; step 7 draws nothing
