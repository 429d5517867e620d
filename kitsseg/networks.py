"""Reading saved networks."""

__all__ = ["read_network"]


def read_network(path, compile=False):
    """``keras.models.load_model`` in a process that may have built neither network nor loss.

    Args:
        compile: restore loss and optimizer too.

    Raises: what Keras raises for a file it cannot read: OSError, ValueError or TypeError.
    """
    import keras

    # without these Keras does not know the classes that saved networks and their losses refer to
    import kitsseg.losses
    import kitsseg.models.blocks
    import kitsseg.models.layers3d
    import kitsseg.models.torch_layers  # noqa: F401

    return keras.models.load_model(path, compile=compile)
