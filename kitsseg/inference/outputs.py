"""Turn the outputs of a network into probabilities of background, kidney and tumor. NumPy only.

A softmax gives these three itself. A sigmoid head gives one channel for each label, for each region, or for the tumor
alone. Prediction always works with three classes that add up to 1; their arg-max is the label that follows from the
channels with a threshold of one half.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kitsseg.inference.engines import Network
from kitsseg.recipe import OUTPUTS

__all__ = ["class_probabilities", "network_of_classes"]


def class_probabilities(logits: npt.NDArray[np.floating], output: str) -> npt.NDArray[np.float32]:
    """Class probabilities of the logits of a sigmoid head.

    With k and t the sigmoids of the two channels, background, kidney and tumor are in proportion to

        sigmoid: 1 - max(k, t), k, t           kidney without tumor is a channel, tumor another
        regions: 1 - k, min(k, 1 - t), min(k, t)   the first channel is kidney and tumor together
        tumor:   1 - t, 0, t                   the one channel there is

    These rules are ours. The arg-max is background if no channel is above one half. If the channels are near 0 or 1,
    the result is near the product of their probabilities.

    Args:
        logits: (..., channels), as many as ``output`` has.
        output: ``InferenceSpec.output``, any except for "softmax".

    Returns: (..., 3), adding up to 1.
    Raises: ValueError for another number of channels.
    """
    channels = OUTPUTS[output]
    if logits.shape[-1] != channels:
        raise ValueError(
            f"inference.output {output} has {channels} channels; the network gives {logits.shape[-1]}."
        )
    # 1 / (1 + exp(-x)) without overflow
    values = [
        (0.5 * (1 + np.tanh(0.5 * plane))).astype(np.float32)
        for plane in np.moveaxis(np.asarray(logits, np.float32), -1, 0)
    ]
    if output == "tumor":
        tumor = values[0]
        kidney, background = np.zeros_like(tumor), 1 - tumor
    elif output == "sigmoid":
        kidney, tumor = values
        background = 1 - np.maximum(kidney, tumor)
    else:
        both, inner = values
        background, kidney, tumor = 1 - both, np.minimum(both, 1 - inner), np.minimum(both, inner)
    classes = np.stack([background, kidney, tumor])
    classes /= classes.sum(axis=0)
    return np.moveaxis(classes, 0, -1)


def network_of_classes(network: Network, output: str) -> Network:
    """The network with background, kidney and tumor as its result, made from outputs that mean ``output``."""
    if output == "softmax":
        return network
    convert = _converted(network.scores, output)
    return replace(network, scores=convert, probabilities=convert)


def _converted(scores: Callable[..., np.ndarray], output: str) -> Callable[..., np.ndarray]:
    return lambda batch: class_probabilities(np.asarray(scores(batch)), output)
