"""Which networks segment a scan, and how: one run, the folds of a recipe, or different papers together."""

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kitsseg import __version__
from kitsseg.errors import InputError
from kitsseg.inference.engines import open_network
from kitsseg.inference.scan import members_of
from kitsseg.records.exported import format_of, read_exported
from kitsseg.records.run import finished_run

__all__ = ["Ensemble", "cases_of_run_part", "describe", "ensemble_of", "open_ensemble"]


@dataclass(frozen=True)
class Ensemble:
    """What a process has to know to segment scans; small, so that it travels with every job.

    Attributes:
        runs: folders of finished runs, or networks from ``kitsseg export``; every one counts the same.
        sha256: of their weights.
        The others: as in ``predict_cohort``.
    """

    runs: tuple[str, ...]
    sha256: tuple[str, ...]
    whole_slices: bool = False
    mirror: bool | None = None
    refine_labels: bool = True
    engine: str | None = None


def ensemble_of(runs, whole_slices=False, mirror=None, refine_labels=True, engine=None):
    """Ensemble of these runs.

    Raises: InputError for an unfinished run, one that is given twice, and options that do not fit.
    """
    paths = tuple(str(Path(run).resolve()) for run in runs)
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise InputError(f"{min(twice)}: this run is given twice. Every run counts once.")
    ensemble = Ensemble(paths, (), whole_slices, mirror, refine_labels, engine)
    sources = [source for _, source, *_ in _parts(ensemble)]
    return replace(ensemble, sha256=tuple(_sha256(getattr(source, "path", source)) for source in sources))


def describe(ensemble):
    """What ``predictions.json`` says about an ensemble; run, paper and split are those of the first run."""
    parts = _parts(ensemble)
    record, _, _, inference, postprocess = parts[0]
    return {
        "kitsseg": __version__,
        "run": ensemble.runs[0],
        "also": list(ensemble.runs[1:]),
        "networks": [
            {
                "recipe": record.get("recipe"),
                "sha256": sha256,
                "preprocess": spec.digest(),
                "inference": asdict(inference),
            }
            for (record, _, spec, inference, _), sha256 in zip(parts, ensemble.sha256, strict=True)
        ],
        "engine": None,
        "inference": {"tile": inference.tile, "mirror_axes": inference.mirror_axes},
        "postprocess": asdict(postprocess) if postprocess else None,
        **{key: record.get(key) for key in ("recipe", "paper", "reported")},
        "split": {"name": record["split"]["name"], "hash": record["split"]["hash"], "part": None},
    }


def open_ensemble(ensemble):
    """Load the networks.

    Returns: (members for ``ensemble_labels``, post-processing of the first run, name of the engine or engines).
    Raises: InputError for a damaged network, or an engine that cannot compute it.
    """
    parts = _parts(ensemble)
    if any(_is_3d(inference) for *_, inference, _ in parts):
        # TensorFlow pools what it has freed and takes ever larger pieces for it: 600 MiB at unet3d's tiles. It looks
        # here before its first tensor. The 2D networks would gain nothing and take a tenth longer
        os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    networks = [
        (open_network(source, ensemble.engine), spec, inference) for _, source, spec, inference, _ in parts
    ]
    engines = list(dict.fromkeys(network.engine for network, *_ in networks))
    return members_of(networks), parts[0][4], ", ".join(engines)


def cases_of_run_part(ensemble, part):
    """Names of the cases in this part of the first run's split.

    Raises: InputError if a run does not say what it was trained on, or another one was trained on some of them.
    """
    wanted = None
    for run, (record, *_) in zip(ensemble.runs, _parts(ensemble), strict=True):
        split = record["split"]
        if "cases" not in split:
            raise InputError(
                f"--part {part}: an exported network does not name the cases of its split {split['name']}. "
                "Predict with the run, or give the scans themselves."
            )
        if wanted is None:
            wanted = split["cases"][part]
        elif part != "train" and (seen := set(wanted) & set(split["cases"]["train"])):
            raise InputError(
                f"--part {part}: expected runs whose training leaves these {len(wanted)} cases out, found {run}, "
                f"which was trained on {len(seen)} of them, such as {min(seen)}. Its figures would flatter."
            )
    return wanted


def _parts(ensemble):
    """(record, file of the weights or Exported, PreprocessSpec, InferenceSpec, post-processing) of each run."""
    return [_part(run, ensemble) for run in map(Path, ensemble.runs)]


def _part(run, ensemble):
    if format_of(run):
        exported = read_exported(run)
        record, source, spec, inference, postprocess = (
            exported.record,
            exported,
            exported.preprocess,
            exported.inference,
            exported.postprocess,
        )
    else:
        record, source, spec, inference, postprocess = finished_run(run)
    if ensemble.whole_slices:
        if _is_3d(inference):
            raise InputError(
                f"--whole-slices: {record['recipe']} is a 3D network; it predicts tiles of volumes only."
            )
        if format_of(run) and inference.tile is not None:
            raise InputError(
                f"--whole-slices: {run} takes windows of {inference.tile} only. Predict with the run."
            )
        inference = replace(inference, tile=None)
    if ensemble.mirror is not None:
        in_plane = (1, 2) if _is_3d(inference) else (0, 1)
        inference = replace(inference, mirror_axes=in_plane if ensemble.mirror else ())
    return record, source, spec, inference, postprocess if ensemble.refine_labels else None


def _is_3d(inference):
    return inference.tile is not None and len(inference.tile) == 3


def _sha256(path):
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
