"""Deep supervision of the enhanced attention U-Net: targets and weights for heads at several resolutions.

Keras has the rest: one loss and one loss weight per output. The targets follow the order of the outputs,
coarsest first::

    losses = [FocalTversky() for _ in HEAD_WEIGHTS]          # or Tversky() as the last of them
    model.compile(optimizer, loss=losses, loss_weights=list(HEAD_WEIGHTS))
    dataset.map(lambda image, labels: (image, deep_supervision_targets(labels)))

Stated: four heads, weights 0.2, 0.2, 0.2, 0.4 from bottom to top.
Code:   strided labels (the public code of Abraham and Khan).
Ours:   ``"priority"``.
"""

import functools

import keras

__all__ = ["HEAD_STRIDES", "HEAD_WEIGHTS", "deep_supervision_targets"]

HEAD_STRIDES = (8, 4, 2, 1)
HEAD_WEIGHTS = (0.2, 0.2, 0.2, 0.4)


def deep_supervision_targets(labels, strides=HEAD_STRIDES, how="stride"):
    """Labels at the resolution of every head.

    Written with slices and operators only, so that it takes NumPy arrays, JAX arrays and TensorFlow tensors
    alike and runs inside ``tf.data`` whatever the Keras backend is.

    Args:
        labels: (..., rows, columns) signed integers; no class axis.
        strides: pixels of ``labels`` per pixel of each head, in the order of the outputs.
        how: ``"stride"`` takes the first pixel of every block; ``"priority"`` the highest label (tumor over
            kidney over background), which keeps structures thinner than a block.

    Returns: tuple of (..., rows // stride, columns // stride), one per stride.
    Raises: ValueError for an unknown ``how``, unsigned or float labels, or rows or columns that are known
        and not a multiple of the largest stride.
    """
    if how not in ("stride", "priority"):
        raise ValueError(f"how must be 'stride' or 'priority'; got {how!r}.")
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not dtype.startswith("int"):
        raise ValueError(f"labels must be signed integers, such as int32; got {dtype}. Cast them first.")
    if any(size is not None and size % stride for size in labels.shape[-2:] for stride in strides):
        raise ValueError(
            f"rows and columns of the labels must be multiples of the strides {tuple(strides)}; got "
            f"{tuple(labels.shape)}. Pad or crop the slices, or drop the class axis if there is one."
        )
    if how == "stride":
        return tuple(labels[..., ::stride, ::stride] for stride in strides)
    return tuple(_block_maximum(labels, stride) for stride in strides)


def _block_maximum(labels, stride):
    rows = functools.reduce(_maximum, [labels[..., i::stride, :] for i in range(stride)])
    return functools.reduce(_maximum, [rows[..., i::stride] for i in range(stride)])


def _maximum(a, b):
    # no `maximum` works on the tensors of all three libraries; a - b must not wrap, hence signed integers
    return (a + b + abs(a - b)) // 2
