"""Volumes, label maps and batches: reading and writing, finding cases, drawing slices and patches.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.data.formats.nifti import read_image, read_labels, write_image, write_labels
    from kitsseg.data.layouts.find import find_cases
    from kitsseg.data.phantoms.synthesize import render_cases, synthesize_cases
    from kitsseg.data.sampling.batches import Batches, Draws
    from kitsseg.data.sampling.patches import PatchBatches
    from kitsseg.data.sampling.slices import SliceBatches, batch_dataset
    from kitsseg.data.splits import CaseSplit

__all__ = [
    "Batches",
    "CaseSplit",
    "Draws",
    "PatchBatches",
    "SliceBatches",
    "batch_dataset",
    "find_cases",
    "read_image",
    "read_labels",
    "render_cases",
    "synthesize_cases",
    "write_image",
    "write_labels",
]

_MODULES = {
    "Batches": "kitsseg.data.sampling.batches",
    "CaseSplit": "kitsseg.data.splits",
    "Draws": "kitsseg.data.sampling.batches",
    "PatchBatches": "kitsseg.data.sampling.patches",
    "SliceBatches": "kitsseg.data.sampling.slices",
    "batch_dataset": "kitsseg.data.sampling.slices",
    "find_cases": "kitsseg.data.layouts.find",
    "read_image": "kitsseg.data.formats.nifti",
    "read_labels": "kitsseg.data.formats.nifti",
    "render_cases": "kitsseg.data.phantoms.synthesize",
    "synthesize_cases": "kitsseg.data.phantoms.synthesize",
    "write_image": "kitsseg.data.formats.nifti",
    "write_labels": "kitsseg.data.formats.nifti",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
