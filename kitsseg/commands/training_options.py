"""Options of every command that trains: devices and precision, and the output during training."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.commands.arguments import at_least
from kitsseg.errors import InputError

if TYPE_CHECKING:
    from kitsseg.interfaces import Progress
    from kitsseg.training.options import TrainOptions

__all__ = [
    "add_hardware",
    "add_quick_start",
    "add_watching",
    "options_of",
    "quick_start",
    "say",
    "saying_what_computes",
]

WATCHING = (
    "resume",
    "start_from",
    "validate_cases_every",
    "tensorboard",
)  # not options of every such command


def add_hardware(sub: argparse.ArgumentParser) -> None:
    """Add the options; ``options_of`` reads them."""
    group = sub.add_argument_group("hardware")
    group.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        default="float32",
        help="compute convolutions in half precision: mixed_bfloat16 on GPUs from Ampere on, mixed_float16 on "
        "older ones (T4, V100); weights and losses stay float32 (default: float32)",
    )
    group.add_argument(
        "--accumulate",
        metavar="N",
        type=at_least(1),
        default=1,
        help="compute each batch in N parts if it does not fit into the memory of the GPU (default: 1)",
    )
    group.add_argument(
        "--ema",
        metavar="MOMENTUM",
        type=float,
        help="average the weights over the steps; 0.999 averages about the last thousand steps. The averages are "
        "validated and kept (default: no averages)",
    )
    group.add_argument(
        "--xla",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile the steps with XLA; auto: as Keras does on a GPU, with JAX always, never with TensorFlow on a "
        "CPU, where it is slower (default: auto)",
    )
    group.add_argument(
        "--steps-per-execution",
        metavar="N",
        type=at_least(1),
        default=1,
        help="steps in one call, which a small network on a fast GPU needs; phases that prune or have a one-cycle "
        "schedule go step by step (default: 1)",
    )
    group.add_argument(
        "--loaders",
        metavar="N",
        type=at_least(1),
        default=1,
        help="processes that make batches, for trainings that wait for them: 3D patches of a compressed cache. Plain "
        "caches are read faster by 1. The batches stay the same (default: 1, the training process itself)",
    )
    group.add_argument(
        "--devices",
        metavar="N|all",
        type=_devices,
        help="share each batch among so many GPUs of this machine (default: 1; all of them with --process)",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="for several machines, with KERAS_BACKEND=jax: host of the first process, and a free port of it",
    )
    group.add_argument(
        "--process",
        metavar="I/N",
        type=_process,
        help="number of this process, from 0, and number of all processes; all must see the run folder",
    )


def options_of(arguments: argparse.Namespace) -> "TrainOptions":
    """TrainOptions of a command that trains; call it before anything is computed."""
    from kitsseg.runtime.devices import use_devices
    from kitsseg.training.options import TrainOptions

    a = arguments
    given = {name: getattr(a, name) for name in WATCHING if hasattr(a, name)}
    return TrainOptions(
        seed=a.seed,
        epochs=a.epochs,
        precision=a.precision,
        accumulate=a.accumulate,
        ema=a.ema,
        xla=a.xla,
        steps_per_execution=a.steps_per_execution,
        loaders=a.loaders,
        devices=use_devices(a.devices, a.coordinator, a.process),
        when_finished=quick_start(a),
        **given,
    )


def add_quick_start(sub: argparse.ArgumentParser) -> None:
    """Add the option; ``quick_start`` reads it."""
    sub.add_argument(
        "--no-quick-start",
        action="store_true",
        help="write no network.onnx into the run folder. It is as large as the weights, and with it kitsseg predict "
        "starts without Keras (2D networks only; needs the extra export)",
    )


def quick_start(arguments: argparse.Namespace) -> "Callable[[Path], None] | None":
    """``TrainOptions.when_finished`` of a command with the option of ``add_quick_start``."""
    return None if arguments.no_quick_start else _write_quick_start


def _write_quick_start(run: Path) -> None:
    """Write the file for a quick start into a finished run, and say in one line how that went."""
    from kitsseg.errors import one_line
    from kitsseg.export.export import takes_quick_start, write_quick_start
    from kitsseg.records.networks import finished_run

    if not takes_quick_start(finished_run(run)):
        return
    started = time.monotonic()
    try:
        result = write_quick_start(run)
    except InputError as error:
        say(f"{error} kitsseg predict starts Keras for this run.")
    except Exception as error:  # the run is finished: whatever a converter raises does not undo that
        say(f"warning: {run}: no file for a quick start ({type(error).__name__}: {one_line(error)})")
    else:
        say(
            f"wrote {result.path} in {time.monotonic() - started:.0f} s, {result.n_bytes / 1e6:.1f} MB, labels as of "
            f"the weights on {result.check.images} slices: kitsseg predict starts without Keras"
        )


def _devices(text: str) -> int | str:
    return text if text == "all" else at_least(1)(text)


def _process(text: str) -> tuple[int, int]:
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 0 <= number < count:
        raise argparse.ArgumentTypeError(f"expected I/N with 0 <= I < N, such as 0/2, found {text}")
    return number, count


def add_watching(sub: argparse.ArgumentParser) -> None:
    """Add the options; ``options_of`` reads them."""
    group = sub.add_argument_group("monitoring")
    group.add_argument(
        "--validate-cases-every",
        metavar="K",
        type=at_least(0),
        help="TK and TU Dice of whole validation cases every K epochs, into history.csv and validation_cases.csv; 0: "
        "never (default: the recipe's K, chosen so that they take less than a tenth of the time)",
    )
    group.add_argument(
        "--tensorboard",
        metavar="FOLDER",
        type=Path,
        help="losses, rates, Dice of whole cases and pictures of them for TensorBoard (to look at them: pip install "
        "tensorboard)",
    )


def say(text: str) -> None:
    """Print what ``train_recipe`` says, above its bar; warnings in yellow."""
    from kitsseg.runtime.console import console, warning

    if text.startswith("warning"):
        warning(text)
    else:
        console.print(text, markup=False)


def saying_what_computes(progress: "Progress", options: "TrainOptions") -> "Progress":
    """``progress``, but its first call also prints the devices and the precision, and warns if a GPU is not used."""
    told = False

    def call(description: str, done: float, total: int) -> None:
        nonlocal told
        if not told:
            told = True
            from kitsseg.runtime.hardware import computing_line, unused_gpu_warning

            say(computing_line(options.precision, options.devices.count))
            if text := unused_gpu_warning():
                say(text)
        progress(description, done, total)

    return call
