"""The papers' values, one module per paper; ``get("NAME")`` goes by the module's name."""

import importlib
import pkgutil

from kitsseg.errors import InputError
from kitsseg.recipe import Recipe, Variant, vary

__all__ = ["get", "names", "variants"]

EDITIONS = {"": "PAPER", "practical": "PRACTICAL", "tiny": "TINY"}


def names() -> list[str]:
    """Names of the recipes, sorted. Each has the editions ``NAME`` (as the paper states it), ``NAME:practical``
    (what one would run today) and ``NAME:tiny`` (for the demo and the tests), and its ``variants``."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def variants(name: str) -> tuple[Variant, ...]:
    """The further rows of a paper's tables, each ``get("NAME:VARIANT")``.

    Args:
        name: one of ``names()``.
    """
    return importlib.import_module(f"kitsseg.recipes.{name}").VARIANTS


def get(name: str) -> Recipe:
    """The recipe ``NAME``, ``NAME:practical``, ``NAME:tiny`` or ``NAME:VARIANT``.

    Raises: InputError for an unknown name or variant, listing those there are.
    """
    stem, _, edition = name.partition(":")
    if stem not in names():
        raise InputError(
            f"recipe {name}: expected one of {', '.join(names())}, each also as NAME:practical or NAME:tiny; found "
            "no such recipe. kitsseg recipes lists the variants, too."
        )
    module = importlib.import_module(f"kitsseg.recipes.{stem}")
    if edition in EDITIONS and not name.endswith(":"):
        return getattr(module, EDITIONS[edition])
    known = {variant.name: variant for variant in module.VARIANTS}
    if edition not in known:
        expected = [stem] + [f"{stem}:{each}" for each in ("practical", "tiny", *known)]
        raise InputError(f"recipe {name}: expected one of {', '.join(expected)}; found no such recipe.")
    return vary(module.PAPER, known[edition])
