"""2-D U-Net of Chen and Jin for kidney and tumor.

Reference: Joseph Chen and Benson Jin, "A 2D U-Net for Automated Kidney and Renal Tumor Segmentation", manuscript of the
    KiTS19 challenge, 2019. No DOI was found; https://www.researchgate.net/publication/336247303.

Numbers in brackets are those of the paper's statements in docs/papers/unet2d.md.

Stated: a recursive U-Net; on each level sub-blocks, of which the last one is the skip; the decoder upsamples
    bilinearly by 2, concatenates and applies two sub-blocks; five upsamplings; a last 1x1 convolution [1]. 20 filters
    on the top level, doubled with each level below [2]. 12M parameters [3]. Softmax inside the loss [4]. The authors
    advise 30 or more starting filters [15].
Code:   (github.com/jchen42703/kits19-cnn, branch preprocess-test-set at the challenge's deadline) two sub-blocks on
    every level; a sub-block is a 3x3 convolution with bias, LeakyReLU of slope 0.3, then batch normalization; 2x2
    max-pooling; the upsampled tensor comes first in the concatenation. Its upsampling layer is the nearest one by
    default.
Ours:   bilinear upsampling, as stated [1]; it has no parameters either way.
Check:  12,298,643 parameters, 12,291,123 of them trainable. Other readings: 1 or 3 sub-blocks 6,147,643 or
    18,449,643, 2x2 transposed convolutions 12,162,863, convolutions without bias 12,294,883, six pools
    49,181,843, 30 starting filters 27,657,663. Only two sub-blocks give 12M [3].

Steps of the network for one slice of (224, 224, 1), without the batch axis:

    ============  ===================  ==========
    step          output               parameters
    ============  ===================  ==========
    down0         (224, 224, 20)            3,980
    down1         (112, 112, 40)           22,000
    down2         (56, 56, 80)             87,200
    down3         (28, 28, 160)           347,200
    down4         (14, 14, 320)         1,385,600
    bottom        (7, 7, 640)           5,536,000
    up4, merge4   (14, 14, 320)         3,689,600
    up3, merge3   (28, 28, 160)           923,200
    up2, merge2   (56, 56, 80)            231,200
    up1, merge1   (112, 112, 40)           58,000
    up0, merge0   (224, 224, 20)           14,600
    logits        (224, 224, 3)                63
    ============  ===================  ==========

Example:
    >>> network = build_unet2d((16, 16, 1), start_filters=2, n_pools=2)
    >>> network.output_shape, network.count_params()
    ((None, 16, 16, 3), 2063)
"""

from dataclasses import dataclass

import keras
from keras import layers

from kitsseg.models.layers.blocks2d import UpsampleBilinear, check_image_shape

__all__ = ["SubBlock", "build_unet2d"]

NAME = "unet2d"

UPSAMPLINGS = ("bilinear", "nearest", "transposed")
MOST_POOLS = 8  # with one more, an image of 512 x 512 would end as one pixel


@dataclass(frozen=True, kw_only=True)
class SubBlock:
    """How a sub-block is built; the defaults are those of the authors' code.

    Attributes:
        use_bias: whether its 3x3 convolution has a bias.
        norm_first: normalize before the activation; the authors' code does it after.
    """

    use_bias: bool = True
    norm_first: bool = False


def build_unet2d(
    input_shape: tuple[int | None, ...] = (224, 224, 1),
    n_classes: int = 3,
    start_filters: int = 20,
    n_pools: int = 5,
    sub_blocks: int = 2,
    upsampling: str = "bilinear",
    block: SubBlock = SubBlock(),
) -> keras.Model:
    """Build the network.

    Args:
        input_shape: ``(rows, columns, channels)``; rows and columns may be ``None``.
        n_classes: background included.
        start_filters: filters of level 0; they double with each of the ``n_pools`` levels below.
        n_pools: number of 2x2 poolings.
        sub_blocks: sub-blocks per level, in the encoder, at the bottom and in the decoder.
        upsampling: ``"bilinear"`` (paper), ``"nearest"`` (the layer's default in the authors' code) or
            ``"transposed"``, a 2x2 transposed convolution of stride 2 to the filters of the level.
        block: how a sub-block is built.

    Returns:
        ``keras.Model`` from float images (batch, rows, columns, channels) to float32 **logits**
        (batch, rows, columns, n_classes).

    Raises:
        ValueError: rows or columns are known and not a multiple of ``2**n_pools``; no pooling or more than
            eight; no sub-block; an unknown ``upsampling``.
    """
    if not 1 <= n_pools <= MOST_POOLS:
        raise ValueError(f"{NAME}: n_pools must be from 1 to {MOST_POOLS}; got {n_pools}.")
    if sub_blocks < 1:
        raise ValueError(f"{NAME}: sub_blocks must be at least 1; got {sub_blocks}.")
    check_image_shape(input_shape, 2**n_pools, NAME)
    if upsampling not in UPSAMPLINGS:
        raise ValueError(f"{NAME}: upsampling must be one of {', '.join(UPSAMPLINGS)}; got {upsampling!r}.")

    def level_block(x: keras.KerasTensor, level: int, prefix: str) -> keras.KerasTensor:
        filters = start_filters * 2**level
        for i in range(1, sub_blocks + 1):
            x = _sub_block(x, filters, block, f"{prefix}_{i}")
        return x

    inputs = keras.Input(input_shape, name="image")
    x, skips = inputs, []
    for level in range(n_pools):
        x = level_block(x, level, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"pool{level}")(x)
    x = level_block(x, n_pools, "bottom")
    for level in reversed(range(n_pools)):
        x = _upsample(x, start_filters * 2**level, upsampling, f"up{level}")
        x = layers.Concatenate(name=f"skip{level}")([x, skips[level]])
        x = level_block(x, level, f"merge{level}")
    # float32 also under mixed_float16: the loss takes a softmax of these
    logits = layers.Conv2D(n_classes, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=NAME)


def _sub_block(x: keras.KerasTensor, filters: int, block: SubBlock, name: str) -> keras.KerasTensor:
    """One 3x3 convolution, LeakyReLU and batch normalization, in the order asked for."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=block.use_bias, name=f"{name}_conv")(x)
    if block.norm_first:
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.LeakyReLU(negative_slope=0.3, name=f"{name}_act")(x)
    x = layers.LeakyReLU(negative_slope=0.3, name=f"{name}_act")(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def _upsample(x: keras.KerasTensor, filters: int, upsampling: str, name: str) -> keras.KerasTensor:
    """Double rows and columns."""
    if upsampling == "transposed":
        return layers.Conv2DTranspose(filters, 2, strides=2, name=name)(x)
    if upsampling == "nearest":
        return layers.UpSampling2D(name=name)(x)
    return UpsampleBilinear(name=name)(x)
