"""What the user sees: one console, a progress bar, and a last line that says what was written and what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from kitsseg.interfaces import Progress as ProgressFunction

__all__ = ["console", "done", "progress_bar", "warning", "without_next"]

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[ProgressFunction]:
    """A bar with the time left; gives the callable progress(description, done, total) of the library."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    watched = console.is_terminal or console.is_jupyter  # elsewhere a bar is only an empty line
    with Progress(*columns, console=console, transient=True, disable=not watched) as bar:
        task = bar.add_task("start", total=None)
        yield lambda description, done, total: bar.update(
            task, description=escape(description), completed=done, total=total
        )


def warning(text: str) -> None:
    """Print a line that begins with "warning"."""
    console.print(f"[yellow]{escape(text)}[/yellow]")


_says_next = True


@contextmanager
def without_next() -> Iterator[None]:
    """In this block ``done`` names no next command: whoever runs several in a row knows what follows."""
    global _says_next
    _says_next = False
    try:
        yield
    finally:
        _says_next = True


def done(text: str, *next_commands: str | None) -> None:
    """Say what was written, and the command that usually follows, or several between which the user chooses."""
    console.print(escape(text))
    if _says_next:
        for number, command in enumerate(filter(None, next_commands)):
            console.print(f"{'  or' if number else 'next'}: [bold]{escape(command)}[/bold]")
