"""deeplab3d with sliced and with indexed volumes: python benchmarks/depthwise3d.py [--rounds 7]

Two versions of the paper's network are compared. In the package's version the layers cut volumes with
``keras.ops.slice``. In the other version the same layers are written with indices (tests/support/strided_layers3d.py),
which TensorFlow computes as strided slices. Measured are a step of training on one fixed batch with the paper's loss
and Adam, and inference of the same batch, once with known sizes of the input and once with sizes of None. Both versions
run in one process on one core, in turn within each round. Printed are processor times (median, smallest, largest) and
the medians of the ratios within a round. With KERAS_BACKEND=jax the networks run on JAX.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # before an engine counts the CPUs
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import keras
import numpy as np
from support.strided_layers3d import StridedDepthwise, StridedUpsample

from kitsseg import recipes
from kitsseg.models import deeplab3d

INDEXED = {"DepthwiseConv3D": StridedDepthwise, "UpsampleTrilinear": StridedUpsample}
SIDES = {"indexed": INDEXED, "sliced": {}}
BACKEND = keras.backend.backend()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2, help="patches in a batch")
    parser.add_argument("--patch", type=int, default=48, help="voxels along each axis")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    rng = np.random.default_rng(0)
    shape = (arguments.batch, *(arguments.patch,) * 3)
    images = rng.normal(size=(*shape, 1)).astype("float32")
    labels = rng.integers(0, 3, shape).astype("int32")
    networks = {
        (side, known): network(layers, (*(arguments.patch if known else None,) * 3, 1))
        for side, layers in SIDES.items()
        for known in (True, False)
    }
    tasks = {
        "step of training": lambda side: networks[side, True].train_on_batch(images, labels),
        "inference": lambda side: networks[side, True].predict_on_batch(images),
        "inference, sizes unknown": lambda side: networks[side, False].predict_on_batch(images),
    }
    for known in (True, False):  # before any step, from equal weights
        logits = [networks[side, known].predict_on_batch(images) for side in SIDES]
        equal = np.array_equal(*logits)
        print(
            f"logits, sizes {'known' if known else 'unknown'}: {'equal to the bit' if equal else 'NOT EQUAL'}"
        )
    times = {(task, side): [] for task in tasks for side in SIDES}
    losses = dict.fromkeys(SIDES)
    for number in range(arguments.rounds + 1):
        for task, run in tasks.items():
            for side in SIDES:
                started = time.process_time()
                result = run(side)
                seconds = time.process_time() - started
                if number:  # the first round traces and compiles
                    times[task, side].append(1e3 * seconds)
                if task == "step of training":
                    losses[side] = float(result)
    print(
        f"{BACKEND}, batches of {arguments.batch} x {arguments.patch}^3, {arguments.rounds} rounds, ms of processor"
    )
    print(f"{'':<26}" + "".join(f"{side:>24}" for side in SIDES) + f"{'ratio':>8}")
    for task in tasks:
        values = [times[task, side] for side in SIDES]
        ratio = statistics.median(a / b for a, b in zip(*values, strict=True))
        columns = "".join(
            f"{statistics.median(v):>9.0f} ({min(v):.0f} to {max(v):.0f})".rjust(24) for v in values
        )
        print(f"{task:<26}{columns}{ratio:>8.2f}")
    print("loss after all steps: " + ", ".join(f"{side} {loss:.6f}" for side, loss in losses.items()))


def network(layers, input_shape):
    """The paper's network with these layers in place of its own, compiled, always with the same weights."""
    recipe = recipes.get("deeplab3d")
    keras.utils.set_random_seed(0)
    with mock.patch.multiple(deeplab3d, **layers) if layers else mock.patch.dict({}):
        model = recipe.build_model(**recipe.model | {"input_shape": input_shape})
    loss = recipe.build_loss(**recipe.loss)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=BACKEND == "jax")
    return model


if __name__ == "__main__":
    main()
