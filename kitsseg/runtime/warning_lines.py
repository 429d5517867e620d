"""Warnings of kitsseg as lines, for people who use a command or a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = ["warnings_as_lines"]


@contextmanager
def warnings_as_lines(say: Callable[[str], object] | None = None) -> Iterator[None]:
    """In this block each warning that kitsseg gives is printed at once, as one line without the place in the code.

    Args:
        say: called with each line, to print it in another way than ``kitsseg.runtime.console.warning``.
    """
    package = Path(__file__).parents[1]
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is not UserWarning or not Path(filename).is_relative_to(package):
            others(message, category, filename, lineno, file, line)
        elif say is None:
            from kitsseg.runtime.console import (
                warning,  # rich is slow to import, and most commands warn of nothing
            )

            warning(f"warning: {message}")
        else:
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"kitsseg(\.|$)")
        warnings.showwarning = show
        yield
