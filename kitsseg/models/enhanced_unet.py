"""Attention U-Net with input pyramid and deep supervision of He, Leung and Wang.

Reference: He, Leung and Wang (ASTRI), enhanced attention U-Net with progressive training, manuscript of the KiTS19
    challenge, 2019. No DOI was found; https://kits19.grand-challenge.org.
Base network: Abraham and Khan, "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion
    Segmentation", ISBI 2019, https://arxiv.org/abs/1810.07842. The paper varies this network and trains it
    progressively.

Numbers in brackets are those of the paper's statements in docs/papers/enhanced_unet.md.

Stated: the base network [1] with an attention gate on the top level too, so four gates [2]; an input pyramid of four
    scales by 2x2 average pooling [3]; a head on each of the four decoder levels [4]. No filters are given.
Code:   (the base network's, github.com/nabsabraham/focal-tversky-unet) filters of the encoder 32-64-128-64, center
    512, of the transposed convolutions 32-64-32-32, all 3x3; gates of 128, 64 and 32 inner channels; gate 3 takes its
    gating signal from ``up1``, one level too low (``third_from="up1"``); heads of two 3x3 convolutions, then a 1x1 one.
Ours:   gate 3 takes its signal from ``up2``, the decoder tensor directly below, like the other gates; the top gate has
    16 inner channels, which continues the halving, and takes its signal from ``up3``. ``widths="regular"``: encoder
    32-64-128-256 and transposed convolutions 256-128-64-32, because the 64 and 32 above look like slips. Three classes.
Check:  5,687,504 parameters, 5,680,016 of them trainable. The base network, from the switches of
    ``build_enhanced_unet``, with one class: 5,638,503 / 5,631,463, as its code.

Steps of the network for one slice of (256, 256, 1), without the batch axis:

    ================  ====================  ==========
    step              output                parameters
    ================  ====================  ==========
    conv1             (256, 256, 32)             9,824
    scale2, conv2     (128, 128, 64)            93,440
    scale3, conv3     (64, 64, 128)            371,200
    scale4, conv4     (32, 32, 64)             261,248
    center            (16, 16, 512)          2,659,328
    g1, attn1, up1    (32, 32, 96)             662,881
    g2, attn2, up2    (64, 64, 192)            158,113
    g3, attn3, up3    (128, 128, 96)           121,249
    g4, attn4, up4    (256, 256, 64)            44,513
    head1, pred1      (32, 32, 3)              814,339
    head2, pred2      (64, 64, 3)              370,307
    head3, pred3      (128, 128, 3)             92,995
    head4, final      (256, 256, 3)             28,067
    ================  ====================  ==========

Example:
    >>> network = build_enhanced_unet((16, 16, 1), base=16)
    >>> [output.shape[1:] for output in network.outputs]
    [(2, 2, 3), (4, 4, 3), (8, 8, 3), (16, 16, 3)]
"""

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from kitsseg.models.layers.blocks2d import check_image_shape

__all__ = ["AttentionGates", "build_enhanced_unet", "build_plain_unet", "keep_final_head"]

# Filters of encoder levels 1-4 and of the transposed convolutions from the center up.
WIDTHS = {
    "reference": ((32, 64, 128, 64), (32, 64, 32, 32)),
    "regular": ((32, 64, 128, 256), (256, 128, 64, 32)),
}
CENTER = 512
PYRAMID = (64, 128, 256)  # of the input scales 2-4
GATES = (128, 64, 32, 16)  # inner channels, from the lowest level up
HEADS = (256, 128, 64, 32)  # from the lowest level up
HEAD_NAMES = ("pred1", "pred2", "pred3", "final")
NAME = "enhanced_unet"


@dataclass(frozen=True, kw_only=True)
class AttentionGates:
    """The attention gates of the network, one on each skip connection, counted from the lowest level up.

    Attributes:
        top: this paper's gate on the top level; False as in the base network.
        third_from: the decoder tensor from which gate 3 takes its signal: ``"up2"`` or, as the base network's code,
            ``"up1"``.

    Raises: ValueError for another ``third_from``.
    """

    top: bool = True
    third_from: str = "up2"

    def __post_init__(self) -> None:
        if self.third_from not in ("up1", "up2"):
            raise ValueError(f"{NAME}: third_from must be 'up1' or 'up2'; got {self.third_from!r}.")


def build_enhanced_unet(
    input_shape: tuple[int | None, ...] = (256, 256, 1),
    n_classes: int = 3,
    widths: str = "reference",
    gates: AttentionGates | None = AttentionGates(),
    multiscale: bool = True,
    deep_supervision: bool = True,
    base: int = 1,
) -> keras.Model:
    """Build the network.

    Args:
        input_shape: ``(rows, columns, channels)``; rows and columns may be ``None``.
        n_classes: background included.
        widths: ``"reference"``, the filters of the base network's code, or ``"regular"``.
        gates: the attention gates on the skip connections; None: plain skip connections.
        multiscale: feed the pooled input to encoder levels 2-4.
        deep_supervision: heads on all four decoder levels.
        base: every width but ``n_classes`` is divided by it: 1, 2, 4, 8 or 16.

    Returns:
        ``keras.Model`` from float images (batch, rows, columns, channels) to float32 **logits**, a list from
        bottom to top of the outputs ``pred1`` (batch, rows/8, columns/8, n_classes), ``pred2`` (/4),
        ``pred3`` (/2) and ``final`` (batch, rows, columns, n_classes). Without ``deep_supervision``
        only ``final``, not in a list.

    Raises:
        ValueError: rows or columns are known and not a multiple of 16; an unknown ``widths``; a ``base`` that
            does not divide the widths.
    """
    check_image_shape(input_shape, 16, NAME)
    if widths not in WIDTHS:
        raise ValueError(f"{NAME}: widths must be one of {', '.join(WIDTHS)}; got {widths!r}.")
    if base not in (1, 2, 4, 8, 16):
        raise ValueError(f"{NAME}: base divides all widths and must be 1, 2, 4, 8 or 16; got {base!r}.")
    encoder, decoder = WIDTHS[widths]
    image = keras.Input(input_shape, name="image")

    x, scale, skips = image, image, []
    for i, filters in enumerate(encoder, start=1):
        if i > 1:
            x = layers.MaxPooling2D(name=f"pool{i - 1}")(x)
        if i > 1 and multiscale:
            scale = layers.AveragePooling2D(2, name=f"scale{i}")(scale)
            seen = _conv(scale, PYRAMID[i - 2] // base, 3, f"scale{i}_conv", activation="relu")
            x = layers.Concatenate(name=f"scale{i}_concat")([seen, x])
        x = _conv_block(x, filters // base, f"conv{i}")
        skips.append(x)
    x = _conv_block(layers.MaxPooling2D(name="pool4")(x), CENTER // base, "center")

    below, outputs = [x], []  # the tensor each decoder level starts from: center, up1, up2, up3
    for i, filters in enumerate(decoder, start=1):
        skip = skips[-i]
        if gates and (i < 4 or gates.top):
            source, stride = (below[1], 2) if i == 3 and gates.third_from == "up1" else (below[-1], 1)
            signal = _gating_signal(source, f"g{i}")
            skip = _attention_gate(skip, signal, GATES[i - 1] // base, stride, f"attn{i}")
        x = layers.Conv2DTranspose(
            filters // base,
            3,
            strides=2,
            padding="same",
            activation="relu",
            kernel_initializer="glorot_normal",
            name=f"up{i}_conv",
        )(below[-1])
        below.append(layers.Concatenate(name=f"up{i}")([x, skip]))
    for i, (x, filters, head) in enumerate(zip(below[1:], HEADS, HEAD_NAMES), start=1):
        if deep_supervision or head == "final":
            x = _conv_block(x, filters // base, f"head{i}")
            # float32 also under mixed_float16: the loss takes a softmax of these
            outputs.append(layers.Conv2D(n_classes, 1, dtype="float32", name=head)(x))
    return keras.Model(image, outputs if deep_supervision else outputs[0], name=NAME)


def keep_final_head(model: keras.Model) -> keras.Model:
    """The inference model: same weights, only the full-resolution logits ``final``, without the other heads.

    Args:
        model: from ``build_enhanced_unet``, trained or not, with or without deep supervision.

    Returns:
        ``keras.Model`` from images (batch, rows, columns, channels) to float32 logits
        (batch, rows, columns, n_classes); it shares its layers with ``model``.
    """
    return keras.Model(model.input, model.outputs[-1], name=model.name)


def build_plain_unet(input_shape: tuple[int | None, ...] = (256, 256, 1), n_classes: int = 1) -> keras.Model:
    """Build the plain U-Net beside which the base network's authors put theirs.

    As in their code: batch normalization only in the encoder, 2x2 transposed convolutions without activation,
    one convolution instead of two on the decoder level of 64 filters. Arguments, result and errors as
    ``build_enhanced_unet``. Check: 7,726,433 parameters, 7,724,513 trainable, with one class.
    """
    check_image_shape(input_shape, 16, "plain_unet")
    x = image = keras.Input(input_shape, name="image")
    skips = []
    for i, filters in enumerate((32, 64, 128, 256), start=1):
        x = _conv_block(x, filters, f"conv{i}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
    x = _conv_block(x, CENTER, "center", norm=False)
    for i, (filters, n_convs) in enumerate([(256, 2), (128, 2), (64, 1), (32, 2)], start=1):
        x = layers.Conv2DTranspose(filters, 2, strides=2, name=f"up{i}_conv")(x)
        x = layers.Concatenate(name=f"up{i}")([x, skips[-i]])
        x = _conv_block(x, filters, f"merge{i}", n_convs=n_convs, norm=False)
    logits = layers.Conv2D(n_classes, 1, dtype="float32", name="final")(x)
    return keras.Model(image, logits, name="plain_unet")


def _conv(x: keras.KerasTensor, filters: int, size: int, name: str, **options: Any) -> keras.KerasTensor:
    """Convolution with the initializer of the base network's code."""
    options = {"padding": "same", "kernel_initializer": "glorot_normal", **options}
    return layers.Conv2D(filters, size, name=name, **options)(x)


def _conv_block(
    x: keras.KerasTensor, filters: int, name: str, n_convs: int = 2, norm: bool = True
) -> keras.KerasTensor:
    """3x3 convolutions, each followed by batch normalization and ReLU."""
    for i in range(1, n_convs + 1):
        x = _conv(x, filters, 3, f"{name}_{i}")
        if norm:
            x = layers.BatchNormalization(name=f"{name}_{i}_bn")(x)
        x = layers.Activation("relu", name=f"{name}_{i}_act")(x)
    return x


def _gating_signal(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """1x1 convolution to as many channels, batch normalization, ReLU."""
    x = _conv(x, x.shape[-1], 1, f"{name}_conv")
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_act")(x)


def _attention_gate(
    skip: keras.KerasTensor, signal: keras.KerasTensor, inner: int, stride: int, name: str
) -> keras.KerasTensor:
    """Weight the skip's positions by what the coarser signal makes of them.

    Args:
        skip: (batch, rows, columns, channels).
        signal: (batch, rows / (2 stride), columns / (2 stride), signal channels).
        inner: channels in which both are added.
        stride: upsampling that brings the signal to half the skip's size.

    Returns: tensor of the skip's shape.
    """
    theta = layers.Conv2D(inner, 2, strides=2, padding="same", name=f"{name}_theta")(skip)
    phi = layers.Conv2D(inner, 1, name=f"{name}_phi")(signal)
    phi = layers.Conv2DTranspose(inner, 3, strides=stride, padding="same", name=f"{name}_phi_up")(phi)
    both = layers.Add(name=f"{name}_add")([phi, theta])
    both = layers.Activation("relu", name=f"{name}_act")(both)
    psi = layers.Conv2D(1, 1, activation="sigmoid", name=f"{name}_psi")(both)
    psi = layers.UpSampling2D(name=f"{name}_psi_up")(psi)
    x = layers.Multiply(name=f"{name}_multiply")([psi, skip])
    x = layers.Conv2D(skip.shape[-1], 1, name=f"{name}_conv")(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)
