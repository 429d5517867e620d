"""Export the network of a finished run to one file that other software can run: LiteRT, ONNX or SavedModel.

Only the network is exported, for one image of a fixed size, with batch normalizations folded and weights as constants.
The settings of preprocessing, inference and post-processing are stored in the file as metadata (see
:mod:`kitsseg.records.exported`). Every file is compared with the network it came from before it gets its name.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

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
from kitsseg.records.networks import QUICK_START, finished_run, read_exported
from kitsseg.runtime.execution import computing_in
from kitsseg.version import __version__

if TYPE_CHECKING:
    import numpy.typing as npt

    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.inference.engines import Network
    from kitsseg.interfaces import Predict
    from kitsseg.recipe import InferenceSpec, PreprocessSpec
    from kitsseg.records.networks import FinishedRun

__all__ = ["ExportResult", "export_run", "takes_quick_start", "write_quick_start"]

WRITER_PACKAGES = {
    "litert": ("ai_edge_litert",),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "saved_model": (),
}
CHECKED, CHECKED_3D, CALIBRATED = 32, 2, 64  # images
CHECKED_QUICKLY = 8  # images, at the end of a training
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
    input_shape: tuple[int | None, ...]
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
    Raises: InputError for an unfinished run, a missing package, or options that do not go together; OtherLabels (an
        InputError) for a file whose labels differ too much from the network's (``kitsseg.export.check``). No file is
        kept then.
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
    unseen, train = _cached_cases(run_network, cache)
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
    metadata = _metadata(run_network, inference, ExportedInput(shape=(1, *shape)), precision, softmax)
    if format == "saved_model" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected a new or empty folder, found one in use. Choose another.")
    count = CHECKED_3D if _axes(inference) == 3 else CHECKED
    images = cached_images(unseen or train, shape, spec, count)
    options = replace(options, format=format)
    return _written_and_checked(
        network,
        out,
        metadata,
        options,
        images,
        calibration,
        checking=lambda: step(2),
    )


def write_quick_start(
    run: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None
) -> ExportResult:
    """Write ``RUN/network.onnx``, with which ``kitsseg predict RUN`` needs neither Keras nor TensorFlow.

    It is the 2D network of the run in float32, for slices of any size where the recipe takes slices of any size. The
    metadata in the file hold the hash of the weights from which it was made.

    Args:
        run: folder of a finished run.
        cache: of ``kitsseg preprocess``; None: the cache that the run was trained on.

    Returns: ExportResult.
    Raises: InputError for an unfinished run, a 3D network, a missing package, another backend than TensorFlow;
        OtherLabels for a file whose labels differ from those of the network. A former file of that name is not
        replaced then.
    """
    run_network = finished_run(run)
    spec, inference = run_network.preprocess, run_network.inference
    out = Path(run) / QUICK_START
    if not takes_quick_start(run_network):
        raise InputError(
            f"{out}: {run_network.record.recipe} is a 3D network, which Keras computes faster. Predict with the run, "
            "or give --out."
        )
    _check_writer("onnx", str(out))
    unseen, train = _cached_cases(run_network, cache)
    with computing_in("float32"):
        network = _last_output(
            read_network(run_network.source, shape=run_network.image_shape, output=inference.output)
        )
        shape, examples = _shapes_of_slices(network, run_network)
        taken = ExportedInput(shape=(1, *shape), example=(1, *examples[0]) if None in shape else None)
        metadata = _metadata(run_network, inference, taken, "float32", softmax=False)
        images = itertools.chain.from_iterable(
            cached_images(unseen or train, example, spec, CHECKED_QUICKLY // len(examples))
            for example in examples
        )
        return _written_and_checked(network, out, metadata, ExportOptions(format="onnx"), images)


def takes_quick_start(run: FinishedRun) -> bool:
    """Whether ``write_quick_start`` writes a file for a run: for 2D networks only.

    A scan takes a 3D network so long that the seconds of a start do not count, and ONNX Runtime takes 1.7 to 3 times as
    long for its convolutions as TensorFlow.
    """
    return _axes(run.inference) == 2


def _shapes_of_slices(
    network: keras.Model, run: FinishedRun
) -> tuple[tuple[int | None, ...], list[tuple[int, ...]]]:
    """The input of the network of a run, with None for any size, and shapes of images with which to try it."""
    spec, inference = run.preprocess, run.inference
    if inference.tile is not None or spec.slice_size is not None:
        shape, _ = _input_shape(spec, inference, None, ())
        return shape, [shape]
    shape = tuple(network.input_shape[1:])
    if None not in shape:
        return shape, [shape]
    rows, columns, channels = run.image_shape
    # sizes that are not those of the training, nor equal to each other, show that no size was taken for a constant
    larger = rows + inference.multiple, columns + 2 * inference.multiple
    other = tuple(known or size for known, size in zip(shape, (*larger, channels), strict=True))
    return shape, [run.image_shape, other]


def _cached_cases(
    run: FinishedRun, cache: str | os.PathLike[str] | None
) -> tuple[list[CachedCase], list[CachedCase]]:
    """The cached cases of the validation and test part of a run's split, and those of its training part."""
    place = cache or run.record.cache or ""
    cases = open_cache(place, run.preprocess)
    parts = run.record.split.cases
    train = [cases[name] for name in parts.train if name in cases]
    unseen = [cases[name] for name in (*parts.validation, *parts.test) if name in cases]
    if not (unseen or train):
        raise InputError(f"{place}: expected cases of the run's split, found none. Give --cache.")
    return unseen, train


def _metadata(
    run: FinishedRun, inference: InferenceSpec, taken: ExportedInput, precision: str, softmax: bool
) -> ExportMetadata:
    record = run.record
    names = ("recipe", "paper", "reported", "reported_unrefined", "given", "phantom", "versions")
    settings = {key: record.settings[key] for key in ("preprocess", "postprocess", "model")}
    return ExportMetadata(
        kitsseg=__version__,
        notice=NOTICE,
        **{key: getattr(record, key) for key in names},
        split=ExportedSplit(name=record.split.name, hash=record.split.hash),
        settings=settings | {"inference": asdict(inference)},
        labels={"0": "background", "1": "kidney", "2": "tumor"},
        input=taken,
        output=ExportedOutput(softmax=softmax, content="probabilities" if softmax else "logits"),
        precision=precision,
        weights_sha256=run.weights_sha256,
    )


def _written_and_checked(
    network: keras.Model,
    out: Path,
    metadata: ExportMetadata,
    options: ExportOptions,
    images: Iterable[npt.NDArray[np.float32]],
    calibration: list[npt.NDArray[np.float32]] | None = None,
    *,
    checking: Callable[[], object] | None = None,
) -> ExportResult:
    """Write a network, and compare the file with the network before the file gets its name.

    Args:
        network: ``keras.Model`` with one output.
        options: ExportOptions with a format.
        images: on which both are compared, float32 (1, ..., channels).
        calibration: as in ``write_network``.
        checking: called when the file is written and the comparison begins.

    Raises: OtherLabels if the labels of both differ too much.
    """
    format, shape, softmax = options.format, metadata.input.shape, options.softmax
    output = metadata.settings["inference"]["output"]
    whole = atomic_folder if format == "saved_model" else atomic_path

    def without_graph(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(network(image, training=False))

    # images of several sizes: a graph would be made for each of them, which takes longer than a few images
    compute = without_graph if None in shape else network.predict_on_batch
    with whole(out) as temporary:
        write_network(network, temporary, shape[1:], metadata, options, calibration)
        if checking:
            checking()
        try:
            if options.precision == "int8":
                check_loads(temporary)
            exported = open_network(read_exported(temporary).source, output=output)
            comparison = compare(_outputs(compute, exported, images, softmax, output))
            check(comparison, options.precision)
        except InputError as error:
            raise type(error)(f"{out}: not kept: {error}") from error
        n_bytes = sum(path.stat().st_size for path in (temporary, *temporary.rglob("*")) if path.is_file())
    return ExportResult(out, format or "", options.precision, shape, n_bytes, comparison)


def _outputs(
    compute: Predict,
    exported: Network,
    images: Iterable[npt.NDArray[np.float32]],
    softmax: bool,
    output: str,
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Yield (output of the network, output of the exported one) for each image; sigmoid outputs as class scores."""
    for image in images:
        expected = compute(image)
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
            "have float16, 8-bit and sparse weights. Leave it out, or export a .tflite file."
        )
    _check_writer(format, f"--format {format}")
    return format


def _check_writer(format: str, what: str) -> None:
    """Raise InputError, beginning with ``what``, if networks cannot be written in this format here."""
    missing = [name for name in WRITER_PACKAGES[format] if find_spec(name) is None]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise InputError(f"{what}: needs {', '.join(missing)}. Install with: pip install {names}")
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"{what}: needs the TensorFlow backend, found {keras.config.backend()}. Unset KERAS_BACKEND."
        )


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
