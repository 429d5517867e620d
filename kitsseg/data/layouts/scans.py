"""Which scans a prediction is asked for, and what each is called."""

from pathlib import Path

from kitsseg.data.layouts.find import IMAGE_NAMES, find_cases
from kitsseg.errors import InputError

__all__ = ["find_scans"]


def find_scans(inputs, layout=None):
    """Scans by case name.

    Args:
        inputs: files, case folders, folders of cases, DICOM series.
        layout: Layout of the folders among them.

    Raises: InputError for a name that comes up twice; FileNotFoundError.
    """
    scans = {}
    for item in map(Path, inputs):
        if item.is_dir():
            found = [(case.name, case.image) for case in find_cases(item, need_labels=False, layout=layout)]
        elif item.exists():
            name = item.resolve().parent.name if item.name in IMAGE_NAMES else item.name
            found = [(name.removesuffix(".gz").removesuffix(".nii"), item)]
        else:
            raise InputError(
                f"{item}: expected a scan or a folder of cases, found nothing there. Check the path."
            )
        for name, path in found:
            if name in scans:
                raise InputError(
                    f"{path}: a second scan called {name} beside {scans[name]}. Rename one of them."
                )
            scans[name] = path
    return scans
