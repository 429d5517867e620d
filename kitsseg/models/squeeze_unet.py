"""U-Net on a pretrained SqueezeNet or ResNet encoder.

Reference: Ashlin Deepa et al., "A Novel Deep-Learning Based Segmentation Of Kidney Tumor". No DOI was found.

Numbers in brackets are those of the paper's statements in docs/papers/squeeze_unet.md.

Stated: a SqueezeNet encoder in "the u-net learner", ImageNet weights, "18 layers" [4]; ResNet for comparison [5];
    Dice 0.9758 and 0.9906 [7] (table I has 0.97 [10]). No loss, optimizer, image size, class list or depth.
Code:   none published; "u-net learner" and ``dice_multi`` [7] are fastai's, hence its ``DynamicUnet`` as decoder.
Ours:   ``skips=True`` as the default [4]. ``unet_learner`` cuts torchvision's SqueezeNet to a single child, finds
    no change of size inside and attaches **no skip connection at all**: this is ``skips=False``. With
    the flat ``features`` the same code attaches three skip connections, which the paper describes, at 6.6 times fewer
    operations. ``decoder="lite"`` is our own: fastai's decoder costs 130 times its SqueezeNet encoder.
Check:  trainable / all parameters for (256, 256, 3) and 3 classes: SqueezeNet 19,702,260 / 19,704,180,
    without skips 15,989,492 / 15,990,516; ResNet-34 41,221,268 / 41,240,340; ResNet-18 31,113,108
    trainable; ResNet-18, ResNet-34 and SqueezeNet compute what fastai 2.8 does with the same weights.

Steps with SqueezeNet and fastai's decoder for one slice of (256, 256, 3), without the batch axis:

    =========  =====================  ==========
    step       output                 parameters
    =========  =====================  ==========
    encoder    (15, 15, 512)             722,496
    middle     (15, 15, 512)           9,440,768
    up1        (31, 31, 512)           5,245,952
    up2        (63, 63, 384)           3,180,800
    up3        (127, 127, 128)           738,560
    full       (256, 256, 131)           375,208
    logits     (256, 256, 3)                 396
    =========  =====================  ==========

Example:
    >>> network = build_squeeze_unet((32, 32, 3), decoder="lite")
    >>> network.output_shape
    (None, 32, 32, 3)
"""

import os
from collections.abc import Callable, Sequence
from functools import partial

import keras
from keras import layers

from kitsseg.models.layers.torch_compat import ICNR, NearestResize, PixelShuffle, kaiming_normal
from kitsseg.models.pretrained import encoders
from kitsseg.models.pretrained.torchvision import load_torchvision_weights

__all__ = ["ENCODERS", "build_squeeze_unet"]

NAME = "squeeze_unet"

ENCODERS: dict[str, Callable[[keras.KerasTensor], tuple[keras.KerasTensor, list[keras.KerasTensor]]]] = {
    "squeezenet1_1": encoders.squeezenet1_1,
    "resnet18": partial(encoders.resnet, depth=18),
    "resnet34": partial(encoders.resnet, depth=34),
    "resnet50": encoders.resnet50,
}
# of red, green, blue in 0..1: torchvision's encoders; keras.applications' ResNet-50
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_RESNET50 = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
MIN_SIZE = 17  # below it SqueezeNet's last pooling has no window


def build_squeeze_unet(
    input_shape: tuple[int | None, ...] = (256, 256, 3),
    n_classes: int = 3,
    encoder: str = "squeezenet1_1",
    skips: bool = True,
    decoder: str = "fastai",
    weights: str | os.PathLike[str] | None = None,
    normalize: bool = False,
) -> keras.Model:
    """Build the network.

    Args:
        input_shape: ``(rows, columns, channels)``; any size from 17 pixels on (ResNet-50: 32), odd and
            non-square ones too; rows and columns may be ``None``.
        n_classes: background included.
        encoder: ``"squeezenet1_1"``, ``"resnet18"``, ``"resnet34"`` or ``"resnet50"``. The last has 339
            million parameters with fastai's decoder.
        skips: False leaves out the skip connections: for SqueezeNet and fastai's decoder what ``unet_learner``
            really builds.
        decoder: ``"fastai"``, or ``"lite"``: (128, 64, 32, ...) filters, bilinear upsampling, no residual
            block at full size. Without skips, fastai's decoder has one level; the lite one keeps its levels.
        weights: of the encoder. ``None``: random. A path: torchvision's ``.pth`` file. ``"imagenet"``: that
            file is downloaded once and cached. With one input channel the first kernel is summed over its
            three.
        normalize: True for images in 0..1 with three channels (red, green, blue): ImageNet's mean and
            standard deviation are applied first, and the decoder too sees the result. False: the caller has
            done that.

    Returns: ``keras.Model`` from float images (batch, rows, columns, channels) to float32 **logits**
        (batch, rows, columns, n_classes).
    Raises: ValueError for a size below 17, an unknown encoder or decoder, or ``normalize`` without three
        channels; InputError if ``weights`` cannot be had or do not fit.
    """
    _check(input_shape, encoder, decoder, weights, normalize)
    image = x = keras.Input(input_shape, name="image")
    if normalize:
        mean, std = IMAGENET_RESNET50 if encoder == "resnet50" else IMAGENET
        x = layers.Normalization(mean=mean, variance=[value**2 for value in std], name="normalize")(image)
    features, maps = ENCODERS[encoder](x)
    if decoder == "fastai":
        x = _fastai_decoder(features, maps[::-1] if skips else [], x)
    else:
        x = _lite_decoder(features, maps[::-1], x, skips)
    # float32 also under mixed_float16: the loss takes a softmax of these. Initial values as in fastai.
    logits = layers.Conv2D(
        n_classes,
        1,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.01),
        dtype="float32",
        name="logits",
    )(x)
    model = keras.Model(image, logits, name=NAME)
    if weights is not None and encoder == "resnet50":
        encoders.load_resnet50_imagenet(model)
    elif weights is not None:
        load_torchvision_weights(model, weights)
    return model


def _check(
    input_shape: tuple[int | None, ...],
    encoder: str,
    decoder: str,
    weights: str | os.PathLike[str] | None,
    normalize: bool,
) -> None:
    if encoder not in ENCODERS:
        raise ValueError(f"{NAME}: encoder must be one of {sorted(ENCODERS)}; got {encoder!r}.")
    if decoder not in ("fastai", "lite"):
        raise ValueError(f"{NAME}: decoder must be 'fastai' or 'lite'; got {decoder!r}.")
    least = 32 if encoder == "resnet50" else MIN_SIZE
    if any(size is not None and size < least for size in input_shape[:2]):
        raise ValueError(
            f"{NAME}: {encoder} needs at least {least} rows and columns; got {tuple(input_shape)}. "
            "Pad the slices or make them larger (PreprocessSpec.slice_size)."
        )
    if normalize and input_shape[2] != 3:
        raise ValueError(
            f"{NAME}: ImageNet's mean and deviation are of three channels, red, green, blue; got "
            f"{input_shape[2]}. Pass normalize=False and normalize the slices yourself."
        )
    if encoder == "resnet50" and weights not in (None, "imagenet"):
        raise ValueError(
            f"{NAME}: the ResNet-50 is keras.applications' and a torchvision file does not fit it; "
            f"weights must be None or 'imagenet', got {weights!r}."
        )


def _fastai_decoder(
    x: keras.KerasTensor, skips: Sequence[keras.KerasTensor], image: keras.KerasTensor
) -> keras.KerasTensor:
    """fastai's ``DynamicUnet`` after its encoder; ``skips`` from the smallest map to the largest."""
    channels = x.shape[-1]
    x = _norm(x, "middle_bn")
    x = layers.ReLU(name="middle_relu")(x)
    x = _conv(x, 2 * channels, "middle_conv1")
    x = _conv(x, channels, "middle_conv2")
    for level, skip in enumerate(skips, start=1):
        half = x.shape[-1] // 2
        x = _fit(_shuffle_up(x, half, f"up{level}"), skip, f"up{level}_resize")
        x = layers.Concatenate(name=f"up{level}_concat")([x, _norm(skip, f"up{level}_bn")])
        x = layers.ReLU(name=f"up{level}_relu")(x)
        channels = half + skip.shape[-1]
        if level == len(skips):
            channels //= 2
        x = _conv(x, channels, f"up{level}_conv1")
        x = _conv(x, channels, f"up{level}_conv2")
    x = _fit(_shuffle_up(x, x.shape[-1], "full"), image, "full_resize")
    shortcut = x = layers.Concatenate(name="full_concat")([x, image])
    x = _conv(x, shortcut.shape[-1], "full_conv1")
    x = _conv(x, shortcut.shape[-1], "full_conv2", activation=None)
    x = layers.Add(name="full_add")([x, shortcut])
    return layers.ReLU(name="full_relu")(x)


def _lite_decoder(
    x: keras.KerasTensor, maps: Sequence[keras.KerasTensor], image: keras.KerasTensor, skips: bool
) -> keras.KerasTensor:
    """Ours: bilinear upsampling, fitted to the encoder's map; two convolutions per level, none at full size."""
    for level, skip in enumerate(maps, start=1):
        x = layers.UpSampling2D(interpolation="bilinear", name=f"up{level}")(x)
        x = _fit(x, skip, f"up{level}_resize")
        if skips:
            x = layers.Concatenate(name=f"up{level}_concat")([x, skip])
        x = _conv(x, 256 // 2**level, f"up{level}_conv1")
        x = _conv(x, 256 // 2**level, f"up{level}_conv2")
    x = layers.UpSampling2D(interpolation="bilinear", name="full")(x)
    return _fit(x, image, "full_resize")


def _shuffle_up(x: keras.KerasTensor, channels: int, name: str) -> keras.KerasTensor:
    x = layers.Conv2D(4 * channels, 1, activation="relu", kernel_initializer=ICNR(), name=f"{name}_expand")(x)
    return PixelShuffle(name=f"{name}_shuffle")(x)


def _fit(x: keras.KerasTensor, reference: keras.KerasTensor, name: str) -> keras.KerasTensor:
    if None not in x.shape[1:3] and x.shape[1:3] == reference.shape[1:3]:
        return x
    return NearestResize(name=name)(x, reference)


def _conv(
    x: keras.KerasTensor, filters: int, name: str, activation: str | None = "relu"
) -> keras.KerasTensor:
    return layers.Conv2D(filters, 3, padding="same", activation=activation,
                         kernel_initializer=kaiming_normal(), name=name)(x)  # fmt: skip


def _norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # fastai starts beta at 0.001
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name,
                                     beta_initializer=keras.initializers.Constant(1e-3))(x)  # fmt: skip
