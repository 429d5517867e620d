"""kitsseg recipes."""

from kitsseg.errors import InputError

__all__ = ["add"]


def add(command):
    sub = command("recipes", _recipes, "list the papers, or show one with the evidence of each setting")
    sub.add_argument("action", nargs="?", choices=["show"], help="show one recipe")
    sub.add_argument("name", nargs="?", help="NAME, NAME:practical or NAME:tiny")


def _recipes(arguments):
    from kitsseg import recipes

    if arguments.action and not arguments.name:
        raise InputError(f"recipes show: expected the name of a recipe: {', '.join(recipes.names())}.")
    if arguments.action:
        _show_recipe(recipes.get(arguments.name))
    else:
        _show_recipes([recipes.get(name) for name in recipes.names()])


def _show_recipes(recipes):
    """A row per paper."""
    from rich.markup import escape
    from rich.table import Table

    from kitsseg.commands.console import console, done

    table = Table("recipe", "paper", "what it claims")
    for recipe in recipes:
        table.add_row(recipe.name, escape(recipe.paper), escape(recipe.claim))
    console.print(table)
    done("each also as NAME:practical and NAME:tiny", f"kitsseg recipes show {recipes[0].name}")


def _show_recipe(recipe):
    """Claim, reported figures, and each setting with its evidence."""
    from rich.markup import escape
    from rich.table import Column, Table

    from kitsseg.commands.console import console, done
    from kitsseg.recipe import settings

    console.print(f"[bold]{recipe.name}[/bold]: {escape(recipe.paper)}\n{escape(recipe.claim)}\n")
    table = Table(Column("setting", overflow="fold"), Column("value", overflow="fold"), "evidence")
    for name, value in settings(recipe):
        if value is not None and value != ():
            table.add_row(name, escape(str(value)), escape(recipe.evidence[name]))
    console.print(table)
    table = Table("reported by the paper", "value")
    for name, value in recipe.reported.items():
        table.add_row(escape(name), f"{value:,}")
    console.print(table)
    done(
        f"cache folder: preprocess-{recipe.preprocess.digest()}",
        f"kitsseg preprocess {recipe.name} DATA CACHE",
    )
