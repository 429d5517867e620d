"""3D DeepLab v3+ with a small Xception encoder of Daza, Gomez and Arbelaez.

Reference: Daza, Gomez and Arbelaez, "Semantic Segmentation of Kidney Tumor using Convolutional Neural Networks",
    manuscript of the KiTS19 challenge, 2019. No DOI was found; https://kits19.grand-challenge.org.

Numbers in brackets are those of the paper's statements in docs/papers/deeplab3d.md.

Stated: fewer than 560k parameters [1]; the encoder of table 1 [2]; residual blocks of depthwise separable
    convolutions, with an extra one in front for a stride (figure 2) [3]; an ASPP of rates 1, 1, 2, 3 with 32 maps per
    layer and dropout 0.5 [4]; its output upsampled to the stage-2 map, concatenated, two convolutions of 48 maps with
    dropout 0.5 and 0.1, upsampled, 1x1x1 output [5]; batch normalization and ReLU after every convolution but the
    last [6].
Code:   (not published; a 2D DeepLab v3+ with the same dropouts and rates, and later code of the group) the
    first ASPP branch of rate 1 is a 1x1x1 convolution; a 1x1x1 shortcut where the channels change; no biases
    beside batch normalization.
Ours:   He-normal initial weights; batch normalization with momentum 0.9 and epsilon 1e-5, one per separable
    convolution; two residual blocks of one convolution in stage 4; dense decoder convolutions; no image
    pooling in the ASPP, and no reduction of the stage-2 map; trilinear upsampling. The output convolution
    runs before the last upsampling: the two commute, and it moves 3 maps instead of 48.
Check:  559,667 trainable parameters, just below the paper's 560k [1]; 562,307 with the batch statistics. Ablation
    rows [20] (trainable / total): bigger encoder 579,763 / 582,659; ASPP of 64 maps 949,619 / 952,579; a decoder
    on every stage with one convolution each 725,651 / 728,387, with two 912,563 / 915,587.

Steps of the network for a patch of (48, 48, 48, 1), without the batch axis; parameters include batch statistics:

    ==============  ====================  ==========
    step            output                parameters
    ==============  ====================  ==========
    stem            (48, 48, 48, 8)               40
    s1b1            (48, 48, 48, 16)           1,352
    s1b2            (24, 24, 24, 16)           2,256
    s2b1            (24, 24, 24, 32)           3,728
    s2b2            (12, 12, 12, 32)           8,064
    s3b1            (12, 12, 12, 32)           6,048
    s3b2            (12, 12, 12, 64)          11,552
    s4b1            (12, 12, 12, 96)          14,784
    s4b2            (12, 12, 12, 128)         28,192
    aspp            (12, 12, 12, 32)         340,608
    up_s2, dec_s2   (24, 24, 24, 48)         145,536
    logits          (48, 48, 48, 3)              147
    ==============  ====================  ==========

Example:
    >>> network = build_deeplab3d((8, 8, 8, 1), width_divisor=16)
    >>> network.output_shape
    (None, 8, 8, 8, 3)
"""

import keras
from keras import layers

from kitsseg.models.layers.layers3d import DepthwiseConv3D, UpsampleTrilinear

__all__ = ["build_deeplab3d"]

NAME = "deeplab3d"

STEP = 4  # the encoder's stride; in front of the decoder one voxel sees 147 voxels along each axis
DECODERS = ("stage2", "every_stage")
DROPOUTS = (0.5, 0.1)  # after the first and the second convolution of the decoder


def build_deeplab3d(
    input_shape: tuple[int | None, ...] = (48, 48, 48, 1),
    n_classes: int = 3,
    encoder_extra: bool = False,
    aspp_channels: int = 32,
    decoder: str = "stage2",
    decoder_convs: int = 2,
    width_divisor: int = 1,
) -> keras.Model:
    """Build the network.

    Args:
        input_shape: ``(slices, rows, columns, channels)``; the sizes may be ``None``.
        n_classes: background included.
        encoder_extra: one more block of 128 maps at the end (the paper's "bigger encoder").
        aspp_channels: maps of every ASPP layer; "bigger ASPP" does not say how many, 64 is our reading.
        decoder: ``"stage2"`` joins the stage-2 map (paper); ``"every_stage"`` also those of stages 3 and 1.
        decoder_convs: 3x3x3 convolutions after each joining, 1 or 2.
        width_divisor: divides the number of maps of all layers but the last; for a trial run on a CPU only.

    Returns:
        ``keras.Model`` from float images (batch, slices, rows, columns, channels) to float32 **logits**
        (batch, slices, rows, columns, n_classes).

    Raises:
        ValueError: a known size is not a multiple of 4; an unknown ``decoder``; another ``decoder_convs``;
            ``width_divisor`` below 1.
    """
    _check_arguments(input_shape, decoder, decoder_convs, width_divisor)

    def maps(filters: int) -> int:
        return max(1, filters // width_divisor)

    inputs = keras.Input(input_shape, name="image")
    x = _conv(inputs, maps(8), "stem", kernel_size=1)
    stage1 = x = _block(x, maps(16), 2, "s1b1")
    x = _block(x, maps(16), 2, "s1b2", strides=2)
    stage2 = x = _block(x, maps(32), 2, "s2b1")
    x = _block(x, maps(32), 3, "s2b2", strides=2)
    x = _block(x, maps(32), 3, "s3b1")
    stage3 = x = _block(x, maps(64), 2, "s3b2")
    x = _block(x, maps(96), 1, "s4b1", dilation=2)
    x = _block(x, maps(128), 1, "s4b2", dilation=2)
    if encoder_extra:
        x = _block(x, maps(128), 1, "s4b3", dilation=2)
    x = _aspp(x, maps(aspp_channels))

    if decoder == "every_stage":
        x = _join(x, stage3, maps(48), decoder_convs, "dec_s3")
        x = UpsampleTrilinear(name="up_s2")(x)
        x = _join(x, stage2, maps(48), decoder_convs, "dec_s2")
        x = UpsampleTrilinear(name="up_s1")(x)
        x = _join(x, stage1, maps(48), decoder_convs, "dec_s1")
        logits = layers.Conv3D(n_classes, 1, dtype="float32", name="logits")(x)
    else:
        x = UpsampleTrilinear(name="up_s2")(x)
        x = _join(x, stage2, maps(48), decoder_convs, "dec_s2")
        # float32 also under mixed_float16: the loss takes a softmax of these
        x = layers.Conv3D(n_classes, 1, dtype="float32", name="logits_half_size")(x)
        logits = UpsampleTrilinear(dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=NAME)


def _block(
    x: keras.KerasTensor, filters: int, n: int, name: str, strides: int = 1, dilation: int = 1
) -> keras.KerasTensor:
    """Residual block of n separable convolutions, one more in front for a stride; no ReLU after the sum."""
    if strides > 1:
        x = _separable(x, filters, f"{name}_down", strides=strides)
    shortcut = x
    if shortcut.shape[-1] != filters:
        shortcut = layers.Conv3D(
            filters, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_skip"
        )(x)
        shortcut = _norm(f"{name}_skip_bn")(shortcut)
    for i in range(1, n + 1):
        x = _separable(x, filters, f"{name}_sep{i}", dilation=dilation)
    return layers.Add(name=f"{name}_add")([x, shortcut])


def _separable(
    x: keras.KerasTensor, filters: int, name: str, strides: int = 1, dilation: int = 1
) -> keras.KerasTensor:
    """Depthwise 3x3x3, then 1x1x1 convolution, batch normalization, ReLU."""
    x = DepthwiseConv3D(strides=strides, dilation=dilation, name=f"{name}_depthwise")(x)
    return _conv(x, filters, name, kernel_size=1)


def _conv(
    x: keras.KerasTensor, filters: int, name: str, kernel_size: int = 3, dilation: int = 1
) -> keras.KerasTensor:
    """Dense convolution, batch normalization, ReLU."""
    x = layers.Conv3D(
        filters,
        kernel_size,
        padding="same",
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.ReLU(name=f"{name}_relu")(_norm(f"{name}_bn")(x))


def _norm(name: str) -> keras.layers.Layer:
    # PyTorch's defaults. An epoch of the paper is 12 steps: with Keras' momentum of 0.99 the first
    # validations would see the initial statistics instead of the data's
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def _aspp(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """Four parallel convolutions, concatenated and projected."""
    branches = [_conv(x, filters, "aspp1", kernel_size=1)]
    branches += [_conv(x, filters, f"aspp{rate + 1}", dilation=rate) for rate in (1, 2, 3)]
    x = layers.Concatenate(name="aspp_concat")(branches)
    x = _conv(x, filters, "aspp_proj", kernel_size=1)
    return layers.Dropout(0.5, name="aspp_dropout")(x)


def _join(
    x: keras.KerasTensor, skip: keras.KerasTensor, filters: int, n: int, name: str
) -> keras.KerasTensor:
    """Concatenate with an encoder map of the same size, then n convolutions with dropout."""
    x = layers.Concatenate(name=f"{name}_concat")([x, skip])
    for i, rate in enumerate(DROPOUTS[:n], 1):
        x = _conv(x, filters, f"{name}_{i}")
        x = layers.Dropout(rate, name=f"{name}_{i}_dropout")(x)
    return x


def _check_arguments(
    input_shape: tuple[int | None, ...], decoder: str, decoder_convs: int, width_divisor: int
) -> None:
    if len(input_shape) != 4:
        raise ValueError(
            f"{NAME}: input_shape must be (slices, rows, columns, channels); got {tuple(input_shape)}."
        )
    if any(size is not None and (size < STEP or size % STEP) for size in input_shape[:3]):
        raise ValueError(
            f"{NAME}: slices, rows and columns must be multiples of {STEP}; got {tuple(input_shape)}. "
            f"Pad or crop the patches to a multiple of {STEP}, or give None for a size known later."
        )
    if decoder not in DECODERS:
        raise ValueError(f"{NAME}: decoder must be one of {', '.join(DECODERS)}; got {decoder!r}.")
    if decoder_convs not in (1, 2):
        raise ValueError(f"{NAME}: decoder_convs must be 1 or 2; got {decoder_convs!r}.")
    if width_divisor < 1:
        raise ValueError(f"{NAME}: width_divisor must be at least 1; got {width_divisor!r}.")
