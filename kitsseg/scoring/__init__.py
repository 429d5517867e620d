"""Scores of label maps: Dice as KiTS19 counts it, distances between surfaces.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.scoring.dice import score_case
    from kitsseg.scoring.scores_file import read_scores
    from kitsseg.scoring.surface import surface_distances

__all__ = ["read_scores", "score_case", "surface_distances"]

_MODULES = {
    "read_scores": "kitsseg.scoring.scores_file",
    "score_case": "kitsseg.scoring.dice",
    "surface_distances": "kitsseg.scoring.surface",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
