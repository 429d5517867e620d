"""Pruning of a network while it trains, and removal of whole channels.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.pruning.callback import PruneLowMagnitude

__all__ = ["PruneLowMagnitude"]

_MODULES = {"PruneLowMagnitude": "kitsseg.pruning.callback"}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
