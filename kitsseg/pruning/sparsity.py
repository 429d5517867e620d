"""Tables of a pruned network: zeros of each weight matrix, and the disk space and work that they can save."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from kitsseg.files.tables import write_rows
from kitsseg.models.macs import macs_of_weights

if TYPE_CHECKING:
    import keras

__all__ = ["COLUMNS", "gzip_size", "mac_shape", "sparsity_rows", "sparsity_totals", "write_sparsity"]

COLUMNS = ("weights", "shape", "pruned", "size", "zeros", "sparsity", "mac", "effective_mac")
OPEN_SIDE = {2: 256, 3: 64}  # voxels, by the axes of an image


def sparsity_rows(model: keras.Model, pruned: Iterable[keras.Variable]) -> list[dict[str, Any]]:
    """A row for each trainable weight matrix and kernel of a model, in the order of its layers.

    Args:
        model: ``keras.Model``.
        pruned: the variables that pruning masks (``kitsseg.pruning.weights.prunable_weights``).

    Returns: dicts with the keys ``COLUMNS``: weights (such as enc0_conv1/kernel), shape (such as 3x3x1x32), pruned
        ("yes" or "no"), size, zeros, sparsity, mac (multiply-adds with these weights for one image of
        ``mac_shape(model)``; None for a layer without a known count), effective_mac (multiply-adds with weights other
        than zero; the engines that kitsseg uses do not skip the zeros).
    """
    rows, masked = [], {id(variable) for variable in pruned}
    macs = {id(variable): count for variable, count in macs_of_weights(model, mac_shape(model))}
    for variable in model.trainable_weights:
        if len(variable.shape) > 1:
            size = int(np.prod(variable.shape))
            zeros = size - int(np.count_nonzero(ops.convert_to_numpy(variable)))
            mac = macs.get(id(variable))
            rows.append(
                {
                    "weights": variable.path,
                    "shape": "x".join(map(str, variable.shape)),
                    "pruned": "yes" if id(variable) in masked else "no",
                    "size": size,
                    "zeros": zeros,
                    "sparsity": zeros / size,
                    "mac": mac,
                    "effective_mac": None if mac is None else mac * (size - zeros) // size,
                }
            )
    return rows


def mac_shape(model: keras.Model) -> tuple[int | None, ...]:
    """Shape of the image for which multiply-adds are counted: the input, with 256 (in 3D 64) for unknown sizes."""
    shape = model.input_shape[1:]
    return tuple(OPEN_SIDE.get(len(shape) - 1) if size is None else size for size in shape)


def sparsity_totals(model: keras.Model, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over the rows of a model.

    Returns: dict with parameters and nonzero_parameters (trainable ones, biases and normalizations included), zeros,
        sparsity (of the pruned matrices), bytes and gzip_bytes of all weights as float32, mac and effective_mac (None
        where a layer has no known count) for one image of mac_shape.
    """
    zeros = sum(row["zeros"] for row in rows)
    pruned = [row for row in rows if row["pruned"] == "yes"]
    dropped, size = (sum(row[key] for row in pruned) for key in ("zeros", "size"))
    parameters = sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)
    dense, compressed = gzip_size(model)
    known = all(row["mac"] is not None for row in rows)
    macs = {key: sum(row[key] for row in rows) if known else None for key in ("mac", "effective_mac")}
    return {
        "parameters": parameters,
        "nonzero_parameters": parameters - zeros,
        "zeros": zeros,
        "sparsity": dropped / size,
        "bytes": dense,
        "gzip_bytes": compressed,
        **macs,
        "mac_shape": list(mac_shape(model)),
    }


def gzip_size(model: keras.Model) -> tuple[int, int]:
    """Size in bytes of all weights of a model as float32, (as they are, compressed as gzip does).

    Zeros save nothing in a .keras file: only compressing it does.
    """
    squeezed = zlib.compressobj(wbits=31)
    plain = small = 0
    for variable in model.weights:
        content = np.ascontiguousarray(ops.convert_to_numpy(variable), np.float32).tobytes()
        plain += len(content)
        small += len(squeezed.compress(content))
    return plain, small + len(squeezed.flush())


def write_sparsity(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows as CSV."""
    write_rows(path, rows, COLUMNS)
