"""kitsseg info, completion, recipes --json, --quiet: what they say, and what they need not import."""

import json
import subprocess
import sys

import pytest
from support.cases import make_case

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.runtime import hardware
from kitsseg.runtime.console import console
from kitsseg.version import __version__


def test_info_says_versions_and_engines_without_tensorflow(tmp_path):
    script = (
        "import sys; from kitsseg.cli import main\n"
        "code = main(['info'])\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (__version__, "engine litert", "extra dicom", "NVIDIA devices"):
        assert words in done.stdout


def test_recipes_as_json_name_every_edition_and_setting(capsys):
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == recipes.names()
    for entry in listed:
        names = [*entry["editions"], *(variant["name"] for variant in entry["variants"])]
        assert all(recipes.get(name) for name in names)
    assert main(["recipes", "show", "unet2d", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    setting = shown["settings"]["phases.train.learning_rate"]
    assert setting["value"] == recipes.get("unet2d").phases[0].learning_rate
    assert setting["evidence"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("cross-validate", "--dicom-seg", "--dry-run"):
        assert word in script


def test_quiet_says_warnings_only_and_to_stderr(trained, tmp_path, capsys):
    make_case(tmp_path / "case_1")
    arguments = [
        "predict",
        str(trained.run),
        str(tmp_path / "case_1"),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "KiTS19" in said.err  # a scan of 24 mm is like none of it
    assert not console.quiet
    assert (tmp_path / "out" / "prediction_1.nii.gz").is_file()


def test_a_gpu_that_goes_unused_is_said_loudly(monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind=None: [])
    monkeypatch.setattr(hardware, "nvidia_devices", lambda: ["Tesla T4", "Tesla T4"])
    said = hardware.unused_gpu_warning()
    assert said.startswith("warning: ") and "ONLY THE CPU" in said
    assert "2 NVIDIA devices (Tesla T4)" in said
    assert "on the CPU, float32" in hardware.computing_line("float32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # the user wants the CPU: no warning
    assert hardware.unused_gpu_warning() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(hardware, "nvidia_devices", list)
    assert hardware.unused_gpu_warning() is None


@pytest.mark.parametrize(("there", "said"), [(["cpu:0"], "the CPU"), (["gpu:0", "gpu:1"], "2 of 2 GPUs")])
def test_jax_is_not_asked_for_gpus_that_it_may_not_have(there, said, monkeypatch):
    """JAX raises an error if it is asked for GPUs that do not exist.

    This error once ended a training on a CPU at its first batch.
    """
    keras = pytest.importorskip("keras")

    def list_devices(kind=None):
        if kind and not any(name.startswith(kind) for name in there):
            raise RuntimeError(f"Unknown backend: {kind!r} requested")
        return there

    monkeypatch.setattr(keras.distribution, "list_devices", list_devices)
    monkeypatch.setattr(hardware, "nvidia_devices", list)
    assert f"computes on {said}, float32" in hardware.computing_line("float32", 2)
    assert hardware.unused_gpu_warning() is None
    assert len(hardware.gpus_of_backend()) == len(there) - (said == "the CPU")


def test_devices_are_named_by_the_driver(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4'\necho 'NVIDIA L4'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.nvidia_devices() == ["NVIDIA L4", "NVIDIA L4"]
