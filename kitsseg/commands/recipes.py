"""kitsseg recipes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kitsseg.errors import InputError

if TYPE_CHECKING:
    from kitsseg.recipe import Recipe

__all__ = ["add"]


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    sub = command("recipes", _recipes, "list the papers, or show one with the evidence of each setting")
    sub.add_argument("action", nargs="?", choices=["show"], help="show one recipe")
    sub.add_argument("name", nargs="?", help="NAME, NAME:practical, NAME:tiny or NAME:VARIANT")
    sub.add_argument("--json", action="store_true", help="as JSON, for programs")


def _recipes(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes
    from kitsseg.report.recipe_table import show_recipe, show_variant

    if arguments.action and not arguments.name:
        raise InputError(f"recipes show: expected the name of a recipe: {', '.join(recipes.names())}.")
    if arguments.action:
        stem, _, edition = arguments.name.partition(":")
        recipe = recipes.get(arguments.name)
        if arguments.json:
            _write_json(_described(recipe))
            return
        for variant in recipes.variants(stem):
            if variant.name == edition:
                show_variant(recipes.get(stem), variant, recipe)
                return
        show_recipe(recipe)
    elif arguments.json:
        _write_json([_listed(name) for name in recipes.names()])
    else:
        _show_recipes([recipes.get(name) for name in recipes.names()])


def _listed(name: str) -> dict[str, object]:
    """A paper, and the names of its recipes."""
    from kitsseg import recipes

    recipe = recipes.get(name)
    variants = [
        {"name": f"{name}:{variant.name}", "row": variant.row, "parameters": variant.parameters}
        for variant in recipes.variants(name)
    ]
    editions = [name, f"{name}:practical", f"{name}:tiny"]
    return {
        "name": name,
        "paper": recipe.paper,
        "claim": recipe.claim,
        "reported": dict(recipe.reported),
        "editions": editions,
        "variants": variants,
    }


def _described(recipe: Recipe) -> dict[str, object]:
    """A recipe's settings, each with its evidence."""
    from kitsseg.recipe import settings

    return {
        "name": recipe.name,
        "paper": recipe.paper,
        "claim": recipe.claim,
        "reported": dict(recipe.reported),
        "settings": {
            name: {"value": value, "evidence": recipe.evidence.get(name)} for name, value in settings(recipe)
        },
    }


def _write_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=1, default=str) + "\n")


def _show_recipes(papers: list[Recipe]) -> None:
    """A row per paper, and one per variant."""
    from rich.markup import escape
    from rich.table import Column, Table

    from kitsseg import recipes
    from kitsseg.runtime.console import done, print_table

    table = Table("recipe", "paper", "what it claims")
    for recipe in papers:
        table.add_row(recipe.name, escape(recipe.paper), escape(recipe.claim))
    print_table(table)
    table = Table(Column("variant", no_wrap=True), "row of the paper's tables", "parameters")
    for recipe in papers:
        for variant in recipes.variants(recipe.name):
            parameters = f"{variant.parameters:,}" if variant.parameters else ""
            if variant.counted:
                parameters += f" {variant.counted}"
            table.add_row(f"{recipe.name}:{variant.name}", escape(variant.row), parameters)
    print_table(table)
    done("each recipe also as NAME:practical and NAME:tiny", f"kitsseg recipes show {papers[0].name}")
