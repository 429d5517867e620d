"""WP-UNet and its two siblings.

Reference: Rao, Chatterjee and Sharma, "WP-UNet: Weight Pruning U-Net with Depth-wise Separable Convolutions for
    Semantic Segmentation of Kidney Tumours", 2022, https://doi.org/10.4103/jmss.jmss_108_21 (journal),
    https://doi.org/10.21203/rs.3.rs-526418/v1 (preprint).

Numbers in brackets are those of the paper's statements in docs/papers/wp_unet.md.

Stated: slices of 256 x 256 [2]; an ordinary first convolution, all others depth-wise separable [4]; a block is a
    convolution, ReLU, batch normalization and max-pooling, in this order [5]; the parameter counts of table 2 [13].
    The authors' first preprint (section 3.2) adds: blocks 2-4 hold two separable convolutions and one normalization,
    dropout, a mixture of ordinary and separable blocks in the decoder.
Ours:   the layouts that give the counts of table 2 [13]: filters 32-64-128-256-256, 3x3 transposed convolutions of
    stride 2 with bias, separable convolutions without bias, and ``LAYOUTS``. Dropout 0.5 after block 4 (before its
    pooling, and so on its skip connection too) and after block 5. He-normal kernels in front of a ReLU; a depth-wise
    filter has kernel_size**2 inputs, which Keras would count once for each channel. A head with background, kidney
    and tumor [6].
Check:  trainable parameters with one output channel, as in table 2 [13]: ``unet`` 5,680,353, ``dw_unet``
    2,601,921, ``wp_unet`` 1,297,441; each further output channel adds 33. The first two fits are unique among
    the layouts that we searched; the third is plausible (it has no block 5, which the preprint mentions).

Steps of ``wp_unet`` for one slice of (256, 256, 1), without the batch axis; parameters include batch statistics:

    ==========  ===================  ==========
    step        output               parameters
    ==========  ===================  ==========
    enc0        (256, 256, 32)              448
    enc1        (128, 128, 64)            7,264
    enc2        (64, 64, 128)            26,816
    enc3        (32, 32, 256)           102,784
    up3, dec3   (32, 32, 256)           726,784
    up2, dec2   (64, 64, 128)           330,624
    up1, dec1   (128, 128, 64)           83,392
    up0, dec0   (256, 256, 32)           21,216
    logits      (256, 256, 3)                99
    ==========  ===================  ==========

Example:
    >>> network = build_wp_unet((16, 16, 1), filters=(2, 2, 2, 2, 2))
    >>> network.output_shape, network.count_params()
    ((None, 16, 16, 3), 553)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import layers

from kitsseg.models.layers.blocks2d import check_image_shape

__all__ = ["build_wp_unet"]

DROPOUT = 0.5


@dataclass(frozen=True)
class _Block:
    """What one block holds: ordinary or separable convolutions, and whether a normalization ends it."""

    convs: int
    separable: bool
    norm: bool


@dataclass(frozen=True)
class _NetworkLayout:
    """The blocks of one network: encoder block 1, blocks 2-4, block 5, and the decoder's up to the last."""

    first: _Block
    encoder: _Block
    bottom: _Block
    decoder: _Block
    last: _Block


PLAIN = _Block(convs=2, separable=False, norm=False)
SEPARABLE = _Block(convs=2, separable=True, norm=True)
SEPARABLE_ONE = _Block(convs=1, separable=True, norm=True)
LAYOUTS = {
    "unet": _NetworkLayout(_Block(2, separable=False, norm=True), PLAIN, PLAIN, PLAIN, PLAIN),
    "dw_unet": _NetworkLayout(_Block(2, separable=False, norm=True), SEPARABLE, PLAIN, SEPARABLE, PLAIN),
    "wp_unet": _NetworkLayout(
        first=_Block(1, separable=False, norm=True),
        encoder=SEPARABLE,
        bottom=_Block(0, separable=False, norm=False),
        decoder=SEPARABLE_ONE,
        last=SEPARABLE_ONE,
    ),
}


def build_wp_unet(
    input_shape: tuple[int | None, ...] = (256, 256, 1),
    n_classes: int = 3,
    variant: str = "wp_unet",
    filters: Sequence[int] = (32, 64, 128, 256, 256),
) -> keras.Model:
    """Build one of the three networks of the paper's table 2.

    Args:
        input_shape: ``(rows, columns, channels)``; rows and columns may be ``None``.
        n_classes: background included.
        variant: ``"wp_unet"``, ``"dw_unet"`` (depth-wise U-Net) or ``"unet"``, the paper's own baseline.
        filters: of blocks 1-5; ``wp_unet`` has no block 5 and leaves the last one unused.

    Returns:
        ``keras.Model`` from float images (batch, rows, columns, channels) to float32 **logits**
        (batch, rows, columns, n_classes). The paper's sigmoid or softmax belongs to loss and prediction.

    Raises:
        ValueError: rows or columns are known and not a multiple of 16; an unknown ``variant``; not five
            ``filters``.
    """
    if variant not in LAYOUTS:
        raise ValueError(f"build_wp_unet: variant must be one of {', '.join(LAYOUTS)}; got {variant!r}.")
    if len(filters) != 5:
        raise ValueError(f"{variant}: filters must name the five blocks; got {filters}.")
    check_image_shape(input_shape, 16, variant)
    layout = LAYOUTS[variant]
    inputs = keras.Input(input_shape, name="image")
    x, skips = inputs, []
    for level in range(4):
        x = _add_block(x, layout.encoder if level else layout.first, filters[level], f"enc{level}")
        if level == 3:
            x = layers.Dropout(DROPOUT, name="enc3_dropout")(x)
        skips.append(x)
        x = layers.MaxPooling2D(name=f"pool{level}")(x)
    if layout.bottom.convs:
        x = _add_block(x, layout.bottom, filters[4], "enc4")
        x = layers.Dropout(DROPOUT, name="enc4_dropout")(x)
    for level in reversed(range(4)):
        x = layers.Conv2DTranspose(filters[level], 3, strides=2, padding="same", name=f"up{level}")(x)
        x = layers.Concatenate(name=f"skip{level}")([skips[level], x])
        x = _add_block(x, layout.decoder if level else layout.last, filters[level], f"dec{level}")
    # float32 also under mixed_float16: the loss takes a softmax of these
    logits = layers.Conv2D(n_classes, 1, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=variant)


def _add_block(x: keras.KerasTensor, block: _Block, filters: int, name: str) -> keras.KerasTensor:
    """The block's 3x3 convolutions, each with its ReLU, then its normalization."""
    for i in range(1, block.convs + 1):
        shared = {"padding": "same", "activation": "relu", "name": f"{name}_conv{i}"}
        if block.separable:
            conv = layers.SeparableConv2D(
                filters,
                3,
                use_bias=False,
                depthwise_initializer=keras.initializers.RandomNormal(stddev=1 / 3),
                pointwise_initializer="he_normal",
                **shared,
            )
        else:
            conv = layers.Conv2D(filters, 3, kernel_initializer="he_normal", **shared)
        x = conv(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x) if block.norm else x
