"""Sums over the replicas of ``tf.distribute.MirroredStrategy``, for losses that are no mean over images.

Each replica computes the loss of its part of the batch. A mean over images of the parts is that of the batch; a ratio
of sums, such as soft Dice, is not: its sums must be taken over all replicas first. The JAX backend needs none of this:
its arrays are those of the whole batch, wherever their parts lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["replica_count", "sum_over_replicas"]


def replica_count() -> int:
    """Into how many parts the batch is divided here: 1 but for a strategy of TensorFlow with several replicas.

    Gradients of replicas are added, so the loss of each must be this share of the batch's. Keras takes the share of a
    mean over images by itself, but not of a loss that is one number for the batch.
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
