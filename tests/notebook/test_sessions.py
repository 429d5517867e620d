"""A notebook's cells through a day: the demo, KiTS19 in the same session, and again after the machine was lost."""

import hashlib
import json
import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from support import ROOT
from support.cases import make_case
from support.fault_server import fault_server

from kitsseg import recipes
from kitsseg.data.download.catalog import IMAGES_REPOSITORY
from kitsseg.data.kits19.manifest import ManifestCase, write_manifest
from kitsseg.data.splits import load_split

# a small network and few steps keep the test short; the names and everything else are as the form says
SMALL = """
from dataclasses import replace
from kitsseg import recipes
tiny = recipes.get(recipe.name.split(":")[0] + ":tiny")
phases = tuple(
    replace(phase, epochs=1, steps_per_epoch=20, steps_from=None)  # as many as the masks of wp_unet need
    for phase in tiny.phases
)
recipe, EPOCHS = replace(tiny, name=recipe.name, phases=phases), 0
computing = {}
"""

# a Drive that is a folder, and a host that is on this machine
COLAB = """
import json, sys, types
from pathlib import Path
from kitsseg.data.download import download, passing
from kitsseg.data.kits19 import manifest
from kitsseg.notebook import steps

steps.DRIVE = str(Path("drive").resolve())
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.modules["google.colab"].drive = types.SimpleNamespace(mount=lambda where: Path(where).mkdir(exist_ok=True))
rows = manifest.read_manifest("manifest.csv")
for module in (download, passing, manifest):
    module.read_manifest = lambda path=None: rows
labels = json.loads(Path("host.json").read_text())
passing.FromHost.__init__.__kwdefaults__["labels_url"] = labels
download.choose_files.__defaults__ = (*download.choose_files.__defaults__[:4], labels, None)
"""

PAPERS = [path for path in sorted((ROOT / "colab").glob("*.ipynb")) if path.stem in recipes.names()]


def cells_of(path, **form):
    """The code cells with other values in their form, and SMALL behind it."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    place = next(i for i, text in enumerate(code) if text.startswith("# @title Settings"))
    for name, value in form.items():
        code[place], count = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", code[place], flags=re.M)
        assert count == 1, name
    code.insert(place + 1, SMALL)
    return code


def run_cells(cells, folder):
    """Run them in one new kernel; returns all that they showed, as one text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    parts = [
        output.get("text", "") or " ".join(map(str, output.get("data", {}).values())) for output in outputs
    ]
    return " ".join(" ".join(parts).split())


@pytest.fixture
def host(tmp_path, monkeypatch):
    """One made case of each part of the split, served as the hosts of KiTS19 do; and its manifest."""
    split = load_split("80-10-10")
    names = [split.train[0], split.validation[0], split.test[0]]
    rows = {}
    monkeypatch.setenv("no_proxy", "*")
    with fault_server() as server:
        for i, name in enumerate(names):
            make_case(tmp_path / "host" / name, (40, 128, 128), (3.0, 1.6, 1.6), seed=i, positive=(5 + i, 30))
            image, labels = (
                (tmp_path / "host" / name / f"{kind}.nii.gz").read_bytes()
                for kind in ("imaging", "segmentation")
            )
            server.files[f"/datasets/{IMAGES_REPOSITORY}/resolve/main/images/{name}.nii.gz"] = image
            server.files[f"/labels/{name}"] = labels
            rows[name] = ManifestCase(
                case=name, label_bytes=len(labels), label_sha256=hashlib.sha256(labels).hexdigest()
            )
        write_manifest(rows, tmp_path / "manifest.csv")
        (tmp_path / "host.json").write_text(json.dumps(server.url("/labels/{case}")))
        monkeypatch.setenv("HF_ENDPOINT", server.url(""))
        server.names = names
        yield server


def fetched(server):
    """Names of the cases whose scans were asked for since the last call."""
    found = [re.search("(case_[0-9]+)[.]nii", path) for path, *_ in server.requests]
    server.requests.clear()
    return [match[1] for match in found if match]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_day(path, host, tmp_path):
    numbers = ",".join(str(int(name.removeprefix("case_"))) for name in host.names)
    demo = cells_of(path, DEMO=True, PATIENTS=6, CASES=numbers)
    kits = cells_of(path, DEMO=False, USE_DRIVE=True, PATIENTS=6, CASES=numbers)
    kept = tmp_path / "drive" / "MyDrive" / "kitsseg"
    results = kept / "runs" / f"{path.stem}-paper-{numbers}"

    # the demo, and KiTS19 in the same session
    shown = run_cells([COLAB, *demo, *kits], tmp_path)
    assert "phantom results" in shown and re.search("patients of KiTS19, none .*trained on", shown)
    assert "3 patients are ready: 3 fetched and prepared" in shown
    # the rate is told once the second epoch has begun, and here each phase has one
    phases = recipes.get(f"{path.stem}:tiny").phases
    several = len(phases) > 1 or any(phase.progressive for phase in phases)
    assert shown.count("<iframe srcdoc=") == 2 and ("Measured" in shown) == several
    assert (tmp_path / "kitsseg-notebooks" / "runs" / f"{path.stem}-demo-6" / "scores.csv").is_file()
    # each scan was fetched once for the cache; then the test patient's scan again, which stays on the disk
    *for_the_cache, last = fetched(host)
    assert (sorted(for_the_cache), last) == (sorted(host.names), host.names[2])
    assert sorted(p.parent.name for p in tmp_path.glob("kitsseg-notebooks/data/kits19/*/imaging.nii.gz")) == [
        host.names[2]
    ]
    assert (results / "scores.csv").is_file() and len(list(kept.glob("caches/*/cases-*.zip"))) == 1
    model = (results / "run" / "model.keras").stat().st_mtime_ns

    # the machine is lost: all that is left is Drive
    shutil.rmtree(tmp_path / "kitsseg-notebooks")
    shown = run_cells([COLAB, *kits], tmp_path)
    assert "3 patients are ready: 0 fetched and prepared, 3 brought back from Drive" in shown
    assert "has been trained already" in shown
    assert fetched(host) == [host.names[2]]
    assert (results / "run" / "model.keras").stat().st_mtime_ns == model
    assert [p.name for p in (kept / "runs").iterdir()] == [results.name]
