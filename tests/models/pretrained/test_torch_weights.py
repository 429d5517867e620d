"""Reading torch's files without torch, and putting them into an encoder.

``fixtures/tiny_zip.pth`` and ``tiny_legacy.pth`` were written by torch 2.13 with
``scripts/export_torchvision_features.py --fixture``; the values they must hold are made again here by that
script's ``seeded_tensor``.
"""

import collections
import hashlib
import importlib.util
import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from pickletools import genops as pickle_operations

import keras
import numpy as np
import pytest
from keras import layers
from support import ROOT

from kitsseg.errors import InputError
from kitsseg.models.pretrained import torchvision as torch_weights
from kitsseg.models.pretrained.torch_files import LEGACY_MAGIC, read_state_dict
from kitsseg.models.pretrained.torchvision import (
    TORCHVISION_URLS,
    assign_state_dict,
    download_weights,
    load_torchvision_weights,
)

HERE = Path(__file__).parent
TINY = [HERE.parent / "fixtures" / "tiny_zip.pth", HERE.parent / "fixtures" / "tiny_legacy.pth"]
spec = importlib.util.spec_from_file_location(
    "export_torchvision_features", ROOT / "scripts" / "export_torchvision_features.py"
)
export = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export)


def tiny_state():
    shapes = {"features.0.weight": (3, 2, 3, 3), "features.0.bias": (3,)}
    shapes |= {f"features.1.{part}": (3,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {name: export.seeded_tensor(name, shape) for name, shape in shapes.items()}


def tiny_model(channels=2):
    image = keras.Input((5, 6, channels), name="image")
    x = layers.Conv2D(3, 3, name="encoder_features_0")(image)
    x = layers.BatchNormalization(name="encoder_features_1")(x)
    return keras.Model(image, layers.Conv2D(1, 1, name="logits")(x), name="tiny")


def hashed_copy(folder, content=None, prefix=None):
    """A copy of the tiny file named like torchvision's: NAME-HASH.pth."""
    content = TINY[0].read_bytes() if content is None else content
    path = folder / f"tiny-{prefix or hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


class Foreign:
    """Its pickle calls ``os.mkdir``: harmless, but the new folder shows that the pickle was run."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_reads_both_formats_bit_by_bit(path):
    state = read_state_dict(path)
    expected = tiny_state()
    # the view shares the kernel's storage: second input channel on, input channels first
    expected["classifier.view"] = expected["features.0.weight"].transpose(1, 0, 2, 3)[1:]
    expected["features.1.num_batches_tracked"] = np.array(0, "int64")
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array, err_msg=name)


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_file_cut_anywhere_is_refused(path, tmp_path):
    content = path.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.pth: .*not a readable"):
            read_state_dict(cut)


def test_foreign_pickles_are_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    foreign = pickle.dumps(collections.OrderedDict(weight=Foreign(trap)), protocol=2)
    plain, legacy, zipped = (tmp_path / f"{name}.pth" for name in ("plain", "legacy", "zipped"))
    plain.write_bytes(foreign)
    legacy.write_bytes(
        LEGACY_MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + foreign
    )
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", foreign)
    for path, reason in ((plain, "neither"), (legacy, "mkdir"), (zipped, "mkdir")):
        with pytest.raises(InputError, match=reason):
            read_state_dict(path)
    assert not trap.exists()
    pickle.loads(foreign)  # without the guard the pickle does make the folder
    assert trap.exists()


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "list.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"epoch": 3}, protocol=2))
    with pytest.raises(InputError, match=r"list\.pth: .*than named tensors"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/byteorder", "big")
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    with pytest.raises(InputError, match="big-endian"):
        read_state_dict(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "short.pth"
    with zipfile.ZipFile(TINY[0]) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:-4] if name.endswith("/data/0") else content)
    with pytest.raises(InputError, match="not a readable torch"):
        read_state_dict(path)


def test_a_missing_file_stays_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")


def test_loads_a_file_and_transposes_kernels():
    model, expected = tiny_model(), tiny_state()
    load_torchvision_weights(model, str(TINY[0]))
    kernel, bias = model.get_layer("encoder_features_0").get_weights()
    for out, n_in, row, column in np.ndindex(3, 2, 3, 3):
        assert kernel[row, column, n_in, out] == expected["features.0.weight"][out, n_in, row, column]
    np.testing.assert_array_equal(bias, expected["features.0.bias"])
    parts = ("weight", "bias", "running_mean", "running_var")  # gamma, beta, moving mean, moving variance
    for part, values in zip(parts, model.get_layer("encoder_features_1").get_weights(), strict=True):
        np.testing.assert_array_equal(values, expected[f"features.1.{part}"])


def test_weights_that_do_not_fit_are_named_and_change_nothing():
    model, state = tiny_model(channels=4), tiny_state()
    del state["features.1.running_var"]
    state["features.9.weight"] = np.zeros(3)
    before = model.get_weights()
    with pytest.raises(InputError) as caught:
        assign_state_dict(model, state, "my.pth")
    message = str(caught.value)
    assert re.match(r"my\.pth: .*weights do not fit", message)
    assert "features.0.weight has shape (3, 2, 3, 3) instead of (3, 4, 3, 3)" in message
    assert "features.1.running_var is missing" in message
    assert "features.9.weight is not part" in message
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_one_channel_takes_the_sum_of_three():
    model, state = tiny_model(channels=1), tiny_state()
    state["features.0.weight"] = export.seeded_tensor("kernel", (3, 3, 3, 3))
    assign_state_dict(model, state)
    expected = state["features.0.weight"].sum(axis=1).transpose(1, 2, 0)[:, :, None]
    np.testing.assert_allclose(model.get_layer("encoder_features_0").get_weights()[0], expected, rtol=1e-6)


def test_imagenet_is_downloaded_once_into_the_cache(tmp_path, monkeypatch):
    source = hashed_copy(tmp_path)
    monkeypatch.setitem(TORCHVISION_URLS, "squeezenet1_1", source.as_uri())
    monkeypatch.setenv("KITSSEG_CACHE", str(tmp_path / "deep" / "cache"))
    load_torchvision_weights(tiny_model(), "imagenet")
    source.unlink()  # now only the cache can serve
    model = tiny_model()
    load_torchvision_weights(model, "imagenet")
    np.testing.assert_array_equal(
        model.get_layer("encoder_features_0").get_weights()[1], tiny_state()["features.0.bias"]
    )
    assert [path.name for path in (tmp_path / "deep" / "cache").iterdir()] == [source.name]


def test_a_wrong_hash_is_refused(tmp_path):
    source = hashed_copy(tmp_path, prefix="00000000")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="SHA-256 must begin with 00000000, found"):
        download_weights(source.as_uri(), cache)
    assert not cache.exists()


def test_a_damaged_cache_is_refused(tmp_path):
    source = hashed_copy(tmp_path)
    path = download_weights(source.as_uri(), tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="Delete it"):
        download_weights(source.as_uri(), tmp_path / "cache")


def test_offline_says_which_file_and_what_to_do(tmp_path):
    url = (tmp_path / "unreachable" / "resnet34-b627a593.pth").as_uri()
    with pytest.raises(InputError) as caught:
        download_weights(url, tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith("resnet34-b627a593.pth: ")
    assert url in message
    assert str(tmp_path / "cache" / "resnet34-b627a593.pth") in message
    assert "no pretrained weights" in message


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise torch_weights.http.client.IncompleteRead(b"half")

    monkeypatch.setattr(torch_weights.urllib.request, "urlopen", lambda *_, **__: Broken())
    with pytest.raises(InputError, match="could not be downloaded"):
        download_weights("https://example.org/tiny-00000000.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


VALUES = np.arange(4, dtype="<f4").tobytes()


def dumped(value):
    """The opcodes of a value, to be put into a pickle that is written by hand."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(shape=(2, 2), strides=(2, 1), offset=0):
    """The opcodes with which torch refers to a tensor of the storage "0", of float32."""
    key = (
        b"(" + dumped("storage") + b"ctorch\nFloatStorage\n" + dumped("0") + dumped("cpu") + dumped(4) + b"tQ"
    )
    more = dumped(offset) + dumped(shape) + dumped(strides) + dumped(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + more + b"tR"


def state_file(path, tensors, first=b"", values=VALUES, pack=zipfile.ZIP_STORED):
    entries = b"".join(dumped(name) + content for name, content in tensors.items())
    with zipfile.ZipFile(path, "w", pack) as archive:
        archive.writestr(
            "a/data.pkl", b"\x80\x02" + first + b"ccollections\nOrderedDict\n)R(" + entries + b"u."
        )
        archive.writestr("a/data/0", values)
    return path


def complaint(path):
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_a_file_written_by_hand_is_read(tmp_path):
    state = read_state_dict(state_file(tmp_path / "a.pth", {"w": tensor(strides=(1, 2))}))
    np.testing.assert_array_equal(state["w"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"shape": (1 << 20, 1 << 20), "strides": (0, 0)}, "tensors have more than"),
        ({"shape": (1 << 62, 4), "strides": (0, 1)}, "tensors have more than"),
        ({"shape": (0, 1 << 62), "offset": -1}, "an offset is no number"),
        ({"shape": (2, -2)}, "an offset is no number"),
        ({"strides": (2.0, 1)}, "an offset is no number"),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "a tensor of 33 axes"),
        ({"offset": 2}, "buffer"),
        ({"strides": (1 << 61, 1)}, "not a readable torch"),
    ],
)
def test_tensors_larger_than_their_file_are_refused_before_memory_is_asked_for(tmp_path, made, words):
    assert words in complaint(state_file(tmp_path / "a.pth", {"w": tensor(**made)}))


def test_so_are_many_tensors_of_one_storage(tmp_path):
    values = bytes(4 << 10)
    every = {f"w{number}": tensor((1 << 10,), (1,)) for number in range(100)}
    path = state_file(tmp_path / "a.pth", every, values=values)
    assert 100 * len(values) > path.stat().st_size
    assert f"more than the {path.stat().st_size:,} bytes of the file" in complaint(path)


def test_a_pickle_that_numbers_objects_it_does_not_have_is_refused(tmp_path):
    """C's unpickler would reserve 16 GiB for the number of one object."""
    first = b"Nr" + (2**31 - 1).to_bytes(4, "little") + b"0"
    path = state_file(tmp_path / "a.pth", {"w": tensor()}, first=first)
    assert "numbers an object 2147483647 after" in complaint(path)


def test_a_zip_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    path = state_file(tmp_path / "a.pth", {"w": tensor()}, values=bytes(1 << 24), pack=zipfile.ZIP_DEFLATED)
    assert "larger than the file" in complaint(path)


def test_the_older_format_may_not_ask_for_more_values_than_it_has(tmp_path):
    content = TINY[1].read_bytes()
    file = io.BytesIO(content)
    for _ in range(5):  # magic, version, system, the object, the keys of its storages
        for _ in pickle_operations(file):
            pass
    for length in (2**62, 2**40, 10**6):
        damaged = content[: file.tell()] + length.to_bytes(8, "little") + content[file.tell() + 8 :]
        (tmp_path / "a.pth").write_bytes(damaged)
        assert "not a readable torch" in complaint(tmp_path / "a.pth")


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "a.pth").open("wb") as file:
        file.truncate((4 << 30) + 1)
    assert "found a file of 4,294,967,297 bytes. Check the path" in complaint(tmp_path / "a.pth")
