"""nnU-Net raw datasets: their cases, and the classes that the labels of ``dataset.json`` become."""

import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kitsseg.data.layouts.kits import CYST, Case, Layout
from kitsseg.data.layouts.names import folder_name, nnunet_part
from kitsseg.errors import InputError
from kitsseg.files.json_records import read_object
from kitsseg.files.paths import as_given

__all__ = ["nnunet_cases", "nnunet_root", "values_of_labels"]

_PARTS = ("Tr", "Ts")
_SPELLINGS = {
    "tumour": "tumor",
    "tumors": "tumor",
    "tumours": "tumor",
    "kidneys": "kidney",
    "cysts": "cyst",
    "mass": "masses",
}


def nnunet_root(folder: Path) -> tuple[Path, tuple[str, ...]] | None:
    """(folder of an nnU-Net raw dataset, the parts of it that were given: "Tr", "Ts" or both), or None.

    A link to ``imagesTr`` may have another name, and a folder named ``imagesTr`` may be a link to another place.
    """
    if any((folder / f"{kind}{part}").is_dir() for kind in ("images", "labels") for part in _PARTS):
        return folder, _PARTS
    if part := nnunet_part(folder):
        named = "".join(part) == folder_name(folder)
        return (as_given(folder) if named else folder.resolve()).parent, (part[1],)
    return None


def nnunet_cases(
    folder: Path, parts: tuple[str, ...], layout: Layout, options: tuple[str, ...] = ()
) -> list[Case]:
    """Cases of an nnU-Net raw dataset: ``imagesTr/NAME_0000.nii.gz`` with ``labelsTr/NAME.nii.gz``.

    Args:
        folder: holds ``dataset.json``, of version 1 or 2.
        parts: "Tr", "Ts" or both.
        layout: Layout, of which only ``cyst`` is used.
        options: the options for patterns that the command has, for the messages.

    Raises: InputError for other channels than one CT, labels other than kidney, tumor and cyst, or a name in both
        parts.
    Warns: UserWarning for files of other channels, and where ``numTraining`` tells of another number of cases.
    """
    record = folder / "dataset.json"
    dataset = _read_json(record, options)
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(channels, dict) or [str(name).upper() for name in channels.values()] != ["CT"]:
        raise InputError(f"{record}: expected one channel, CT, found {channels}. kitsseg segments CT alone.")
    ending = dataset.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        raise InputError(
            f"{record}: expected file_ending .nii.gz or .nii, found {ending}. Convert the files first."
        )
    values = values_of_labels(dataset.get("labels"), layout.cyst, record)
    cases: dict[str, Case] = {}
    for part in parts:
        images, labels = folder / f"images{part}", folder / f"labels{part}"
        names = {name.removesuffix(f"_0000{ending}") for name in _names(images, f"_0000{ending}")}
        names |= {name.removesuffix(ending) for name in _names(labels, ending)}
        for name in sorted(names):
            if name in cases:
                raise InputError(
                    f"{images}: expected cases of other names than in {cases[name].scan.parent.name}, "
                    f"found {name} in both folders. Give only one of the two folders."
                )
            cases[name] = Case(name, images / f"{name}_0000{ending}", labels / f"{name}{ending}", values)
        _warn_of_channels(images, ending)
        if part == "Tr" and names:
            _warn_of_number(record, dataset.get("numTraining"), names)
    return list(cases.values())


def _warn_of_channels(images: Path, ending: str) -> None:
    """Warn of images that belong to no case, because their names do not end as those of the one channel do."""
    others = sorted(name for name in _names(images, ending) if not name.endswith(f"_0000{ending}"))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(
            f"{images}: expected names such as NAME_0000{ending}, as dataset.json tells of one channel, found "
            f"{others[0]}{more}, left out. Remove or rename what is left out.",
            stacklevel=3,
        )


def _warn_of_number(record: Path, stated: object, names: Collection[str]) -> None:
    """Warn where dataset.json tells of another number of training cases than the folders hold."""
    if isinstance(stated, int) and stated != len(names):
        warnings.warn(
            f"{record}: expected as many training cases as numTraining says, {stated}, found {len(names)}. Complete "
            "the dataset, or correct numTraining.",
            stacklevel=3,
        )


def _names(folder: Path, ending: str) -> list[str]:
    if not folder.is_dir():
        return []
    return [p.name for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith(".")]


def _read_json(path: Path, options: tuple[str, ...]) -> dict[str, object]:
    try:
        return read_object(path)
    except FileNotFoundError as error:
        where = f", or say where the files are with {' and '.join(options)}" if options else ""
        raise InputError(
            f"{path}: missing; an nnU-Net dataset names its channels and labels there. Add it{where}."
        ) from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: expected the JSON record of an nnU-Net dataset ({error}).") from error


def values_of_labels(labels: Any, cyst: str | None, path: str | os.PathLike[str]) -> tuple[int | None, ...]:
    """The classes that the labels of an nnU-Net dataset become.

    Args:
        labels: of dataset.json: {"kidney": 1} of version 2, {"1": "kidney"} of version 1, or regions as nnU-Net's own
            KiTS23 conversion has them: {"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}.
        cyst: "kidney", "tumor", "background" or None.
        path: of the file, for the messages.

    Returns: tuple; entry k is the class that label k becomes, None if label k is not allowed.
    Raises: InputError that lists the names found.
    """
    meant: dict[int, set[str]] = {}  # label -> names of the regions it lies in
    try:
        for key, value in labels.items():
            name, numbers = (value, key) if str(key).isdecimal() else (key, value)
            name = name.strip().lower()
            for number in numbers if isinstance(numbers, list) else [numbers]:
                meant.setdefault(_whole(number), set()).add(_SPELLINGS.get(name, name))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected labels with their names and numbers, found {labels}.") from error
    values = {number: _value(names, cyst) for number, names in meant.items()}
    wrong = [number for number, value in values.items() if value == "unknown"]
    if (
        wrong
        or values.get(0) != 0
        or not {1, 2} <= set(values.values())
        or max(values) > 255
        or min(values) < 0
    ):
        raise InputError(
            f"{path}: expected the labels background (0), kidney and tumor, and at most cyst; found "
            f"{labels}. Make a dataset with these labels."
        )
    known = {number: value for number, value in values.items() if not isinstance(value, str)}
    return tuple(known.get(number) for number in range(max(known) + 1))


def _whole(number: Any) -> int:
    if isinstance(number, str) and number.isdecimal():
        return int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{number} is no label")
    return number


def _value(names: set[str], cyst: str | None) -> int | str | None:
    """The class of a label that lies in the regions of these names."""
    if names == {"background"}:
        return 0
    if names == {"kidney"}:
        return 1
    if not names <= {"kidney", "masses", "tumor", "cyst"} or {"tumor", "cyst"} <= names:
        return "unknown"
    if "tumor" in names:
        return 2
    # a mass of the kidney that is no tumor is a cyst
    return CYST[cyst] if cyst else None
