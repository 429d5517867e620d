"""What became of a cohort, and the sentences that say so."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kitsseg.errors import InputError, some_of
from kitsseg.inference.fastest import AUTO, choices_of
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.plan import Plan
from kitsseg.inference.slices import narrow_windows
from kitsseg.records.precision import kept_check
from kitsseg.records.predictions import PredictedScan, PredictionsRecord
from kitsseg.records.starter import STARTER, network_path

__all__ = ["NAMED", "Outcome", "check_all_done", "failures", "outcome_of"]

NAMED = 3  # scans in a message, with a sentence each; all are in predictions.json
MOST_NAMES = 20  # scans in a message that gives only their names


@dataclass(frozen=True)
class Outcome:
    """The result for a cohort.

    Attributes:
        written: label maps of all scans that have one now, in order.
        kept: number of these label maps that existed before.
        failed: case name -> reason, in order.
        engine: what computed the networks; None where no label map was ever made.
        renewed: names of scans that have changed since their label maps were made, which were made anew.
        record: what ``predictions.json`` says of the folder now, with absolute paths.
        warnings: sentences for the user; one for each scan that is doubtful, with its name.
        notes: sentences for the user about networks and scans that do not fit together, but may be meant, and about
            scans of which the networks saw the whole, or more than the coarse pass had found.
        agreement: sentences about the agreement of the networks' lower precision with float32.
        choices: sentences about the engines that were chosen for the networks.
    """

    written: list[Path]
    kept: int
    failed: dict[str, str]
    record: PredictionsRecord
    engine: str | None = None
    renewed: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    agreement: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def made(self) -> int:
        """How many label maps this call has written."""
        return len(self.written) - self.kept


def check_all_done(outcome: Outcome, out: str | os.PathLike[str]) -> None:
    """Warn of scans that are doubtful, and raise InputError if any failed."""
    for text in outcome.warnings:
        warnings.warn(text, stacklevel=3)
    if outcome.failed:
        raise InputError(failures(outcome, out))


def failures(outcome: Outcome, out: str | os.PathLike[str], *, reasons: bool = True) -> str:
    """One sentence about the scans that failed.

    Args:
        outcome: Outcome.
        out: the folder of the label maps.
        reasons: give the reasons of the first scans too; False: only their names, where the reasons are told already.
    """
    total = len(outcome.written) + len(outcome.failed)
    if total == 1:
        return next(iter(outcome.failed.values()))
    told = [
        reason if reason.startswith(name) else f"{name} ({reason})"
        for name, reason in ((name, reason.removesuffix(".")) for name, reason in outcome.failed.items())
    ]
    named = some_of(told, NAMED, "; ") if reasons else some_of(list(outcome.failed), MOST_NAMES)
    others = ", the others are done" if outcome.written else ""
    # a scan that was never begun has no entry
    listed = sum(name in outcome.record.failed for name in outcome.failed)
    which = "them" if listed == len(outcome.failed) else f"{listed} of them"
    where = f"{Path(out) / 'predictions.json'} lists {which}; the" if listed else "The"
    return f"{len(outcome.failed)} of {total} scans failed{others}: {named}. {where} same command tries them again."


def outcome_of(
    plan: Plan, options: PredictOptions, failed: Mapping[str, str], renewed: list[str], made: int
) -> Outcome:
    """What became of the scans of a plan, now that its record is closed.

    Args:
        plan: that was carried out.
        options: the same as for the plan.
        failed: case name -> reason, of the scans that were tried.
        renewed: as in ``Outcome``.
        made: how many of the label maps that are there now were written by this call.
    """
    record, scans = plan.record, plan.scans
    whole = [name for name in scans if name not in failed]
    written = [record.label_map(name) for name in whole]
    done = {name: one for name in whole if isinstance(one := record.entries.get(name), PredictedScan)}
    warned = (
        *narrow_windows(plan.ensemble, [item for name, item in plan.slices.items() if name in scans]),
        *(f"{name}: {' '.join(entry.doubts)}" for name, entry in done.items() if entry.doubts),
    )
    reasons = {name: failed[name] for name in scans if name in failed}
    reasons |= {what: f"{what}: {why}" for what, why in plan.wrong}
    reasons |= {str(scan.place): why for _, scan, why in plan.clashing}
    return Outcome(
        written=written,
        kept=len(written) - made,
        failed=reasons,
        record=record.content(),
        engine=record.header.engine,
        renewed=renewed,
        warnings=warned,
        notes=(*_seen_more(done), *_phantoms_only(plan, done), *_unlike(done)),
        agreement=tuple(_agreement(plan, record.header.engine, done)),
        choices=tuple(choices_of(plan.ensemble)) if options.engine == AUTO else (),
    )


def _phantoms_only(plan: Plan, done: Mapping[str, PredictedScan]) -> Iterator[str]:
    """A sentence about each network that has seen synthetic patients only, if a scan is of a real one."""
    real = [name for name, entry in done.items() if not entry.phantom]
    for run, network in zip(plan.ensemble.runs, plan.ensemble.networks, strict=True):
        # of the network in the package something better is said
        if network.record.phantom and real and Path(run) != network_path(STARTER).resolve():
            which = (
                f"{real[0]}, which is"
                if len(real) == 1
                else f"{len(real)} scans, such as {real[0]}, which are"
            )
            yield (
                f"{run}: a network that has seen synthetic patients; its labels of {which} not synthetic, show that "
                f"the road works, and nothing about the patient{'s' * (len(real) > 1)}"
            )


def _unlike(done: Mapping[str, PredictedScan]) -> Iterator[str]:
    """A sentence about each scan that is unlike those of KiTS19."""
    for name, entry in done.items():
        if remark := entry.unlike_remark:
            yield f"{name}: {remark}"


def _seen_more(done: Mapping[str, PredictedScan]) -> Iterator[str]:
    """A sentence about the scans whose coarse pass found no region, and one about those whose region was too small."""
    passes = {name: entry.coarse for name, entry in done.items() if entry.coarse is not None}
    for words, reasons in (
        ("the networks saw the whole scan, not a region of it", {n: one.whole for n, one in passes.items()}),
        (
            "the networks saw more of the scan than the coarse pass had found",
            {n: one.widened for n, one in passes.items()},
        ),
    ):
        if told := [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]:
            yield f"{words}: {some_of(told, NAMED, '; ')}"


def _agreement(plan: Plan, engine: str | None, done: Mapping[str, PredictedScan]) -> Iterator[str]:
    """A sentence about each run that was computed in a lower precision."""
    precision = plan.ensemble.precision
    if precision == "float32" or engine is None:
        return
    made = [check for entry in done.values() for check in entry.precision or ()]
    for run, sha256 in zip(plan.ensemble.runs, plan.ensemble.sha256, strict=True):
        own = [check for check in made if check.weights_sha256 == sha256]
        check = own[-1] if own else kept_check(run, precision, sha256, engine)
        yield f"{run}: {check or f'{precision} is not compared with float32 yet: neither finds anything to compare'}"
