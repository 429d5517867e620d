"""Reading saved networks: the one place that judges a ``.keras`` file."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kitsseg.errors import InputError
from kitsseg.files.archives import check_archive

if TYPE_CHECKING:
    import keras

__all__ = ["one_line", "read_network"]


def read_network(
    path: str | os.PathLike[str], compile: bool = False, advice: str = "Train again."
) -> "keras.Model":
    """``keras.models.load_model`` in a process that may have built neither network nor loss.

    Args:
        path: of a ``.keras`` file.
        compile: restore loss and optimizer too.
        advice: what to do about another file, a sentence.

    Returns: a network of one image, its weights all finite.
    Raises: InputError, naming the file, if it is missing, was cut off or changed, is something else than a network for
        images that this version can read, or has weights that are no numbers: the largest of three NaN would be
        background. OSError if the file may not be read.
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
    _check_form(network, path, advice)
    _check_finite(network, path, advice)
    return network


def one_line(error: BaseException, longest: int = 300) -> str:
    """What an error says, on one line: those of Keras hold whole configurations."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _check_form(network: "keras.Model", path: Path, advice: str) -> None:
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
