"""Kinds of command-line arguments that several commands take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Layout

__all__ = [
    "AddCommand",
    "add_given",
    "add_layout",
    "at_least",
    "batch_size",
    "hu_window",
    "layout_of",
    "layout_options",
    "mask_values",
    "part",
    "share",
    "shares",
    "volume_mm3",
    "volume_size",
]


class AddCommand(Protocol):
    """Adds a command: its name, the function that runs it, a line of help, options of ``add_parser``."""

    def __call__(
        self, name: str, function: Callable[[argparse.Namespace], object], help: str, **options: Any
    ) -> argparse.ArgumentParser: ...


def at_least(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """A whole number from ``smallest``, up to ``largest`` if that is given."""
    numbers = f"from {smallest}" if largest is None else f"from {smallest} to {largest}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"expected a whole number {numbers}, found {text}")
        return value

    return convert


def batch_size(text: str) -> int:
    """A number of images that a batch can have."""
    from kitsseg.recipe import MOST_IMAGES  # not at the top: --help would take twice as long

    return at_least(1, MOST_IMAGES)(text)


def share(text: str) -> float:
    """A share above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, such as 0.5; found {text}")
    return value


def shares(text: str) -> list[float]:
    """One or several shares between 0 and 1, separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1 for value in values) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"expected shares between 0 and 1 such as 0.5,0.8, found {text}")
    return values


def part(text: str) -> tuple[int, int]:
    """I/N: part I of N, from 0, as --fold and --process count too."""
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number = count = 0
    if not 0 <= number < count:
        raise argparse.ArgumentTypeError(f"expected I/N with 0 <= I < N, such as 0/20, found {text}")
    return number, count


def volume_mm3(text: str) -> float:
    """A volume above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a volume in mm3 above 0, such as 500; found {text}")
    return value


def volume_size(text: str) -> tuple[int, int, int]:
    """slices,rows,columns."""
    try:
        size = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        size = ()
    if len(size) != 3:
        raise argparse.ArgumentTypeError(f"expected slices,rows,columns such as 40,128,128, found {text}")
    return size


def hu_window(text: str) -> tuple[float, float]:
    """LOW,HIGH in HU."""
    try:
        low, high = map(float, text.split(","))
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected two HU such as --hu-window=-160,240, the lower one first, found {text}"
        ) from None
    return low, high


def mask_values(text: str) -> tuple[int, ...]:
    """The values of background, kidney and tumor; two where there is no tumor."""
    try:
        values = tuple(map(int, text.split(",")))
    except ValueError:
        values = ()
    if (
        not 2 <= len(values) <= 3
        or len(set(values)) < len(values)
        or not all(0 <= v <= 65535 for v in values)
    ):
        raise argparse.ArgumentTypeError(
            f"expected the values of background, kidney and tumor such as 0,128,255, found {text}"
        )
    return values


def add_layout(sub: argparse.ArgumentParser, labels: bool = True) -> None:
    """Add the options that say where the files of cases lie, if the folder alone does not tell it."""
    sub.add_argument("--images", metavar="PATTERN", help="which files are the scans, such as '*/ct.nii.gz'")
    sub.add_argument(
        "--hu-window",
        type=hu_window,
        metavar="LOW,HIGH",
        help="of PNG and JPEG slices: HU of the darkest and the brightest value, such as --hu-window=-160,240 "
        "(default: slices.csv says it)",
    )
    if labels:
        sub.add_argument(
            "--mask-values",
            type=mask_values,
            metavar="B,K,T",
            help="of PNG slices: values of background, kidney and tumor in the masks, such as 0,128,255 (default: "
            "0,1,2)",
        )
        sub.add_argument(
            "--labels", metavar="PATTERN", help="which files are the label maps, such as '*/seg.nii.gz'"
        )
        sub.add_argument(
            "--cyst",
            choices=["kidney", "tumor", "background"],
            help="class that cysts become (label 3 of KiTS21 and KiTS23; default: an error if there are any)",
        )


def layout_of(arguments: argparse.Namespace) -> Layout:
    """The Layout that these options describe."""
    from kitsseg.data.layouts.find import Layout

    names = ("images", "labels", "cyst", "hu_window", "mask_values")
    return Layout(*(getattr(arguments, name, None) for name in names))


def layout_options(layout: Layout | None) -> list[str]:
    """The words of the options that describe a Layout, for the next command about the same folder."""
    words = []
    for name, value in () if layout is None else vars(layout).items():
        if value is not None:
            text = ",".join(f"{number:.15g}" for number in value) if isinstance(value, tuple) else str(value)
            # in one word: a window may begin with a minus sign
            words.append(f"--{name.replace('_', '-')}={text}")
    return words


def add_given(sub: argparse.ArgumentParser, what: str) -> None:
    """Add the option ``--set``, which ``kitsseg.commands.given.with_given`` reads.

    Args:
        sub: parser of the command.
        what: text about the settings that the option takes, with an example.
    """
    sub.add_argument(
        "--set",
        dest="given",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=f"{what}; may be given several times. kitsseg recipes show RECIPE lists the names",
    )
