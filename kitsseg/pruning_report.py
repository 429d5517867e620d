"""What pruning has left of a network: zeros of each weight matrix, and what they save on disk."""

import csv
import zlib
from pathlib import Path

import numpy as np
from keras import ops

from kitsseg.atomic import atomic_path

__all__ = ["gzip_size", "sparsity_rows", "sparsity_totals", "write_sparsity"]


def sparsity_rows(model, pruned):
    """A row for each trainable weight matrix and kernel of a model, in the order of its layers.

    Args:
        pruned: the variables that pruning masks (``kitsseg.pruning_weights.prunable_weights``).

    Returns: dicts with weights (such as enc0_conv1/kernel), shape (such as 3x3x1x32), pruned ("yes" or "no"), size,
        zeros, sparsity.
    """
    rows, masked = [], {id(variable) for variable in pruned}
    for variable in model.trainable_weights:
        if len(variable.shape) > 1:
            size = int(np.prod(variable.shape))
            zeros = size - int(np.count_nonzero(ops.convert_to_numpy(variable)))
            shape = "x".join(map(str, variable.shape))
            rows.append(
                {
                    "weights": variable.path,
                    "shape": shape,
                    "pruned": "yes" if id(variable) in masked else "no",
                    "size": size,
                    "zeros": zeros,
                    "sparsity": zeros / size,
                }
            )
    return rows


def sparsity_totals(model, rows):
    """Sums over the rows of a model.

    Returns: dict with parameters and nonzero_parameters (trainable ones, biases and normalizations included), zeros,
        sparsity (of the pruned matrices), bytes and gzip_bytes of all weights as float32.
    """
    zeros = sum(row["zeros"] for row in rows)
    pruned = [row for row in rows if row["pruned"] == "yes"]
    dropped, size = (sum(row[key] for row in pruned) for key in ("zeros", "size"))
    parameters = sum(int(np.prod(variable.shape)) for variable in model.trainable_weights)
    dense, compressed = gzip_size(model)
    return {
        "parameters": parameters,
        "nonzero_parameters": parameters - zeros,
        "zeros": zeros,
        "sparsity": dropped / size,
        "bytes": dense,
        "gzip_bytes": compressed,
    }


def gzip_size(model):
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


def write_sparsity(rows, path):
    """Write the rows as CSV."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["weights", "shape", "pruned", "size", "zeros", "sparsity"])
        writer.writeheader()
        writer.writerows(rows)
