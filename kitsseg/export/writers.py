"""A network as a LiteRT, ONNX or SavedModel file, its metadata inside. The same network gives the same bytes.

Except for a SavedModel, to which TensorFlow adds a random fingerprint.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.errors import InputError
from kitsseg.inference.engines import constant_function
from kitsseg.models.fold import fold_batch_norm
from kitsseg.records.exported import METADATA, ExportMetadata, onnx_field, sealed, sha256_of_folder
from kitsseg.runtime.quiet import quiet_stderr

if TYPE_CHECKING:
    import keras

    from kitsseg.interfaces import Tensor

__all__ = ["ExportOptions", "write_network"]

OPSET = 17


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        format: "litert", "onnx" or "saved_model"; None goes by the name of the file.
        precision: "float32"; for LiteRT also "float16" (weights only), "int8-weights" (weights only; LiteRT rounds what
            they are multiplied with to 8 bits too, in a range taken from each image) or "int8" (everything except for
            input and output, with ranges from slices of the run's training part).
        softmax: put the softmax inside, so that the output are probabilities instead of logits.
        size: (rows, columns) of the input, for a 3D network (slices, rows, columns); None: the slice or tile of the
            recipe.
        cache: of ``kitsseg preprocess``; None: the cache that the run was trained on.
        sparse: store the weights in LiteRT's sparse format, which is smaller if many weights are zero.
    """

    format: str | None = None
    precision: str = "float32"
    softmax: bool = False
    size: tuple[int, ...] | None = None
    cache: str | os.PathLike[str] | None = None
    sparse: bool = False


def write_network(
    network: keras.Model,
    path: Path,
    shape: tuple[int | None, ...],
    metadata: ExportMetadata | dict[str, Any],
    options: ExportOptions,
    calibration: list[npt.NDArray[np.float32]] | None = None,
) -> None:
    """Write a network with one output, for one image, unchecked.

    Args:
        network: ``keras.Model`` that gives logits, on the TensorFlow backend.
        path: file, or for a SavedModel an existing empty folder.
        shape: of an image, with its channels; None for an axis of any size.
        metadata: goes into the file as JSON.
        calibration: float32 images (1, *shape), for int8.
        options: their format must be given.

    Raises: InputError where ``sparse`` makes the file no smaller.
    """
    import tensorflow as tf

    format = options.format
    logits = constant_function(fold_batch_norm(network, shape))

    def compute(image: Tensor) -> Tensor:
        return tf.nn.softmax(logits(image)) if options.softmax else tf.identity(logits(image))

    holder = tf.Module()
    holder.__call__ = function = tf.function(
        compute, input_signature=[tf.TensorSpec((1, *shape), tf.float32, name="image")], autograph=False
    )
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the converters
        if format == "saved_model":
            tf.saved_model.save(holder, str(path), signatures=function)
            (path / "assets.extra").mkdir()
            text = sealed(metadata, sha256_of_folder(path))
            (path / "assets.extra" / METADATA).write_text(text, encoding="utf-8")
        elif format == "onnx":
            _write_onnx(function, path, metadata)
        else:
            _write_litert(function, holder, path, metadata, options.precision, calibration, options.sparse)


def _write_litert(
    function: Any,
    holder: Any,
    path: Path,
    metadata: ExportMetadata | dict[str, Any],
    precision: str,
    calibration: list[npt.NDArray[np.float32]] | None,
    sparse: bool,
) -> None:
    import tensorflow as tf

    def convert(*optimizations: Any) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()], holder
        )
        converter.optimizations = list(optimizations)
        if precision != "float32":
            converter.optimizations.append(tf.lite.Optimize.DEFAULT)
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = lambda: ([image] for image in calibration or ())
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        content: bytes = converter.convert()
        return content

    content = convert()
    if sparse:
        dense, content = len(content), convert(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
        if len(content) >= dense:
            raise InputError(
                f"--sparse: the file has {len(content)} bytes, without it {dense}: too few weights are zero. "
                "Leave --sparse out, or prune the run first."
            )
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:  # behind the FlatBuffer, which does not notice
        archive.writestr(zipfile.ZipInfo(METADATA), sealed(metadata, hashlib.sha256(content).hexdigest()))


def _write_onnx(function: Any, path: Path, metadata: ExportMetadata | dict[str, Any]) -> None:
    import onnx
    import tf2onnx

    model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
    # tf2onnx names and orders things differently every time: the same run shall give the same file
    graph = model.graph
    names: dict[str, str] = {}
    fixed = {value.name for value in (*graph.input, *graph.output)}
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        for tensors in (node.input, node.output):
            tensors[:] = [
                name if name in fixed or not name else names.setdefault(name, f"t{len(names)}")
                for name in tensors
            ]
    initializers = [value for value in graph.initializer if value.name in names]
    del graph.initializer[:], graph.value_info[:]
    graph.doc_string = ""
    for value in initializers:
        value.name = names[value.name]
    graph.initializer.extend(sorted(initializers, key=lambda value: int(value.name[1:])))
    content = model.SerializeToString(deterministic=True)
    text = sealed(metadata, hashlib.sha256(content).hexdigest())
    entry = onnx.StringStringEntryProto(key="kitsseg", value=text)
    path.write_bytes(content + onnx_field(entry.SerializeToString(deterministic=True)))
