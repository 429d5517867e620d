"""Reading saved networks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

__all__ = ["read_network"]


def read_network(path: str | os.PathLike[str], compile: bool = False) -> keras.Model:
    """``keras.models.load_model`` in a process that may have built neither network nor loss.

    Args:
        compile: restore loss and optimizer too.

    Raises: what Keras raises for a file it cannot read: OSError, ValueError or TypeError.
    """
    import keras

    # without these Keras does not know the classes that saved networks and their losses refer to
    import kitsseg.losses
    import kitsseg.models.layers.blocks2d
    import kitsseg.models.layers.layers3d
    import kitsseg.models.layers.torch_compat  # noqa: F401

    return keras.models.load_model(path, compile=compile)
