"""Servers and folders that give something other than a case of KiTS19.

The download stops at a bound, the error is one line, and no wrong file stays.
"""

import gzip
import hashlib
import http.server
import json
import shutil
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from kitsseg.cli import main
from kitsseg.data.download import http as fetch
from kitsseg.data.download.catalog import DamagedFile, KitsFile, check_file, wanted_files
from kitsseg.data.download.download import download_files
from kitsseg.data.download.http import Connections, Patience, fetch_file
from kitsseg.data.formats.nifti import PHANTOM, write_image
from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.data.kits19.trusted_hashes import read_hashes
from kitsseg.data.phantoms.synthesize import synthesize_cases
from kitsseg.errors import InputError

SOON = Patience(attempts=2, first_attempts=2, first_wait_s=0.01, longest_wait_s=0.02, stall_s=10)
PAGE = b"<html><body>please log in</body></html>"
MIB = 1 << 20
IMAGE = "case_00210/imaging.nii.gz"


@contextmanager
def serving(answer):
    """``answer(handler)`` for each request; gives the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with suppress(OSError):  # the client hung up
                answer(self)
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler, body=b"", status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
    handler.wfile.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def a_file(url, most_bytes=100_000, **more):
    return KitsFile(IMAGE, f"{url}/x", (), None, None, False, most_bytes=most_bytes, **more)


def scan(**header):
    with tempfile.TemporaryDirectory() as folder:
        hu = np.random.default_rng(0).integers(-500, 500, (4, 20, 30)).astype(np.int16)
        write_image(Path(folder) / "x.nii.gz", hu, (1, 1, 1), **header)
        return (Path(folder) / "x.nii.gz").read_bytes()


def download_one(folder, answer):
    """The command's work for one file that ``answer`` serves."""
    with serving(answer) as url:
        return download_files(folder, [a_file(url)], patience=SOON)


def fetch_one(part, answer):
    with serving(answer) as url, Connections(SOON) as connections:
        fetch_file(f"{url}/x", part, connections)


@pytest.mark.parametrize("how", ["no length", "a length too large", "chunks"])
def test_a_body_without_end_is_cut_off(how, tmp_path):
    sent = []

    def answer(handler):
        headers = {
            "a length too large": {"Content_Length": 10**12},
            "chunks": {"Transfer_Encoding": "chunked"},
        }
        send(handler, **headers.get(how, {}))
        for _ in range(60):
            block = bytes(MIB)
            handler.wfile.write(b"%x\r\n" % MIB + block + b"\r\n" if how == "chunks" else block)
            sent.append(MIB)

    with pytest.raises(InputError, match=r"bytes or more.* 100,000 at most") as caught:
        download_one(tmp_path / "d", answer)
    assert "imaging.nii.gz: not fetched" in str(caught.value)
    assert sum(sent) < 20 * MIB
    assert not list((tmp_path / "d").rglob("*.gz*"))


@pytest.mark.parametrize("length", ["\xb2", "-5", "1e3", "0x10", "", "9" * 400, "12 34", "\xbd"])
def test_a_length_that_is_no_number_is_one_line(length, tmp_path):
    body = scan()
    with pytest.raises(
        InputError, match=r"imaging\.nii\.gz: not fetched.*(Content-Length|status line|header)"
    ):
        download_one(tmp_path, lambda handler: send(handler, body, Content_Length=length))
    assert not list(tmp_path.rglob("*.gz"))


@pytest.mark.parametrize(
    "value", ["\xb2", "bytes \xb2-5/9", "bytes 0-5/*", "bytes 5-0/" + "9" * 400, "nonsense"]
)
def test_a_range_that_is_none_starts_the_file_again(value, tmp_path):
    body, asked = scan(), []

    def answer(handler):
        asked.append(handler.headers.get("Range"))
        if handler.headers.get("Range"):
            send(handler, body[10:], "206 Partial Content", Content_Range=value, ETag='"a"')
        else:
            send(handler, body[: 50 if len(asked) == 1 else None], Content_Length=len(body), ETag='"a"')

    fetch_one(tmp_path / "x.part", answer)
    assert (tmp_path / "x.part").read_bytes() == body
    assert asked == [None, "bytes=50-", None]


@pytest.mark.parametrize("value", ["\xb2", "9" * 400, "Mon, 99 Foo 2026", "-1", ""])
def test_a_wait_that_is_none_is_not_waited_for(value, tmp_path):
    with pytest.raises(InputError, match="HTTP status 503"):
        fetch_one(
            tmp_path / "x.part",
            lambda handler: send(handler, status="503 Busy", Retry_After=value, Content_Length=0),
        )


PAGES = {
    "a page": PAGE,
    "a page after blanks": b"\n\n  " + PAGE,
    "a packed page": gzip.compress(PAGE),
    "JSON": b'{"error": "log in"}',
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "nothing": b"",
    "half a scan": scan()[:-500],
    "an archive": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("announce", [True, False], ids=["with its hash", "without"])
@pytest.mark.parametrize("body", PAGES.values(), ids=PAGES)
def test_what_is_no_scan_is_never_stored_whatever_hash_comes_with_it(body, announce, tmp_path):
    tag = {"X_Linked_ETag": f'"{hashlib.sha256(body).hexdigest()}"'} if announce else {}
    with pytest.raises(InputError, match=r"imaging\.nii\.gz"):
        download_one(tmp_path, lambda handler: send(handler, body, Content_Length=len(body), **tag))
    assert not list(tmp_path.rglob("*.gz"))
    assert read_hashes(tmp_path) == {}


def test_a_small_file_that_unpacks_without_end_is_refused(tmp_path):
    bomb = gzip.compress(gzip.decompress(scan()) + bytes(64 * MIB), mtime=0)
    assert len(bomb) < MIB
    (tmp_path / "x.nii.gz").write_bytes(bomb)
    with pytest.raises(DamagedFile, match="unpacks to more.* 1,000,000 bytes"):
        check_file(tmp_path / "x.nii.gz", a_file("", most_unpacked=1_000_000))


@pytest.mark.parametrize("start", [float("nan"), float("inf"), -1.0, 2.0**31])
def test_a_header_whose_voxels_begin_nowhere_is_damage(start, tmp_path):
    data = bytearray(gzip.decompress(scan()))
    data[108:112] = np.float32(start).tobytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(DamagedFile, match="voxels begin at byte"):
        check_file(tmp_path / "x.nii.gz", a_file(""))


@pytest.mark.parametrize("scheme", ["ftp", "file", "FTP", "gopher", "data"])
def test_only_the_web_is_followed(scheme, tmp_path):
    place = f"{scheme}://127.0.0.1/x"
    with pytest.raises(InputError, match=rf"redirects to {scheme.lower()}://.* https or http"):
        fetch_one(
            tmp_path / "x.part",
            lambda handler: send(handler, status="302 Found", Location=place, Content_Length=0),
        )
    assert not (tmp_path / "x.part").exists()


FACTS = {
    "nested": "[" * 100_000,
    "a list": "[]",
    "other types": json.dumps({"url": 1, "sha256": 2, "validator": 3, "total": "4"}),
    "a huge number": '{"url": "URL", "sha256": null, "validator": null, "total": ' + "9" * 5000 + "}",
    "NaN": '{"url": "URL", "sha256": null, "validator": null, "total": NaN}',
    "bytes": "\udcff",
    "a line end in a header": json.dumps(
        {"url": "URL", "sha256": None, "validator": "a\r\nX: y", "total": 9}
    ),
    "nothing": "",
}


@pytest.mark.parametrize("text", FACTS.values(), ids=FACTS)
def test_a_damaged_note_of_an_earlier_download_starts_the_file_again(text, tmp_path):
    body, part = scan(), tmp_path / "x.part"
    served = serving(lambda handler: send(handler, body, Content_Length=len(body)))
    with served as url, Connections(SOON) as connections:
        part.write_bytes(body[:50])
        note = text.replace("URL", f"{url}/x").encode(errors="surrogateescape")
        fetch._facts_path(part).write_bytes(note)
        fetch_file(f"{url}/x", part, connections)
    assert part.read_bytes() == body


def test_bounds_come_from_the_manifest():
    manifest = read_manifest()
    labels, image = wanted_files([manifest["case_00003"]])
    [unknown] = wanted_files([manifest["case_00250"]])
    row = manifest["case_00003"]
    assert labels.most_bytes == row.label_bytes + MIB
    assert image.most_bytes == int(np.prod(row.shape)) * 8 + MIB
    assert unknown.most_bytes == 4 << 30
    for file in wanted_files(manifest.values()):
        assert file.bytes is None or file.bytes < file.most_bytes


@pytest.fixture
def phantoms(tmp_path):
    synthesize_cases(tmp_path / "made", n_cases=2, size=(8, 32, 32))
    for name, other in (("case_00000", "case_00210"), ("case_00001", "case_00211")):
        shutil.move(tmp_path / "made" / name, tmp_path / "made" / other)
    return tmp_path / "made"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("recorded", [False, True])
def test_phantoms_are_never_taken_for_kits19(recorded, phantoms, capsys):
    if recorded:  # as an earlier version may have done
        image = phantoms / IMAGE
        entry = {"sha256": hashlib.sha256(image.read_bytes()).hexdigest(), "bytes": image.stat().st_size}
        (phantoms / "hashes.json").write_text(json.dumps({IMAGE: entry}))
    before, asked = files(phantoms), []

    def answer(handler):
        asked.append(handler.path)
        send(handler, status="404 Not Found", Content_Length=0)

    with serving(answer) as url:
        command = ["download", str(phantoms), "--cases", "210-211", "--images-url", f"{url}/{{case}}"]
        assert main(command) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert str(phantoms / IMAGE) in line
    assert "phantom" in line
    assert not asked
    after = files(phantoms)
    after.pop("DATA_LICENSE.txt", None)
    assert after == before


def test_nor_are_those_of_another_folder(phantoms, tmp_path, capsys):
    assert main(["download", str(tmp_path / "d"), "--from", str(phantoms), "--cases", "210"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert str(phantoms / IMAGE) in line
    assert "phantom" in line
    assert not list((tmp_path / "d").rglob("*.gz"))
    assert read_hashes(tmp_path / "d") == {}


def test_nor_are_those_that_a_server_sends(tmp_path):
    body = scan(description=PHANTOM)
    with pytest.raises(InputError, match="it is a phantom"):
        download_one(tmp_path, lambda handler: send(handler, body, Content_Length=len(body)))
    assert not list(tmp_path.rglob("*.gz"))


def nothing_arrives(folder):
    return not list(folder.rglob("*.gz")) and read_hashes(folder) == {}


@pytest.mark.parametrize(
    "description", [PHANTOM, "kitsseg phantom, no patient", "kitsseg phantom 9, no patient"]
)
def test_nor_are_those_of_any_generator(tmp_path, description):
    body = scan(description=description)
    with pytest.raises(InputError, match="it is a phantom"):
        download_one(tmp_path, lambda handler: send(handler, body, Content_Length=len(body)))
    assert nothing_arrives(tmp_path)


def test_nor_are_those_that_are_not_compressed(phantoms, tmp_path, capsys):
    path = phantoms / IMAGE
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert main(["download", str(tmp_path / "d"), "--from", str(phantoms), "--cases", "210"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert nothing_arrives(tmp_path / "d")


@pytest.mark.parametrize("how", ["nnU-Net", "a link to the file", "a link to the folder"])
def test_nor_are_those_that_lie_in_another_way(how, phantoms, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    if how == "nnU-Net":
        (source / "imagesTs").mkdir()
        shutil.copy(phantoms / IMAGE, source / "imagesTs" / "case_00210_0000.nii.gz")
    elif how == "a link to the file":
        (source / "case_00210").mkdir()
        (source / IMAGE).symlink_to(phantoms / IMAGE)
    else:
        (source / "case_00210").symlink_to(phantoms / "case_00210")
    assert main(["download", str(tmp_path / "d"), "--from", str(source), "--cases", "210"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "it is a phantom" in line
    assert nothing_arrives(tmp_path / "d")
