"""Engines that compute logits. One engine is chosen before the first slice and never replaced silently by another.

A run's ``model.keras`` is computed by TensorFlow in a compiled function of this module (one slice takes 1.5 to 2 times
less than with ``keras.Model.predict``), or by Keras' ``predict_on_batch``, the only way on the JAX backend. Exported
networks need neither Keras nor TensorFlow: LiteRT, ONNX Runtime and OpenVINO start in a fraction of a second. A run
that holds ``network.onnx`` is an exported network for them (``kitsseg.inference.ensemble.computed_as`` decides).

XLA stays off on a CPU, because it makes depth-wise convolutions about ten times slower. Batches bring nothing there: on
a CPU core eight slices in one batch take as long as eight slices one by one, and more memory.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError
from kitsseg.recipe import OUTPUTS
from kitsseg.records.exported import Exported, fits
from kitsseg.runtime.memory import give_back_memory
from kitsseg.runtime.quiet import quiet_stderr

if TYPE_CHECKING:
    import keras

    from kitsseg.interfaces import Predict, Tensor

__all__ = ["ENGINES", "ENGINE_PACKAGES", "OF_ONNX", "Network", "constant_function", "open_network", "softmax"]

# what each reads: the network of a run, or the formats of kitsseg export
ENGINES = {
    "keras": ("run",),
    "tensorflow": ("run", "saved_model"),
    "litert": ("litert",),
    "onnxruntime": ("onnx",),
    "openvino": ("onnx",),
}
OF_ONNX = tuple(name for name, kinds in ENGINES.items() if "onnx" in kinds)
ENGINE_PACKAGES = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Network:
    """A network that is ready to predict.

    Attributes:
        engine: its name, see ``ENGINES``; with the precision, where that is not float32.
        scores: from a float32 batch (batch, ..., channels) to float32 (batch, ..., classes), whichever is cheaper,
            logits or probabilities: where only labels are wanted, their arg-max is the same.
        probabilities: the same, to softmax probabilities.
    """

    engine: str
    scores: Predict
    probabilities: Predict

    def __call__(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.probabilities(batch)


def open_network(
    source: str | os.PathLike[str] | Exported,
    engine: str | None = None,
    output: str | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    precision: str = "float32",
) -> Network:
    """Load a network.

    Args:
        source: path of a run's ``model.keras``, or Exported.
        engine: one of ``ENGINES``; None takes the fastest that needs no further package: for a run TensorFlow (on
            the JAX backend Keras), for an exported network the one of its format.
        output: as ``InferenceSpec.output``, which says how many channels there must be; None: any number.
        shape: of an image that the network of a run must take, as ``TrainedNetwork.image_shape``; None: of any.
        precision: "float32", or "bfloat16": for a run the layers compute in it, but for those that give the logits;
            for an ONNX file OpenVINO decides which ones.

    Raises: InputError for a damaged file, a network of another form, an engine that cannot read it, or one that is not
        installed; when it computes, for images of another form than the network's, outputs of another form, and
        numbers not finite; for an engine that has no bfloat16.
    """
    exported = source if isinstance(source, Exported) else None
    path: str | os.PathLike[str] = source.path if isinstance(source, Exported) else source
    kind = "run" if exported is None else exported.format
    able = [name for name, kinds in ENGINES.items() if kind in kinds]
    if engine is None:
        engine = able[0] if kind != "run" else _engine_of_backend()
    if engine not in able:
        raise InputError(
            f"--engine {engine}: {path} can be run by {' or '.join(able)}. "
            + (
                "To use another engine, export the run first with kitsseg export."
                if kind == "run"
                else "Choose one of these engines."
            )
        )
    if exported is not None and precision != "float32" and engine != "openvino":
        raise InputError(
            f"--precision {precision}: {engine} computes {path} in float32 only. Choose --engine openvino, or for a "
            "run tensorflow or keras."
        )
    if exported is None:
        scores = _checked(_run(path, engine, output, shape, precision), path, output)
    else:
        load: dict[str, Callable[[str | os.PathLike[str]], Predict]] = {
            "litert": _litert,
            "onnxruntime": _onnxruntime,
            "openvino": functools.partial(_openvino, precision=precision),
            "tensorflow": _saved_model,
        }
        compute = _tried(load[engine], path, engine, exported.example)
        scores = _checked(_one_by_one(compute, exported.input_shape), path, output)
    engine = engine if precision == "float32" else f"{engine} in {precision}"
    if exported is not None and exported.softmax:
        return Network(engine, scores, scores)
    return Network(engine, scores, lambda batch: softmax(scores(batch)))


def _tried(
    load: Callable[[str | os.PathLike[str]], Predict],
    path: str | os.PathLike[str],
    engine: str,
    shape: tuple[int, ...],
) -> Predict:
    """Load an exported network and compute one image of zeros.

    Raises: InputError, naming the file, for any error of the engine, for outputs that are not scores of each pixel or
        voxel, and for numbers that are not finite; InputError if the engine's package is missing.
    """
    failed: Exception | str | None = None
    with quiet_stderr():
        try:
            compute = load(path)
            found = compute(np.zeros(shape, np.float32))
        except ImportError as error:
            raise InputError(
                f"--engine {engine}: its package is missing ({error}). "
                f"Install it with: pip install {ENGINE_PACKAGES.get(engine, engine)}"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # engines have errors of their own, which derive from nothing but this
            failed = error  # what the engine has written to stderr is said again by its error
    if failed is None and getattr(found, "shape", ())[:-1] != shape[:-1]:
        failed = f"outputs of shape {getattr(found, 'shape', None)} for an image of {shape}"
    if failed is not None:
        reason = " ".join(str(failed).split())[:300]
        raise InputError(f"{path}: {engine} cannot load it ({reason}). Export the run again.")
    if not np.isfinite(found).all():
        raise InputError(
            f"{path}: the network computes numbers that are not finite; its labels would be background. Export the "
            "run again."
        )
    return compute


def _checked(scores: Predict, path: str | os.PathLike[str], output: str | None) -> Predict:
    """``scores``, with an InputError if a result does not hold finite scores of each pixel or voxel."""

    def checked(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found = scores(batch)
        channels = OUTPUTS[output] if output else found.shape[-1]
        if found.shape != (*batch.shape[:-1], channels):
            raise InputError(
                f"{path}: expected outputs of shape {(*batch.shape[:-1], channels)} for the recipe's {output or 'own'} "
                f"output, found {found.shape}: the record describes another network than this one. Train or "
                "export again."
            )
        if not np.isfinite(found).all():
            raise InputError(
                f"{path}: the network computes numbers that are not finite; its labels would be background. Check "
                "whether the voxels of the scan are finite. If so, train again with a lower learning rate."
            )
        return found

    return checked


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities of logits (..., classes), one class at a time, because NumPy is slow along a short last axis."""
    planes = np.moveaxis(logits, -1, 0)
    exponentials = np.exp(planes - functools.reduce(np.maximum, planes))
    exponentials /= exponentials.sum(axis=0)
    return np.moveaxis(exponentials, 0, -1)


def _engine_of_backend() -> str:
    import keras

    return "tensorflow" if keras.config.backend() == "tensorflow" else "keras"


def _run(
    weights: str | os.PathLike[str],
    engine: str,
    output: str | None,
    shape: tuple[int, ...] | None,
    precision: str,
) -> Predict:
    """Logits of a run's network, batch normalizations folded; with deep supervision those of the last output."""
    import keras

    from kitsseg.models.fold import fold_batch_norm
    from kitsseg.models.loading import read_network

    backend = keras.config.backend()
    if engine == "tensorflow" and backend != "tensorflow":
        raise InputError(
            f"--engine tensorflow: Keras runs on {backend} in this process. Unset KERAS_BACKEND, or choose keras."
        )
    network = read_network(weights, shape=shape, output=output)
    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    network = fold_batch_norm(keras.Model(network.input, network.outputs[-1]), precision=policy)
    gc.collect()  # the network as it was read is full of cycles
    give_back_memory()
    if engine == "tensorflow":
        return _of_its_form(network, weights, output, _compiled(network))
    network.compile(jit_compile=backend != "tensorflow")
    return _of_its_form(network, weights, output, network.predict_on_batch)


def _of_its_form(
    network: keras.Model, path: str | os.PathLike[str], output: str | None, scores: Predict
) -> Predict:
    """The function of batches that raises InputError for images of another form than the network's."""
    from kitsseg.models.loading import check_form

    fits: set[tuple[int, ...]] = set()

    def fitting(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if (shape := batch.shape[1:]) not in fits:
            check_form(network, path, shape, output)
            fits.add(shape)
        return scores(batch)

    return fitting


def _compiled(network: keras.Model) -> Predict:
    """The network as a graph for the size of the last batch, since sizes change only from scan to scan.

    The weights stay variables: as constants of the graph, 49 MB of weights took 780 MiB more and were not faster.
    """
    import tensorflow as tf

    graph = None

    def logits(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        nonlocal graph
        if graph is None or graph.inputs[0].shape != batch.shape:
            function = tf.function(lambda image: network(image, training=False), autograph=False)
            graph = function.get_concrete_function(tf.TensorSpec(batch.shape, tf.float32))
        found: npt.NDArray[np.float32] = graph(tf.constant(batch, tf.float32)).numpy()
        return found

    return logits


def constant_function(network: keras.Model) -> Callable[[Tensor], Tensor]:
    """A function of a batch that computes the network with arrays instead of variables.

    A graph that is traced from it holds constants, so that values which depend only on weights are computed once, and
    every converter understands it.
    """
    trainable, others = (
        [np.asarray(variable) for variable in variables]
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )

    def compute(image: Tensor) -> Tensor:
        return network.stateless_call(trainable, others, image, training=False)[0]

    return compute


def _one_by_one(compute: Predict, shape: tuple[int | None, ...]) -> Predict:
    """A function of batches that calls a function of single images, because exported networks take one image."""

    def scores(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not fits(shape[1:], batch.shape[1:]):
            raise ValueError(f"expected images of shape {shape[1:]}, found {batch.shape[1:]}.")
        images = [compute(np.ascontiguousarray(image[None], np.float32)) for image in batch]
        return images[0] if len(images) == 1 else np.concatenate(images)

    return scores


def _litert(path: str | os.PathLike[str]) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=_threads())
    interpreter.allocate_tensors()
    [image], [result] = interpreter.get_input_details(), interpreter.get_output_details()

    def compute(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        interpreter.set_tensor(image["index"], batch)
        interpreter.invoke()
        found: npt.NDArray[np.float32] = interpreter.get_tensor(result["index"])
        return found

    return compute


def _onnxruntime(path: str | os.PathLike[str]) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [image] = session.get_inputs()
    return lambda batch: session.run(None, {image.name: batch})[0]


def _openvino(path: str | os.PathLike[str], precision: str) -> Predict:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        # said in any case: on some CPUs it would take bfloat16 by itself
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": _threads(),
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda batch: request.infer([batch])[0].copy()


def _saved_model(path: str | os.PathLike[str]) -> Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda batch: loaded(tf.constant(batch)).numpy()


def _threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
