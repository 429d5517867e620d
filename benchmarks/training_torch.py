"""The PyTorch side of training.py: a network equal to a Keras one, its loss, and a step of training.

The twin has the same layers in the same order and starts from the same weights; ``training.py`` prints by how much its
outputs and its loss differ. Images are (batch, channels, *space), as PyTorch has them.
"""

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kitsseg.losses import CrossEntropySoftDice, FocalTversky, Tversky, TverskyFocal

__all__ = ["TorchTwin", "loss_of", "to_torch"]


class TorchTwin(nn.Module):
    """A PyTorch network with the layers and weights of a functional Keras model."""

    def __init__(self, model):
        super().__init__()
        self.steps, self.parts = [], nn.ModuleList()
        for layer in model.layers:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            make = MAKERS[type(layer).__name__]
            part = make(layer)
            if isinstance(part, nn.Module):
                self.parts.append(part)
            inputs = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
            self.steps.append((part, [id(tensor) for tensor in inputs], id(layer.output)))
        self.first = id(model.inputs[0])
        self.last = [id(tensor) for tensor in model.outputs]

    def forward(self, image):
        values = {self.first: image}
        for part, inputs, output in self.steps:
            values[output] = part(*(values[key] for key in inputs))
        outputs = [values[key] for key in self.last]
        return outputs if len(outputs) > 1 else outputs[0]


class Convolution(nn.Module):
    """Convolution, depthwise or transposed or neither, with the padding of Keras and an activation after it."""

    def __init__(self, layer, kernel, bias, groups=1, transposed=False, dilation=1, activation=None):
        super().__init__()
        self.weight = nn.Parameter(kernel)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.same = getattr(layer, "padding", "same") == "same"
        strides = layer.strides
        self.stride = strides if isinstance(strides, tuple) else (strides,) * (kernel.ndim - 2)
        self.groups, self.dilation, self.transposed = groups, dilation, transposed
        self.run = getattr(F, f"conv{'_transpose' * transposed}{kernel.ndim - 2}d")
        self.activation = activation or (lambda x: x)

    def forward(self, x):
        sizes, options = self.weight.shape[2:], {"stride": self.stride, "groups": self.groups}
        if self.transposed:
            out = [n * s for n, s in zip(x.shape[2:], self.stride, strict=True)]
            exact = tuple(sizes) == tuple(self.stride)
            y = self.run(x, self.weight, self.bias if exact else None, **options)
            if not exact:  # Keras cuts half of the overlap off the beginning of the whole result
                for axis, (k, s, n) in enumerate(zip(sizes, self.stride, out, strict=True), 2):
                    first = max(k - s, 0) // 2
                    y = y.narrow(axis, first, min(n, y.shape[axis] - first))
                missing = [n - m for n, m in zip(out, y.shape[2:], strict=True)]
                if any(missing):
                    y = F.pad(y, [n for m in reversed(missing) for n in (0, m)])
                if self.bias is not None:
                    y = y + self.bias.view(1, -1, *[1] * len(sizes))
            return self.activation(y)
        options["dilation"] = self.dilation
        if self.same:
            total = [
                max((-(-n // s) - 1) * s + self.dilation * (k - 1) + 1 - n, 0)
                for n, k, s in zip(x.shape[2:], sizes, self.stride, strict=True)
            ]
            if all(n % 2 == 0 for n in total):
                options["padding"] = [n // 2 for n in total]
            else:
                x = F.pad(x, [side for n in reversed(total) for side in (n // 2, n - n // 2)])
        return self.activation(self.run(x, self.weight, self.bias, **options))


def convolution(layer):
    dilation = layer.dilation_rate[0]
    kernel, bias = arrays(layer, "kernel", "bias")
    return Convolution(
        layer, swapped(kernel), bias, dilation=dilation, activation=activation(layer.activation)
    )


def transposed(layer):
    kernel, bias = arrays(layer, "kernel", "bias")  # (*size, out, in) in Keras, (in, out, *size) in PyTorch
    return Convolution(layer, swapped(kernel), bias, transposed=True, activation=activation(layer.activation))


def separable(layer):
    depthwise, pointwise, bias = arrays(layer, "depthwise_kernel", "pointwise_kernel", "bias")
    first = Convolution(layer, depthwise.permute(2, 3, 0, 1).contiguous(), None, groups=depthwise.shape[2])
    second = nn.Conv2d(*swapped(pointwise).shape[1::-1], 1, bias=bias is not None)
    second.weight.data = swapped(pointwise)
    if bias is not None:
        second.bias.data = bias
    act = activation(layer.activation)
    return nn.Sequential(first, second) if act is None else nn.Sequential(first, second, act)


def depthwise3d(layer):
    (kernel,) = arrays(layer, "kernel")
    kernel = kernel.permute(3, 0, 1, 2)[:, None].contiguous()
    return Convolution(layer, kernel, None, groups=len(kernel), dilation=layer.dilation)


def batch_norm(layer):
    norm = (nn.BatchNorm2d if len(layer.input.shape) == 4 else nn.BatchNorm3d)(
        layer.gamma.shape[0], eps=layer.epsilon, momentum=1 - layer.momentum
    )
    values = arrays(layer, "gamma", "beta", "moving_mean", "moving_variance")
    for tensor, value in zip(
        (norm.weight, norm.bias, norm.running_mean, norm.running_var), values, strict=True
    ):
        tensor.data.copy_(value)
    return norm


def normalization(layer):
    mean, variance = (to_torch(value)[0] for value in (layer.mean, layer.variance))
    return lambda x: (x - mean) / variance.sqrt()


def activation(function):
    name = getattr(function, "__name__", "linear")
    return None if name == "linear" else {"relu": nn.ReLU(), "sigmoid": nn.Sigmoid()}[name]


def upsampling(layer):
    return nn.Upsample(scale_factor=layer.size, mode=layer.interpolation, **corners(layer.interpolation))


def corners(mode):
    return {} if mode == "nearest" else {"align_corners": False}


MAKERS = {
    "Conv2D": convolution,
    "Conv3D": convolution,
    "Conv2DTranspose": transposed,
    "SeparableConv2D": separable,
    "DepthwiseConv3D": depthwise3d,
    "BatchNormalization": batch_norm,
    "Normalization": normalization,
    "ReLU": lambda layer: nn.ReLU(),
    "LeakyReLU": lambda layer: nn.LeakyReLU(layer.negative_slope),
    "Activation": lambda layer: activation(layer.activation),
    "Dropout": lambda layer: nn.Dropout(layer.rate),
    "MaxPooling2D": lambda layer: nn.MaxPool2d(layer.pool_size, layer.strides),
    "AveragePooling2D": lambda layer: nn.AvgPool2d(layer.pool_size, layer.strides),
    "ZeroPadding2D": lambda layer: nn.ZeroPad2d([n for pair in reversed(layer.padding) for n in pair]),
    "UpSampling2D": upsampling,
    "UpsampleBilinear": lambda layer: nn.Upsample(scale_factor=2, mode="bilinear"),
    "UpsampleTrilinear": lambda layer: nn.Upsample(scale_factor=2, mode="trilinear"),
    "NearestResize": lambda layer: lambda x, like: F.interpolate(x, size=like.shape[2:], mode="nearest"),
    "PixelShuffle": lambda layer: nn.PixelShuffle(2),
    "Concatenate": lambda layer: lambda *parts: torch.cat(parts, 1),
    "Add": lambda layer: lambda a, b: a + b,
    "Multiply": lambda layer: lambda a, b: a * b,
}


def loss_of(losses, weights):
    """The function of (outputs, labels) that equals a recipe's loss."""
    if weights is None:
        return one_loss(losses)
    parts = [one_loss(loss) for loss in losses]

    def weighted(outputs, labels):
        return sum(w * f(o, t) for w, f, o, t in zip(weights, parts, outputs, labels, strict=True))

    return weighted


def one_loss(loss):
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return F.cross_entropy

    def call(logits, labels):
        log_p = F.log_softmax(logits.float(), 1)
        p, g = log_p.exp(), F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
        axes = (0, *range(2, logits.ndim))
        counts = [(p * g).sum(axes), ((1 - p) * g).sum(axes), (p * (1 - g)).sum(axes)]
        tp, fn, fp = (count[0 if loss.include_background else 1 :] for count in counts)
        over_classes = torch.mean if loss.class_reduction == "mean" else torch.sum
        if isinstance(loss, CrossEntropySoftDice):
            dice = (2 * tp + loss.smooth) / (2 * tp + fn + fp + loss.smooth)
            return F.nll_loss(log_p, labels) + over_classes(1 - dice)
        weighted = loss.fn_weight * fn + loss.fp_weight * fp
        distance = weighted / (tp + weighted + loss.smooth)
        if isinstance(loss, FocalTversky):
            return over_classes(distance.clamp(min=1e-6) ** loss.exponent)
        if isinstance(loss, TverskyFocal):
            log_true = (g * log_p).sum(1)
            focal = ((-torch.expm1(log_true)) ** loss.gamma * -log_true).mean()
            return over_classes(distance) + loss.focal_weight * focal
        assert type(loss) is Tversky
        return over_classes(distance)

    return call


def to_torch(array):
    """An array (batch, *space, channels) as a tensor (batch, channels, *space)."""
    array = np.array(keras.ops.convert_to_numpy(array), np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def swapped(kernel):
    """A kernel (*size, a, b) as (b, a, *size)."""
    return kernel.permute(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)).contiguous()


def arrays(layer, *names):
    """Weights of a layer as tensors; None for those it has not."""
    values = [getattr(layer, name, None) for name in names]
    return [None if v is None else torch.from_numpy(np.array(keras.ops.convert_to_numpy(v))) for v in values]
