"""3D U-Net of MLPerf's KiTS19 benchmark: not one of the five papers, but a public reference with a public score.

Reference: MLCommons, "3D U-Net on KiTS19", 2021, https://github.com/mlcommons/training
    (image_segmentation/pytorch); after Isensee et al., "No New-Net", 2018, https://arxiv.org/abs/1809.10483.

Stated: (README of the benchmark) a 3D U-Net variant after "No New-Net".
Code:   (the same repository) levels of 32, 64, 128, 256 and 320 filters and a bottleneck of 320, each with
    two blocks of 3x3x3 convolution without bias, instance normalization with scale and shift (epsilon 1e-5), ReLU; the
    first convolution of every level but the top one has stride 2, its windows starting one voxel before the patch; the
    decoder doubles with 2x2x2 transposed convolutions of stride 2, puts their result first in the concatenation and
    applies two blocks; a last 1x1x1 convolution; PyTorch's initial kernels, uniform within 1 / sqrt(fan-in).
Ours:   biases (transposed and last convolutions only) start at zero.
Check:  31,190,243 parameters, all trainable, from 27 a b + 2 b for a block of a to b filters and 8 a b + b for a
    transposed convolution. 477.30 G multiply-adds for a patch of 128 voxels a side.

Steps of the network for a patch of (128, 128, 128, 1), without the batch axis:

    ============  =====================  ==========
    step          output                 parameters
    ============  =====================  ==========
    down0         (128, 128, 128, 32)        28,640
    down1         (64, 64, 64, 64)          166,144
    down2         (32, 32, 32, 128)         664,064
    down3         (16, 16, 16, 256)       2,655,232
    down4         (8, 8, 8, 320)          4,977,920
    bottom        (4, 4, 4, 320)          5,530,880
    up4, merge4   (8, 8, 8, 320)          9,115,200
    up3, merge3   (16, 16, 16, 256)       5,965,056
    up2, merge2   (32, 32, 32, 128)       1,589,888
    up1, merge1   (64, 64, 64, 64)          397,632
    up0, merge0   (128, 128, 128, 32)        99,488
    logits        (128, 128, 128, 3)             99
    ============  =====================  ==========

Example:
    >>> network = build_unet3d((8, 8, 8, 1), filters=(2, 2))
    >>> network.output_shape, network.count_params()
    ((None, 8, 8, 8, 3), 1359)
"""

from collections.abc import Sequence

import keras
from keras import layers

__all__ = ["build_unet3d"]

NAME = "unet3d"


def build_unet3d(
    input_shape: tuple[int | None, ...] = (128, 128, 128, 1),
    n_classes: int = 3,
    filters: Sequence[int] = (32, 64, 128, 256, 320),
) -> keras.Model:
    """Build the network.

    Args:
        input_shape: ``(slices, rows, columns, channels)``; the sizes may be ``None``.
        n_classes: background included.
        filters: of each level, top first; the bottleneck below has those of the last one. The network's total
            stride is ``2 ** len(filters)``.

    Returns:
        ``keras.Model`` from float images (batch, slices, rows, columns, channels) to float32 **logits**
        (batch, slices, rows, columns, n_classes).

    Raises:
        ValueError: a known size is not a multiple of the stride, or all three are the stride itself: the
            bottleneck would be one voxel, which instance normalization sets to a constant.
    """
    _check_volume_shape(input_shape, 2 ** len(filters))
    inputs = keras.Input(input_shape, name="image")
    x, skips = _level(inputs, filters[0], "down0"), []
    for i, n in enumerate((*filters[1:], filters[-1]), 1):
        skips.append(x)
        x = _level(x, n, "bottom" if i == len(filters) else f"down{i}", strides=2)
    for i in reversed(range(len(filters))):
        x = layers.Conv3DTranspose(
            filters[i], 2, strides=2, kernel_initializer=_uniform_by_fan_in(), name=f"up{i}"
        )(x)
        x = layers.Concatenate(name=f"skip{i}")([x, skips[i]])
        x = _level(x, filters[i], f"merge{i}")
    # float32 also under mixed_float16: the loss takes a softmax of these
    logits = layers.Conv3D(
        n_classes, 1, kernel_initializer=_uniform_by_fan_in(), dtype="float32", name="logits"
    )(x)
    return keras.Model(inputs, logits, name=NAME)


def _level(x: keras.KerasTensor, filters: int, name: str, strides: int = 1) -> keras.KerasTensor:
    """Two blocks, the first of them with the stride."""
    return _block(_block(x, filters, f"{name}_1", strides), filters, f"{name}_2")


def _block(x: keras.KerasTensor, filters: int, name: str, strides: int = 1) -> keras.KerasTensor:
    """3x3x3 convolution, instance normalization, ReLU."""
    if strides > 1:
        # SAME padding of an even size would put the voxel behind it: a network shifted against the public weights
        x = layers.ZeroPadding3D(((1, 0), (1, 0), (1, 0)), name=f"{name}_pad")(x)
    x = layers.Conv3D(
        filters,
        3,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer=_uniform_by_fan_in(),
        name=f"{name}_conv",
    )(x)
    x = layers.GroupNormalization(groups=-1, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _uniform_by_fan_in() -> keras.initializers.Initializer:
    # variance 1 / (3 fan-in); in front of a normalization the size of a kernel decides how far a step moves it
    return keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_in", distribution="uniform")


def _check_volume_shape(input_shape: tuple[int | None, ...], step: int) -> None:
    if len(input_shape) != 4:
        raise ValueError(
            f"{NAME}: input_shape must be (slices, rows, columns, channels); got {tuple(input_shape)}."
        )
    sizes = tuple(input_shape[:3])
    if any(size is not None and (size < step or size % step) for size in sizes):
        raise ValueError(
            f"{NAME}: slices, rows and columns must be multiples of {step}; got {tuple(input_shape)}. "
            f"Pad or crop the patches to a multiple of {step}, or give None for a size known later."
        )
    if sizes == (step,) * 3:
        raise ValueError(
            f"{NAME}: one of slices, rows and columns must be at least {2 * step}; got {tuple(input_shape)}. A "
            "bottleneck of one voxel would be normalized to a constant."
        )
