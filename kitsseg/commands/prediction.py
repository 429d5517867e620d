"""Commands that use networks: kitsseg predict, export."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.commands.arguments import AddCommand, add_layout, layout_of, part, volume_mm3
from kitsseg.errors import InputError, command_line, some_of

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Layout
    from kitsseg.export.writers import ExportOptions
    from kitsseg.inference.options import PredictOptions
    from kitsseg.inference.outcome import Outcome
    from kitsseg.inference.plan import Plan

__all__ = ["add", "export", "predict"]

ENGINE_NAMES = ("keras", "tensorflow", "litert", "onnxruntime", "openvino")


EXAMPLES = """examples:
  kitsseg predict RUN DATA --out PREDICTIONS --part test
  kitsseg predict FOLD0 DATA --out PREDICTIONS --also FOLD1 FOLD2 FOLD3 FOLD4
  kitsseg predict RUN EXPORT.zip FOLDER --out PREDICTIONS --dry-run
  kitsseg predict RUN DATA --out PREDICTIONS --shard $SLURM_ARRAY_TASK_ID/20   # --array=0-19
  kitsseg predict RUN STUDY --out PREDICTIONS --dicom-seg --statistics --remove-small 500
  kitsseg predict RUN DATA --out PREDICTIONS --scheduler tcp://host:8786

Everything in a folder is looked through. A table says first what was found and what will be done; --dry-run stops
there. What is left out is named, with the reason. If every CT series has a folder of its own, at most one level below
the given folder, the folders name the scans; otherwise all series are called PATIENT_NUMBER_DESCRIPTION.
A NIfTI file or a folder gives its name as it is, blanks and all; names from DICOM headers, and the name of an archive,
are cleaned to letters, digits, - and _. Scans whose label maps would have one name, such as ct.nii beside ct.nii.gz,
are refused with a line each, and all others are segmented.

Scans whose label map is there already, whole and made by the same networks, are left out: after an interruption or a
failure the same command does the rest. predictions.json lists what was done and what failed."""


def add(command: AddCommand) -> None:
    sub = command(
        "predict",
        _predict,
        "segment scans with a trained run or an exported network",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument(
        "run",
        type=Path,
        help="folder of a finished run, a .tflite or .onnx file or SavedModel of kitsseg export, or starter: the "
        "network in the package, trained on synthetic patients only",
    )
    sub.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="NIfTI files; .zip archives; folders of any kind, with all that lies in them: NIfTI files, DICOM series, "
        "KiTS cases, nnU-Net datasets",
    )
    sub.add_argument("--out", required=True, type=Path, help="folder for the label maps")
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="segment scans again that have a label map, and replace files with the names of label maps; "
        "predictions of other networks or settings still need a folder of their own",
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="list the scans and what would be done with each, then stop"
    )
    sub.add_argument(
        "--part", choices=["train", "validation", "test"], help="segment only this part of the run's split"
    )
    sub.add_argument(
        "--whole-slices",
        action="store_true",
        help="compute whole slices instead of overlapping tiles: about three times faster",
    )
    sub.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, help="override the recipe's mirroring"
    )
    sub.add_argument(
        "--coarse",
        choices=["on", "off"],
        help="on: the network sees only the region in which the package's starter network finds kidneys, and 20 mm "
        "around it; off: the whole scan (default: as the recipe says)",
    )
    sub.add_argument(
        "--postprocess",
        choices=["on", "off"],
        help="off: the labels before the recipe's post-processing (default: as the recipe says)",
    )
    sub.add_argument(
        "--remove-small",
        type=volume_mm3,
        default=0.0,
        metavar="MM3",
        help="remove pieces, of kidney and tumor together, that are smaller than this",
    )
    sub.add_argument(
        "--tumors-on-kidneys",
        action="store_true",
        help="remove tumors that touch no kidney (default: they stay)",
    )
    sub.add_argument(
        "--statistics",
        action="store_true",
        help="write statistics.csv and statistics.json: ml of the left and the right kidney and of each tumor, for all "
        "label maps of the folder",
    )
    sub.add_argument(
        "--dicom-seg",
        action="store_true",
        help="write a DICOM Segmentation object (.dcm) of each DICOM series too; needs the extra dicom",
    )
    sub.add_argument(
        "--engine",
        choices=(*ENGINE_NAMES, "auto"),
        help="engine that computes the network; auto: the fastest one on this machine with the labels of the default, "
        "measured with the first scan and kept beside the network (default: for a run that holds network.onnx, on a "
        "machine without a "
        "GPU, onnxruntime; for other runs tensorflow, on the JAX backend keras; for a .tflite file litert; for an "
        ".onnx file onnxruntime)",
    )
    sub.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="bfloat16: compute the networks of runs in it, by TensorFlow or Keras, or by --engine openvino; worth it "
        "on hardware that multiplies in it. Once for a run its labels are compared with those of float32, and refused "
        "below a Dice of 0.995 between both",
    )
    sub.add_argument(
        "--also",
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="more runs, of the same or other recipes: the mean of all probabilities counts; post-processing is that "
        "of the first",
    )
    sub.add_argument(
        "--shard", type=part, metavar="I/N", help="only part I of N of the scans, I from 0, for job arrays"
    )
    sub.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="a Dask scheduler, such as tcp://host:8786, whose workers segment the scans",
    )
    add_layout(sub, labels=False)

    sub = command("export", _export, "write the network of a run as one file that other software can run")
    sub.add_argument("run", type=Path, help="folder of a finished run")
    sub.add_argument(
        "--out",
        type=Path,
        help="a .tflite or .onnx file, or a new folder for a SavedModel (default: network.onnx in RUN, as training "
        "writes it, with which kitsseg predict RUN starts without Keras)",
    )
    sub.add_argument(
        "--format", choices=["litert", "onnx", "saved_model"], help="default: by the name of --out"
    )
    sub.add_argument(
        "--precision",
        choices=["float32", "float16", "int8-weights", "int8"],
        default="float32",
        help="litert only: weights of half the size (float16) or a quarter (int8-weights), or everything in 8 bits "
        "(int8: two to three times as fast, further from the network)",
    )
    sub.add_argument("--softmax", action="store_true", help="give probabilities instead of logits")
    sub.add_argument(
        "--size",
        type=_sizes,
        help="rows,columns (3D: slices,rows,columns); default: the recipe's slice or tile",
    )
    sub.add_argument(
        "--cache", type=Path, help="cached cases to calibrate and check on; default: the run's own cache"
    )
    sub.add_argument(
        "--sparse", action="store_true", help="litert only: leave zero weights of a pruned run out"
    )


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected sizes such as 256,256, found {text}") from None


def _predict(arguments: argparse.Namespace) -> None:
    from kitsseg.inference.options import PredictOptions

    a = arguments
    options = PredictOptions(
        whole_slices=a.whole_slices,
        mirror=a.mirror,
        refine_labels=None if a.postprocess is None else a.postprocess == "on",
        coarse=None if a.coarse is None else a.coarse == "on",
        engine=a.engine,
        precision=a.precision,
        also=a.also,
        shard=a.shard,
        scheduler=a.scheduler,
        remove_small_mm3=a.remove_small,
        tumors_on_kidneys=a.tumors_on_kidneys,
        statistics=a.statistics,
        dicom_seg=a.dicom_seg,
        overwrite=a.overwrite,
    )
    predict(a.run, a.inputs, a.out, a.part, options, layout_of(a), dry_run=a.dry_run)


def predict(
    run: Path,
    inputs: Iterable[str | os.PathLike[str]],
    out: Path,
    part: str | None,
    options: PredictOptions | None = None,
    layout: Layout | None = None,
    *,
    dry_run: bool = False,
) -> None:
    from kitsseg import recipes
    from kitsseg.commands.plan_table import show_plan
    from kitsseg.inference.cohort import carry_out, plan_cohort
    from kitsseg.inference.ensemble import needs_keras
    from kitsseg.inference.outcome import NAMED, failures
    from kitsseg.inference.products import write_color_tables
    from kitsseg.records.starter import STARTER, STARTER_NOTE, network_path
    from kitsseg.runtime.console import console, done, progress_bar, warning
    from kitsseg.runtime.hardware import unused_gpu_warning
    from kitsseg.runtime.start_keras import start_keras

    for name in map(str, [run, *(options.also if options else ())]):
        if name.partition(":")[0] in recipes.names() and not Path(name).exists():
            raise InputError(
                f"{name}: expected the folder of a run, found the name of a recipe, which has no trained network. "
                f"Train one with kitsseg train {name} CACHE RUN, or give {STARTER}."
            )
    if any(network_path(name) == network_path(STARTER) for name in [run, *(options.also if options else ())]):
        console.print(STARTER_NOTE, markup=False)
    with ExitStack() as stack:
        with progress_bar() as progress:
            plan = stack.enter_context(
                plan_cohort(run, inputs, out, part, options, layout=layout, progress=progress)
            )
        if dry_run or sum(map(len, (plan.scans, plan.wrong, plan.clashing, plan.left_out))) > 1:
            failing = show_plan(plan, str(out), all_rows=dry_run)
            if dry_run and (failing or plan.wrong):
                _refuse(plan, failing)
        if dry_run:
            return
        if plan.todo and not (options and options.scheduler) and needs_keras(plan.ensemble):
            start_keras()
        if plan.todo and "keras" in sys.modules and (text := unused_gpu_warning()):
            warning(text)
        with progress_bar("scans") as progress:
            outcome = carry_out(plan, options, progress=progress)
    if outcome.written and not plan.slices:
        write_color_tables(out)
    for text in (*outcome.agreement, *outcome.choices):
        console.print(text, markup=False)
    for texts in (outcome.warnings, outcome.notes):
        _warn_of(texts)
    if outcome.renewed:
        what = "a scan has changed since its label map was made, and was"
        if len(outcome.renewed) > 1:
            what = f"{len(outcome.renewed)} scans have changed since their label maps were made, and were"
        warning(f"warning: {what} predicted anew: {some_of(outcome.renewed, NAMED)}")
    if outcome.failed:
        # a few are told in the error itself; of many, each has a line of its own, and the error gives names alone
        many = len(outcome.failed) > NAMED
        for name, reason in outcome.failed.items() if many else ():
            console.print(reason if reason.startswith(name) else f"{name}: {reason}", markup=False)
        raise InputError(failures(outcome, out, reasons=not many))
    if not outcome.written:
        done("nothing to do: this shard has no scans")
        return
    beside = ["colors for 3D Slicer and ITK-SNAP"] if outcome.made and not plan.slices else []
    beside += ["statistics.csv and statistics.json"] if options and options.statistics else []
    segs = sum(plan.scans[name].is_dicom for name in plan.scans)
    beside += [f"{segs} DICOM SEG"] if options and options.dicom_seg else []
    if options and options.dicom_seg and segs < len(plan.scans):
        others = len(plan.scans) - segs
        text = "1 scan that is" if others == 1 else f"{others} scans that are"
        console.print(f"no DICOM SEG of {text} no DICOM series", markup=False)
    also = ", beside them " if outcome.made else "; wrote "
    done(
        f"{_what_was_done(outcome, out)}{also if beside else ''}{', '.join(beside)}",
        # a report shows whole scans
        None if plan.slices else command_line("report", out, "--out", "report.html"),
        with_truth=command_line("evaluate", out, "TRUTH", "--out", "scores.csv"),
    )


def _refuse(plan: Plan, failing: int) -> None:
    """End a dry run in which ``failing`` of the scans would fail, or in which something cannot be looked at."""
    found, wrong = plan.found, len(plan.wrong)
    would = [f"{failing} of {found} scan{'s' * (found != 1)} would fail"] if failing else []
    unseen = "1 file or folder" if wrong == 1 else f"{wrong} files or folders"
    would_fail = " and ".join([*would, *([f"{unseen} cannot be looked at"] if wrong else [])])
    if len(plan.todo) + len(plan.refused) + len(plan.clashing) > failing:  # the others wait for nothing
        raise InputError(
            f"{would_fail}; the lines above say why. Without --dry-run the others are predicted."
        )
    raise InputError(f"{would_fail}; the lines above say why.")


def _what_was_done(outcome: Outcome, out: Path) -> str:
    made, kept = outcome.made, outcome.kept
    if not made:
        there = "1 label map is" if kept == 1 else f"{kept} label maps are"
        return f"{there} there already in {out}, nothing was computed"
    there = f" ({kept} there already)" if kept else ""
    return f"wrote {made} label map{'s' * (made != 1)} to {out}{there}, computed by {outcome.engine}"


def _warn_of(texts: Sequence[str]) -> None:
    """Print the first of some warnings, one for a scan, and the number of the others."""
    from kitsseg.inference.outcome import NAMED
    from kitsseg.runtime.console import warning

    # a single other one is told, not counted
    shown = texts if len(texts) <= NAMED + 1 else texts[:NAMED]
    for text in shown:
        warning(f"warning: {text}")
    if len(texts) > len(shown):
        warning(
            f"warning: and {len(texts) - len(shown)} more of this kind; predictions.json and kitsseg report show them"
        )


def _export(arguments: argparse.Namespace) -> None:
    from kitsseg.runtime.start_keras import start_keras

    a = arguments
    if a.out is None and (a.format or a.precision != "float32" or a.softmax or a.size or a.sparse):
        raise InputError(
            "export: the file in the run folder is of one kind. Leave --format, --precision, --softmax, --size and "
            "--sparse out, or give --out."
        )
    start_keras()
    from kitsseg.export.writers import ExportOptions

    options = ExportOptions(
        format=a.format,
        precision=a.precision,
        softmax=a.softmax,
        size=a.size,
        cache=a.cache,
        sparse=a.sparse,
    )
    export(a.run, a.out, options)


def export(run: Path, out: Path | None, options: ExportOptions) -> None:
    from kitsseg.export.export import export_run, write_quick_start
    from kitsseg.runtime.console import console, done, progress_bar

    with progress_bar() as progress:
        if out is None:
            progress("convert and check", 0, 1)
            result = write_quick_start(run, options.cache)
        else:
            result = export_run(run, out, options, progress=progress)
    check = result.check
    tumor = "neither finds tumor" if check.tu_dice is None else f"{check.tu_dice:.4f} of tumor"
    console.print(
        f"checked on {check.images} cached images against the run: Dice between both's labels {check.tk_dice:.4f} of "
        f"kidney with tumor, {tumor}; largest difference {check.largest_difference:.2g} "
        f"({'probabilities' if options.softmax else 'logits'}), labels equal on {check.agreement:.4%} of all voxels"
    )
    size = " x ".join("any" if n is None else str(n) for n in result.input_shape)
    done(
        f"wrote {result.path}: {result.format}, {options.precision}, input {size}, {result.n_bytes / 1e6:.2f} MB",
        command_line("predict", out or run, "SCAN", "--out", "PREDICTIONS"),
    )
