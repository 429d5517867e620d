"""KiTS19 from a server that fails in every way: the right file or a clear error, and a second call finishes."""

import errno
import gzip
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.fault_server import fault_server

from kitsseg.cli import main
from kitsseg.data.download import arrival as landing
from kitsseg.data.download import catalog as kits_files
from kitsseg.data.download import download
from kitsseg.data.download import http as fetch
from kitsseg.data.download.catalog import DamagedFile, check_file, find_local, parse_cases, wanted_files
from kitsseg.data.download.download import choose_files, download_files
from kitsseg.data.download.http import Connections, HostError, Patience, fetch_file
from kitsseg.data.kits19.manifest import ManifestCase, read_manifest
from kitsseg.data.kits19.trusted_hashes import RecordedHash, read_hashes, record_hash
from kitsseg.data.layouts.find import find_cases
from kitsseg.errors import InputError
from kitsseg.files.locks import folder_lock

SOON = Patience(attempts=3, first_attempts=3, first_wait_s=0.01, longest_wait_s=0.02, stall_s=10)
STALLED = replace(SOON, stall_s=0.3)  # not for all: a busy machine may take longer to answer
IMAGE, LABELS = "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz"


def nifti(seed, size):
    """A NIfTI-1 file of ``size`` voxels of a byte, which do not compress."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, size // 100, 10, 10, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, 8)  # uint8
    struct.pack_into("<f", header, 108, 352.0)
    return bytes(header) + random.Random(seed).randbytes(size)


def gz(seed, size):
    return gzip.compress(nifti(seed, size), mtime=0)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


IMAGES = {f"case_{i:05d}": gz(i, 150_000) for i in range(3)}
MAPS = {
    f"case_{i:05d}": gz(100 + i, 20_000) for i in range(2)
}  # case_00002 is a test case: no labels, no hashes
MANIFEST = {
    name: ManifestCase(
        case=name,
        label_bytes=len(MAPS[name]),
        label_sha256=sha256(MAPS[name]),
        image_bytes_2019=len(IMAGES[name]),
        image_sha256_2019=sha256(IMAGES[name]),
    )
    if name in MAPS
    else ManifestCase(case=name)
    for name in IMAGES
}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with fault_server() as state:
        state.files = {f"/images/{name}.nii.gz": data for name, data in IMAGES.items()}
        state.files |= {f"/data/{name}/segmentation.nii.gz": data for name, data in MAPS.items()}
        yield state


def urls(server):
    return {
        "images_url": server.url("/images/{case}.nii.gz"),
        "labels_url": server.url("/data/{case}/segmentation.nii.gz"),
    }


def get(server, dest, cases="0", labels_only=False, **options):
    files = choose_files(cases, labels_only, manifest=MANIFEST, **urls(server))
    stalls = {"stall", "silence"} & set().union(server.always.values(), *server.faults.values())
    return download_files(dest, files, patience=STALLED if stalls else SOON, **options)


def image_path(case=0):
    return f"/images/case_{case:05d}.nii.gz"


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.nii.gz*"))


def assert_right(dest, cases=(0,)):
    for case in cases:
        name = f"case_{case:05d}"
        assert (dest / name / "imaging.nii.gz").read_bytes() == IMAGES[name]
        if name in MAPS:
            assert (dest / name / "segmentation.nii.gz").read_bytes() == MAPS[name]
    assert not list(dest.rglob("*.part*"))
    recorded = read_hashes(dest)
    for path in dest.glob("case_*/*.nii.gz"):
        data = path.read_bytes()
        assert recorded[path.relative_to(dest).as_posix()] == RecordedHash(sha256(data), len(data))


def test_a_whole_data_set(server, tmp_path):
    dest, said, calls = tmp_path / "kits19", [], []
    result = get(server, dest, "0-2", say=said.append, progress=lambda *call: calls.append(call))
    assert_right(dest, (0, 1, 2))
    assert len(result.fetched) == 5
    assert (result.kept, result.remarks) == ([], [])
    assert [c.name for c in find_cases(dest, need_labels=False)] == list(IMAGES)
    assert len(said) == 1
    assert "CC BY-NC-SA" in said[0]
    assert (dest / "DATA_LICENSE.txt").read_text().strip() == said[0]
    assert calls[-1][1] == calls[-1][2]

    requests = len(server.requests)
    for name in (".hashes.lock", ".download.lock"):  # of a process that was killed when all was recorded
        (dest / name).touch()
    result = get(server, dest, "0-2", say=said.append)
    assert (result.fetched, len(result.kept)) == ([], 5)
    assert not list(dest.glob(".*"))
    assert len(server.requests) == requests  # nothing is asked for again, and the license is shown once
    assert len(said) == 1


# Every fault ends in the right file, or in a clear error and a second call finishes.
TRANSIENT = [
    "drop",
    "length too long",
    "length too short",
    "no length",
    "no length, half",
    "chunks, half",
    "429",
    "500",
    "502",
    "503",
    "flip",
    "web page",
    "stall",
    "hang up",
]


@pytest.mark.parametrize("fault", TRANSIENT)
@pytest.mark.parametrize("case", [0, 2], ids=["known hash", "unknown hash"])
def test_a_fault_that_passes_ends_in_the_right_file(fault, case, server, tmp_path):
    server.faults = {image_path(case): [fault]}
    result = get(server, tmp_path, str(case))
    assert_right(tmp_path, (case,))
    assert result.remarks == []


# Even if they stay, each request brings more of the file, or all of it.
HARMLESS = ["drop", "length too long", "no length", "chunks, half"]


@pytest.mark.parametrize("fault", HARMLESS)
def test_a_fault_that_stays_but_lets_the_file_through(fault, server, tmp_path):
    server.always[image_path(2)] = fault
    get(server, tmp_path, "2")
    assert_right(tmp_path, (2,))


LASTING = sorted({*TRANSIENT, "403", "404", "410", "silence"} - {*HARMLESS, "stall"})


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("case", [0, 2], ids=["known hash", "unknown hash"])
def test_a_fault_that_stays_is_an_error_that_names_the_file_and_a_second_call_finishes(
    fault, case, server, tmp_path
):
    server.always[image_path(case)] = fault
    name = f"case_{case:05d}/imaging.nii.gz"
    with pytest.raises(InputError, match=name) as info:
        get(server, tmp_path, str(case))
    assert "\n" not in str(info.value)
    assert not (tmp_path / name).exists()  # nothing partial has its name
    server.always.clear()
    get(server, tmp_path, str(case))
    assert_right(tmp_path, (case,))


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_faults_ends_right_or_in_an_error_and_never_in_a_wrong_file(seed, server, tmp_path):
    draw = random.Random(seed)
    faults = [*TRANSIENT, "404", "ignore range", "ignore If-Range", "another range", None]
    faults.remove("stall")
    server.faults = {path: draw.choices(faults, k=draw.randrange(1, 12)) for path in server.files}
    for _ in range(30):
        try:
            get(server, tmp_path, "0-2", jobs=3)
            break
        except InputError:
            for path in tmp_path.glob("case_*/*.nii.gz"):
                wanted = IMAGES if path.name.startswith("imaging") else MAPS
                assert path.read_bytes() == wanted[path.parent.name]
    assert_right(tmp_path, (0, 1, 2))


@pytest.mark.parametrize("fault", ["flip", "length too short", "web page", "404", "drop"])
def test_faults_of_label_maps(fault, server, tmp_path):
    path = "/data/case_00000/segmentation.nii.gz"
    server.always[path] = fault
    if fault != "drop":
        with pytest.raises(InputError, match=LABELS):
            get(server, tmp_path)
        assert (tmp_path / IMAGE).read_bytes() == IMAGES["case_00000"]  # the other files are not held up
        server.always.clear()
    get(server, tmp_path)
    assert_right(tmp_path)


def test_another_label_map_than_the_released_one_is_refused(server, tmp_path):
    server.files["/data/case_00000/segmentation.nii.gz"] = gz(7, 20_000)
    with pytest.raises(InputError, match=f"{LABELS}: .*twice.* released label map"):
        get(server, tmp_path, labels_only=True)
    assert names(tmp_path) == []


def test_a_dropped_connection_goes_on_where_it_stopped(server, tmp_path):
    server.faults[image_path()] = ["drop", "drop"]
    get(server, tmp_path)
    size = len(IMAGES["case_00000"])
    first = (size + 1) // 2
    second = first + (size - first + 1) // 2
    assert server.asked(image_path()) == [(None, 200), (f"bytes={first}-", 206), (f"bytes={second}-", 206)]
    assert_right(tmp_path)


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    server.faults[image_path()] = ["drop", "ignore range"]
    get(server, tmp_path)
    size = len(IMAGES["case_00000"])
    assert server.asked(image_path()) == [(None, 200), (f"bytes={(size + 1) // 2}-", 200)]
    assert_right(tmp_path)


def test_a_server_that_ignores_ranges_and_always_drops_is_given_up(server, tmp_path):
    server.faults[image_path()] = ["drop"]
    server.always[image_path()] = "drop"
    server.etags = False  # nothing to resume with
    with pytest.raises(InputError, match="the connection ended after .* 3 times without progress"):
        get(server, tmp_path)


@pytest.mark.parametrize("fault", [None, "ignore If-Range", "another range"])
def test_a_file_that_changes_between_two_ranges_is_never_mixed(fault, server, tmp_path):
    server.changed = gz(50, 140_000)
    server.faults[image_path(2)] = ["drop, then change", fault]
    result = get(server, tmp_path, "2")
    assert (tmp_path / "case_00002/imaging.nii.gz").read_bytes() == server.changed
    assert result.remarks == []
    (first, *others) = server.requests
    assert first[1] is None
    assert others[0][1] == f"bytes={(len(IMAGES['case_00002']) + 1) // 2}-"
    assert others[0][2].startswith('"')  # If-Range


def test_another_file_of_the_same_size_is_told_by_its_etag_before_it_is_mixed(server, tmp_path, monkeypatch):
    checks = []
    monkeypatch.setattr(landing, "check_file", lambda *args: checks.append(args) or check_file(*args))
    server.changed = gzip.compress(nifti(2, 150_000), mtime=1)
    assert len(server.changed) == len(IMAGES["case_00002"])
    server.faults[image_path(2)] = ["drop, then change", "ignore If-Range"]
    get(server, tmp_path, "2")
    assert (tmp_path / "case_00002/imaging.nii.gz").read_bytes() == server.changed
    assert len(checks) == 1  # checked once: the ETag, not the checksum of gzip, revealed the change


def test_a_file_that_becomes_shorter_than_what_arrived(server, tmp_path):
    server.changed = gz(50, 40_000)
    server.etags = False  # so that only the length tells
    server.linked[image_path(2)] = sha256(IMAGES["case_00002"])
    server.faults[image_path(2)] = ["drop, then change"]
    with pytest.raises(InputError, match="case_00002/imaging.nii.gz: arrived damaged twice"):
        get(server, tmp_path, "2")
    assert names(tmp_path) == []


def test_the_hash_that_the_host_announces_is_checked_and_resumed_by(server, tmp_path):
    path = image_path(2)
    server.linked[path] = sha256(IMAGES["case_00002"])
    server.faults[path] = ["drop"]
    get(server, tmp_path, "2")
    assert_right(tmp_path, (2,))
    storage = [
        (asked, condition) for there, asked, condition, _ in server.requests if there.startswith("/storage")
    ]
    assert storage == [(None, None), (f"bytes={(len(IMAGES['case_00002']) + 1) // 2}-", None)]

    server.linked[path] = "0" * 64
    with pytest.raises(InputError, match="SHA-256 .*announces, 000000000000"):
        get(server, tmp_path / "other", "2")


def test_imaging_that_differs_from_2019_is_trusted_on_first_use_and_must_then_stay(server, tmp_path):
    other = gz(9, 150_000)
    server.files[image_path()] = other
    said = []
    result = get(server, tmp_path, say=said.append)
    assert result.remarks == [said[1]]
    assert said[1].startswith(IMAGE) and "2019" in said[1]
    assert read_hashes(tmp_path)[IMAGE] == RecordedHash(sha256(other), len(other))

    (tmp_path / IMAGE).unlink()
    server.files[image_path()] = IMAGES["case_00000"]
    with pytest.raises(InputError, match=f"{IMAGE}: .*recorded.* hashes.json"):
        get(server, tmp_path)
    assert not (tmp_path / IMAGE).exists()
    server.files[image_path()] = other
    fetch.forget_part(tmp_path / f"{IMAGE}.part")
    get(server, tmp_path)
    assert (tmp_path / IMAGE).read_bytes() == other


def test_retry_after_is_waited_for(server, tmp_path):
    server.faults[image_path()] = ["429"]
    server.retry_after = "1"
    started = time.monotonic()
    get(server, tmp_path)
    assert time.monotonic() - started >= 1
    assert_right(tmp_path)


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server, tmp_path):
    server.always[image_path()] = "503"
    server.retry_after = "3600"
    with pytest.raises(InputError, match=rf"{IMAGE}: .*127.0.0.1:\d+ asks to wait 3600 s. Call again later"):
        get(server, tmp_path)


def test_retry_after_may_be_a_date():
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 97 <= fetch._asked_wait_s({"Retry-After": at}) <= 100
    assert fetch._asked_wait_s({"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"}) == 0
    assert fetch._asked_wait_s({"Retry-After": "soon"}) == 0
    assert fetch._asked_wait_s({}) == 0


def test_the_limits_of_the_hub_are_waited_for(server, tmp_path):
    """The Hub states r, the number of requests that remain, and t, the seconds until more requests are allowed."""
    assert fetch._asked_wait_s({"RateLimit": '"resolvers";r=0;t=55'}) == 55
    assert fetch._asked_wait_s({"RateLimit": '"resolvers";r=4;t=55'}) == 0
    assert fetch._asked_wait_s({"RateLimit": f'"resolvers";r=0;t={"9" * 5000}'}) == 0
    server.always[image_path()], server.rate_limit = "429", 3600
    with pytest.raises(
        InputError, match=rf"{IMAGE}: .*HTTP status 429.*asks to wait 3600 s. Call again later"
    ):
        get(server, tmp_path)


def test_waiting_grows_and_is_bounded(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(Connections, "wait", lambda self, seconds: waits.append(seconds))
    server.always[image_path()] = "500"
    files = choose_files("2", manifest=MANIFEST, **urls(server))
    server.always[image_path(2)] = "500"
    with pytest.raises(InputError, match="HTTP status 500"):
        download_files(tmp_path, files, patience=Patience(attempts=8, first_wait_s=1, longest_wait_s=10))
    # 1, 2, 4, 8, 10, 10, 10 seconds, each less up to a half
    assert len(waits) == 7
    for wait, longest in zip(waits, [1, 2, 4, 8, 10, 10, 10], strict=True):
        assert longest / 2 <= wait <= longest


def test_offline_is_one_line_that_names_the_host(tmp_path, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(fetch, "Patience", lambda: SOON)
    url = f"http://127.0.0.1:{port}/{{case}}"
    assert main(["download", str(tmp_path / "d"), "--cases", "210", "--images-url", url]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"kitsseg: 127.0.0.1:{port}: cannot be reached (Connection refused). Check the network"
    )
    assert error.count("\n") == 1


def test_an_unreachable_host_stops_all_files_at_once(tmp_path, monkeypatch):
    tries = []

    def refuse(host, *args, **options):
        tries.append(host)
        raise socket.gaierror(-2, "unknown name")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(HostError, match=r"raw\.githubusercontent\.com: .*unknown name"):
        download_files(tmp_path, choose_files(), jobs=2, patience=SOON)
    assert len(tries) <= 8  # of 420 files


def answering(connections, answer):
    """Connections that ask the function ``answer`` instead of a network, and the addresses that it was asked for."""
    asked, client = [], fetch._httpx()

    def respond(request):
        asked.append(str(request.url))
        return answer(client.Response, request)

    connections._client = client.Client(transport=client.MockTransport(respond))
    return asked


def test_https_is_never_left_by_a_redirect(tmp_path):
    with Connections(SOON) as https:
        away = {"Location": "http://host/file"}
        asked = answering(https, lambda response, request: response(302, headers=away))
        with pytest.raises(InputError, match="redirects to http://host/file, which is not https. Check"):
            fetch_file("https://host/file", tmp_path / "x.part", https)
    assert asked == ["https://host/file"]


def test_a_redirect_without_end_is_one_line(tmp_path):
    with Connections(SOON) as loop:
        asked = answering(loop, lambda response, request: response(302, headers={"Location": "/file"}))
        with pytest.raises(InputError, match="https://host/file: it redirects more than 10 times"):
            fetch_file("https://host/file", tmp_path / "x.part", loop)
    assert len(asked) == 10


def test_a_full_disk_names_the_file_and_keeps_what_arrived(server, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file, self.left = file, 50_000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            size = self.file.write(data[: self.left])
            self.left -= size
            return size

    opened = fetch._open
    monkeypatch.setattr(fetch, "_open", lambda *args: Full(opened(*args)))
    with pytest.raises(OSError, match="No space left") as info:
        get(server, tmp_path, "2")
    assert info.value.filename == str(tmp_path / "case_00002" / "imaging.nii.gz.part")
    monkeypatch.setattr(fetch, "_open", opened)
    get(server, tmp_path, "2")
    assert server.asked(image_path(2))[-1] == ("bytes=50000-", 206)
    assert_right(tmp_path, (2,))


def test_the_space_is_checked_before_the_start(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + 150_000))
    with pytest.raises(InputError, match=r"2 files of about 0.0 GB .* 0.1 GB free"):
        get(server, tmp_path)
    assert server.requests == []
    # 150,000 bytes are spare: the 150,068 or so of the image no longer fit, unless some of them are there
    (tmp_path / "case_00000").mkdir()
    (tmp_path / "case_00000" / "imaging.nii.gz.part").write_bytes(bytes(30_000))
    get(server, tmp_path)
    assert_right(tmp_path)


# What is already in the folder


def test_a_file_that_was_there_is_checked_recorded_and_kept(server, tmp_path):
    (tmp_path / "case_00000").mkdir()
    (tmp_path / LABELS).write_bytes(MAPS["case_00000"])
    (tmp_path / IMAGE).write_bytes(IMAGES["case_00000"])
    assert get(server, tmp_path).kept == [IMAGE, LABELS]
    assert server.requests == []
    assert_right(tmp_path)


def test_a_truncated_file_that_was_there_is_replaced(server, tmp_path):
    """As the official downloader leaves them after a dropped connection."""
    (tmp_path / "case_00000").mkdir()
    (tmp_path / IMAGE).write_bytes(IMAGES["case_00000"][:100_000])
    get(server, tmp_path)
    assert_right(tmp_path)


def test_a_label_map_of_the_user_is_never_overwritten(server, tmp_path):
    mine = gz(8, 1000)
    (tmp_path / "case_00000").mkdir()
    (tmp_path / LABELS).write_bytes(mine)
    with pytest.raises(InputError, match=f"{LABELS}: .*released label map.* 1,0.. bytes.*Move"):
        get(server, tmp_path)
    assert (tmp_path / LABELS).read_bytes() == mine


def test_a_beginning_of_another_address_is_not_gone_on_with(server, tmp_path):
    part = tmp_path / "case_00002" / "imaging.nii.gz.part"
    server.always[image_path(2)] = "404"
    server.faults[image_path(2)] = ["drop"]
    with pytest.raises(InputError):
        get(server, tmp_path, "2")
    assert part.stat().st_size == (len(IMAGES["case_00002"]) + 1) // 2
    server.files["/mirror/case_00002.nii.gz"] = other = gz(60, 150_000)
    files = choose_files("2", manifest=MANIFEST, images_url=server.url("/mirror/{case}.nii.gz"))
    download_files(tmp_path, files, patience=SOON)
    assert server.asked("/mirror/case_00002.nii.gz") == [(None, 200)]
    assert (tmp_path / "case_00002/imaging.nii.gz").read_bytes() == other


@pytest.mark.parametrize("facts", ["", "{", "[]", '{"url": 1}'])
def test_a_beginning_without_sound_facts_starts_over(facts, server, tmp_path):
    part = tmp_path / "case_00002" / "imaging.nii.gz.part"
    part.parent.mkdir()
    part.write_bytes(b"anything")
    part.with_name(f"{part.name}.json").write_text(facts)
    get(server, tmp_path, "2")
    assert server.asked(image_path(2)) == [(None, 200)]
    assert_right(tmp_path, (2,))


# From a folder

LAYOUTS = {
    "KiTS19": ("{case}/imaging.nii.gz", "{case}/segmentation.nii.gz"),
    "a clone": ("data/{case}/imaging.nii.gz", "data/{case}/segmentation.nii.gz"),
    "KiTS23": ("dataset/{case}/imaging.nii.gz", None),
    "Hugging Face": ("images/{case}.nii.gz", None),
    "flat": ("{case}.nii.gz", None),
    "the host of 2019": ("master_{number}.nii.gz", None),
    "nnU-Net": ("imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("linked", [True, False])
def test_from_a_folder(layout, linked, server, tmp_path, monkeypatch):
    if not linked:

        def refuse(*args):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(landing.os, "link", refuse)
    source, dest = tmp_path / "have", tmp_path / "kits19"
    for place, contents in zip(LAYOUTS[layout], (IMAGES, MAPS), strict=True):
        for name, data in contents.items() if place else ():
            path = source / place.format(case=name, number=name[5:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if LAYOUTS[layout][1] is None:
        with pytest.raises(InputError, match="2 files .*case_00000/segm.*--labels-only"):
            download_files(dest, choose_files("0-2", source=source, manifest=MANIFEST), source)
        get(server, dest, "0-1", labels_only=True)
    files = choose_files(source=source, manifest=MANIFEST)
    assert len(files) == 5
    requests = len(server.requests)
    download_files(dest, files, source)
    assert len(server.requests) == requests
    assert_right(dest, (0, 1, 2))
    assert (dest / IMAGE).stat().st_nlink == 1 + linked


def test_a_damaged_file_of_a_folder_is_refused_and_named(tmp_path):
    source = tmp_path / "have"
    source.mkdir()
    (source / "case_00002.nii.gz").write_bytes(IMAGES["case_00002"][:-1])
    with pytest.raises(InputError, match=r"have/case_00002.nii.gz: .*gzip.* Replace"):
        download_files(tmp_path / "d", choose_files("2", source=source, manifest=MANIFEST), source)
    assert names(tmp_path / "d") == []
    assert (source / "case_00002.nii.gz").exists()


def test_a_damaged_file_that_the_folder_cannot_replace(tmp_path):
    dest, source = tmp_path / "d", tmp_path / "have"
    (dest / "case_00002").mkdir(parents=True)
    (dest / "case_00002" / "imaging.nii.gz").write_bytes(IMAGES["case_00002"][:1000])
    source.mkdir()
    with pytest.raises(
        InputError, match="case_00002/imaging.nii.gz: is damaged, and .*have has no case_00002"
    ):
        download_files(dest, choose_files("2", manifest=MANIFEST), str(source))


def test_a_folder_of_label_maps_is_not_taken_for_imaging(tmp_path):
    source = tmp_path / "have"
    (source / "labelsTr").mkdir(parents=True)
    for where in ("", "labelsTr/"):
        (source / f"{where}case_00000.nii.gz").write_bytes(MAPS["case_00000"])
    with pytest.raises(InputError, match="case_00000.nii.gz: .*label map.*not its imaging"):
        download_files(tmp_path / "d", choose_files(source=source, manifest=MANIFEST), source)


def test_a_folder_without_cases(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: expected imaging of KiTS19"):
        choose_files(source=tmp_path, manifest=MANIFEST)
    with pytest.raises(InputError, match=f"{tmp_path}: expected label maps"):
        choose_files(labels_only=True, source=tmp_path, manifest=MANIFEST)
    with pytest.raises(InputError, match=f"{tmp_path}/no: .*found none"):
        download_files(tmp_path / "d", choose_files("0", manifest=MANIFEST), tmp_path / "no")


def test_real_label_maps_from_a_folder(real_data, tmp_path, capsys):
    arguments = ["--from", str(real_data / "kits19"), "--labels-only"]
    assert main(["download", str(tmp_path), *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "CC BY-NC-SA" in out
    assert f"24 files came to {tmp_path}; checked and recorded" in out
    assert main(["download", str(tmp_path), *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "CC BY-NC-SA" not in out
    assert "0 files came" in out
    assert "(24 there already)" in out


def test_a_file_that_landed_just_before_the_process_was_killed(server, tmp_path):
    """The file has its final name, but is not recorded yet, and its .part.json still lies beside it."""
    (tmp_path / "case_00002").mkdir()
    path = tmp_path / "case_00002" / "imaging.nii.gz"
    path.write_bytes(IMAGES["case_00002"])
    path.with_name("imaging.nii.gz.part.json").write_text("{}")
    assert get(server, tmp_path, "2").kept == ["case_00002/imaging.nii.gz"]
    assert server.requests == []
    assert_right(tmp_path, (2,))


# What is asked for


def test_cases():
    manifest = read_manifest()
    assert parse_cases("0,3-5,2,4", manifest) == [f"case_{i:05d}" for i in (0, 2, 3, 4, 5)]
    assert parse_cases(" case_00007 , 8", manifest) == ["case_00007", "case_00008"]
    assert parse_cases("all-training", manifest) == [f"case_{i:05d}" for i in range(210)]
    for text in ("", "a", "5-3", "1,,2", "-1", "1-", "0-999999999", "²"):
        with pytest.raises(InputError, match="expected numbers such as 0,3-7"):
            parse_cases(text, manifest)
    with pytest.raises(InputError, match="has 300 cases, case_00000 to case_00299; found case_00300"):
        parse_cases("298-301", manifest)


def test_what_is_fetched_from_where_today():
    image, labels = (
        "huggingface.co/datasets/neheller/KiTS-Challenge-Imaging",
        "raw.githubusercontent.com/neheller/kits19",
    )
    first, second = choose_files("7")
    assert first.url == f"https://{labels}/master/data/case_00007/segmentation.nii.gz"
    assert second.url == f"https://{image}/resolve/main/images/case_00007.nii.gz"
    assert len(choose_files()) == 420  # 210 cases, two files each
    assert [f.path for f in choose_files("210")] == ["case_00210/imaging.nii.gz"]
    with pytest.raises(InputError, match="90 test cases"):
        choose_files("209-210", labels_only=True)
    for url in ("ftp://host/{case}", "https://host/case", "file:///{case}"):
        with pytest.raises(InputError, match=f"--images-url: .*{re.escape(url)}"):
            wanted_files([], images_url=url)


def test_no_bit_and_no_byte_less_goes_unnoticed_without_a_known_hash(tmp_path):
    """gzip's checksum omits its header (10 bytes, not flipped here) and the bits that fill up the last data byte."""
    data = gz(3, 100)
    (file,) = wanted_files([MANIFEST["case_00002"]])
    path = tmp_path / "f.nii.gz"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedFile):
            check_file(path, file)
    survivors = 0
    for bit in range(10 * 8, len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            check_file(path, file)
        except DamagedFile:
            continue
        survivors += 1
        assert gzip.decompress(flipped) == gzip.decompress(data)
    assert survivors <= 7
    path.write_bytes(data)
    assert check_file(path, file) == (sha256(data), None)


def test_a_file_without_its_last_gzip_member_is_not_whole(tmp_path):
    """bgzip writes many members, each with a checksum of its own: only the length in the NIfTI header tells."""
    voxels = nifti(4, 1000)
    members = [gzip.compress(voxels[:600]), gzip.compress(voxels[600:])]
    (file,) = wanted_files([MANIFEST["case_00002"]])
    path = tmp_path / "f.nii.gz"
    path.write_bytes(members[0] + members[1])
    check_file(path, file)
    path.write_bytes(members[0])
    with pytest.raises(DamagedFile, match="not whole: it holds 600 bytes, its header states 1,352"):
        check_file(path, file)
    path.write_bytes(gzip.compress(bytes(1000)))
    with pytest.raises(DamagedFile, match="NIfTI"):
        check_file(path, file)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_the_size_that_a_nifti_header_states(kind, order, tmp_path):
    image = kind(np.zeros((5, 6, 7), np.int16), np.eye(4), kind.header_class(endianness=order))
    image.set_data_dtype(np.int16)
    data = image.to_bytes()
    assert kits_files._nifti_bytes(data[:540]) == len(data)  # nibabel's own writer is the judge


def test_git_lfs_pointers_and_web_pages_are_told(tmp_path):
    (file,) = wanted_files([MANIFEST["case_00002"]])
    for text, message in (
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (" <html>", "a proxy"),
    ):
        (tmp_path / "f").write_text(text)
        with pytest.raises(DamagedFile, match=message):
            check_file(tmp_path / "f", file)
    assert find_local(tmp_path, file) is None


# The record of hashes


def test_hashes_recorded_by_threads_and_processes_at_once_are_all_there(tmp_path):
    code = (
        "import sys\nfrom kitsseg.data.kits19.trusted_hashes import record_hash\n"
        "for i in range(10): record_hash(sys.argv[1], f'{sys.argv[2]}/{i}', 'a' * 64, i)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"p{i}"]) for i in range(2)]

    def record(name):
        for i in range(10):
            record_hash(tmp_path, Path(name) / str(i), "b" * 64, i)

    threads = [threading.Thread(target=record, args=(f"t{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(30) for process in processes] == [0, 0]
    hashes = read_hashes(tmp_path)
    assert len(hashes) == 50
    assert hashes["t1/7"] == RecordedHash("b" * 64, 7)
    assert hashes["p0/9"] == RecordedHash("a" * 64, 9)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": 1}', '{"a": {"sha256": "x", "bytes": 1}}', '{"a": {}}']
)
def test_a_damaged_record_is_an_error(text, tmp_path):
    (tmp_path / "hashes.json").write_text(text)
    with pytest.raises(InputError, match="hashes.json: expected"):
        read_hashes(tmp_path)


# Real processes, stopped in the middle


def command(server, dest, cases="210-212"):
    return [
        *(sys.executable, "-m", "kitsseg", "download", str(dest), "--cases", cases, "--jobs", "2"),
        *("--images-url", server.url("/images/{case}.nii.gz")),
    ]


@pytest.fixture
def slow(server):
    """Three test cases, dripping: about a second each."""
    for i in range(3):
        server.files[image_path(210 + i)] = IMAGES[f"case_{i:05d}"]
        server.always[image_path(210 + i)] = "drip"
    return server


def start_and_wait(server, dest):
    process = subprocess.Popen(
        command(server, dest),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    last = time.monotonic() + 60
    part = dest / "case_00210" / "imaging.nii.gz.part"
    while fetch.part_size(part) < 30_000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last
        time.sleep(0.002)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_download_stopped_in_the_middle_goes_on(number, slow, tmp_path):
    dest = tmp_path / "d"
    process = start_and_wait(slow, dest)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "same command" in " ".join(out.split())
        assert err.count("\n") == 1
    assert not list(dest.glob("case_*/imaging.nii.gz"))  # nothing is taken for whole
    have = fetch.part_size(dest / "case_00210" / "imaging.nii.gz.part")
    assert have >= 30_000
    with pytest.raises(InputError):
        find_cases(dest)

    slow.always.clear()
    done = subprocess.run(command(slow, dest), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for i in range(3):
        assert (dest / f"case_{210 + i:05d}/imaging.nii.gz").read_bytes() == IMAGES[f"case_{i:05d}"]
    assert (f"bytes={have}-", 206) in slow.asked(image_path(210))
    assert not list(dest.rglob("*.part*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_second_process_in_the_same_folder_is_refused_and_harms_nothing(slow, tmp_path):
    dest = tmp_path / "d"
    process = start_and_wait(slow, dest)
    try:
        with pytest.raises(InputError, match=f"{dest}: another process .*Wait"):
            get(slow, dest)
    finally:
        slow.always.clear()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    for i in range(3):
        assert (dest / f"case_{210 + i:05d}/imaging.nii.gz").read_bytes() == IMAGES[f"case_{i:05d}"]


def test_a_stalled_download_stops_at_once_when_interrupted(server, tmp_path, monkeypatch):
    server.always[image_path(2)] = "stall"

    def progress(description, done, total):
        if done > 50_000:
            raise KeyboardInterrupt

    before = threading.active_count()
    started = time.monotonic()
    files = choose_files("2", manifest=MANIFEST, **urls(server))
    with pytest.raises(KeyboardInterrupt):
        download_files(tmp_path, files, patience=Patience(stall_s=30), progress=progress)
    assert time.monotonic() - started < 5  # not the 30 s of the stall
    time.sleep(0.05)
    assert threading.active_count() <= before + 1  # the server's own
    assert (
        fetch.part_size(tmp_path / "case_00002" / "imaging.nii.gz.part")
        == (len(IMAGES["case_00002"]) + 1) // 2
    )


def test_a_lock_ends_with_its_block(tmp_path):
    with folder_lock(tmp_path, "x"), pytest.raises(InputError), folder_lock(tmp_path, "x", wait=False):
        pass
    with folder_lock(tmp_path, "x", wait=False), folder_lock(tmp_path, "y", wait=False):
        pass


def test_a_file_in_place_of_the_folder(server, tmp_path):
    (tmp_path / "d").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/d: .*found a file"):
        get(server, tmp_path / "d")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user without all rights")
def test_a_folder_without_write_permission(server, tmp_path):
    (tmp_path / "d").mkdir(mode=0o500)
    with pytest.raises(PermissionError) as info:
        get(server, tmp_path / "d")
    assert str(tmp_path / "d") in str(info.value.filename)
