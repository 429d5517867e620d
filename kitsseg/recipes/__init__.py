"""The papers' values, one module per paper; ``get("NAME")`` goes by the module's name."""

import importlib
import os
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.errors import InputError, did_you_mean
from kitsseg.ranges import told_of
from kitsseg.recipe import GIVEN, Phase, Recipe, Variant, changed, vary

if TYPE_CHECKING:
    from kitsseg.records.run import RunRecord

__all__ = ["EDITIONS", "get", "given", "names", "of_record", "variants"]

EDITIONS = {"": "PAPER", "practical": "PRACTICAL", "tiny": "TINY"}


def names() -> list[str]:
    """Names of the recipes, sorted.

    Each recipe exists as ``NAME`` (as the paper states it), ``NAME:practical`` (as we would run it today) and
    ``NAME:tiny`` (for the demo and the tests), and has its ``variants``.
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def variants(name: str) -> tuple[Variant, ...]:
    """The further rows of a paper's tables, each ``get("NAME:VARIANT")``.

    Args:
        name: one of ``names()``.
    """
    of_paper: tuple[Variant, ...] = importlib.import_module(f"kitsseg.recipes.{name}").VARIANTS
    return of_paper


def get(name: str) -> Recipe:
    """The recipe ``NAME``, ``NAME:practical``, ``NAME:tiny`` or ``NAME:VARIANT``.

    Raises: InputError for an unknown name or variant, listing the known ones.
    """
    stem, _, edition = name.partition(":")
    if stem not in names():
        raise InputError(
            f"recipe {name}: expected one of {', '.join(names())}, each also as NAME:practical or NAME:tiny; found "
            f"no such recipe.{did_you_mean(stem, names())} kitsseg recipes lists the variants, too."
        )
    module = importlib.import_module(f"kitsseg.recipes.{stem}")
    if edition in EDITIONS and not name.endswith(":"):
        recipe: Recipe = getattr(module, EDITIONS[edition])
        return recipe
    known = {variant.name: variant for variant in module.VARIANTS}
    if edition not in known:
        expected = [stem] + [f"{stem}:{each}" for each in ("practical", "tiny", *known)]
        near = did_you_mean(name, expected[1:])
        raise InputError(f"recipe {name}: expected one of {', '.join(expected)}; found no such recipe.{near}")
    return vary(module.PAPER, known[edition])


def given(recipe: Recipe, values: Mapping[str, object], start: str = "--set ") -> Recipe:
    """The recipe with settings that a user gives, which their evidence records.

    Args:
        recipe: Recipe.
        values: dotted name of a setting -> its value.
        start: of the message about a value, before the name: where the values come from.

    Raises: InputError for values that lie outside their ranges or do not go together.
    """
    try:
        with told_of(start):
            return changed(recipe, values, dict.fromkeys(values, GIVEN))
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        names = ", ".join(f"{name}={value}" for name, value in values.items())
        raise InputError(f"{start}{names}: {error}") from error


def of_record(record: "RunRecord", path: str | os.PathLike[str] = "run.json") -> Recipe:
    """The recipe that a run was trained with, including the settings that its user gave.

    Args:
        record: of ``read_run``.
        path: of its file, for messages.

    Raises: InputError for a recipe that is unknown, or no longer takes these settings.
    """
    recipe = get(record.recipe)
    values = {name: _tuples(value) for name, value in (record.given or {}).items()}
    trained = [phase["name"] for phase in record.settings["phases"]]
    if trained != [phase.name for phase in recipe.phases]:
        # a pruned or shrunk run has one phase of its own, with the settings of the recipe's last one
        last = [phase.name for phase in recipe.phases if not phase.pruning][-1]
        values = {
            re.sub(r"^phases\.[^.]+\.", f"phases.{last}.", name): value for name, value in values.items()
        }
    steps = {phase["name"]: phase["steps_per_epoch"] for phase in record.settings["phases"]}
    try:
        recipe = given(recipe, values, f"{path}: ") if values else recipe
    except KeyError as error:
        raise InputError(
            f"recipe {recipe.name}: the run was given the setting {error}, which the recipe no longer has; use kitsseg "
            f"{record.kitsseg}."
        ) from error
    with told_of(f"{path}: ", f"phases.{trained[-1]}."):
        return replace(recipe, phases=tuple(_with_steps(phase, steps, trained) for phase in recipe.phases))


def _with_steps(phase: Phase, steps: Mapping[str, int], trained: list[str]) -> Phase:
    """A phase with the steps per epoch that a run had, which may follow from its split."""
    name = phase.name if phase.name in steps else trained[-1]
    return phase if phase.pruning else replace(phase, steps_per_epoch=steps[name], steps_from=None)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
