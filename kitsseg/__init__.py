"""Kidney and kidney tumor segmentation in CT with Keras 3: five KiTS19 papers, from NIfTI to scores.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use
from kitsseg.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg import recipes
    from kitsseg.data.cache.build import preprocess_cases
    from kitsseg.data.cache.cases import open_cache
    from kitsseg.data.kits19.manifest import read_manifest
    from kitsseg.data.splits import load_split, make_split
    from kitsseg.export.export import export_run
    from kitsseg.export.writers import ExportOptions
    from kitsseg.inference.cohort import predict_cases
    from kitsseg.inference.options import PredictOptions
    from kitsseg.report.report import write_report
    from kitsseg.scoring.compare import compare_scores
    from kitsseg.scoring.evaluate import evaluate_folders
    from kitsseg.scoring.slices import evaluate_slices
    from kitsseg.training.options import TrainOptions
    from kitsseg.training.train import train_recipe
    from kitsseg.workflows.fine_tune import FromRun
    from kitsseg.workflows.prune import prune_run
    from kitsseg.workflows.shrink import shrink_run

__all__ = [
    "ExportOptions",
    "FromRun",
    "PredictOptions",
    "TrainOptions",
    "__version__",
    "compare_scores",
    "evaluate_folders",
    "evaluate_slices",
    "export_run",
    "load_split",
    "make_split",
    "open_cache",
    "predict_cases",
    "preprocess_cases",
    "prune_run",
    "read_manifest",
    "recipes",
    "shrink_run",
    "train_recipe",
    "write_report",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "ExportOptions": "kitsseg.export.writers",
        "FromRun": "kitsseg.workflows.fine_tune",
        "PredictOptions": "kitsseg.inference.options",
        "TrainOptions": "kitsseg.training.options",
        "compare_scores": "kitsseg.scoring.compare",
        "evaluate_folders": "kitsseg.scoring.evaluate",
        "evaluate_slices": "kitsseg.scoring.slices",
        "export_run": "kitsseg.export.export",
        "load_split": "kitsseg.data.splits",
        "make_split": "kitsseg.data.splits",
        "open_cache": "kitsseg.data.cache.cases",
        "predict_cases": "kitsseg.inference.cohort",
        "preprocess_cases": "kitsseg.data.cache.build",
        "prune_run": "kitsseg.workflows.prune",
        "read_manifest": "kitsseg.data.kits19.manifest",
        "recipes": "kitsseg.recipes",
        "shrink_run": "kitsseg.workflows.shrink",
        "train_recipe": "kitsseg.training.train",
        "write_report": "kitsseg.report.report",
    },
)
