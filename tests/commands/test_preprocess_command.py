"""kitsseg preprocess with several processes, compressed, stopped in the middle; kitsseg statistics."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.cases import make_case
from support.processes import contents, hidden, start, stop_when

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.cache import build
from kitsseg.data.cache import plan as cache_size
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.data.splits import make_split

CASES = [f"case_{i:05d}" for i in range(6)]
SPEC = recipes.get("unet2d:tiny").preprocess


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Cases that take a moment each, and what preprocessing in one process makes of them."""
    folder = tmp_path_factory.mktemp("larger")
    for i, name in enumerate(CASES):
        make_case(folder / "data" / name, (40, 200, 200), seed=i)
    assert main(["preprocess", "unet2d:tiny", str(folder / "data"), str(folder / "whole")]) == 0
    return folder


def test_a_scheduler_stands_instead_of_processes_and_never_beside_a_host(capsys, tmp_path):
    words = [
        "preprocess",
        "unet2d:tiny",
        str(tmp_path / "data"),
        str(tmp_path / "cache"),
        "--scheduler",
        "tcp://x:1",
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--workers", "2"])
    assert stopped.value.code == 2
    assert main([*words, "--from-host"]) == 1
    refused, said = capsys.readouterr().err.splitlines()
    assert "--scheduler" in refused and "--workers" in refused
    assert said.startswith("kitsseg: --scheduler: ") and "--from-host" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_two_processes_stopped_in_the_middle(number, larger):
    """The signal goes to the command alone. Its worker processes end too, and every case that remains is whole."""
    cache = larger / f"cache-{number}"
    (whole,) = (larger / "whole").iterdir()
    folder = cache / whole.name
    process = start(
        ["-m", "kitsseg", "preprocess", "unet2d:tiny", "data", cache.name, "--workers", "2"], larger
    )

    def in_a_later_case():
        return any(folder.glob("case_*/case.json")) and any(folder.glob(".case_*"))

    code, out, err = stop_when(process, in_a_later_case, number)
    if number == signal.SIGKILL:
        # each worker finishes the case that it works on, and then ends
        assert code == -signal.SIGKILL
        last = time.monotonic() + 30
        while hidden(cache) and time.monotonic() < last:
            time.sleep(0.05)
    else:
        line = r"kitsseg: interrupted; [^\n]*finished[^\n]*\n"
        assert (code, out) == (130, "") and re.fullmatch(line, err), err
    assert not hidden(cache)
    time.sleep(0.3)
    done = sorted(path.name for path in folder.glob("case_*"))
    assert 1 <= len(done) < len(CASES)
    assert list(open_cache(cache, SPEC)) == done
    assert contents(folder, done) == contents(whole, done)
    assert main(["preprocess", "unet2d:tiny", str(larger / "data"), str(cache)]) == 0
    assert contents(folder, CASES) == contents(whole, CASES)


def test_neither_the_command_nor_its_processes_import_tensorflow(data, tmp_path):
    """Fake packages of these names come first on the path. Each of them writes a file when a process imports it."""
    for name in ("tensorflow", "keras", "jax", "torch"):
        folder = tmp_path / "path" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(
            f"import os, pathlib\npathlib.Path({str(tmp_path)!r}, f'{name}-{{os.getpid()}}').touch()\n"
        )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "path")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kitsseg",
            "preprocess",
            "unet2d",
            str(data),
            str(tmp_path / "c"),
            "--workers=2",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "preprocessed 9 cases" in done.stdout
    assert not [path.name for path in tmp_path.iterdir() if "-" in path.name]
    subprocess.run([sys.executable, "-c", "import keras"], env=environment, check=True)
    assert [path.name for path in tmp_path.glob("keras-*")]  # the fake package did notice the import


def test_compressed_from_the_command_line(data, tmp_path, capsys):
    pytest.importorskip("blosc2")
    arguments = ["preprocess", "unet2d:tiny", str(data), str(tmp_path / "cache")]
    assert main([*arguments, "--compress"]) == 0
    capsys.readouterr()
    case = open_cache(tmp_path / "cache", SPEC)["case_00000"]
    assert (case.folder / "image.blosc2").is_file()
    assert main(arguments) == 1
    assert re.search(r"was compressed.*Go on with --compress", capsys.readouterr().err)


def test_a_large_cache_is_announced(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache_size, "LABEL_SHARE", 2000)
    monkeypatch.setattr(cache_size, "free_bytes", lambda folder: 3_210_000_000)
    # 8 slices, rows and columns of 0.8 mm to 3 mm: 40 * 0.8 / 3 = 10.7, 48 * 0.8 / 3 = 12.8; 8 * 11 * 13 voxels
    size = 9 * (8 * 11 * 13 * 2002) / 1e6
    assert size > 20
    for case in ("case_00000", "case_00001"):
        make_case(data / case, (60, 80, 96))  # 60 * 21 * 26 voxels
    assert main(["preprocess", "unet2d:tiny", str(data), str(tmp_path / "cache")]) == 0
    size = (7 * 8 * 11 * 13 + 2 * 60 * 21 * 26) * 2002 / 1e6
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"9 cases, about {size:.1f} MB at most (free: 3.2 GB) in {tmp_path / 'cache'}"


def test_a_disk_that_is_too_small(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache_size, "free_bytes", lambda folder: 1000)
    assert main(["preprocess", "unet2d:tiny", str(data), str(tmp_path / "cache")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "9 cases need about 0.0 MB of disk, found 0.0 MB free. Free some space" in err
    assert not (tmp_path / "cache").exists()


def test_statistics_of_the_training_cases(data, tmp_path, capsys):
    cache = str(tmp_path / "cache")
    assert main(["preprocess", "unet2d:tiny", str(data), cache]) == 0
    capsys.readouterr()
    assert main(["statistics", "unet2d:tiny", cache]) == 0
    lines = capsys.readouterr().out.splitlines()
    split = make_split([f"case_{i:05d}" for i in range(9)])
    values = np.concatenate(
        [
            read_image(data / name / "imaging.nii.gz").array[
                read_labels(data / name / "segmentation.nii.gz").array > 0
            ]
            for name in split.train
        ]
    )
    assert re.match(
        rf"HU of {values.size} voxels .*kidney and tumor in {len(split.train)} training cases$", lines[1]
    )
    low, high = np.percentile(values, [0.5, 99.5])
    assert [line.split()[-2:] for line in lines[3:7]] == [
        [f"{low:.2f}", "-79.00"],
        [f"{high:.2f}", "304.00"],
        [f"{values.mean():.2f}", "101.00"],
        [f"{values.std():.2f}", "76.90"],
    ]
    assert "the recipe's values" in lines[7]
    assert main(["preprocess", "squeeze_unet:tiny", str(data), cache]) == 0
    capsys.readouterr()
    assert main(["statistics", "squeeze_unet:tiny", cache, "--split", "80-10-10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[-1] == "none"  # it has no single channel of HU


def test_statistics_of_a_cache_with_given_settings(data, tmp_path, capsys):
    cache, given = str(tmp_path / "cache"), ["--set", "preprocess.hu_window=-100,200"]
    assert main(["preprocess", "unet2d:tiny", str(data), cache, *given]) == 0
    capsys.readouterr()
    assert main(["statistics", "unet2d:tiny", cache]) == 1  # the recipe's own cache was never made
    assert "Traceback" not in capsys.readouterr().err
    assert main(["statistics", "unet2d:tiny", cache, *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[3:5]] == ["-100.00", "200.00"]
    assert main(["statistics", "unet2d:tiny", cache, "--set", "model.n_pools=3"]) == 1
    assert re.search(r"--set model\.n_pools: .*preprocess only", capsys.readouterr().err)


def test_what_a_folder_lacks_is_warned_of_once(tmp_path, capsys, monkeypatch):
    """The plan that the command shows is the plan that it carries out: the folder is searched once."""
    searches = []
    found = build.find_cases
    monkeypatch.setattr(build, "find_cases", lambda *a, **k: searches.append(a) or found(*a, **k))
    for name in CASES[:2]:
        make_case(tmp_path / "data" / name)
    for name in CASES[3:5]:
        (tmp_path / "data" / name).mkdir()
    assert main(["preprocess", "unet2d:tiny", str(tmp_path / "data"), str(tmp_path / "cache")]) == 0
    text = "".join(capsys.readouterr())
    assert len(re.findall(rf"{CASES[3]} and 1 more: no files.*left out", text)) == 1
    assert len(searches) == 1
    raw = tmp_path / "raw"
    for kind, file, ending in (("imagesTr", "imaging", "_0000"), ("labelsTr", "segmentation", "")):
        (raw / kind).mkdir(parents=True)
        for name in CASES[:2]:
            source = tmp_path / "data" / name / f"{file}.nii.gz"
            source.rename(raw / kind / f"{name}{ending}.nii.gz")
    labels = {"background": 0, "kidney": 1, "tumor": 2}
    record = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(record))
    assert main(["preprocess", "unet2d:tiny", str(raw), str(tmp_path / "other")]) == 0
    assert "".join(capsys.readouterr()).count("numTraining says, 5, found 2") == 1
