"""Kinds of command-line arguments that several commands take."""

import argparse

__all__ = ["at_least", "volume_size"]


def at_least(smallest):
    """A whole number from ``smallest``."""

    def convert(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number from {smallest}, found {text}")
        return value

    return convert


def volume_size(text):
    """slices,rows,columns."""
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if len(size) != 3:
        raise argparse.ArgumentTypeError(f"expected slices,rows,columns such as 40,128,128, found {text}")
    return size
