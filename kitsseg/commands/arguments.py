"""Kinds of command-line arguments that several commands take."""

import argparse

__all__ = ["add_layout", "at_least", "layout_of", "part", "shares", "volume_size"]


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


def shares(text):
    """One or several shares between 0 and 1, separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1 for value in values) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"expected shares between 0 and 1 such as 0.5,0.8, found {text}")
    return values


def part(text):
    """I/N: the I-th of N parts, from 1."""
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number = count = 0
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"expected I/N such as 3/20, I from 1 to N, found {text}")
    return number, count


def volume_size(text):
    """slices,rows,columns."""
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if len(size) != 3:
        raise argparse.ArgumentTypeError(f"expected slices,rows,columns such as 40,128,128, found {text}")
    return size


def add_layout(sub, labels=True):
    """The options that say how cases lie in a folder, where it does not tell by itself."""
    sub.add_argument("--images", metavar="PATTERN", help="which files are the scans, such as '*/ct.nii.gz'")
    if labels:
        sub.add_argument(
            "--labels", metavar="PATTERN", help="which files are the label maps, such as '*/seg.nii.gz'"
        )
        sub.add_argument(
            "--cyst",
            choices=["kidney", "tumor", "background"],
            help="what cysts become (label 3 of KiTS21 and KiTS23; default: refuse them)",
        )


def layout_of(arguments):
    """The Layout that these options describe."""
    from kitsseg.data.layouts.find import Layout

    return Layout(arguments.images, getattr(arguments, "labels", None), getattr(arguments, "cyst", None))
