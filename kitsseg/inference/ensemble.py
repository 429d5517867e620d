"""The networks that segment a scan: one run, the folds of a recipe, or networks of different papers together."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of_all
from kitsseg.inference.engines import OF_ONNX, open_network
from kitsseg.inference.options import PredictOptions
from kitsseg.inference.outputs import network_of_classes
from kitsseg.inference.scan import Member, members_of
from kitsseg.labels.volumes import Cleanup
from kitsseg.recipe import ReassignSmall, RemoveFar
from kitsseg.records.exported import Exported, ExportMetadata, format_of
from kitsseg.records.made_by import MadeBy, NetworkUsed, PartOfSplit
from kitsseg.records.networks import (
    FinishedRun,
    TrainedNetwork,
    finished_run,
    has_quick_start,
    quick_start_of,
    read_exported,
)
from kitsseg.records.run import seen_patients
from kitsseg.records.starter import is_starter, network_path
from kitsseg.runtime.hardware import may_have_gpu
from kitsseg.version import __version__

__all__ = [
    "Ensemble",
    "cases_of_run_part",
    "computed_as",
    "describe",
    "ensemble_of",
    "needs_keras",
    "open_ensemble",
]


@dataclass(frozen=True)
class Ensemble:
    """Networks and settings with which scans are segmented; small, because it is sent with every job of a cluster.

    Attributes:
        runs: folders of finished runs, or networks from ``kitsseg export``; every one counts the same.
        networks: the same, read once; inference and post-processing as they are used here. The source of a run is the
            file of its weights, or the file for a quick start that was made from them.
        sha256: of their weights.
        engine, precision: as in ``PredictOptions``.
        engines: one for each network, where each has its own; empty: ``engine`` for all.
        cleanup: what is removed from the label maps afterwards; None: nothing.
    """

    runs: tuple[str, ...]
    networks: tuple[TrainedNetwork, ...]
    sha256: tuple[str, ...]
    engine: str | None = None
    cleanup: Cleanup | None = None
    precision: str = "float32"
    engines: tuple[str | None, ...] = ()

    def single_networks(self) -> list["Ensemble"]:
        """Each network by itself."""
        return [
            replace(self, runs=(run,), networks=(network,), sha256=(sha256,))
            for run, network, sha256 in zip(self.runs, self.networks, self.sha256, strict=True)
        ]


def ensemble_of(runs: Iterable[str | os.PathLike[str]], options: PredictOptions | None = None) -> Ensemble:
    """Make an Ensemble of some runs; each run is read once.

    Args:
        runs: folders of runs, or files of exported networks; ``options.also`` is not added to them.
        options: PredictOptions, of which those about the networks and the label maps count.

    Raises: InputError for an unfinished run, a run that is given twice, and options that do not fit the runs.
    """
    paths = tuple(str(network_path(run).resolve()) for run in runs)
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise InputError(f"{min(twice)}: this run is given twice. Every run counts once.")
    options = options or PredictOptions()
    # only the post-processing of the first run is used, so only the first run must have some
    others = replace(options, refine_labels=options.refine_labels and None)
    networks = tuple(_used_so(run, others if i else options) for i, run in enumerate(paths))
    for network in networks:
        if options.precision != "float32" and isinstance(network.source, Exported):
            raise InputError(
                f"--precision {options.precision}: {network.source.path} is an exported network, whose precision was "
                "chosen when it was exported. Predict with the run."
            )
    files = [
        network.source.path if isinstance(network.source, Exported) else network.source
        for network in networks
    ]
    hashes = tuple(map(sha256_of_all, files))
    return Ensemble(paths, networks, hashes, options.engine, options.cleanup, options.precision)


def computed_as(ensemble: Ensemble, options: PredictOptions) -> Ensemble:
    """The ensemble, its runs computed from their weights or from their files for a quick start.

    If the user names no engine, such a file is taken if its engine is installed, all runs have one, and no GPU could
    compute the weights faster. On a cluster the weights are taken, since nobody knows what its workers have installed.

    Args:
        ensemble: of ``ensemble_of``.
        options: PredictOptions, of which the engine, the scheduler and the precision count.

    Warns: of a run whose file for a quick start is damaged or of other weights; its weights are taken then.
    Raises: InputError for such a file, or none, if the engine of the options computes nothing else.
    """
    ensemble = replace(ensemble, engine=options.engine)
    if options.engine in OF_ONNX:
        return _started_quickly(ensemble)
    runs = [network for network in ensemble.networks if isinstance(network, FinishedRun)]
    chosen = options.engine or options.scheduler or options.precision != "float32"
    if chosen or not all(map(has_quick_start, runs)) or find_spec("onnxruntime") is None or may_have_gpu():
        return ensemble
    try:
        return _started_quickly(ensemble)
    except InputError as error:
        warnings.warn(f"{error} Keras computes the weights now.", stacklevel=2)
        return ensemble


def _started_quickly(ensemble: Ensemble) -> Ensemble:
    networks = (
        quick_start_of(network) if isinstance(network, FinishedRun) else network
        for network in ensemble.networks
    )
    return replace(ensemble, networks=tuple(networks))


def needs_keras(ensemble: Ensemble) -> bool:
    """Whether a network of the ensemble is computed by Keras or TensorFlow."""
    sources = [network.source for network in ensemble.networks]
    return any(not isinstance(source, Exported) or source.format == "saved_model" for source in sources)


def describe(ensemble: Ensemble, part: str | None = None) -> MadeBy:
    """The MadeBy of ``predictions.json`` for an ensemble; run, paper and split are those of the first run.

    Args:
        ensemble: Ensemble.
        part: the part of the split that is predicted; None: all scans that are given.
    """
    first = ensemble.networks[0]
    split = first.record.split
    paper, reported = first.record.paper, first.record.reported
    if is_starter(ensemble.runs[0]):  # its architecture is that of a paper, its training is not
        paper = reported = None
    elif _unrefined(first):
        reported = first.record.reported_unrefined
    return MadeBy(
        kitsseg=__version__,
        run=ensemble.runs[0],
        also=list(ensemble.runs[1:]),
        networks=[
            NetworkUsed(
                recipe=network.record.recipe,
                sha256=sha256,
                preprocess=network.preprocess.digest(),
                inference=asdict(network.inference),
                precision=ensemble.precision,
            )
            for network, sha256 in zip(ensemble.networks, ensemble.sha256, strict=True)
        ],
        engine=None,
        inference={
            "tile": first.inference.tile,
            "mirror_axes": first.inference.mirror_axes,
            "coarse": first.inference.coarse,
        },
        postprocess=asdict(first.postprocess) if first.postprocess else None,
        cleanup=ensemble.cleanup,
        recipe=first.record.recipe,
        paper=paper,
        reported=reported,
        split=PartOfSplit(name=split.name, hash=split.hash, part=part),
    )


def open_ensemble(ensemble: Ensemble) -> tuple[list[Member], RemoveFar | ReassignSmall | None, str]:
    """Load the networks.

    Returns: (members for ``ensemble_labels``, post-processing of the first run, name of the engine or engines).
    Raises: InputError for a damaged network, or an engine that cannot compute it.
    """
    if any(network.inference.tile_3d for network in ensemble.networks):
        # TensorFlow pools what it has freed and takes ever larger pieces for it: 600 MiB at unet3d's tiles. It looks
        # here before its first tensor. The 2D networks would gain nothing and take a tenth longer
        os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    loaded = [
        (
            network_of_classes(
                open_network(
                    network.source,
                    engine,
                    network.inference.output,
                    network.image_shape,
                    precision=ensemble.precision,
                ),
                network.inference.output,
            ),
            network.preprocess,
            network.inference,
        )
        for network, engine in zip(
            ensemble.networks, ensemble.engines or [ensemble.engine] * len(ensemble.networks), strict=True
        )
    ]
    engines = list(dict.fromkeys(network.engine for network, *_ in loaded))
    return members_of(loaded), ensemble.networks[0].postprocess, ", ".join(engines)


def cases_of_run_part(ensemble: Ensemble, part: str) -> list[str]:
    """Names of the cases in this part of the first run's split.

    Raises: InputError if a run has no record of its training cases, or if another run was trained on some of these
        cases.
    """
    wanted: list[str] | None = None
    for run, network in zip(ensemble.runs, ensemble.networks, strict=True):
        if isinstance(network.record, ExportMetadata):
            raise InputError(
                f"--part {part}: an exported network does not name the cases of its split {network.record.split.name}. "
                "Predict with the run, or give the scans themselves."
            )
        if wanted is None:
            wanted = getattr(network.record.split.cases, part)
        elif part != "train" and (seen := set(wanted) & seen_patients(network.record)["train"]):
            raise InputError(
                f"--part {part}: expected runs whose training leaves these {len(wanted)} cases out, found {run}, "
                f"which was trained on {len(seen)} of them, such as {min(seen)}. The scores would be too high."
            )
    if wanted is None:
        raise ValueError("cases_of_run_part: expected a run, found none.")
    return wanted


def _unrefined(network: TrainedNetwork) -> bool:
    """Whether the post-processing of its recipe is left out."""
    return network.postprocess is None and network.record.settings["postprocess"] is not None


def _used_so(run: str, options: PredictOptions) -> TrainedNetwork:
    """A run or an exported network, to be used with these options."""
    network = read_exported(run) if format_of(run) else finished_run(run)
    inference = network.inference
    if options.whole_slices:
        if inference.tile_3d:
            raise InputError(
                f"--whole-slices: {network.record.recipe} is a 3D network; it predicts tiles of volumes only."
            )
        if isinstance(network.source, Exported) and inference.tile is not None:
            raise InputError(
                f"--whole-slices: {run} takes windows of {inference.tile} only. Predict with the run."
            )
        inference = replace(inference, tile=None)
    if options.mirror is not None:
        in_plane = (1, 2) if inference.tile_3d else (0, 1)
        inference = replace(inference, mirror_axes=in_plane if options.mirror else ())
    if options.coarse is not None:
        inference = replace(inference, coarse=options.coarse)
    if options.refine_labels and network.postprocess is None:
        raise InputError(
            f"--postprocess on: {run} was trained as {network.record.recipe}, which has no post-processing. "
            "Leave the option out."
        )
    postprocess = None if options.refine_labels is False else network.postprocess
    return replace(network, inference=inference, postprocess=postprocess)
