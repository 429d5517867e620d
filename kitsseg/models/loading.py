"""Read a saved network, after a check that its ``.keras`` file is whole and holds a network for images."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kitsseg.errors import InputError, one_line
from kitsseg.files.archives import check_archive
from kitsseg.recipe import OUTPUTS

if TYPE_CHECKING:
    import keras

__all__ = ["check_form", "misfit", "read_network"]


def read_network(
    path: str | os.PathLike[str],
    compile: bool = False,
    advice: str = "Train again.",
    *,
    shape: tuple[int, ...] | None = None,
    output: str | None = None,
) -> "keras.Model":
    """Read a network with ``keras.models.load_model``, which must know the classes of kitsseg that the file names.

    The modules that define and register these classes are imported first.

    Args:
        path: of a ``.keras`` file.
        compile: restore loss and optimizer too.
        advice: what to do about another file, a sentence.
        shape: as ``check_form``; None: of any form.
        output: as ``check_form``.

    Returns: a network of one image, its weights all finite.
    Raises: InputError, naming the file, if it is missing, was cut off or changed, is something else than a network for
        images that this version can read, has another form, or has weights that are no numbers: the largest of three
        NaN would be background. OSError if the file may not be read.
    """
    import keras

    # without these Keras does not know the classes that saved networks and their losses refer to
    import kitsseg.losses
    import kitsseg.metrics
    import kitsseg.models.layers.blocks2d
    import kitsseg.models.layers.layers3d
    import kitsseg.models.layers.torch_compat  # noqa: F401

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: missing, there is no such file. {advice}")
    try:
        check_archive(path)
    except ValueError as error:
        raise InputError(f"{path}: not a network that this version can read ({error}). {advice}") from error
    try:
        network = keras.models.load_model(path, compile=compile)
    except MemoryError:
        raise
    except Exception as error:  # a file of somebody else may make Keras and its backend raise anything
        raise InputError(
            f"{path}: not a network that this version can read ({one_line(error)}). {advice}"
        ) from error
    _check_kind(network, path, advice)
    if shape is not None:
        check_form(network, path, shape, output, advice)
    _check_finite(network, path, advice)
    return network


def check_form(
    network: "keras.Model",
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    output: str | None,
    advice: str = "Train again.",
) -> None:
    """See that a network is of the form that its record says. Nothing is computed.

    Args:
        network: of ``read_network``.
        path: of its file.
        shape: (rows, columns, channels) of an image, or (slices, rows, columns, channels).
        output: as ``InferenceSpec.output``: so many channels the last output has for each pixel or voxel; None: any
            number.
        advice: what to do about another network, a sentence.

    Raises: InputError, naming the file, if it takes no such images, or gives anything else for each pixel or voxel.
    """
    if text := misfit(network, shape, output):
        raise InputError(f"{path}: {text}: the record describes another network than this one. {advice}")


def misfit(network: "keras.Model", shape: tuple[int, ...], output: str | None) -> str | None:
    """Say in which way a network does not fit images of a shape; None if it fits. Nothing is computed.

    Args:
        network: any of one input.
        shape: (rows, columns, channels) of an image, or (slices, rows, columns, channels).
        output: as in ``check_form``.
    """
    import keras

    form = network.inputs[0].shape[1:]
    if len(shape) != len(form) or any(n not in (None, size) for n, size in zip(form, shape, strict=True)):
        return f"expected a network for images of shape {shape}, found one for {tuple(form)}"
    try:
        outputs = network.compute_output_spec(keras.KerasTensor((1, *shape)))
    except Exception as error:  # layers that do not fit each other at this size raise anything
        return (
            f"expected a network for images of shape {shape}, found one that cannot compute them "
            f"({one_line(error)})"
        )
    last = outputs[-1] if isinstance(outputs, list | tuple) else outputs
    found = tuple(last.shape[1:])
    expected = (*shape[:-1], OUTPUTS[output] if output else found[-1])
    if found != expected:
        return f"expected outputs of shape {expected} for images of {shape}, found {found}"
    return None


def _check_kind(network: "keras.Model", path: Path, advice: str) -> None:
    """One image to logits of its own number of axes."""
    try:
        inputs, outputs = network.inputs, network.outputs
        fits = len(inputs) == 1 and {len(tensor.shape) for tensor in (*inputs, *outputs)} in ({4}, {5})
    except (AttributeError, TypeError, ValueError):  # not of layers that are connected
        fits = False
    if not fits:
        raise InputError(
            f"{path}: expected a network that labels each pixel or voxel of one image, found another kind. {advice}"
        )


def _check_finite(network: "keras.Model", path: Path, advice: str) -> None:
    for variable in network.weights:
        values = np.asarray(variable)
        if np.issubdtype(values.dtype, np.floating) and not math.isfinite(np.abs(values).max(initial=0)):
            raise InputError(
                f"{path}: the weights {variable.path} are not finite (NaN or infinite); every voxel would be "
                f"background. {advice}"
            )
