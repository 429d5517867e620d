"""The one error for bad input: its message names the file, what was expected, what was found, what to do."""

import shlex
from collections.abc import Iterable, Sequence

__all__ = ["InputError", "command_line", "did_you_mean", "one_line", "some_of"]

_LONGEST = 300  # letters of another library's error: some hold whole configurations, or quote the file


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints the message as one line."""


def command_line(*words: object) -> str:
    """A kitsseg command as a shell takes it: a path with a space in it is quoted.

    Args:
        words: of the command after "kitsseg", one argument each.
    """
    return shlex.join(["kitsseg", *map(str, words)])


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """The sentence " Did you mean NAME?" with the known name that is nearest to ``found``; empty if none is near.

    Names that are equally near are all given: "unet" is as near to unet2d as to unet3d.
    """
    from difflib import SequenceMatcher  # only where something is wrong

    one = SequenceMatcher(b=found.lower().replace("_", "-"))
    near: dict[float, list[str]] = {}
    for name in known:
        one.set_seq1(name.lower().replace("_", "-"))
        near.setdefault(one.ratio(), []).append(name)
    best = max(near, default=0.0)
    return f" Did you mean {' or '.join(near[best])}?" if best >= 0.6 else ""


def one_line(error: BaseException) -> str:
    """The text of any error, to be put into a message: on one line, shortened, and never empty.

    An error of the operating system has its own text and the file's name, without its number. An error without a text
    has the name of its type. Characters that a terminal would obey are replaced.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    letters = " ".join(text.split()) or type(error).__name__
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in letters)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def some_of(items: Sequence[object], most: int, separator: str = ", ") -> str:
    """The first of some items in a row, and the number of the others. A single other one is named: it costs no more.

    Args:
        items: what is named, in order.
        most: about how many are named.
        separator: between them.
    """
    shown = items if len(items) <= most + 1 else items[:most]
    before = "" if separator == ", " else separator.rstrip()
    more = f"{before} and {len(items) - len(shown)} more" if len(items) > len(shown) else ""
    return separator.join(map(str, shown)) + more
