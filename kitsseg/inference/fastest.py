"""``--engine auto``: the engine that computes a network fastest on this machine, among those that give equal labels.

Each engine that can compute the network computes one slice, or one tile of a 3D network, of the first scan. Its labels
on a few slices are compared with the labels of the default engine. The choice is kept beside the network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec

from kitsseg.errors import InputError
from kitsseg.inference.engines import ENGINE_PACKAGES, OF_ONNX
from kitsseg.inference.ensemble import Ensemble, open_ensemble
from kitsseg.inference.same_labels import View, compared, geometry_of, labels_of, parts_of
from kitsseg.records.engine_choice import EngineChoice, keep_choice, kept_choice, this_machine
from kitsseg.records.exported import Exported
from kitsseg.records.networks import FinishedRun, TrainedNetwork, has_quick_start, quick_start_of

__all__ = ["AUTO", "as_known", "check_options", "choices_of", "measure"]

AUTO = "auto"
LEAST = 0.999  # Dice between the labels of two engines in float32
ROUNDS = 3

# (run, hash of its weights) -> what this process knows; None where one engine alone can compute the network
_choices: dict[tuple[str, str], EngineChoice | None] = {}


def check_options(precision: str, scheduler: str | None) -> None:
    """Refuse options with which there is no choice.

    Raises: InputError.
    """
    if precision != "float32":
        raise InputError(
            f"--engine auto: it compares engines in float32, found --precision {precision}. Name the engine, such as "
            "openvino or tensorflow."
        )
    if scheduler:
        raise InputError(
            "--engine auto: the workers of a cluster may differ, and a folder of label maps has one engine. Name one."
        )


def as_known(ensemble: Ensemble) -> Ensemble:
    """The ensemble with the engines that were chosen for its networks on this machine before.

    Returns: the ensemble unchanged if one of its networks was never measured here.
    """
    for alone in ensemble.single_networks():
        [run], [network], [sha256] = alone.runs, alone.networks, alone.sha256
        if (run, sha256) not in _choices:
            choice = None
            if len(_candidates(network)) > 1:
                choice = kept_choice(run, sha256, _versions(network))
                if choice is None:
                    return ensemble
            _choices[run, sha256] = choice
    return _as_chosen(ensemble, _choices)


def measure(ensemble: Ensemble, views: Sequence[View]) -> None:
    """Find out the fastest engine for each network where ``as_known`` does not know it, and keep it for ``as_known``.

    In a scan where no engine finds anything, nothing can be compared. The default is chosen then, for this process.

    Args:
        ensemble: whose engine is ``AUTO``.
        views: a scan, or a few single slices, of which the first one is timed.

    Raises: InputError if the default engine cannot compute a network.
    """
    for alone in ensemble.single_networks():
        [run], [sha256] = alone.runs, alone.sha256
        if (run, sha256) not in _choices:
            choice, told = _measured(alone, views)
            _choices[run, sha256] = choice
            if told:
                keep_choice(run, choice)


def choices_of(ensemble: Ensemble) -> Iterator[str]:
    """A sentence about the engine of each network, as far as it was chosen."""
    for run, sha256 in zip(ensemble.runs, ensemble.sha256, strict=True):
        if (run, sha256) in _choices:
            yield f"{run}: {_choices[run, sha256] or 'only one of the installed engines can compute it'}"


def _as_chosen(ensemble: Ensemble, choices: Mapping[tuple[str, str], EngineChoice | None]) -> Ensemble:
    found = [choices[key] for key in zip(ensemble.runs, ensemble.sha256, strict=True)]
    engines = [choice.engine if choice else None for choice in found]
    networks = [
        quick_start_of(network) if engine in OF_ONNX and isinstance(network, FinishedRun) else network
        for network, engine in zip(ensemble.networks, engines, strict=True)
    ]
    return replace(ensemble, networks=tuple(networks), engine=None, engines=tuple(engines))


def _engines(network: TrainedNetwork) -> list[str | None]:
    """The engines that can compute a network here; the first is the default, None for that of Keras' backend."""
    installed: list[str | None] = [name for name in OF_ONNX if find_spec(name) is not None]
    if isinstance(network, FinishedRun):
        return [None, *installed] if has_quick_start(network) else [None]
    source = network.source
    if isinstance(source, Exported) and source.format == "onnx" and installed:
        return installed
    return [None]


def _candidates(network: TrainedNetwork) -> list[tuple[str | None, TrainedNetwork]]:
    """(engine, network as the engine computes it) for each of ``_engines``."""
    default, *others = _engines(network)
    # the file is read whole for its checksum: once, however many engines compute it
    other = quick_start_of(network) if others and isinstance(network, FinishedRun) else network
    return [(default, network), *((name, other) for name in others)]


def _versions(network: TrainedNetwork) -> dict[str, str]:
    packages = [ENGINE_PACKAGES[name] for name in _engines(network) if name]
    if isinstance(network, FinishedRun):
        packages += ["keras", "tensorflow"]
    return {package: metadata.version(package) for package in packages}


def _measured(alone: Ensemble, views: Sequence[View]) -> tuple[EngineChoice, bool]:
    """(the choice, whether labels were compared: in a scan without kidneys nothing is, and the default is chosen)."""
    [network], [sha256] = alone.networks, alone.sha256
    milliseconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    first = None
    told = True
    for engine, computed in _candidates(network):
        one = replace(alone, networks=(computed,), engine=engine)
        try:
            [member], _, name = open_ensemble(one)
        except InputError as error:
            if first is None:
                raise
            refused[str(engine)] = str(error)
            continue
        image = views[0].image
        parts = list(parts_of(geometry_of(views[0], member), member))
        part = parts[len(parts) // 2]
        labels_of(image, part, member)  # the first call plans and compiles
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            labels_of(image, part, member)
            times.append(time.perf_counter() - started)
        milliseconds[name] = round(1000 * min(times), 2)
        if first is None:
            first = member
            continue
        _, tk, tu = compared(views, first, member)
        if tk is None:
            told = False
            refused[name] = "neither engine finds anything on the slices that are compared"
        elif min(tk, 1.0 if tu is None else tu) < LEAST:
            tumor = "" if tu is None else f", {tu:.4f} of tumor"
            refused[name] = f"Dice {tk:.4f} of kidney with tumor{tumor} with the default's labels"
    fastest = min((name for name in milliseconds if name not in refused), key=milliseconds.__getitem__)
    choice = EngineChoice(
        machine=this_machine(),
        versions=_versions(network),
        weights_sha256=sha256,
        engine=fastest,
        milliseconds=milliseconds,
        refused=refused,
    )
    return choice, told
