"""What pruning adds to a training step: python benchmarks/pruning.py [--rounds 7]

The masks of all 23 kernels of the depth-wise U-Net (2,580,800 weights) by our partial selection, by a full sort, and by
tensorflow-model-optimization's own code on the same weights; then what the callback does before every batch. One
process, in turn within each round; medians of processor time, and the medians of the ratios within a round.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from kitsseg.models import build_wp_unet
from kitsseg.pruning import PruneLowMagnitude
from kitsseg.pruning.masks import magnitude_mask, n_kept
from kitsseg.pruning.schedules import constant_sparsity
from kitsseg.pruning.weights import prunable_weights


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    keras.utils.set_random_seed(0)
    model = build_wp_unet((256, 256, 1), n_classes=1, variant="dw_unet")
    weights = [keras.ops.convert_to_numpy(variable).copy() for _, variable in prunable_weights(model)]
    pruning = PruneLowMagnitude(constant_sparsity(0.8))
    pruning.set_model(model)
    pruning.on_train_begin()
    pruning.on_train_batch_begin(0)
    tasks = {
        "masks, ours": lambda: [magnitude_mask(w, 0.8) for w in weights],
        "masks, full sort": lambda: [by_sorting(w, 0.8) for w in weights],
        "masks, tfmot": masks_of_tfmot(weights, 0.8),
        "before a batch": lambda: pruning.on_train_batch_begin(0),
    }
    times = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            if number:  # the first round warms up
                times[name].append(1e3 * (time.process_time() - started))
    print(f"{'':18}{'ms':>9}{'times ours':>12}")
    for name, values in times.items():
        ratio = statistics.median(v / ours for v, ours in zip(values, times["masks, ours"]))
        print(f"{name:18}{statistics.median(values):9.2f}{ratio:12.2f}")


def by_sorting(weights, sparsity):
    magnitudes = np.abs(weights)
    threshold = np.sort(magnitudes, axis=None)[magnitudes.size - n_kept(magnitudes.size, sparsity)]
    return magnitudes >= threshold


def masks_of_tfmot(weights, sparsity):
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    variables = [(tf.Variable(w), tf.Variable(tf.ones_like(w)), tf.Variable(0.0)) for w in weights]
    step = tf.constant(1, tf.int64)
    pruning = pruning_impl.Pruning(lambda: step, variables, constant_sparsity(sparsity), (1, 1), "AVG")
    return tf.function(lambda: pruning.conditional_mask_update())


if __name__ == "__main__":
    main()
