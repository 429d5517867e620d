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
import zipfile
from pathlib import Path

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
    """Pickles into a call of ``os.mkdir``: harmless, but it would show."""

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
        with pytest.raises(InputError, match=r"cut\.pth: not a readable torch state dict"):
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
    pickle.loads(foreign)  # the trap works where nothing guards it
    assert trap.exists()


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "list.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"epoch": 3}, protocol=2))
    with pytest.raises(InputError, match="something else than named tensors"):
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
    with pytest.raises(InputError, match="not a readable torch state dict"):
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
    assert message.startswith("my.pth: the weights do not fit")
    assert "features.0.weight has shape (3, 2, 3, 3) instead of (3, 4, 3, 3)" in message
    assert "features.1.running_var is missing" in message
    assert "features.9.weight is not part of this encoder" in message
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
    with pytest.raises(InputError, match="Delete it and start again"):
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
