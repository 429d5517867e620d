"""Export the network of a finished run to one file that other software can run: LiteRT, ONNX or SavedModel.

Only the network is exported, for one image of a fixed size, with batch normalizations folded and weights as constants.
The settings of preprocessing, inference and post-processing are stored in the file as metadata (see
:mod:`kitsseg.records.exported`). Every file is compared with the network it came from before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.cases import open_cache
from kitsseg.data.cache.windows import cached_images
from kitsseg.errors import InputError
from kitsseg.export.check import LEAST_DICE, Agreement, check, check_loads, compare
from kitsseg.export.writers import ExportOptions, write_network
from kitsseg.files.atomic import atomic_folder, atomic_path
from kitsseg.inference.engines import open_network
from kitsseg.inference.outputs import class_probabilities
from kitsseg.models.loading import read_network
from kitsseg.records.exported import SUFFIXES, ExportedInput, ExportedOutput, ExportedSplit, ExportMetadata
from kitsseg.records.networks import finished_run, read_exported
from kitsseg.version import __version__

if TYPE_CHECKING:
    from kitsseg.inference.engines import Network
    from kitsseg.recipe import InferenceSpec, PreprocessSpec

__all__ = ["ExportResult", "export_run"]

WRITER_PACKAGES = {
    "litert": ("ai_edge_litert",),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "saved_model": (),
}
CHECKED, CHECKED_3D, CALIBRATED = 32, 2, 64  # images
NOTICE = (
    "Research software, not a medical device: no clinical use. The license of the program is Apache-2.0; whether "
    "these weights may be passed on also depends on the data they were trained on."
)


@dataclass(frozen=True)
class ExportResult:
    """The file that was written, and its comparison with the run's network (``check``).

    Both are compared on cached slices of validation and test cases, or of training cases if the cache has no others."""

    path: Path
    format: str
    precision: str
    input_shape: tuple[int, ...]
    n_bytes: int
    check: Agreement


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    progress: Callable[[str, int, int], object] | None = None,
) -> ExportResult:
    """Export the network of a run.

    Args:
        run: folder of a finished run.
        out: file that ends in ``.tflite`` or ``.onnx``, or, for a SavedModel, new folder.
        options: ExportOptions; float32 logits in the format of the name by default.
        progress: called as progress(description, done, total).

    Returns: ExportResult.
    Raises: InputError for an unfinished run, a missing package, options that do not go together, or a file whose labels
        differ too much from the network's (``kitsseg.export.check``). No file is kept then.
    """
    out, options = Path(out), options or ExportOptions()
    precision, softmax, cache = options.precision, options.softmax, options.cache
    format = _format(out, options.format, precision, options.sparse)
    run_network = finished_run(run)
    record, spec, inference = run_network.record, run_network.preprocess, run_network.inference
    if _axes(inference) == 3 and format == "litert":
        raise InputError(
            f"--format litert: {record.recipe} is a 3D network, and LiteRT has no 3D operations of its own. "
            "Export it as onnx or saved_model."
        )
    if softmax and inference.output != "softmax":
        raise InputError(
            f"--softmax: the network of {run} has sigmoid outputs ({inference.output}), for which softmax is wrong. "
            "Leave --softmax out: kitsseg predict knows what the channels of the file mean."
        )
    trained = record.settings["phases"][0]["sampler"]["patch_size"]
    shape, inference = _input_shape(spec, inference, options.size, trained)
    cases = open_cache(cache or record.cache or "", spec)
    parts = record.split.cases
    train = [cases[name] for name in parts.train if name in cases]
    unseen = [cases[name] for name in (*parts.validation, *parts.test) if name in cases]
    if not (unseen or train):
        raise InputError(
            f"{cache or record.cache}: expected cases of the run's split, found none. Give --cache."
        )
    steps = ["load the network", "convert", "check"]

    def step(number: int) -> None:
        if progress:
            progress(steps[number], number, len(steps))

    step(0)
    network = _last_output(read_network(run_network.source, shape=shape, output=inference.output))
    step(1)
    calibration = list(cached_images(train, shape, spec, CALIBRATED)) if precision == "int8" else None
    if precision == "int8" and not calibration:
        raise InputError(
            "--precision int8: expected training cases in the cache to calibrate on, found none."
        )
    names = ("recipe", "paper", "reported", "reported_unrefined", "given", "phantom", "versions")
    settings = {key: record.settings[key] for key in ("preprocess", "postprocess", "model")}
    metadata = ExportMetadata(
        kitsseg=__version__,
        notice=NOTICE,
        **{key: getattr(record, key) for key in names},
        split=ExportedSplit(name=record.split.name, hash=record.split.hash),
        settings=settings | {"inference": asdict(inference)},
        labels={"0": "background", "1": "kidney", "2": "tumor"},
        input=ExportedInput(shape=(1, *shape)),
        output=ExportedOutput(softmax=softmax, content="probabilities" if softmax else "logits"),
        precision=precision,
    )
    whole = atomic_folder if format == "saved_model" else atomic_path
    if format == "saved_model" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected a new or empty folder, found one in use. Choose another.")
    with whole(out) as temporary:
        write_network(network, temporary, shape, metadata, replace(options, format=format), calibration)
        step(2)
        count = CHECKED_3D if _axes(inference) == 3 else CHECKED
        images = cached_images(unseen or train, shape, spec, count)
        try:
            if precision == "int8":
                check_loads(temporary)
            comparison = compare(
                _outputs(
                    network,
                    open_network(read_exported(temporary).source, output=inference.output),
                    images,
                    softmax,
                    inference.output,
                )
            )
            check(comparison, precision)
        except InputError as error:
            raise InputError(f"{out}: not kept: {error}") from error
        n_bytes = sum(path.stat().st_size for path in (temporary, *temporary.rglob("*")) if path.is_file())
    return ExportResult(out, format, precision, (1, *shape), n_bytes, comparison)


def _outputs(
    network: keras.Model,
    exported: Network,
    images: Iterable[npt.NDArray[np.float32]],
    softmax: bool,
    output: str,
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Yield (output of the network, output of the exported one) for each image; sigmoid outputs as class scores."""
    for image in images:
        expected = network.predict_on_batch(image)
        if output != "softmax":
            yield class_probabilities(expected, output), class_probabilities(exported.scores(image), output)
            continue
        yield np.asarray(keras.ops.softmax(expected)) if softmax else expected, exported.scores(image)


def _last_output(network: keras.Model) -> keras.Model:
    """With deep supervision the last output is the full-size one."""
    return keras.Model(network.input, network.outputs[-1], name=network.name)


def _format(out: Path, format: str | None, precision: str, sparse: bool) -> str:
    """The format of the file, after all checks of the options that need no run."""
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    format = format or by_suffix.get(out.suffix)
    if format not in SUFFIXES or out.suffix != SUFFIXES[format]:
        raise InputError(
            f"{out}: expected a name that ends in .tflite (litert) or .onnx, or a folder without a suffix "
            f"(saved_model); found it with --format {format}."
        )
    if precision not in LEAST_DICE:
        raise InputError(f"--precision {precision}: expected one of {', '.join(LEAST_DICE)}.")
    if format != "litert" and (precision != "float32" or sparse):
        raise InputError(
            f"--format {format}: --precision {precision}{' and --sparse' if sparse else ''}: only litert files "
            "have float16, int8 and sparse weights. Leave it out, or export a .tflite file."
        )
    missing = [name for name in WRITER_PACKAGES[format] if find_spec(name) is None]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise InputError(f"--format {format}: needs {', '.join(missing)}. Install with: pip install {names}")
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"export: needs the TensorFlow backend, found {keras.config.backend()}. Unset KERAS_BACKEND."
        )
    return format


def _axes(inference: InferenceSpec) -> int:
    """Axes of an image: 3 for a network that sees tiles of volumes."""
    return 3 if inference.margin is not None or len(inference.tile or ()) == 3 else 2


def _input_shape(
    spec: PreprocessSpec, inference: InferenceSpec, size: Sequence[int] | None, trained: Sequence[int]
) -> tuple[tuple[int, ...], InferenceSpec]:
    """((rows, columns, channels), how the fixed size is used); slices in front for a 3D network."""
    n = _axes(inference)
    if size is not None:
        if len(size) != n or any(length < 1 for length in size):
            raise InputError(
                f"--size {size}: expected {n} sizes of at least 1: {'slices, ' * (n - 2)}rows, columns."
            )
        if any(length % inference.multiple for length in size):
            raise InputError(
                f"--size {size}: expected multiples of {inference.multiple}, the network's stride."
            )
        tile, inference = tuple(size), replace(inference, tile=tuple(size))
    elif inference.tile is not None:
        tile = inference.tile
    elif spec.slice_size is not None:
        tile = tuple(length + -length % inference.multiple for length in spec.slice_size)
    else:
        raise InputError(
            "export: this recipe takes whole slices, whose size differs from scan to scan, and the file needs one. "
            f"Give --size ROWS,COLUMNS, such as the --size {','.join(map(str, trained))} it was trained on: larger "
            "slices are then predicted in overlapping windows of it."
        )
    if inference.margin is not None and min(tile) <= 2 * inference.margin:
        raise InputError(f"--size {tile}: expected sizes above two margins of {inference.margin} voxels.")
    return (*tile, spec.channels), inference
