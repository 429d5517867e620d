"""From scans to label maps on the scans' own voxels, with the network of a finished run."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from kitsseg import __version__
from kitsseg.atomic import atomic_path
from kitsseg.data.cases import IMAGE_NAMES, find_cases, prediction_name
from kitsseg.data.geometry import labels_on_scan, plan_geometry
from kitsseg.data.nifti import is_phantom, read_image
from kitsseg.data.nifti_writer import write_labels
from kitsseg.data.planes import network_planes, normalize
from kitsseg.errors import InputError
from kitsseg.networks import read_network
from kitsseg.postprocess import refine
from kitsseg.run import finished_run
from kitsseg.scores import score_case
from kitsseg.sliding_window import slice_probabilities
from kitsseg.volume_tiles import volume_probabilities

__all__ = ["find_scans", "load_network", "predict_cases", "predict_labels", "probabilities_of"]


def predict_cases(
    run, inputs, out, part=None, whole_slices=False, mirror=None, refine_labels=True, progress=None
):
    """Segment scans and write one label map each.

    Args:
        run: folder of a finished run.
        inputs: scans (``.nii``, ``.nii.gz``), case folders, or folders of cases.
        out: folder for the label maps, named as KiTS19 asks for them, and for ``predictions.json``.
        part: "train", "validation" or "test": only those of the scans that are in this part of the run's split.
        whole_slices: take slices in one piece even where the recipe states overlapping tiles; about three times
            faster, slightly different at the tiles' borders.
        mirror: True or False overrides the recipe's test-time mirroring.
        refine_labels: False leaves the recipe's post-processing out.
        progress: called as progress(description, done, total).

    Returns: paths written, in order.
    Raises: InputError for an unfinished run or a bad scan; label maps written before it stay.
    """
    scans = find_scans(inputs)
    record, weights, spec, inference, postprocess = finished_run(run)
    if not refine_labels:
        postprocess = None
    if part is not None:
        scans = _only_part(scans, record["split"], part)
    if whole_slices:
        if inference.margin is not None:
            raise InputError(
                f"--whole-slices: {record['recipe']} is a 3D network; it predicts tiles of volumes only."
            )
        inference = replace(inference, tile=None)
    if mirror is not None:
        inference = replace(inference, mirror_axes=(0, 1) if mirror else ())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if progress:
        progress("load the network", 0, len(scans))
    predict = load_network(weights)
    split = {"name": record["split"]["name"], "hash": record["split"]["hash"], "part": part}
    summary = {
        "kitsseg": __version__,
        "run": str(Path(run).resolve()),
        "inference": {"tile": inference.tile, "mirror_axes": inference.mirror_axes},
        "postprocess": asdict(postprocess) if postprocess else None,
        **{key: record.get(key) for key in ("recipe", "paper", "reported")},
        "split": split,
        "phantom": False,
        "cases": {},
    }
    written = []
    for index, (name, path) in enumerate(scans.items()):
        started = time.monotonic()
        image = read_image(path)

        def within(done, total, index=index, name=name):
            if progress:
                progress(f"predict {name}", index + done / total, len(scans))

        labels = predict_labels(
            image.array, image.grid.spacing_mm, predict, spec, inference, postprocess, within
        )
        target = out / prediction_name(name)
        write_labels(target, labels, image.grid)
        written.append(target)
        summary["phantom"] = summary["phantom"] or is_phantom(image.grid.header)
        summary["cases"][name] = {
            "file": target.name,
            "image": str(path.resolve()),
            "seconds": round(time.monotonic() - started, 2),
        }
        with atomic_path(out / "predictions.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n")
    return written


def predict_labels(image, spacing_mm, predict, spec, inference, postprocess=None, progress=None):
    """Segment one scan in memory; one slice of probabilities exists at a time.

    Args:
        image: (slices, rows, columns) int16 HU in KiTS axes. spacing_mm: of its voxels.
        predict: from (batch, rows, columns, channels) to class probabilities of the same size.
        spec, inference, postprocess: of the recipe.
        progress: called as progress(done, total) in slices.

    Returns: uint8 labels of the shape of ``image``.
    """
    geometry = plan_geometry(image, spacing_mm, spec)
    planes = network_planes(image, geometry, spec)
    labels = labels_on_scan(
        probabilities_of(planes, geometry.shape, predict, spec, inference), geometry, progress
    )
    return refine(labels, spacing_mm, postprocess)


def probabilities_of(planes, shape, predict, spec, inference):
    """Yield the class probabilities (rows, columns, classes) of each slice.

    Args:
        planes: the slices in order, as ``network_planes`` yields them or the cache holds them.
        shape: (slices, rows, columns) of them together.
        predict, spec, inference: as in ``predict_labels``.
    """
    if inference.margin is None:
        for plane in planes:
            yield slice_probabilities(normalize(plane, spec), predict, inference)
        return
    volume = np.empty(shape, np.int16)
    for k, plane in enumerate(planes):
        volume[k] = plane
    yield from volume_probabilities(
        volume, lambda hu: normalize(hu, spec), predict, inference.tile, inference.margin, spec.hu_window[0]
    )


def load_network(weights):
    """The network of a run as a function from a batch of inputs to softmax probabilities (NumPy, float32)."""
    try:
        network = read_network(weights)
    except (ValueError, OSError, TypeError) as error:
        raise InputError(
            f"{weights}: not a network that this version can read ({error}). Train again."
        ) from error
    return as_probabilities(network)


def as_probabilities(network):
    """A Keras network as a function from a batch of inputs to the softmax of its last output (NumPy, float32)."""
    import keras

    logits = network.outputs[-1]  # with deep supervision the last output is the full-size one
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(network.input, probabilities).predict_on_batch


def score_cached_cases(cases, predict, spec, inference, postprocess):
    """Mean TK and TU Dice and composite over whole cached cases, on the grid of the cache.

    Args:
        cases: CachedCase of each. The other arguments: as in ``predict_labels``.

    Returns: {"tk", "tu", "composite"}; figures to compare epochs or rounds by, not official scores.
    """
    scores = []
    for case in cases:
        shape, spacing = case.geometry.shape, case.geometry.spacing_mm
        labels = np.empty(shape, np.uint8)
        for k, plane in enumerate(probabilities_of(iter(case.image), shape, predict, spec, inference)):
            labels[k] = plane.argmax(axis=-1)
        truth = np.stack([case.labels(k) for k in range(shape[0])])
        score = score_case(refine(labels, spacing, postprocess), truth, spacing)
        scores.append((score["tk_dice"], score["tu_dice"], score["composite"]))
    return dict(zip(("tk", "tu", "composite"), np.mean(scores, axis=0).tolist(), strict=True))


def _only_part(scans, split, part):
    wanted = split["cases"][part]
    chosen = {name: path for name, path in scans.items() if name in wanted}
    if not chosen:
        raise InputError(
            f"--part {part}: expected some of the {len(wanted)} {part} cases of split {split['name']}, "
            f"found none among {len(scans)} scans. Give the folder the run was trained on."
        )
    return chosen


def find_scans(inputs):
    """Scans by case name.

    Args:
        inputs: files, case folders, folders of cases.

    Raises: InputError for a name that comes up twice; FileNotFoundError.
    """
    scans = {}
    for item in map(Path, inputs):
        if item.is_dir():
            found = [(case.name, case.image) for case in find_cases(item, need_labels=False)]
        elif item.exists():
            name = item.resolve().parent.name if item.name in IMAGE_NAMES else item.name
            found = [(name.removesuffix(".gz").removesuffix(".nii"), item)]
        else:
            raise InputError(
                f"{item}: expected a scan or a folder of cases, found nothing there. Check the path."
            )
        for name, path in found:
            if name in scans:
                raise InputError(
                    f"{path}: a second scan called {name} beside {scans[name]}. Rename one of them."
                )
            scans[name] = path
    return scans
