"""The imaging from a Hub of our own: its address, its token, its announcements, its offline mode."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from huggingface_hub import constants
from support.fault_server import fault_server

from kitsseg.data.download import http as fetch
from kitsseg.data.download.catalog import IMAGES_REPOSITORY, wanted_files
from kitsseg.data.download.http import Connections, HostError, Patience, fetch_file
from kitsseg.data.formats.nifti import write_image
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.errors import InputError

SOON = Patience(attempts=3, first_attempts=3, first_wait_s=0.01, longest_wait_s=0.02, stall_s=10)
PATH = f"/datasets/{IMAGES_REPOSITORY}/resolve/main/images/case_00210.nii.gz"
TOKEN = "hf_a_token_of_nobody"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No proxy, and the token of a user."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_image(path, np.random.default_rng(0).integers(-500, 500, (6, 90, 90)).astype(np.int16), (1, 1, 1))
    return path.read_bytes()


@pytest.fixture
def hub(scan):
    """A Hub that announces the SHA-256 of its file, and redirects to another server, its storage."""
    with fault_server() as storage, fault_server() as state:
        storage.files = {PATH: scan}
        state.linked[PATH] = hashlib.sha256(scan).hexdigest()
        state.storage, state.behind = storage.url(""), storage
        yield state


def download(hub, dest, **environment):
    command = [sys.executable, "-m", "kitsseg", "download", str(dest), "--cases", "210"]
    environment = {"HF_ENDPOINT": hub.url(""), **environment}
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_imaging_comes_from_the_hub_that_the_environment_names(hub, scan, tmp_path):
    """A killed download goes on where it stopped, because the bytes that arrived and their hash are on the disk."""
    storage, dest = hub.behind, tmp_path / "d"
    storage.always[PATH] = "drip"
    process, last = download(hub, dest), time.monotonic() + 60
    part = dest / "case_00210" / "imaging.nii.gz.part"
    while fetch.part_size(part) < 20_000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    have = fetch.part_size(part)
    assert not (dest / "case_00210" / "imaging.nii.gz").exists()

    storage.always.clear()
    out, err = (process := download(hub, dest)).communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), out
    assert (dest / "case_00210" / "imaging.nii.gz").read_bytes() == scan
    assert sorted(path.name for path in dest.rglob("*")) == [
        *("DATA_LICENSE.txt", "case_00210", "hashes.json", "imaging.nii.gz")
    ]  # no cache, no metadata of another library
    assert [asked for asked, _ in storage.asked(f"/storage{PATH}")] == [None, f"bytes={have}-"]
    assert {token for path, token in hub.tokens if path == PATH} == {f"Bearer {TOKEN}"}
    assert {token for path, token in storage.tokens} == {None}  # the token is not for that host


def test_the_offline_mode_of_the_hub_is_one_line(hub, tmp_path):
    _, err = (process := download(hub, tmp_path / "d", HF_HUB_OFFLINE="1")).communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(f"kitsseg: 127.0.0.1:{hub.port}: ") and "HF_HUB_OFFLINE" in err
    assert err.count("\n") == 1
    assert hub.requests == []


def test_an_endpoint_that_is_no_address_is_one_line(hub, tmp_path):
    _, err = (process := download(hub, tmp_path / "d", HF_ENDPOINT="hub.local")).communicate(timeout=60)
    assert process.returncode == 1
    assert re.match("kitsseg: HF_ENDPOINT: .*address.* https://.*hub.local", err)
    assert err.count("\n") == 1


def test_other_hosts_get_no_token_and_no_offline_mode(hub, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server = hub.behind
    with Connections(SOON) as connections:
        fetch_file(server.url(PATH), tmp_path / "x.part", connections)
        assert (tmp_path / "x.part").read_bytes() == scan
        monkeypatch.setattr(constants, "ENDPOINT", server.url(""))
        with pytest.raises(HostError, match="HF_HUB_OFFLINE"):
            fetch_file(server.url(PATH), tmp_path / "y.part", connections)
    assert server.tokens == [(PATH, None)]


def test_a_token_that_the_hub_refuses_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.behind.url(""))
    hub.behind.always[PATH] = "403"
    with Connections(SOON) as connections, pytest.raises(InputError, match=r"403.*your token \(HF_TOKEN\)"):
        fetch_file(hub.behind.url(PATH), tmp_path / "x.part", connections)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nonsense://host", "http://host:port"])
def test_a_proxy_that_cannot_be_used_is_one_line(proxy, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("ALL_PROXY", proxy)
    with Connections(SOON) as connections, pytest.raises(InputError, match="ALL_PROXY") as caught:
        fetch_file("http://127.0.0.1:1/x", tmp_path / "x.part", connections)
    assert "\n" not in str(caught.value)


def test_the_address_of_today():
    (file,) = wanted_files([read_manifest()["case_00210"]])
    assert file.url == f"{constants.ENDPOINT}{PATH}"
