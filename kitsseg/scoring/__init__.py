"""Scores of label maps: Dice as KiTS19 counts it, distances between surfaces.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.scoring.dice import score_case
    from kitsseg.scoring.scores_file import read_scores
    from kitsseg.scoring.surface import surface_distances

__all__ = ["read_scores", "score_case", "surface_distances"]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "read_scores": "kitsseg.scoring.scores_file",
        "score_case": "kitsseg.scoring.dice",
        "surface_distances": "kitsseg.scoring.surface",
    },
)
