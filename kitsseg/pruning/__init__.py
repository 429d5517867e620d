"""Pruning of a network while it trains, and removal of whole channels.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.pruning.callback import PruneLowMagnitude

__all__ = ["PruneLowMagnitude"]

__getattr__, __dir__ = on_first_use(
    __name__,
    {"PruneLowMagnitude": "kitsseg.pruning.callback"},
)
