"""Scans that are fetched, prepared and forgotten: the cache is that of a download, and no scan stays on the disk."""

import hashlib
import os
import shutil
import signal
import sys

import pytest
from support.cases import StopAfter, make_case, make_cases_and_cache, spec_of_tests
from support.fault_server import fault_server
from support.processes import contents, start, stop_when

from kitsseg.cli import main
from kitsseg.data.cache import plan as cache_size
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.download.http import HostError, Patience
from kitsseg.data.download.passing import FromHost, preprocess_from_host
from kitsseg.data.kits19.manifest import ManifestCase
from kitsseg.data.kits19.trusted_hashes import read_hashes
from kitsseg.errors import InputError

SOON = Patience(attempts=2, first_attempts=2, first_wait_s=0.01, longest_wait_s=0.02, stall_s=10)
NAMES = [f"case_{i:05d}" for i in range(4)]
SPEC = spec_of_tests()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_cases_and_cache(tmp_path_factory.mktemp("made"), NAMES, SPEC)


@pytest.fixture
def server(made, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with fault_server() as state:
        for name in NAMES:
            state.files[f"/images/{name}.nii.gz"] = (made / "data" / name / "imaging.nii.gz").read_bytes()
            labels = (made / "data" / name / "segmentation.nii.gz").read_bytes()
            state.files[f"/data/{name}/segmentation.nii.gz"] = labels
        yield state


def manifest(server, **known):
    """The labels' hashes are those of the manifest, the imaging is trusted on first use."""
    rows = {}
    for name in NAMES:
        labels = server.files[f"/data/{name}/segmentation.nii.gz"]
        sha256 = hashlib.sha256(labels).hexdigest()
        rows[name] = ManifestCase(case=name, label_bytes=len(labels), label_sha256=sha256, **known)
    return rows


def get(server, folder, names=NAMES, workers=1, compress=False, progress=None, **options):
    options = {"manifest": manifest(server), "images_url": server.url("/images/{case}.nii.gz")} | options
    wanted = FromHost(
        names=names, labels_url=server.url("/data/{case}/segmentation.nii.gz"), patience=SOON, **options
    )
    return preprocess_from_host(
        folder / "data",
        folder / "cache",
        SPEC,
        wanted,
        workers=workers,
        compress=compress,
        progress=progress,
    )


def scans(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*imaging*"))


def same_but_for_times(cache, made, names):
    """The arrays of the cached cases must be equal. (The times of their sources differ.)"""
    for name in names:
        (there,), (here,) = made.glob(f"cache/*/{name}"), cache.glob(f"*/{name}")
        for file in ("image.npy", "labels.npy"):
            assert (here / file).read_bytes() == (there / file).read_bytes()


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_cache_is_that_of_a_download_and_no_scan_stays(workers, server, made, tmp_path):
    most = []

    def count(*_):
        most.append(len(scans(tmp_path)))

    said = []
    folder, done, kept = get(server, tmp_path, workers=workers, progress=count, say=said.append)
    assert (folder.parent, done, kept) == (tmp_path / "cache", NAMES, [])
    assert 0 < max(most) <= workers
    assert sorted(open_cache(tmp_path / "cache", SPEC)) == NAMES
    same_but_for_times(tmp_path / "cache", made, NAMES)
    assert scans(tmp_path) == [] and not (tmp_path / "data" / ".passing").exists()
    assert all((tmp_path / "data" / name / "segmentation.nii.gz").is_file() for name in NAMES)
    assert sum("CC BY-NC-SA" in text for text in said) == 1
    asked = len(server.requests)
    assert get(server, tmp_path)[1:] == ([], NAMES)
    assert len(server.requests) == asked


def test_a_host_that_is_gone_ends_the_call_and_the_next_goes_on(server, made, tmp_path):
    with pytest.raises(HostError):
        get(server, tmp_path, images_url="http://127.0.0.1:9/{case}.nii.gz")
    assert get(server, tmp_path)[1:] == (NAMES, [])


def test_a_host_that_gives_nothing_any_more_is_not_asked_for_every_case(server, made, tmp_path):
    server.always |= {f"/images/{name}.nii.gz": "503" for name in NAMES}
    with pytest.raises(InputError, match=r"3 of 4 cases .*gave nothing any more"):
        get(server, tmp_path)
    assert server.asked("/images/case_00003.nii.gz") == []
    server.always.clear()
    assert get(server, tmp_path)[1:] == (NAMES, [])


def test_what_has_arrived_of_a_scan_is_not_fetched_again(server, made, tmp_path):
    path = "/images/case_00000.nii.gz"
    server.faults[path] = ["drop", *["503"] * 4]
    with pytest.raises(InputError, match=r"1 of 4 cases .*case_00000"):
        get(server, tmp_path)
    server.faults.clear()
    half = (len(server.files[path]) + 1) // 2
    assert get(server, tmp_path)[1:] == (NAMES[:1], NAMES[1:])
    assert server.asked(path)[-1] == (f"bytes={half}-", 206)
    same_but_for_times(tmp_path / "cache", made, NAMES)


def test_one_bad_scan_does_not_hold_up_the_others(server, made, tmp_path):
    server.always["/images/case_00001.nii.gz"] = "flip"
    with pytest.raises(InputError, match=r"1 of 4 cases .*case_00001.*the others are done"):
        get(server, tmp_path)
    assert sorted(open_cache(tmp_path / "cache", SPEC)) == [NAMES[0], *NAMES[2:]]
    assert scans(tmp_path) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "left", [(), ("segmentation.nii.gz",), ("imaging.nii", "imaging.nii.gz"), ("x.part",)]
)
def test_what_an_earlier_call_left_beside_the_scans_under_way_is_neither_taken_nor_warned_of(
    left, server, made, tmp_path
):
    other = tmp_path / "data" / ".passing" / "case_00200"
    other.mkdir(parents=True)
    for name in left:
        (other / name).write_text("half a file")
    said = []
    assert get(server, tmp_path, say=said.append)[1:] == (NAMES, [])
    assert sorted(open_cache(tmp_path / "cache", SPEC)) == NAMES
    assert "case_00200" not in "".join(said)


def test_labels_of_another_scan_are_named_and_the_others_done(server, tmp_path):
    make_case(tmp_path / "other", shape=(7, 40, 48))
    server.files["/images/case_00003.nii.gz"] = (tmp_path / "other" / "imaging.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"1 of 4 cases .*case_00003.*expected shape"):
        get(server, tmp_path)
    assert sorted(open_cache(tmp_path / "cache", SPEC)) == NAMES[:3]


def test_a_scan_that_is_another_one_the_second_time_is_refused(server, made, tmp_path):
    get(server, tmp_path, NAMES[:1])
    shutil.rmtree(next((tmp_path / "cache").glob("*/case_00000")))
    server.files["/images/case_00000.nii.gz"] = server.files["/images/case_00001.nii.gz"]
    with pytest.raises(InputError, match=r"case_00000.*recorded here first.*hashes\.json"):
        get(server, tmp_path, NAMES[:1])


def test_scans_that_were_there_are_used_and_stay(server, made, tmp_path):
    shutil.copytree(made / "data" / NAMES[1], tmp_path / "data" / NAMES[1])
    assert get(server, tmp_path)[1] == NAMES
    assert scans(tmp_path) == [f"data/{NAMES[1]}/imaging.nii.gz"]
    assert server.asked("/images/case_00001.nii.gz") == []
    assert set(read_hashes(tmp_path / "data")) >= {f"{name}/imaging.nii.gz" for name in NAMES}


def test_a_cache_of_other_patients_of_the_same_names_is_refused(server, tmp_path):
    for name in NAMES[:2]:
        make_case(tmp_path / "phantoms" / name, positive=(1, 5))
    preprocess_cases(tmp_path / "phantoms", tmp_path / "cache", SPEC)
    with pytest.raises(InputError, match=r"case_00000: .*KiTS19's files"):
        get(server, tmp_path)


def test_a_disk_too_small_for_the_cache_is_said_before_the_first_scan(server, tmp_path, monkeypatch):
    known = manifest(server, shape=(600, 512, 512), spacing_mm=(0.5, 0.8, 0.8))
    monkeypatch.setattr(cache_size, "free_bytes", lambda folder: 10**9)
    with pytest.raises(InputError, match=r"4 cases need about 1\.\d GB .*found 1\.0 GB"):
        get(server, tmp_path, manifest=known)
    assert not any(path.startswith("/images") for path, *_ in server.requests)


def test_cases_without_public_labels_are_refused(server, tmp_path):
    rows = manifest(server) | {"case_00210": ManifestCase(case="case_00210")}
    with pytest.raises(InputError, match="case_00210: the labels"):
        get(server, tmp_path, ["case_00210"], manifest=rows)


@pytest.mark.parametrize("calls", [3, 4, 6])
def test_interrupted_anywhere_and_called_again(calls, server, made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, progress=StopAfter(calls))
    get(server, tmp_path)
    same_but_for_times(tmp_path / "cache", made, NAMES)
    assert scans(tmp_path) == []
    assert len(server.asked("/images/case_00000.nii.gz")) == 1


SCRIPT = """
import pickle, sys
from pathlib import Path
from kitsseg.data.download.passing import FromHost, preprocess_from_host
manifest, spec, images, labels = pickle.loads(bytes.fromhex(sys.argv[1]))
wanted = FromHost(names=list(manifest), manifest=manifest, images_url=images, labels_url=labels)
preprocess_from_host("data", "cache", spec, wanted)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
@pytest.mark.parametrize("moment", ["on the way", "prepared"])
def test_killed_and_called_again(moment, server, made, tmp_path):
    import pickle

    server.drip_bytes = 20_000
    server.faults["/images/case_00001.nii.gz"] = ["drip"]
    known = (manifest(server), SPEC, server.url("/images/{case}.nii.gz"))
    known += (server.url("/data/{case}/segmentation.nii.gz"),)
    (tmp_path / "script.py").write_text(SCRIPT)
    process = start(["script.py", pickle.dumps(known).hex()], tmp_path)
    pattern = ".passing/case_00001/*" if moment == "on the way" else "../cache/*/case_00000/case.json"
    stop_when(process, lambda: any((tmp_path / "data").glob(pattern)), signal.SIGKILL)
    get(server, tmp_path)
    same_but_for_times(tmp_path / "cache", made, NAMES)
    assert scans(tmp_path) == []
    (whole,) = (tmp_path / "cache").iterdir()
    assert set(contents(whole, NAMES)) == set(contents(next((made / "cache").iterdir()), NAMES))


def test_the_command_says_what_stays_and_what_is_gone(server, tmp_path, monkeypatch, capsys):
    from kitsseg.data.download import passing
    from kitsseg.data.kits19 import manifest as manifests

    rows = manifest(server)
    for module in (passing, manifests):
        monkeypatch.setattr(module, "read_manifest", lambda: rows)
    folder = ["unet2d:tiny", str(tmp_path / "data"), str(tmp_path / "cache")]
    urls = ["--images-url", server.url("/images/{case}.nii.gz")]
    urls += ["--labels-url", server.url("/data/{case}/segmentation.nii.gz")]
    assert main(["preprocess", *folder, "--from-host", "--cases", "0,2", *urls]) == 0
    out = capsys.readouterr().out
    assert "preprocessed 2 cases" in out and f"kitsseg train unet2d:tiny {tmp_path / 'cache'} RUN" in out
    assert sorted(path.name for path in tmp_path.glob("cache/*/case_*")) == [NAMES[0], NAMES[2]]
    assert os.environ.get("HF_ENDPOINT") is None
    assert main(["preprocess", *folder, "--cases", "0"]) == 1
    assert "--from-host" in capsys.readouterr().err
    assert main(["preprocess", *folder, "--from-host", "--images", "*.nii.gz"]) == 1
    assert "--from-host" in capsys.readouterr().err
