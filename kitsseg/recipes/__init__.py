"""The papers' values, one module per paper; ``get("NAME")`` goes by the module's name."""

import importlib
import pkgutil

from kitsseg.errors import InputError

__all__ = ["get", "names"]

VARIANTS = {"": "PAPER", "practical": "PRACTICAL", "tiny": "TINY"}


def names():
    """Names of the recipes, sorted. Each has the variants ``NAME`` (as the paper states it), ``NAME:practical``
    (what one would run today) and ``NAME:tiny`` (for the demo and the tests)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name):
    """The recipe ``NAME`` or ``NAME:VARIANT``.

    Raises: InputError for an unknown name or variant, listing those there are.
    """
    stem, _, variant = name.partition(":")
    if stem not in names() or variant not in VARIANTS or name.endswith(":"):
        known = ", ".join(names())
        raise InputError(
            f"recipe {name}: expected one of {known}, each also as NAME:practical or NAME:tiny; found no such recipe."
        )
    return getattr(importlib.import_module(f"kitsseg.recipes.{stem}"), VARIANTS[variant])
