"""The output of commands: one console, a progress bar, and a last line that names the result and the next command."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.table import Table

    from kitsseg.interfaces import Progress as ProgressFunction

__all__ = [
    "LINE_EVERY_S",
    "LogLines",
    "console",
    "done",
    "print_table",
    "progress_bar",
    "quieted",
    "warning",
    "without_next",
]

console = Console(highlight=False, soft_wrap=True)


LINE_EVERY_S = 60.0  # where nobody watches a terminal
LOG_WIDTH = 200  # columns at most of a table in a log or a pipe, which have no width of their own


@contextmanager
def progress_bar(unit: str = "") -> Iterator[ProgressFunction]:
    """Show a bar with the time left; without a terminal, print a line a minute for the log of a job.

    Gives: the function progress(description, done, total) that functions of the library call.

    Args:
        unit: what ``done`` counts, such as "steps", for the rate in the log.
    """
    if not (console.is_terminal or console.is_jupyter):  # a bar is only an empty line there
        yield LogLines(unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("start", total=None)
        yield lambda description, done, total: bar.update(
            task, description=escape(description), completed=done, total=total
        )


class LogLines:
    """Lines about a long command for the log of a job: at most one a minute, with the rate and the time left.

    Args:
        unit: what is counted. clock: seconds, from any moment on.
    """

    def __init__(self, unit: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.unit, self.clock = unit, clock
        self.said = clock()
        self.begun: tuple[float, float, float] | None = None  # when, done then, of how many

    def __call__(self, description: str, done: float, total: int) -> None:
        now = self.clock()
        if self.begun is None or self.begun[2] != total or done < self.begun[1]:
            self.begun = now, done, total  # another piece of work
        if now - self.said < LINE_EVERY_S:
            return
        self.said = now
        started, first, _ = self.begun
        text = f"{description}: {done:.0f} of {total}" + (f" {self.unit}" if self.unit else "")
        if done > first and now > started:
            rate = (done - first) / (now - started)
            minutes, seconds = divmod(round((total - done) / rate), 60)
            each = f"{rate:.3g} {self.unit or 'of them'} a second" if rate >= 1 else f"{1 / rate:.3g} s each"
            text += f", {each}, about {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
        console.print(text, markup=False)


def print_table(table: Table) -> None:
    """Print a table within the width of the terminal; in a log or a pipe as wide as it needs to be, up to 200 columns.

    The variable COLUMNS, where it is set, is the width of a log too.
    """
    if console.is_terminal or console.is_jupyter:
        console.print(table, soft_wrap=False)
        return
    # a console that is told another width for one call still takes no more than its own, which is 80 in a log
    told = os.environ.get("COLUMNS", "")
    log = Console(file=io.StringIO(), width=int(told) if told.isdigit() else max(console.width, LOG_WIDTH))
    with log.capture() as lines:
        log.print(table)
    console.print(lines.get(), end="", markup=False, emoji=False, soft_wrap=True)


def warning(text: str) -> None:
    """Print a warning as a line. It is printed to stderr where everything else is kept quiet."""
    where = Console(stderr=True, highlight=False, soft_wrap=True) if console.quiet else console
    where.print(f"[yellow]{escape(text)}[/yellow]")


@contextmanager
def quieted() -> Iterator[None]:
    """In this block only warnings are printed, to stderr."""
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


_says_next = True


@contextmanager
def without_next() -> Iterator[None]:
    """In this block ``done`` names no next command, for a command that runs several others in a row."""
    global _says_next
    _says_next = False
    try:
        yield
    finally:
        _says_next = True


def done(text: str, *next_commands: str | None, with_truth: str | None = None) -> None:
    """Print what was written, and the command that usually follows, or several commands to choose from.

    Args:
        text: what was written.
        next_commands: commands that can follow; None: left out.
        with_truth: a command that can follow only where there are reference label maps.
    """
    console.print(escape(text))
    if _says_next:
        for number, command in enumerate(filter(None, next_commands)):
            console.print(f"{'  or' if number else 'next'}: [bold]{escape(command)}[/bold]")
        if with_truth:
            console.print(f"with reference label maps: [bold]{escape(with_truth)}[/bold]")
