"""Encoders of the SqueezeNet U-Net: torchvision's SqueezeNet 1.1, ResNet-18 and ResNet-34; Keras' ResNet-50.

Stated: SqueezeNet, against "ResNet", pretrained on ImageNet. Neither version nor depth is named.
Code:   torchvision ``squeezenet1_1().features`` and ``resnet34()`` up to ``layer4``; which maps feed the
        decoder follows fastai's ``DynamicUnet``: the last one before each change of size.
Ours:   SqueezeNet 1.1 rather than 1.0 (as accurate, 2.4 times fewer operations); ResNet-34, the depth that
        fits the paper's times per epoch; ``keras.applications`` has no smaller ResNet than 50.
Check:  722,496 parameters (SqueezeNet 1.1); 21,284,672 trainable ones (ResNet-34).

Each encoder takes a Keras tensor (batch, rows, columns, channels) and returns ``(features, skips)``, the
skips from the largest map to the smallest. Layers are called ``encoder_`` and torchvision's name with ``_``
for ``.``: ``encoder_layer2_0_conv1`` holds ``layer2.0.conv1``. That is all that
:mod:`kitsseg.models.pretrained.torchvision` needs.
"""

import keras
from keras import layers

from kitsseg.errors import InputError
from kitsseg.models.layers.torch_compat import kaiming_normal

__all__ = ["encoder_layers", "load_resnet50_imagenet", "resnet", "resnet50", "squeezenet1_1"]

# torchvision's index in ``features``: (squeeze filters, filters of each of the two expand convolutions)
FIRE = {3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128),
        9: (48, 192), 10: (48, 192), 11: (64, 256), 12: (64, 256)}  # fmt: skip
RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
RESNET50_SKIPS = ("conv1_relu", "conv2_block3_out", "conv3_block4_out", "conv4_block6_out")


def encoder_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of ``model``'s encoder, first to last, to be frozen or filled with ImageNet weights."""
    return [layer for layer in model.layers if layer.name.startswith("encoder_")]


def squeezenet1_1(image: keras.KerasTensor) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """SqueezeNet 1.1 without its classifier: 512 channels at 1/16 of the size; skips of 64, 128, 256."""
    x = _squeezenet_conv(image, 64, 3, "features_0", strides=2, padding="valid")
    skips = []
    for index in range(2, 13):
        if index in FIRE:
            x = _fire(x, *FIRE[index], f"features_{index}")
        else:
            skips.append(x)
            x = _max_pool_ceil(x, f"features_{index}")
    return x, skips


def _fire(x: keras.KerasTensor, squeeze: int, expand: int, name: str) -> keras.KerasTensor:
    x = _squeezenet_conv(x, squeeze, 1, f"{name}_squeeze")
    one = _squeezenet_conv(x, expand, 1, f"{name}_expand1x1")
    three = _squeezenet_conv(x, expand, 3, f"{name}_expand3x3")
    return layers.Concatenate(name=f"encoder_{name}_concat")([one, three])


def _squeezenet_conv(
    x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1, padding: str = "same"
) -> keras.KerasTensor:
    # torchvision draws from Kaiming's uniform distribution, with zero biases
    return layers.Conv2D(filters, size, strides, padding, activation="relu", kernel_initializer="he_uniform",
                         name=f"encoder_{name}")(x)  # fmt: skip


def _max_pool_ceil(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """torch's ``MaxPool2d(3, 2, ceil_mode=True)`` of maps that are nowhere negative.

    One more row and column of zeros at the end, then "valid". An even size gains the window that ceil mode
    adds, whose zeros cannot exceed the maximum; an odd size gains none, the last row is then left out. Keras'
    own "same" pads odd sizes on both sides and is wrong for them.
    """
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"encoder_{name}_pad")(x)
    return layers.MaxPooling2D(3, 2, "valid", name=f"encoder_{name}")(x)


def resnet(image: keras.KerasTensor, depth: int) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """ResNet-18 or ResNet-34: 512 channels at 1/32 of the size; skips of 64, 64, 128, 256 channels."""
    x = _resnet_conv(image, 64, 7, "conv1", strides=2)
    x = layers.ReLU(name="encoder_relu")(_resnet_norm(x, "bn1"))
    skips = [x]
    x = layers.ZeroPadding2D(1, name="encoder_maxpool_pad")(x)  # after a ReLU zeros serve as torch's -inf
    x = layers.MaxPooling2D(3, 2, "valid", name="encoder_maxpool")(x)
    for stage, n_blocks in enumerate(RESNET_BLOCKS[depth]):
        for block in range(n_blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            x = _basic_block(x, 64 * 2**stage, strides, f"layer{stage + 1}_{block}")
        skips.append(x)
    return skips.pop(), skips


def _basic_block(x: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    shortcut = x
    if strides > 1:  # in these depths the channels change where the size does
        shortcut = _resnet_conv(x, filters, 1, f"{name}_downsample_0", strides)
        shortcut = _resnet_norm(shortcut, f"{name}_downsample_1")
    x = _resnet_norm(_resnet_conv(x, filters, 3, f"{name}_conv1", strides), f"{name}_bn1")
    x = layers.ReLU(name=f"encoder_{name}_relu1")(x)
    x = _resnet_norm(_resnet_conv(x, filters, 3, f"{name}_conv2"), f"{name}_bn2")
    x = layers.Add(name=f"encoder_{name}_add")([x, shortcut])
    return layers.ReLU(name=f"encoder_{name}_relu2")(x)


def _resnet_conv(
    x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1
) -> keras.KerasTensor:
    if (
        strides > 1 and size > 1
    ):  # torch pads both sides; Keras' "same" would pad an even size at the end only
        x = layers.ZeroPadding2D(size // 2, name=f"encoder_{name}_pad")(x)
    return layers.Conv2D(filters, size, strides, "valid" if strides > 1 else "same", use_bias=False,
                         kernel_initializer=kaiming_normal("fan_out"), name=f"encoder_{name}")(x)  # fmt: skip


def _resnet_norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"encoder_{name}")(x)


def resnet50(image: keras.KerasTensor) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """``keras.applications.ResNet50``: 2048 channels at 1/32 of the size; skips of 64, 256, 512, 1024.

    It differs from torchvision's ResNet-50: the stride lies in another convolution, and convolutions have biases. So
    only :func:`load_resnet50_imagenet` can fill it.
    """
    original = keras.applications.ResNet50(include_top=False, weights=None, input_shape=image.shape[1:])

    def rename(layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer.__class__.from_config({**layer.get_config(), "name": f"encoder_{layer.name}"})

    encoder = keras.models.clone_model(original, input_tensors=image, clone_function=rename)
    skips = [encoder.get_layer(f"encoder_{name}").output for name in RESNET50_SKIPS]
    return encoder.get_layer("encoder_conv5_block3_out").output, skips


def load_resnet50_imagenet(model: keras.Model, pretrained: keras.Model | None = None) -> None:
    """Copy ``keras.applications``' ImageNet weights into a model with the :func:`resnet50` encoder.

    The weights were trained on blue, green, red. The order of the first kernel's channels is reversed, so that this
    encoder takes red, green, blue like the others. A model with one channel gets the sum of the three.

    Args:
        model: from ``build_squeeze_unet(encoder="resnet50")``.
        pretrained: a ``keras.applications.ResNet50(include_top=False)``; by default the one with ImageNet weights,
            which Keras downloads and caches.
    Raises: InputError if Keras cannot download the weights.
    """
    if pretrained is None:
        try:
            pretrained = keras.applications.ResNet50(include_top=False, weights="imagenet")
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise InputError(
                f"ImageNet weights of ResNet-50: {error}. Connect to the internet once (Keras keeps the "
                "file), or pass weights=None."
            ) from error
    for source in pretrained.layers:
        values = source.get_weights()
        if not values:
            continue
        if source.name == "conv1_conv":
            values[0] = values[0][:, :, ::-1]
            if model.input_shape[-1] == 1:
                values[0] = values[0].sum(axis=2, keepdims=True)
        model.get_layer(f"encoder_{source.name}").set_weights(values)
