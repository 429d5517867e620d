"""Make the network for inference: fold batch normalizations into convolutions where this is exact, remove dropouts.

After training a batch normalization computes ``x * scale + shift`` for each channel.

- Behind a linear convolution, scale and shift go into its kernel and bias.
- In front of a convolution without padding they do so as well. If the convolution pads with zeros they do not, because
  the folded shift would also act on the padded border.
- Behind a convolution and a ReLU (leaky or not), the absolute value of the scale goes into kernel and bias, because
  ``relu(|a| x) = |a| relu(x)``; the normalization then only adds. All channels then have about the same range, which
  8-bit integers need.

A normalization is not folded if another layer also reads a tensor whose values folding would change.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

__all__ = ["fold_batch_norm"]

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
LINEAR = (*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)
# they do nothing at inference
IDLE = (layers.Dropout, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.GaussianNoise)
# activations with f(a x) = a f(x) for a >= 0
HOMOGENEOUS = (keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)


def fold_batch_norm(
    model: keras.Model, input_shape: tuple[int | None, ...] | None = None, precision: str = "float32"
) -> keras.Model:
    """Copy a functional model for inference.

    Args:
        model: ``keras.Model`` with one input, channels last. It is not changed.
        input_shape: of one image, without the batch axis, in place of the model's own; what is known here need not
            be looked up at every call.
        precision: Keras' policy of all layers but those that give the outputs, which stay float32 as the weights do.

    Returns: ``keras.Model`` with the outputs of ``model`` to rounding, layers of the same names.
    Raises: ValueError for a model with several inputs, or one that is not functional.
    """
    if not hasattr(model, "get_config") or "layers" not in (config := model.get_config()):
        raise ValueError(f"{model.name}: expected a functional model, found a {type(model).__name__}.")
    if len(model.inputs) != 1:
        raise ValueError(f"{model.name}: expected one input, found {len(model.inputs)}.")
    before, after, through = _plan(model, config)
    values = _folded_values(model, before, after, through)
    heads = set(_names(config["output_layers"]))
    gone = {*before, *after, *(layer.name for layer in model.layers if type(layer) in IDLE)}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        settings = layer.get_config()
        for key in settings:
            if key.endswith("_initializer"):
                settings[key] = "zeros"  # the weights come from the model: nothing is drawn
        if "dtype" in settings:
            # whatever the network was trained in
            settings["dtype"] = "float32" if layer.name in heads else precision
        if layer.name in through:
            # with variance 1 and no epsilon nothing but the addition is left to compute
            settings |= {"scale": len(values[layer.name]) == 4, "center": True, "epsilon": 0.0}
        elif layer.name in values:
            settings["use_bias"] = True
        return layer.__class__.from_config(settings)

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in gone else layer(*args, **kwargs)

    image = keras.Input(input_shape or model.input_shape[1:], name=model.inputs[0].name)
    structured = [image] if isinstance(model.input, list) else image
    folded = keras.models.clone_model(
        model, input_tensors=structured, clone_function=copy, call_function=call
    )
    for layer in folded.layers:
        layer.set_weights(values.get(layer.name) or model.get_layer(layer.name).get_weights())
    return folded


def _plan(
    model: keras.Model, config: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Find the convolution into which each normalization is folded.

    Returns: three dicts {name of the normalization: name of the convolution}: folded into the linear convolution before
        it; into the convolution after it; only its scale, into the convolution before it, with an activation between.
    """
    sources: dict[str, list[str] | None] = {}
    for entry in config["layers"]:
        names = [list(_tensors(node)) for node in entry["inbound_nodes"]]
        sources[entry["name"]] = names[0] if len(names) == 1 else None  # None: no call, or several
    readers = Counter(_names(config["output_layers"]))
    readers.update(name for entry in config["layers"] for name in _tensors(entry["inbound_nodes"]))
    target = {name: other for other, names in sources.items() for name in names or ()}

    def single(name: str) -> bool:
        """Whether the layer is called once and its result is read once."""
        return sources[name] is not None and readers[name] == 1

    def conv_before(name: str) -> tuple[str | None, bool]:
        """(the convolution whose output only this layer reads, whether an activation lies between the two)."""
        activated = False
        while (reads := sources[name]) and len(reads) == 1 and single(name := reads[0]):
            layer = model.get_layer(name)
            if type(layer) in LINEAR and layer.data_format == "channels_last":
                if layer.activation in HOMOGENEOUS:
                    return name, activated or layer.activation is not keras.activations.linear
                break
            if _keeps_scale(layer):
                activated = True
            elif type(layer) not in IDLE:
                break
        return None, False

    def conv_after(name: str) -> str | None:
        """The convolution without padding that is the only reader of this layer's output."""
        while single(name) and (reader := target.get(name)):
            name = reader
            layer = model.get_layer(name)
            if _pads_nothing(layer):
                return name if sources[name] else None
            if type(layer) not in IDLE:
                break
        return None

    before, after, through = {}, {}, {}
    for layer in model.layers:
        if type(layer) is not layers.BatchNormalization or not sources[layer.name]:
            continue
        if layer.axis not in (-1, len(layer.input.shape) - 1):
            continue
        conv, activated = conv_before(layer.name)
        if conv and not activated:
            before[layer.name] = conv
        elif follower := conv_after(layer.name):
            after[layer.name] = follower
        elif conv:
            through[layer.name] = conv
    return before, after, through


def _tensors(value: object) -> Iterator[str]:
    """Names of the layers whose results a serialized call reads."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
        else:
            for item in value.values():
                yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _names(output_layers: Any) -> list[str]:
    """Names in ``output_layers``: [name, node, tensor], or any nesting of such."""
    if isinstance(output_layers, list | tuple) and output_layers and isinstance(output_layers[0], str):
        return [output_layers[0]]
    nested = output_layers.values() if isinstance(output_layers, dict) else output_layers
    return [name for item in nested for name in _names(item)]


def _keeps_scale(layer: keras.layers.Layer) -> bool:
    if type(layer) is layers.ReLU:
        return layer.max_value is None and layer.threshold == 0
    if type(layer) is layers.Activation:
        return layer.activation in HOMOGENEOUS
    return type(layer) is layers.LeakyReLU


def _pads_nothing(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) in CONVOLUTIONS
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and (layer.padding == "valid" or set(layer.kernel_size) == {1})
    )


def _folded_values(
    model: keras.Model, before: dict[str, str], after: dict[str, str], through: dict[str, str]
) -> dict[str, list[npt.NDArray[np.float32]]]:
    """New weights by layer name, computed in float64: of convolutions, and of normalizations that then only add."""
    values = {}
    for name, conv in after.items():
        scale, shift = _scale_and_shift(model.get_layer(name))
        [kernel], bias = _kernels_and_bias(model.get_layer(conv))
        taps = kernel.sum(axis=tuple(range(kernel.ndim - 2)))
        values[conv] = [[kernel * scale[:, None]], bias + shift @ taps]
    additions = {}
    for name, conv in (before | through).items():
        layer = model.get_layer(conv)
        scale, shift = _scale_and_shift(model.get_layer(name))
        if name in through:
            signs, scale = np.where(scale < 0, -1.0, 1.0), np.abs(scale)
            additions[name] = [shift, np.zeros_like(shift), np.ones_like(shift)]
            if (signs < 0).any():
                additions[name].insert(0, signs)
            shift = np.zeros_like(shift)
        kernels, bias = values.get(conv) or _kernels_and_bias(layer)
        if type(layer) in TRANSPOSED:
            by_channel = scale[:, None]  # kernels (..., out, in)
        elif type(layer) in DEPTHWISE:
            by_channel = scale.reshape(kernels[-1].shape[-2:])  # (..., in, multiplier)
        else:
            by_channel = scale
        values[conv] = [[*kernels[:-1], kernels[-1] * by_channel], bias * scale + shift]
    arrays = {name: [*kernels, bias] for name, (kernels, bias) in values.items()} | additions
    return {name: [array.astype(np.float32) for array in those] for name, those in arrays.items()}


def _scale_and_shift(norm: keras.layers.Layer) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The normalization as ``x * scale + shift``."""
    mean, variance = (_array(v) for v in (norm.moving_mean, norm.moving_variance))
    scale = (_array(norm.gamma) if norm.scale else 1) / np.sqrt(variance + norm.epsilon)
    return scale, (_array(norm.beta) if norm.center else 0) - mean * scale


def _kernels_and_bias(
    layer: keras.layers.Layer,
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    arrays = [np.asarray(array, np.float64) for array in layer.get_weights()]
    if layer.use_bias:
        return arrays[:-1], arrays[-1]
    return arrays, np.zeros(layer.compute_output_shape(layer.input.shape)[-1])


def _array(variable: keras.Variable) -> npt.NDArray[np.float64]:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
