"""The precision that a network computes in while it trains.

Weights, losses, logits and what is saved stay float32 in all of them; convolutions are computed in the half precision.
``mixed_bfloat16`` has the range of float32 and needs nothing else; ``mixed_float16``, for GPUs without bfloat16 (T4,
V100), scales the loss so that small gradients do not vanish, which Keras does in ``compile``.
"""

import contextlib

import keras

from kitsseg.errors import InputError

__all__ = ["PRECISIONS", "computing_in"]

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@contextlib.contextmanager
def computing_in(precision):
    """Networks built in this context compute in ``precision``; the policy of the process is as before afterwards.

    Raises: InputError for another name than those of ``PRECISIONS``.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}; found {precision!r}.")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
