"""Settings of a recipe that the user gives: ``--set NAME=VALUE``, read as the type that the setting has."""

import ast
import functools
import math
import operator
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import GenericAlias
from typing import Any, Union, get_args, get_origin, get_type_hints

from kitsseg import recipes
from kitsseg.errors import InputError, did_you_mean
from kitsseg.recipe import ADDED, Phase, Recipe, SliceSampler, given_settings, settings, value_of

__all__ = ["spoken_settings", "with_given"]

GROUP = "a group that can only be set to none"
WORDS = {"none": "None", "true": "True", "on": "True", "false": "False", "off": "False"}


def with_given(
    recipe: Recipe,
    texts: Sequence[str],
    only: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> Recipe:
    """The recipe with the settings that a user gives.

    Args:
        recipe: Recipe.
        texts: NAME=VALUE each, with the dotted name of a setting. The value ``none`` of a group, such as
            ``postprocess`` or ``phases.NAME.schedule``, leaves the group out.
        only: the only group whose settings may be given; None: all groups.
        steps: steps of every epoch of every phase; None: the recipe's.
        batch_size: slices in a batch of every phase; the share of slices with kidney or tumor stays. None: the
            recipe's.

    Raises: InputError for a name that is not a setting, a name that is given twice, a value of another type, and values
        that do not go together.
    """
    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set {text}: expected NAME=VALUE, such as --set {_example(recipe, only)}.")
        if name in values:
            raise InputError(f"--set {text}: {name} is given twice. Give it once.")
        hint = _hint_of(recipe, name, only)
        try:
            values[name] = _converted(_read(value, hint), hint)
        except TypeError as error:
            now = dict(settings(recipe)).get(name)  # None for a group
            such = f", such as the recipe's {_said(now)}" if now is not None else ""
            group = ADDED.get(name.rpartition(".")[2])
            more = (
                f" Its values are {' and '.join(f'{name}.{f.name}' for f in fields(group))}." if group else ""
            )
            raise InputError(f"--set {text}: {name} is {error}{such}; found {value!r}.{more}") from error
    for name in values:
        if whole := next((other for other in values if name.startswith(f"{other}.")), None):
            raise InputError(f"--set {name}: --set {whole} leaves it out. Give one of them.")
    for phase in recipe.phases if steps else ():
        if (name := f"phases.{phase.name}.steps_per_epoch") in values:
            raise InputError(f"--set {name}: --steps {steps} gives it already. Give one of them.")
        values[name] = steps
    for phase in recipe.phases if batch_size else ():
        values |= _of_batch(recipe, phase, batch_size or 1, values)
    return recipes.given(recipe, values)


def _of_batch(
    recipe: Recipe, phase: Phase, batch_size: int, values: Mapping[str, object]
) -> dict[str, object]:
    """The settings of a phase that give it batches of another size."""
    sampler, prefix = phase.sampler, f"phases.{phase.name}.sampler"
    if not isinstance(sampler, SliceSampler):
        raise InputError(
            f"--batch-size {batch_size}: {recipe.name} draws three patches of each case; give the number of cases "
            f"instead, such as --set {prefix}.cases_per_batch={sampler.cases_per_batch}."
        )
    if given := [name for name in (f"{prefix}.batch_size", f"{prefix}.positive") if name in values]:
        raise InputError(f"--set {given[0]}: --batch-size {batch_size} gives it already. Give one of them.")
    found: dict[str, object] = {f"{prefix}.batch_size": batch_size}
    if sampler.positive:
        positive = round(sampler.positive * batch_size / sampler.batch_size)
        found[f"{prefix}.positive"] = min(max(positive, 1), batch_size)
    return found


def spoken_settings(recipe: Recipe) -> dict[str, str]:
    """The settings that a user gave, by name, with values as the command line takes them."""
    return {name: _said(value_of(recipe, name)) for name in given_settings(recipe)}


def _example(recipe: Recipe, only: str | None) -> str:
    name = "preprocess.crop_to_body" if only == "preprocess" else f"phases.{recipe.phases[0].name}.epochs"
    return f"{name}={_said(value_of(recipe, name))}"


def _said(value: object) -> str:
    """A value as the command line takes it."""
    return re.sub(r"[\s()]", "", str(value)) if isinstance(value, tuple) else str(value)


def _hint_of(recipe: Recipe, name: str, only: str | None) -> Any:
    """The type of a setting: the type of its field. An option of a builder or a loss has the type of its value."""
    known = [key for key, _ in settings(recipe) if not key.startswith("fixed.")]
    added = {
        f"{key}.{field.name}": get_type_hints(kind)[field.name]
        for key, value in settings(recipe)
        if value is None and (kind := ADDED.get(key.rpartition(".")[2])) is not None
        for field in fields(kind)
    }
    groups = [key.rpartition(".")[0] for key in known if key.count(".") > 2] + ["postprocess"]
    if only and not name.startswith(f"{only}."):
        raise InputError(
            f"--set {name}: this command takes settings of {only} only. Give the others to kitsseg train."
        )
    if name.startswith("fixed.") and name in dict(settings(recipe)):
        raise InputError(f"--set {name}: the code fixes it, and no option changes it. Set another.")
    if name in added:
        return added[name]
    if name not in known and name not in groups:
        near = did_you_mean(name, [*known, *added])
        raise InputError(
            f"--set {name}: {recipe.name} has no such setting.{near} kitsseg recipes show {recipe.name} lists all "
            "of them."
        )
    parent, _, last = name.rpartition(".")
    owner = value_of(recipe, parent) if parent else recipe
    if isinstance(owner, Mapping):
        return _like(owner[last])
    return get_type_hints(type(owner))[last]


def _like(value: object) -> Any:
    """The type of an option, found out from its value."""
    if value is None:
        return Any
    if isinstance(value, str):
        return str | None
    if isinstance(value, tuple):
        kinds = dict.fromkeys(map(type, value))
        if int in kinds:  # a size that is known later
            kinds[types.NoneType] = None
        return GenericAlias(tuple, (functools.reduce(operator.or_, kinds), ...))
    return type(value)


def _read(text: str, hint: Any) -> Any:
    """A number, a word, or several of them separated by commas; anything that is not a number stays text."""
    if hint is str:
        return text
    spelled = re.sub(
        r"(?<![\w.])[A-Za-z_][\w.]*", lambda word: WORDS.get(word[0].lower(), repr(word[0])), text.strip()
    )
    try:
        value = ast.literal_eval(spelled)
    except (ValueError, SyntaxError):
        return text
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _converted(value: Any, hint: Any) -> Any:
    """The value as this type. Raises: TypeError, whose text names the expected type."""
    if hint is Any:
        return value
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if (found := _as_one(value, option)) is not _NO:
            return found
    spoken = dict.fromkeys(_spoken(option) for option in options)
    raise TypeError(GROUP if GROUP in spoken else " or ".join(spoken))


_NO = object()


def _as_one(value: Any, kind: Any) -> Any:
    if kind is type(None):
        return None if value is None else _NO
    if get_origin(kind) is tuple:
        return _as_tuple(value, get_args(kind))
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    return value if kind in (bool, int, str) and type(value) is kind else _NO


def _as_tuple(value: Any, kinds: tuple[Any, ...]) -> Any:
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        return _NO
    try:
        return tuple(_converted(item, kind) for item, kind in zip(items, kinds, strict=True))
    except TypeError:
        return _NO


def _spoken(kind: Any) -> str:
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return "one or several values, commas between them"
        return f"{len(kinds)} values, commas between them"
    names = {
        bool: "on or off",
        int: "a whole number",
        float: "a number",
        str: "a word",
        type(None): "none",
    }
    return names.get(kind, GROUP)
