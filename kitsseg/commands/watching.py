"""What kitsseg train shows and writes while it trains: whole validation cases, TensorBoard, lines on the console."""

from pathlib import Path

from kitsseg.commands.arguments import at_least

__all__ = ["add_watching", "say", "watching_of"]


def add_watching(sub):
    """Add the options; ``watching_of`` reads them."""
    group = sub.add_argument_group("monitoring")
    group.add_argument(
        "--validate-cases-every",
        metavar="K",
        type=at_least(0),
        help="TK and TU Dice of whole validation cases every K epochs, into history.csv and validation_cases.csv; 0: "
        "never (default: the recipe's K, chosen so that they take less than a tenth of the time)",
    )
    group.add_argument(
        "--tensorboard",
        metavar="FOLDER",
        type=Path,
        help="losses, rates, Dice of whole cases and pictures of them for TensorBoard (to look at them: pip install "
        "tensorboard)",
    )


def watching_of(arguments):
    """Keyword arguments of ``train_recipe``."""
    return {
        "validate_cases_every": arguments.validate_cases_every,
        "tensorboard": arguments.tensorboard,
    }


def say(text):
    """Print what ``train_recipe`` says, above its bar; warnings in yellow."""
    from rich.markup import escape

    from kitsseg.commands.console import console

    console.print(f"[yellow]{escape(text)}[/yellow]" if text.startswith("warning") else escape(text))
