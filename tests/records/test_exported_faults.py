"""An exported file that has changed in any place is refused before an engine opens it; bombs and other files too."""

import hashlib
import json
import random
import shutil
import zipfile

import numpy as np
import pytest

from kitsseg.errors import InputError
from kitsseg.files.json_records import as_builtins
from kitsseg.inference.engines import open_network
from kitsseg.records import exported as records
from kitsseg.records.exported import METADATA, onnx_field, sealed
from kitsseg.records.networks import read_exported

pytest.importorskip("ai_edge_litert")
pytest.importorskip("onnx")

NAMES = ("network.tflite", "network.onnx", "saved")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    from kitsseg.export.export import export_run
    from kitsseg.export.writers import ExportOptions

    folder = tmp_path_factory.mktemp("exported")
    for name in NAMES:
        export_run(trained.run, folder / name, ExportOptions(size=(32, 32), cache=trained.cache))
    return folder


def test_the_engine_finds_the_same_metadata(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = exported / "network.onnx"
    text = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["kitsseg"]
    found, content_sha256 = records._of_onnx(path)
    assert found.decode() == text
    assert content_sha256 == json.loads(text)["content_sha256"]


def copy(exported, name, folder):
    if (exported / name).is_dir():
        return shutil.copytree(exported / name, folder / name)
    return shutil.copy(exported / name, folder / name)


def largest_file(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_exported_is_read(name, exported):
    network = read_exported(exported / name)
    assert network.source.input_shape == (1, 32, 32, 1)
    assert np.isfinite(open_network(network.source).scores(np.zeros((1, 32, 32, 1), np.float32))).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_byte_is_found_before_an_engine_sees_it(name, exported, tmp_path):
    path = copy(exported, name, tmp_path)
    file, rng = largest_file(path), random.Random(0)
    whole = file.read_bytes()
    expected = read_exported(path)
    accepted = 0
    for _ in range(40):
        data = bytearray(whole)
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            found = read_exported(path)
        except InputError as error:
            assert str(path) in str(error)
        else:  # in the zip archive, what neither its contents nor its names depend on
            accepted += 1
            assert name == "network.tflite"
            assert found == expected
            with zipfile.ZipFile(path) as archive:
                assert place > archive.getinfo(METADATA).header_offset
    assert accepted < 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_named(share, name, exported, tmp_path):
    path = copy(exported, name, tmp_path)
    file = largest_file(path)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=rf"{name}: .*metadata.*kitsseg export"):
        read_exported(path)


def with_metadata(exported, name, folder, text):
    """A copy of an exported file with other metadata."""
    path = copy(exported, name, folder)
    if path.is_dir() if hasattr(path, "is_dir") else False:
        (path / "assets.extra" / METADATA).write_bytes(text)
        return path
    data = (exported / name).read_bytes()
    if name.endswith(".tflite"):
        with zipfile.ZipFile(path) as archive:
            content = data[: archive.getinfo(METADATA).header_offset]
        (folder / name).write_bytes(content)
        with zipfile.ZipFile(folder / name, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(METADATA, text)
    else:
        import onnx

        old = onnx.load_from_string(data).metadata_props[-1].SerializeToString(deterministic=True)
        raw = onnx.StringStringEntryProto(key="kitsseg").SerializeToString() + b"\x12" + onnx_field(text)[1:]
        (folder / name).write_bytes(data.removesuffix(onnx_field(old)) + onnx_field(raw))
    return folder / name


DAMAGED = {
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "a huge number": b'{"a": ' + b"9" * 10_000 + b"}",
    "null": b"null",
    "a list": b"[1, 2]",
    "text": b'"kitsseg"',
    "nothing": b"",
    "no checksum": b'{"input": {"shape": [1, 32, 32, 1]}}',
    "a wrong checksum": b'{"input": {"shape": [1, 32, 32, 1]}, "sha256": "0", "content_sha256": "0"}',
    "NaN": b'{"sha256": NaN, "content_sha256": Infinity}',
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_metadata_are_one_line(text, name, exported, tmp_path):
    path = with_metadata(exported, name, tmp_path, text)
    with pytest.raises(InputError, match=rf"{name}: .*metadata.*kitsseg export"):
        read_exported(path)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_without_end_are_never_read(name, exported, tmp_path):
    path = with_metadata(exported, name, tmp_path, b" " * (50 << 20))
    with pytest.raises(InputError, match="metadata of 52,428,8.. bytes, more than 1,048,576"):
        read_exported(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 700_000,
        b"\x80" * 3_000_000,
        bytes([8, 1]) * 1_000_000,
        b"\x72\xff\xff\xff\xff\x0f",
        b"\x0b\x0b",
    ],
    ids=["no end", "no end of zeros", "a million fields", "longer than the file", "groups"],
)
def test_numbers_and_fields_without_end_are_refused_at_once(content, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"network\.onnx: expected the metadata"):
        read_exported(path)


def test_a_field_is_written_as_protobuf_does():
    import onnx

    for length in (0, 1, 100, 127, 128, 300, 20_000, 3_000_000):
        model = onnx.ModelProto()
        onnx.helper.set_model_props(model, {"kitsseg": "x" * length})
        entry = onnx.StringStringEntryProto(key="kitsseg", value="x" * length)
        assert onnx_field(entry.SerializeToString()) == model.SerializeToString()


@pytest.mark.parametrize("name", ["network.tflite", "network.onnx"])
def test_a_network_that_computes_nan_or_another_shape_is_refused(name, exported, tmp_path):
    """As if somebody had exported it so: the checksums are right."""
    import tensorflow as tf

    from kitsseg.export import writers

    record = read_exported(exported / name).record
    for what, function, pattern in (
        ("nan", lambda x: tf.concat([x, x, x * float("nan")], -1), "not finite"),
        ("flat", lambda x: tf.reduce_mean(x, (1, 2)), r"cannot load it .outputs of shape \(1, 1\)"),
    ):
        signature = [tf.TensorSpec((1, 32, 32, 1), tf.float32, name="image")]
        holder = tf.Module()
        holder.__call__ = tf.function(function, input_signature=signature, autograph=False)
        path = tmp_path / f"{what}-{name}"
        if name.endswith(".onnx"):
            writers._write_onnx(holder.__call__, path, record)
        else:
            writers._write_litert(holder.__call__, holder, path, record, "float32", None, False)
        with pytest.raises(InputError, match=rf"{path.name}: .*{pattern}"):
            open_network(read_exported(path).source)


def test_metadata_that_promise_another_size_are_refused(exported, tmp_path):
    data = (exported / "network.tflite").read_bytes()
    with zipfile.ZipFile(exported / "network.tflite") as archive:
        content = data[: archive.getinfo(METADATA).header_offset]
    for shape in (
        [1, 64, 64, 1],
        [1, 32, 32],
        [1, 10**6, 10**6, 1],
        [-1, 32, 32, 1],
        [1, 32, 32.5, 1],
        [1, True, 32, 1],
        ["a"],
        [],
    ):
        record = as_builtins(read_exported(exported / "network.tflite").record)
        record |= {"input": {"shape": shape}}
        (tmp_path / "network.tflite").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "network.tflite", "a") as archive:
            archive.writestr(METADATA, sealed(record, hashlib.sha256(content).hexdigest()))
        with pytest.raises(
            InputError, match=r"network\.tflite: (litert cannot load it|expected the metadata)"
        ):
            open_network(read_exported(tmp_path / "network.tflite").source)
