"""The SLURM files of docs/clusters.md, run by a stand-in for srun, scontrol and sbatch's arrays."""

import os
import re
import shlex
import socket
import subprocess
import sys

import pytest
from support import ROOT

from kitsseg.cli import build_parser, main
from kitsseg.inference.plan import share_of

PAGE = ROOT / "docs" / "clusters.md"
SRUN = """#!/bin/bash
# runs the task once for each of SLURM_NTASKS processes, at the same time; fails if one fails
code=0; pids=()
for ((i = 0; i < ${SLURM_NTASKS:-1}; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
# So many machines fill a pipe. If the job read only the first of them, SIGPIPE would end scontrol, and with it the job.
SCONTROL = "#!/bin/bash\nfor ((i = 0; i < 20000; i++)); do echo localhost; done\n"


def jobs(folder):
    """The files, by the name of their jobs, for a folder instead of /project/kidneys."""
    texts = re.findall(r"^```\n(#!/bin/bash\n.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    found = {}
    for text in texts:
        name = re.search(r"^#SBATCH --job-name=(\S+)$", text, re.M)[1]
        path = folder / f"{name}.sbatch"
        path.write_text(text.replace("/project/kidneys", str(folder)))
        found[name] = path
    return found


def option(path, name):
    found = re.search(rf"^#SBATCH --{name}=(\S+)$", path.read_text(), re.M)
    return found and found[1]


def cluster(folder, kitsseg):
    """Programs of a cluster, and an environment that has ``kitsseg``."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("kitsseg", kitsseg)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)


def submit(path, **environment):
    """Run a file as sbatch does: the jobs of its array one after the other, with the variables that SLURM sets."""
    first, last = map(int, (option(path, "array") or "0-0").split("-"))
    for number in range(first, last + 1):
        tasks = int(option(path, "nodes") or 1) * int(option(path, "ntasks-per-node") or 1)
        slurm = {"SLURM_NTASKS": str(tasks), "SLURM_JOB_NODELIST": "node[1-2]"}
        if option(path, "array"):
            slurm |= {"SLURM_ARRAY_TASK_ID": str(number)}
        done = subprocess.run(
            ["bash", path], env=os.environ | slurm | environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(os.name == "nt", reason="SLURM has no Windows")
def test_the_parts_of_the_jobs_are_all_parts_once(tmp_path):
    """Which commands a cluster would run, each read by the parser of the command line."""
    cluster(tmp_path, '#!/bin/bash\nflock said.lock -c "$(printf "%q " printf "%s\\n" "$*") >> said"\n')
    files = jobs(tmp_path)
    assert list(files) == ["predict", "folds", "train"]
    said = {}
    for name, path in files.items():
        submit(path)
        lines = (tmp_path / "said").read_text().splitlines()
        (tmp_path / "said").unlink()
        said[name] = [build_parser().parse_args(shlex.split(line)) for line in lines]
    scans = {f"case_{i}": None for i in range(21)}
    count = len(said["predict"])
    shared = [name for a in said["predict"] for name in share_of(scans, *a.shard)]
    assert sorted(shared) == sorted(scans)
    assert count == 8
    assert sorted(a.shard for a in said["folds"]) == [(i, 5) for i in range(5)]
    assert sorted(a.process for a in said["train"]) == [(0, 2), (1, 2)]
    assert {a.coordinator for a in said["train"]} == {"localhost:12345"}
    memory = [option(path, "mem") for path in files.values()]
    assert all(memory)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SLURM has no Windows")
def test_the_jobs_run(tmp_path):
    """Tiny recipes and patients; two machines are two processes, on CPUs, of another precision."""
    cluster(tmp_path, f'#!/bin/bash\nexec "{sys.executable}" -m kitsseg "$@"\n')
    assert main(["synthesize", str(tmp_path / "DATA"), "--cases", "12", "--size", "12,64,64"]) == 0
    assert main(["preprocess", "unet2d:tiny", str(tmp_path / "DATA"), str(tmp_path / "CACHE")]) == 0
    files = jobs(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    few = "--batch-size 4 --epochs 1 --steps 2"
    changes = {
        "folds": [
            ("unet2d", "unet2d:tiny"),
            ("--data DATA", "--data DATA --epochs 1"),
            ("0-4", "0-1"),
            ("/5", "/2"),
        ],
        "train": [
            ("wp_unet CACHE RUN", f"unet2d:tiny CACHE RUN {few}"),
            ("mixed_bfloat16", "float32"),
            ("12345", str(port)),
        ],
        "predict": [("0-7", "0-1"), ("/8", "/2")],
    }
    for name in ("train", "predict", "folds"):
        text = files[name].read_text()
        for before, after in changes[name]:
            assert before in text
            text = text.replace(before, after)
        files[name].write_text(text)
        submit(files[name], CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
    assert len(list((tmp_path / "PREDICTIONS").glob("*.nii.gz"))) == 12
    assert len((tmp_path / "PREDICTIONS" / "statistics.csv").read_text().splitlines()) == 13
    assert len(list((tmp_path / "FOLDS").glob("fold-*/model.keras"))) == 5
