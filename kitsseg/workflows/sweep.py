"""Compare several sparsities of one run in one table: Dice, size, number of operations and time of each."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kitsseg.data.cache.cases import open_cache
from kitsseg.data.splits import load_split
from kitsseg.errors import InputError
from kitsseg.files.tables import write_rows
from kitsseg.inference.engines import open_network
from kitsseg.inference.outputs import network_of_classes
from kitsseg.inference.scan import Member, mean_scores, score_cached_cases
from kitsseg.models.macs import count_macs
from kitsseg.pruning.sparsity import sparsity_rows, sparsity_totals
from kitsseg.pruning.weights import prunable_weights
from kitsseg.records.networks import finished_run
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun, network_of
from kitsseg.workflows.prune import prune_run
from kitsseg.workflows.shrink import shrink_run

if TYPE_CHECKING:
    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.recipe import InferenceSpec, PreprocessSpec

__all__ = ["COLUMNS", "sweep_run"]

COLUMNS = (
    *("network", "sparsity", "parameters", "nonzero_parameters", "gzip_mb", "effective_mac"),
    *("milliseconds", "tk", "tu", "composite"),
)
ROUNDS = 7  # of timing; the first compiles


def sweep_run(
    origin: FromRun,
    out: str | os.PathLike[str],
    sparsities: Sequence[float],
    options: TrainOptions | None = None,
    *,
    method: str = "magnitude",
    block: int = 2,
) -> list[dict[str, Any]]:
    """Prune or shrink a finished run to several sparsities, and measure each beside the run itself.

    Dice is the mean over whole *validation* cases on the grid of the cache, so it may be used to choose a sparsity. The
    folder ``out/METHOD-SPARSITY`` of each network is an ordinary run. Finished runs are kept, unfinished ones resumed.

    Args:
        origin: the finished run, its recipe and cache.
        out: folder for the new runs and ``sweep.csv``.
        sparsities: shares of zeros; with the method "channel" shares of channels that are removed.
        options: TrainOptions of each training; unfinished runs are always resumed.
        method: "magnitude" prunes single weights, "block" prunes ``block`` output channels of 1x1 convolutions
            together, "channel" removes whole channels, so that the network gets smaller.
        block: number of channels for the method "block".

    Returns: dicts of ``COLUMNS``, the dense run first. ``effective_mac`` counts multiply-adds with weights other than
        zero, ``milliseconds`` is the median time of one image by the default engine, which does not skip zeros.
    Raises: InputError as ``prune_run`` and ``shrink_run``.
    """
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise InputError(f"sparsity: expected shares between 0 and 1, found {sparsity:g}.")
    options = options or TrainOptions()
    out, runs = Path(out), {"dense": Path(origin.run)}
    for sparsity in sparsities:
        folder = out / f"{method}-{sparsity:g}"
        runs[folder.name] = folder
        if (folder / "model.keras").is_file():
            continue
        of_one = replace(options, resume=(folder / "run.json").is_file())
        if method == "channel":
            shrink_run(origin, folder, 1 - sparsity, of_one)
        else:
            prune_run(origin, folder, sparsity, of_one, block=block if method == "block" else None)
    rows = _measure(origin, runs)
    write_rows(out / "sweep.csv", rows, COLUMNS)
    return rows


def _measure(origin: FromRun, runs: dict[str, Path]) -> list[dict[str, Any]]:
    cases = open_cache(origin.cache, origin.recipe.preprocess)
    rows, engines = [], {}
    for name, run in runs.items():
        trained = finished_run(run)
        split = load_split(Path(run) / "split.json")
        network = network_of(trained)
        engines[name] = network_of_classes(
            open_network(trained.source, output=trained.inference.output), trained.inference.output
        )
        totals = sparsity_totals(
            network, sparsity_rows(network, [variable for _, variable in prunable_weights(network)])
        )
        image = _image_shape(trained.inference, cases[split.validation[0]], trained.preprocess)
        member = Member(engines[name].probabilities, trained.preprocess, trained.inference)
        validation = [cases[case] for case in split.validation]
        scores = mean_scores(score_cached_cases(validation, member, trained.postprocess))
        rows.append(
            {
                "network": name,
                "sparsity": totals["sparsity"],
                "parameters": totals["parameters"],
                "nonzero_parameters": totals["nonzero_parameters"],
                "gzip_mb": totals["gzip_bytes"] / 1e6,
                "effective_mac": count_macs(network, image, nonzero_only=True),
            }
            | {key: scores[key] for key in ("tk", "tu", "composite")}
        )
    batch = np.random.default_rng(0).normal(size=(1, *image)).astype("float32")
    times: dict[str, list[float]] = {name: [] for name in engines}
    for round_number in range(ROUNDS + 1):  # in turn: what else the machine does meets all of them
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.scores(batch)
            if round_number:
                times[name].append(1000 * (time.perf_counter() - started))
    return [row | {"milliseconds": statistics.median(times[row["network"]])} for row in rows]


def _image_shape(inference: InferenceSpec, case: CachedCase, spec: PreprocessSpec) -> tuple[int, ...]:
    """Shape of the network's input: a tile, or a whole slice of the cache padded to the network's stride."""
    size = inference.tile or [
        -(-n // inference.multiple) * inference.multiple for n in case.geometry.shape[1:]
    ]
    return (*size, spec.channels)
