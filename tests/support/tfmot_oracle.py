"""What tensorflow-model-optimization itself does, in a process of its own: it wants Keras 2.

Called with two .npz files: the tensors and training data to read, and masks, thresholds and weights to write.
"""

import sys

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

keras = tf.keras  # Keras 2: tfmot has been imported
ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity
PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay


def drawn(weights, sparsity, block=(1, 1), m_by_n=None):
    """Mask and threshold of one tensor by tfmot's own class."""
    weights = tf.Variable(weights)
    mask, threshold = tf.Variable(tf.ones_like(weights)), tf.Variable(0.0, dtype=weights.dtype)
    step = tf.constant(1, tf.int64)
    schedule = ConstantSparsity(sparsity, 1, 1, 1)
    pruning_impl.Pruning(
        lambda: step, [(weights, mask, threshold)], schedule, block, "AVG", m_by_n
    ).conditional_mask_update()
    return mask.numpy().astype(bool), threshold.numpy()


def twin():
    return keras.Sequential(
        [
            keras.layers.InputLayer((8, 8, 3)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.SeparableConv2D(12, 3, padding="same", activation="relu", name="separable"),
            keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            keras.layers.Conv2D(6, 1, name="pointwise"),
            keras.layers.Conv2DTranspose(2, 3, strides=2, padding="same", name="up"),
        ]
    )


def train(given, schedule, optimizer, m_by_n=None):
    """Train the pruned network for 18 steps; returns the network, whose layers are tfmot's wrappers."""
    model = twin()
    for layer in model.layers:
        layer.set_weights([given[f"{layer.name}.{i}"] for i in range(len(layer.get_weights()))])
    model = tfmot.sparsity.keras.prune_low_magnitude(model, schedule, sparsity_m_by_n=m_by_n)
    kinds = {"sgd": keras.optimizers.SGD(0.05, momentum=0.9), "adam": keras.optimizers.Adam(0.01)}
    model.compile(kinds[optimizer], "mse", run_eagerly=True)
    model.fit(
        given["x"],
        given["y"],
        batch_size=2,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )
    return model


def main(source, target):
    given, out = np.load(source), {}
    for i in range(int(given["n_tensors"])):
        out[f"mask_{i}"], out[f"threshold_{i}"] = drawn(given[f"tensor_{i}"], float(given[f"sparsity_{i}"]))
    for i in range(int(given["n_m_by_n"])):
        out[f"m_by_n_{i}"], _ = drawn(given[f"m_by_n_tensor_{i}"], 0.5, m_by_n=(2, 4))
    for i in range(int(given["n_blocks"])):
        block = (1, int(given[f"block_size_{i}"]))
        out[f"block_{i}"], out[f"block_threshold_{i}"] = drawn(given[f"block_tensor_{i}"], 0.7, block)
    schedules = {
        "rising": (PolynomialDecay(0.0, 0.5, 0, 10, frequency=2), None),
        "later": (PolynomialDecay(0.2, 0.8, 2, 14, frequency=4), None),
        "one-shot": (ConstantSparsity(0.75, 1, 1, 1), None),
        "2:4": (ConstantSparsity(0.5, 0, -1, 100), (2, 4)),
    }
    for name, (schedule, m_by_n) in schedules.items():
        for optimizer in ("sgd", "adam"):
            model = train(given, schedule, optimizer, m_by_n)
            for wrapper in model.layers:
                here = f"{name}.{optimizer}.{wrapper.layer.name}"
                out[f"{here}.step"] = wrapper.pruning_step.numpy()
                for i, weight in enumerate(wrapper.layer.get_weights()):
                    out[f"{here}.weight.{i}"] = weight
                for _, mask, threshold in wrapper.pruning_vars:
                    out[f"{here}.mask"], out[f"{here}.threshold"] = mask.numpy(), threshold.numpy()
    np.savez(target, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
