"""Commands about the installation: kitsseg info, completion."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from kitsseg.commands.arguments import AddCommand
from kitsseg.errors import InputError

__all__ = ["add"]

# engine -> the module it needs; the package to install
ENGINE_MODULES = {
    "tensorflow": ("tensorflow", "tensorflow"),
    "keras on jax": ("jax", "jax"),
    "litert": ("ai_edge_litert", "ai-edge-litert"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
}
EXTRAS = {
    "dicom": ("pydicom", "highdicom"),
    "cluster": ("distributed",),
    "compress": ("blosc2",),
    "fast": ("isal",),
    "plot": ("matplotlib",),
    "completion": ("shtab",),
}
SHELLS = ("bash", "zsh", "tcsh")


def add(command: AddCommand) -> None:
    sub = command("info", _info, "versions, engines and devices of this installation")
    sub.add_argument(
        "--devices",
        action="store_true",
        help="also the devices that Keras finds; this imports its backend (several seconds)",
    )
    sub = command(
        "completion", _completion, "print a script by which a shell completes kitsseg's commands and options"
    )
    sub.add_argument("shell", choices=SHELLS, help="which shell")


def _info(arguments: argparse.Namespace) -> None:
    from rich.table import Table
    from rich.text import Text

    from kitsseg.records.run import versions
    from kitsseg.runtime.console import print_table
    from kitsseg.runtime.hardware import nvidia_devices

    table = Table("", "", show_header=False)

    def row(name: str, value: str) -> None:
        table.add_row(Text(name), Text(value))

    for name, version in versions().items():
        row(name, version)
    for engine, (module, package) in ENGINE_MODULES.items():
        there = find_spec(module) is not None
        row(f"engine {engine}", _version(package) if there else f"missing: pip install {package}")
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if find_spec(package) is None]
        found = ", ".join(f"{package} {_version(package)}" for package in packages if package not in missing)
        lacks = f'missing {", ".join(missing)}: pip install "kitsseg[{extra}]"' if missing else ""
        row(f"extra {extra}", "; ".join(part for part in (found, lacks) if part))
    row("NVIDIA devices", ", ".join(nvidia_devices()) or "none")
    if arguments.devices:
        for name, value in _seen_by_keras():
            row(name, value)
    print_table(table)


def _seen_by_keras() -> list[tuple[str, str]]:
    from kitsseg.runtime.hardware import computing_line, unused_gpu_warning
    from kitsseg.runtime.start_keras import start_keras

    started = time.monotonic()
    start_keras()
    import keras

    devices = ", ".join(keras.distribution.list_devices()) or "none"
    seconds = time.monotonic() - started
    found = [(f"Keras sees ({seconds:.1f} s to import)", devices), ("Keras", computing_line("float32"))]
    text = unused_gpu_warning()
    return [*found, ("GPU", text.removeprefix("warning: "))] if text else found


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "there"


def _completion(arguments: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise InputError(
            f"completion: the package shtab is missing ({error}). Install it with: pip install shtab"
        ) from error
    root: argparse.ArgumentParser = arguments.root_parser
    for parser in _all_parsers(root):
        for action in parser._actions:
            if action.type is Path or action.dest in ("run", "inputs", "also"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # as shtab wants it
    sys.stdout.write(shtab.complete(root, arguments.shell) + "\n")


def _all_parsers(root: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parser and those of its commands."""
    groups = [action for action in root._actions if isinstance(action, argparse._SubParsersAction)]
    return [root, *(parser for group in groups for parser in group.choices.values())]
