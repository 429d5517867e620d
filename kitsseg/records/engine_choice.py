"""``engines.json`` beside a network: which engine computes it fastest on a machine, found out once for each machine."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.files.json_records import read_record, write_record
from kitsseg.version import __version__

__all__ = ["EngineChoice", "keep_choice", "kept_choice", "this_machine"]

FILE = "engines.json"
MOST = 50  # machines; the oldest entries are dropped


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine that was fastest for a network, of those whose labels agreed with the labels of the first.

    Attributes:
        machine: of ``this_machine``.
        versions: package -> version, of every engine that was tried.
        weights_sha256: of the network.
        engine: the fastest.
        milliseconds: engine -> time of one slice (3D: tile) of the scan, its preprocessing included.
        refused: engine -> why its labels were not taken.
    """

    machine: str
    versions: dict[str, str]
    weights_sha256: str
    engine: str
    milliseconds: dict[str, float]
    refused: dict[str, str]
    kitsseg: str = __version__

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time:.0f} ms" for name, time in self.milliseconds.items())
        others = "".join(f"; {name} is left out: {why}" for name, why in self.refused.items())
        return f"fastest here is {self.engine} ({times} a slice or tile){others}"


@dataclass(frozen=True, kw_only=True)
class _Choices:
    choices: tuple[EngineChoice, ...]
    version: int = 1


def this_machine() -> str:
    """Name of the CPU, and the number of CPUs that this process may use."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {count} CPUs"


def kept_choice(
    network: str | os.PathLike[str], weights_sha256: str, versions: dict[str, str]
) -> EngineChoice | None:
    """The choice that was kept beside a network for this machine; None without one.

    Args:
        network: folder of a run, or file of an exported network.
        weights_sha256: of the network.
        versions: package -> version, of every engine that could be tried now.

    Raises: InputError for a damaged file.
    """
    wanted = (this_machine(), weights_sha256, versions, __version__)
    for choice in _read(network):
        if (choice.machine, choice.weights_sha256, choice.versions, choice.kitsseg) == wanted:
            return choice
    return None


def keep_choice(network: str | os.PathLike[str], choice: EngineChoice) -> None:
    """Keep a choice beside a network. Where nobody may write there, the next call finds out anew.

    Args:
        network: as in ``kept_choice``.
        choice: replaces an earlier one of the same machine.
    """
    others = [one for one in _read(network) if one.machine != choice.machine]
    with suppress(OSError):
        write_record(_file(network), _Choices(choices=(*others[1 - MOST :], choice)))


def _read(network: str | os.PathLike[str]) -> tuple[EngineChoice, ...]:
    path = _file(network)
    try:
        return read_record(path, _Choices, "the fastest engines of a network", "Remove that file.").choices
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except PermissionError as error:
        raise InputError(f"{path}: may not be read. Give the right to read it, or name an engine.") from error


def _file(network: str | os.PathLike[str]) -> Path:
    path = Path(network)
    exported = path.is_file() or (path / "saved_model.pb").is_file()
    return path.with_name(f"{path.name}.{FILE}") if exported else path / FILE
