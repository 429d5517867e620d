"""What the Colab notebooks call beside the library.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.notebook.steps import (
        demo_scores,
        describe_device,
        describe_training,
        folders,
        get_patients,
        train_or_resume,
    )
    from kitsseg.notebook.views import (
        comparison_table,
        receptive_field_chart,
        results_table,
        show_page,
        sparsity_chart,
    )
    from kitsseg.report.recipe_table import show_recipe

__all__ = [
    "comparison_table",
    "demo_scores",
    "describe_device",
    "describe_training",
    "folders",
    "get_patients",
    "receptive_field_chart",
    "results_table",
    "show_page",
    "show_recipe",
    "sparsity_chart",
    "train_or_resume",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "comparison_table": "kitsseg.notebook.views",
        "demo_scores": "kitsseg.notebook.steps",
        "describe_device": "kitsseg.notebook.steps",
        "describe_training": "kitsseg.notebook.steps",
        "folders": "kitsseg.notebook.steps",
        "get_patients": "kitsseg.notebook.steps",
        "receptive_field_chart": "kitsseg.notebook.views",
        "results_table": "kitsseg.notebook.views",
        "show_page": "kitsseg.notebook.views",
        "show_recipe": "kitsseg.report.recipe_table",
        "sparsity_chart": "kitsseg.notebook.views",
        "train_or_resume": "kitsseg.notebook.steps",
    },
)
