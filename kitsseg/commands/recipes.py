"""kitsseg recipes."""

import argparse
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from kitsseg.errors import InputError
from kitsseg.recipe import Recipe, Variant, settings, value_of

__all__ = ["add"]


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    sub = command("recipes", _recipes, "list the papers, or show one with the evidence of each setting")
    sub.add_argument("action", nargs="?", choices=["show"], help="show one recipe")
    sub.add_argument("name", nargs="?", help="NAME, NAME:practical, NAME:tiny or NAME:VARIANT")


def _recipes(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes

    if arguments.action and not arguments.name:
        raise InputError(f"recipes show: expected the name of a recipe: {', '.join(recipes.names())}.")
    if arguments.action:
        stem, _, edition = arguments.name.partition(":")
        recipe = recipes.get(arguments.name)
        for variant in recipes.variants(stem):
            if variant.name == edition:
                _show_variant(recipes.get(stem), variant, recipe)
                return
        _show_recipe(recipe)
    else:
        _show_recipes([recipes.get(name) for name in recipes.names()])


def _show_recipes(papers: list[Recipe]) -> None:
    """A row per paper, and one per variant."""
    from rich.markup import escape
    from rich.table import Column, Table

    from kitsseg import recipes
    from kitsseg.runtime.console import console, done

    table = Table("recipe", "paper", "what it claims")
    for recipe in papers:
        table.add_row(recipe.name, escape(recipe.paper), escape(recipe.claim))
    console.print(table)
    table = Table(Column("variant", no_wrap=True), "row of the paper's tables", "parameters")
    for recipe in papers:
        for variant in recipes.variants(recipe.name):
            parameters = f"{variant.parameters:,}" if variant.parameters else ""
            table.add_row(f"{recipe.name}:{variant.name}", escape(variant.row), parameters)
    console.print(table)
    done("each recipe also as NAME:practical and NAME:tiny", f"kitsseg recipes show {papers[0].name}")


def _show_variant(paper: Recipe, variant: Variant, recipe: Recipe) -> None:
    """What is other than in the paper's recipe: nothing else is."""
    from rich.markup import escape
    from rich.table import Column, Table

    from kitsseg.runtime.console import console

    console.print(f"[bold]{recipe.name}[/bold]: {escape(variant.row)}\n{escape(paper.paper)}\n")
    table = Table(Column("setting", overflow="fold"), paper.name, "here", "evidence")
    for name, value in variant.changes.items():
        before = value_of(paper, name)
        table.add_row(name, escape(_said(before)), escape(_said(value)), escape(variant.evidence[name]))
    console.print(table)
    console.print(f"Every other setting is that of {paper.name}: kitsseg recipes show {paper.name}\n")
    _show_reported(recipe)
    _say_next(recipe)


def _said(value: Any) -> str:
    """A setting in a table; of a group of them its name is enough."""
    if value is None:
        return "none"
    return type(value).__name__ if is_dataclass(value) else str(value)


def _show_recipe(recipe: Recipe) -> None:
    """Claim, reported figures, and each setting with its evidence."""
    from rich.markup import escape
    from rich.table import Column, Table

    from kitsseg.runtime.console import console

    console.print(f"[bold]{recipe.name}[/bold]: {escape(recipe.paper)}\n{escape(recipe.claim)}\n")
    table = Table(Column("setting", overflow="fold"), Column("value", overflow="fold"), "evidence")
    for name, value in settings(recipe):
        if value is not None and value != ():
            table.add_row(name, escape(str(value)), escape(recipe.evidence[name]))
    console.print(table)
    _show_reported(recipe)
    _say_next(recipe)


def _show_reported(recipe: Recipe) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kitsseg.runtime.console import console

    if not recipe.reported:
        console.print("The paper reports no figures of it.")
        return
    table = Table("reported by the paper", "value")
    for name, value in recipe.reported.items():
        table.add_row(escape(name), f"{value:,}")
    console.print(table)


def _say_next(recipe: Recipe) -> None:
    from kitsseg.runtime.console import done

    done(
        f"cache folder: preprocess-{recipe.preprocess.digest()}",
        f"kitsseg preprocess {recipe.name} DATA CACHE",
    )
