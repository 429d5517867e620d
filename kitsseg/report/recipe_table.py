"""A recipe as a table on the console."""

from dataclasses import is_dataclass
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from kitsseg.recipe import Recipe, Variant, settings, value_of
from kitsseg.runtime.console import console, done, print_table

__all__ = ["show_recipe", "show_variant"]

# settings that are named where they are none, too
NAMED = ("postprocess", "split", "metrics", "inference.mirror_axes")


def show_variant(paper: Recipe, variant: Variant, recipe: Recipe) -> None:
    """Print the settings of a variant that differ from the paper's recipe; all other settings are the same.

    Args:
        paper: the paper's Recipe.
        variant: Variant.
        recipe: the Recipe of the variant.
    """
    console.print(f"[bold]{recipe.name}[/bold]: {escape(variant.row)}\n{escape(paper.paper)}\n")
    table = Table(Column("setting", overflow="fold"), paper.name, "here", "evidence")
    for name, value in variant.changes.items():
        before = value_of(paper, name)
        table.add_row(name, escape(_said(before)), escape(_said(value)), escape(variant.evidence[name]))
    print_table(table)
    console.print(f"Every other setting is that of {paper.name}: kitsseg recipes show {paper.name}\n")
    _show_reported(recipe)
    _say_next(recipe)


def _said(value: Any) -> str:
    """The text of a setting's value in a table; a group of settings is shown by its name."""
    if value is None or value == ():
        return "none"
    return type(value).__name__ if is_dataclass(value) else str(value)


def show_recipe(recipe: Recipe) -> None:
    """Claim, reported figures, and each setting with its evidence."""
    console.print(
        f"[bold]{recipe.name}[/bold]: {escape(recipe.paper)}\n{escape(recipe.claim)}\n{escape(recipe.link)}\n"
    )
    table = Table(Column("setting", overflow="fold"), Column("value", overflow="fold"), "evidence")
    for name, value in settings(recipe):
        if (value is not None and value != ()) or name in NAMED:
            table.add_row(name, escape(_said(value)), escape(recipe.evidence[name]))
    print_table(table)
    _show_reported(recipe)
    _say_next(recipe)


def _show_reported(recipe: Recipe) -> None:
    if not recipe.reported:
        console.print("The paper reports no figures of it.")
        return
    table = Table("reported by the paper", "value")
    for name, value in recipe.reported.items():
        table.add_row(escape(name), f"{value:,}")
    print_table(table)


def _say_next(recipe: Recipe) -> None:

    done(
        f"cache folder: preprocess-{recipe.preprocess.digest()}",
        f"kitsseg preprocess {recipe.name} DATA CACHE",
    )
