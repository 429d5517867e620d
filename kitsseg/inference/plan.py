"""Plan a prediction before anything is computed or written."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kitsseg.data.formats.slices import SliceImage
from kitsseg.data.layouts.find import Layout
from kitsseg.data.layouts.scans import Found, Scan
from kitsseg.data.layouts.search import find_scans
from kitsseg.data.layouts.slices import slices_of_inputs
from kitsseg.errors import InputError
from kitsseg.files.paths import as_given, file_id
from kitsseg.inference.engines import ENGINES
from kitsseg.inference.ensemble import Ensemble, cases_of_run_part, computed_as, describe
from kitsseg.inference.fastest import AUTO, as_known, check_options
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.slices import check_2d, names_of_patients, slice_file
from kitsseg.interfaces import Progress
from kitsseg.records.predictions import FailedScan, PredictedScan, Predictions
from kitsseg.records.scan_part import part_of

__all__ = ["Plan", "odd_name", "planned", "share_of"]

T = TypeVar("T")
OF_A_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # errors that concern one scan


@dataclass
class Plan:
    """The scans that were found, and what will be done with them.

    Attributes:
        ensemble: the networks that segment the scans.
        record: of the folder for the label maps.
        scans: name -> Scan, of all scans that are asked for.
        slices: name -> SliceImage, of the single slices among them.
        todo: the scans without a label map, or with one of an older version of the scan.
        refused: name -> reason, of scans whose label map cannot be written.
        badly_named: names of refused scans that no file can have.
        left_out: (path, reason) of each file or folder that holds no scan.
        wrong: (path, reason) of each file or folder that should hold scans but cannot be searched.
        clashing: (name, Scan, reason) of each scan whose label map would have the name of another scan's.
        inputs: the files, folders and archives that were given.
    """

    ensemble: Ensemble
    record: Predictions
    scans: dict[str, Scan]
    slices: dict[str, SliceImage]
    todo: dict[str, Scan] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    badly_named: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    clashing: list[tuple[str, Scan, str]] = field(default_factory=list)
    inputs: list[str | os.PathLike[str]] = field(default_factory=list)

    @property
    def found(self) -> int:
        """Number of scans that were found, those with clashing names included."""
        return len(self.scans) + len(self.clashing)


@contextmanager
def planned(
    open_networks: Callable[[], Ensemble],
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    part: str | None,
    options: PredictOptions,
    *,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> Iterator[Plan]:
    """Make a Plan. Scans from archives can be read only in this context, because they are unpacked for it.

    Args:
        open_networks: returns the Ensemble; called after the inputs were searched.
        inputs, out, part, options, layout, progress: as in ``predict_cohort``.

    Raises: InputError as ``predict_cohort``.
    """
    with ExitStack() as stack:

        def unpacked() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kitsseg-")))

        inputs = list(inputs)
        slices = {slice_file(item): item for item in slices_of_inputs(inputs, layout or Layout()) or ()}
        found = (
            Found({name: Scan(item.image, "single slice") for name, item in slices.items()})
            if slices
            else find_scans(inputs, layout, unpacked)
        )
        if options.engine == AUTO:
            check_options(options.precision, options.scheduler)
        ensemble = open_networks()
        check_2d(ensemble, slices.values())
        scans, clashing = found.scans, [(name, scan, str(why)) for name, scan, why in found.clashes()]
        names = {name: name for name in [*scans, *(name for name, *_ in clashing)]}
        if part is not None:
            wanted = cases_of_run_part(ensemble, part)
            names = _only(names, names_of_patients(slices, wanted) if slices else wanted, part)
        if options.shard is not None:
            names = share_of(names, *options.shard)
        scans = {name: scan for name, scan in scans.items() if name in names}
        clashing = [one for one in clashing if one[0] in names]
        record = Predictions(Path(out), describe(ensemble, part), options.overwrite)
        scans = _as_before(scans, {*found.scans, *(name for name, *_ in clashing)}, record)
        if options.engine in (None, AUTO) and record.header.engine in ENGINES:
            # the folder goes on as it was begun, perhaps on a machine with other engines
            options = replace(options, engine=record.header.engine)
        ensemble = computed_as(ensemble, options)
        if ensemble.engine == AUTO:
            ensemble = as_known(ensemble)
        plan = Plan(
            ensemble,
            record,
            scans,
            slices,
            left_out=found.left_out,
            wrong=found.wrong,
            clashing=clashing,
            inputs=inputs,
        )
        everything = [*found.scans.values(), *(scan for _, scan, _ in found.clashes())]
        inputs_by_id = {found_at: scan for scan in everything if (found_at := file_id(scan.path))}
        _look_for_label_maps(plan, inputs_by_id, progress)
        yield plan


def _as_before(scans: Mapping[str, Scan], names: Collection[str], record: Predictions) -> dict[str, Scan]:
    """The scans, each under the name of its label map in the folder.

    What is found beside a scan may give it another name: ``ct`` becomes ``p1_ct`` when the folder of a second patient
    holds a file of this name. Its label map, if there is one, is still its label map.

    Args:
        scans: by name. names: of all scans that were found.
        record: of the folder.
    """
    before = {
        (os.path.normpath(entry.image), entry.part): name
        for name, entry in record.entries.items()
        if isinstance(entry, PredictedScan) and name not in names and record.label_map(name).is_file()
    }
    return {
        before.get((str(as_given(scan.place)), part_of(scan)), name): scan for name, scan in scans.items()
    }


def _look_for_label_maps(
    plan: Plan, inputs: Mapping[tuple[int, int], Scan], progress: Progress | None
) -> None:
    """Find out what is to be done with each scan. No label map may replace a scan, not even with ``overwrite``."""
    out = file_id(plan.record.out)
    for index, (name, scan) in enumerate(plan.scans.items()):
        if progress:
            progress("look for label maps that are there", index, len(plan.scans))
        target = plan.record.label_map(name)
        try:
            if out and scan.is_dicom and file_id(scan.path) == out:
                plan.refused[name] = (
                    f"{plan.record.out}: its label map would lie among the slices of the series. Choose another folder "
                    "for --out."
                )
            elif (here := file_id(target)) and here in inputs:
                plan.refused[name] = (
                    f"{target}: its label map would replace {_whose(inputs[here], scan)}. Choose another folder "
                    "for --out."
                )
            elif not plan.record.is_whole(name, scan.path, scan.place) or _other_values(
                plan.slices.get(name), plan.record.entries[name]
            ):
                plan.todo[name] = scan
        except InputError as error:
            plan.refused[name] = str(error)
        except OSError as error:
            plan.refused[name] = odd_name(error, plan.record.label_map(name), name)
            plan.badly_named.append(name)


def _whose(replaced: Scan, scan: Scan) -> str:
    return "the scan itself" if replaced == scan else f"another scan, {replaced.place}"


def _other_values(item: SliceImage | None, entry: PredictedScan | FailedScan) -> bool:
    """Whether the label map of a slice was written with other values than those that are asked for now."""
    if item is None:
        return False
    return not isinstance(entry, PredictedScan) or entry.mask_values != tuple(item.mask_values)


def odd_name(error: OSError, target: Path, name: str) -> str:
    """The reason why a label map cannot have the name of its case.

    Args:
        error: of the system.
        target: path of the label map.
        name: of the case.

    Raises: ``error`` if it is not about the name.
    """
    if error.errno not in OF_A_NAME:
        raise error
    return (
        f"{target}: {(error.strerror or str(error)).lower()}. Give the case a name that this file system takes, as "
        f"of fewer letters ({len(name)})."
    )


def _only(scans: Mapping[str, T], wanted: Collection[str], part: str) -> dict[str, T]:
    chosen = {name: scan for name, scan in scans.items() if name in wanted}
    if not chosen:
        raise InputError(
            f"--part {part}: expected some of the {len(wanted)} {part} cases of the run's split, "
            f"found none among {len(scans)} scans. Give the folder the run was trained on."
        )
    return chosen


def share_of(scans: Mapping[str, T], number: int, count: int) -> dict[str, T]:
    """One part of the scans; each scan is in exactly one part.

    Args:
        scans: by name.
        number: of the part, from 0.
        count: number of parts.

    Raises: InputError unless 0 <= number < count.
    """
    if not 0 <= number < count:
        raise InputError(f"--shard {number}/{count}: expected a number from 0 to {count - 1}.")
    names = sorted(scans)[number::count]
    return {name: scans[name] for name in names}
