"""Sums over the replicas of ``tf.distribute.MirroredStrategy``, for losses that are not a mean over images.

Each replica computes the loss of its part of the batch. If the loss is a mean over images, the mean of the parts is
the loss of the batch. If it is a ratio of sums, such as soft Dice, the sums must be taken over all replicas before
they are divided. The JAX backend needs none of this: its arrays hold the whole batch, spread over the devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["replica_count", "sum_over_replicas"]


def replica_count() -> int:
    """Number of parts into which the batch is divided: 1 unless a strategy of TensorFlow has several replicas.

    The gradients of the replicas are added, so the loss of a replica must be divided by this number. Keras does so
    for a mean over images, but not for a loss that is one number for the batch.
    """
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of a tensor over all replicas, on each of them; its gradient is that of the sum.

    Outside of a strategy, and outside of its replicas (Keras builds models there), the tensor itself.
    """
    if replica_count() == 1:
        return value
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return value if replica is None else replica.all_reduce(tf.distribute.ReduceOp.SUM, value)
