"""Volumes, label maps and batches: read and write files, find cases, draw slices and patches.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use

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

__getattr__, __dir__ = on_first_use(
    __name__,
    {
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
    },
)
