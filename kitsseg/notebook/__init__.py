"""Functions that the Colab notebooks call in addition to the library.

The names below are imported on first use (PEP 562): importing this package alone imports neither NumPy nor Keras.
"""

from kitsseg.lazy_names import on_first_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kitsseg.notebook.own_scan import show_own_scan
    from kitsseg.notebook.steps import (
        Place,
        choose_recipe,
        choose_split,
        demo_scores,
        describe_device,
        describe_training,
        find_scores,
        folders,
        get_patients,
        prepare,
        score_test_patients,
        train,
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
    "Place",
    "choose_recipe",
    "choose_split",
    "comparison_table",
    "demo_scores",
    "describe_device",
    "describe_training",
    "find_scores",
    "folders",
    "get_patients",
    "prepare",
    "receptive_field_chart",
    "results_table",
    "score_test_patients",
    "show_own_scan",
    "show_page",
    "show_recipe",
    "sparsity_chart",
    "train",
    "train_or_resume",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "Place": "kitsseg.notebook.steps",
        "choose_recipe": "kitsseg.notebook.steps",
        "choose_split": "kitsseg.notebook.steps",
        "comparison_table": "kitsseg.notebook.views",
        "demo_scores": "kitsseg.notebook.steps",
        "describe_device": "kitsseg.notebook.steps",
        "describe_training": "kitsseg.notebook.steps",
        "find_scores": "kitsseg.notebook.steps",
        "folders": "kitsseg.notebook.steps",
        "get_patients": "kitsseg.notebook.steps",
        "prepare": "kitsseg.notebook.steps",
        "receptive_field_chart": "kitsseg.notebook.views",
        "results_table": "kitsseg.notebook.views",
        "score_test_patients": "kitsseg.notebook.steps",
        "show_own_scan": "kitsseg.notebook.own_scan",
        "show_page": "kitsseg.notebook.views",
        "show_recipe": "kitsseg.report.recipe_table",
        "sparsity_chart": "kitsseg.notebook.views",
        "train": "kitsseg.notebook.steps",
        "train_or_resume": "kitsseg.notebook.steps",
    },
)
