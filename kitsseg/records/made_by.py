"""How the label maps of a folder were made, and what differs from how they would be made now, in words of options."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitsseg.files.json_records import as_builtins
from kitsseg.labels.volumes import Cleanup
from kitsseg.records.starter import STARTER, is_starter

__all__ = ["MadeBy", "NetworkUsed", "PartOfSplit", "differences"]

_DIGITS = 8  # of a hash, enough to tell two apart


@dataclass(frozen=True, kw_only=True)
class NetworkUsed:
    """A network that made label maps: its recipe, the SHA-256 of its weights, how it was used, and in which precision.

    An exported file has a precision of its own; here it is float32.
    """

    recipe: str | None = None
    sha256: str
    preprocess: str | None = None
    inference: dict[str, Any]
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class PartOfSplit:
    """The split of the first run, and the part of it that was predicted; None if no single part was chosen."""

    name: str | None
    hash: str | None
    part: str | None


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """The networks and settings that made the label maps of a folder.

    Attributes:
        kitsseg: its version.
        run: the first run, or exported network.
        also: the other runs of an ensemble.
        engine: the engine that computed the networks; None if it is not known yet.
        inference, postprocess: of the first run.
        cleanup: the pieces that the user asked to be removed afterwards; None: nothing.
        recipe, paper, reported: of the first run.
    """

    kitsseg: str
    run: str
    also: list[str] = field(default_factory=list)
    networks: list[NetworkUsed]
    engine: str | None
    inference: dict[str, Any]
    postprocess: dict[str, Any] | None
    cleanup: Cleanup | None = None
    recipe: str | None = None
    paper: str | None = None
    reported: dict[str, Any] | None = None
    split: PartOfSplit


def differences(there: MadeBy, here: MadeBy) -> list[tuple[str, str]]:
    """What differs between two ways of making label maps: (how it was before, how it is now), in words.

    Networks that differ bring settings of their own; these are left out then. An engine of None agrees with any.

    Args:
        there: how the label maps of a folder were made.
        here: how they would be made now.
    """
    return list(dict.fromkeys(_differences(there, here)))


def _differences(there: MadeBy, here: MadeBy) -> Iterator[tuple[str, str]]:
    if there.kitsseg != here.kitsseg:
        yield f"with kitsseg {there.kitsseg}", f"with kitsseg {here.kitsseg}"
    before, now = ([network.sha256 for network in made.networks] for made in (there, here))
    if before != now:
        yield _networks(there, here)
    else:
        yield from _of_same_networks(there, here)
    if there.engine != here.engine and None not in (there.engine, here.engine):
        yield _engine(there.engine), _engine(here.engine)
    if there.cleanup != here.cleanup:
        one, other = there.cleanup or Cleanup(), here.cleanup or Cleanup()
        if one.remove_small_mm3 != other.remove_small_mm3:
            yield _remove_small(one), _remove_small(other)
        if one.tumors_on_kidneys != other.tumors_on_kidneys:
            yield _tumors_on_kidneys(one), _tumors_on_kidneys(other)


def _networks(there: MadeBy, here: MadeBy) -> tuple[str, str]:
    """The networks of both, with the hashes of their weights where the names are the same."""
    before, now = ([_network_name(run) for run in (made.run, *made.also)] for made in (there, here))
    if before == now:
        before, now = (
            [
                f"{name} (weights {used.sha256[:_DIGITS]})"
                for name, used in zip(names, made.networks, strict=False)
            ]
            for names, made in ((before, there), (now, here))
        )
    return f"with {', '.join(before)}", f"with {', '.join(now)}"


def _network_name(run: str) -> str:
    """A network as a user knows it, by the end of the path that a record has."""
    return STARTER if is_starter(run) else str(Path(*Path(run).parts[-2:]))


def _of_same_networks(there: MadeBy, here: MadeBy) -> Iterator[tuple[str, str]]:
    for one, other in zip(there.networks, here.networks, strict=True):
        if one.precision != other.precision:
            yield f"with --precision {one.precision}", f"with --precision {other.precision}"
        if one.recipe != other.recipe:
            yield f"as recipe {one.recipe}", f"as recipe {other.recipe}"
        if one.preprocess != other.preprocess:
            yield f"with preprocessing {one.preprocess}", f"with preprocessing {other.preprocess}"
        yield from _inference(one.inference, other.inference)
    yield from _inference(there.inference, here.inference)
    before, now = as_builtins(there.postprocess), as_builtins(here.postprocess)
    if before != now:
        if None in (before, now):
            yield _switch("postprocess", before), _switch("postprocess", now)
        else:
            yield f"with post-processing {before}", f"with post-processing {now}"


def _inference(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    before, now = as_builtins(before), as_builtins(now)
    for name in dict.fromkeys([*before, *now]):
        one, other = before.get(name), now.get(name)
        if not (name in before and name in now):  # a record of a version that knew no such setting
            yield _known(name, before), _known(name, now)
        elif one == other:
            continue
        elif name == "tile":
            yield _tile(one), _tile(other)
        elif name == "mirror_axes" and bool(one) != bool(other):
            yield _mirror(one), _mirror(other)
        elif name == "coarse":
            yield _switch("coarse", one), _switch("coarse", other)
        else:
            yield f"with {name} {one}", f"with {name} {other}"


def _known(name: str, settings: Mapping[str, Any]) -> str:
    return f"with {name} {settings[name]}" if name in settings else f"without a setting {name}"


def _tile(tile: Any) -> str:
    return f"in tiles of {' x '.join(map(str, tile))}" if tile else "with --whole-slices"


def _mirror(axes: Any) -> str:
    return "with --mirror" if axes else "with --no-mirror"


def _switch(option: str, value: Any) -> str:
    return f"with --{option} {'on' if value else 'off'}"


def _engine(engine: str | None) -> str:
    # several engines of one folder, or one in a lower precision, are no value of the option
    return f"with --engine {engine}" if engine and engine.isalnum() else f"with {engine}"


def _remove_small(cleanup: Cleanup) -> str:
    mm3 = cleanup.remove_small_mm3
    return f"with --remove-small {mm3:.15g}" if mm3 else "without --remove-small"


def _tumors_on_kidneys(cleanup: Cleanup) -> str:
    return f"{'with' if cleanup.tumors_on_kidneys else 'without'} --tumors-on-kidneys"
