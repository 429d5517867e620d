"""Exported networks: equal to the run's network, readable without Keras and kitsseg, whole or not there at all."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from support.cases import read_json

from kitsseg import cli
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.cache.windows import cached_images
from kitsseg.errors import InputError
from kitsseg.export import check as export_check
from kitsseg.export import export
from kitsseg.export.export import export_run
from kitsseg.export.writers import ExportOptions, write_network
from kitsseg.inference import engines
from kitsseg.inference.engines import open_network
from kitsseg.models import (
    build_enhanced_unet,
    build_squeeze_unet,
    build_unet2d,
    build_wp_unet,
    deeplab3d,
)
from kitsseg.models.layers.layers3d import UpsampleTrilinear
from kitsseg.models.layers.torch_compat import NearestResize, PixelShuffle
from kitsseg.models.loading import read_network
from kitsseg.records.networks import read_exported

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="networks are exported on the TensorFlow backend"
)
SIZE = (40, 48)  # the tiny cases are of this size
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="needs what the extra export installs"
)
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "tf2onnx", "onnxruntime")),
    reason="needs what the extra export installs",
)

# Run in a process in which importing some packages fails: argv gives engine and a .npz of images and expected labels.
ALONE = """
import sys

REFUSED = ("kitsseg", "jax", "torch")
if sys.argv[1] != "tensorflow":  # whose import imports Keras
    REFUSED += ("keras", "tensorflow")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError("not in this process: " + name)

sys.meta_path.insert(0, Refuse())
import numpy as np

engine, *paths = sys.argv[1:]
for path in paths:
    known = np.load(path + ".npz")
    if engine == "litert":
        from ai_edge_litert.interpreter import Interpreter
        network = Interpreter(model_path=path)
        network.allocate_tensors()
        network.set_tensor(network.get_input_details()[0]["index"], known["image"])
        network.invoke()
        logits = network.get_tensor(network.get_output_details()[0]["index"])
    elif engine == "tensorflow":
        import tensorflow
        logits = tensorflow.saved_model.load(path)(tensorflow.constant(known["image"])).numpy()
    else:
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [logits] = session.run(None, {session.get_inputs()[0].name: known["image"]})
    assert logits.shape == known["logits"].shape, path
    equal = (logits.argmax(-1) == known["logits"].argmax(-1)).mean()
    print(path, equal, abs(logits - known["logits"]).max() / abs(known["logits"]).max())
"""


def pixel_shuffles():
    """What fastai's decoder adds to the layers of the others."""
    image = keras.Input((None, None, 2), name="image")
    x = PixelShuffle()(layers.Conv2D(12, 3, strides=2, activation="relu")(image))
    return keras.Model(image, NearestResize()(x, image))


def layers_of_deeplab3d():
    image = keras.Input((None, None, None, 1), name="image")
    x = deeplab3d._block(image, 4, 1, "down", strides=2)
    x = UpsampleTrilinear()(deeplab3d._aspp(x, 4))
    return keras.Model(image, layers.Conv3D(3, 1)(deeplab3d._join(x, image, 4, 1, "join")))


NETWORKS = {
    "unet2d": lambda: build_unet2d((None, None, 1), start_filters=4, n_pools=2),
    "wp_unet": lambda: build_wp_unet((None, None, 1), filters=(4, 8, 8, 8, 8)),
    "squeezenet": lambda: build_squeeze_unet((None, None, 3), decoder="lite"),
    "resnet18": lambda: build_squeeze_unet((None, None, 3), encoder="resnet18", decoder="lite"),
    "enhanced_unet": lambda: build_enhanced_unet((None, None, 1), base=16),
    "pixel_shuffles": pixel_shuffles,
    "layers_of_deeplab3d": layers_of_deeplab3d,
}


PAPERS_2D = ("unet2d", "wp_unet", "squeezenet", "enhanced_unet")


def write_with_answer(network, path, format, size, precision="float32"):
    """Export a network. Save an image and its logits beside it: logits of Keras, or for int8 of the exported file."""
    network = keras.Model(network.input, network.outputs[-1])
    shape = (*size, network.input_shape[-1])
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype("float32")
    if format == "saved_model":
        path.mkdir()
    write_network(network, path, shape, {}, ExportOptions(format=format, precision=precision), [image])
    if precision == "int8":
        logits = engines._litert(path)(image)
    else:
        logits = np.asarray(network(image, training=False))
    np.savez(f"{path}.npz", image=image, logits=logits)


def run_alone(engine, paths):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, engine, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines:
        name, equal, difference = line.rsplit(" ", 2)
        assert float(equal) >= 0.9999, name
        assert float(difference) < 1e-4, name


@needs_litert
@needs_onnx
@pytest.mark.slow
def test_every_network_runs_without_keras_and_kitsseg(tmp_path):
    """Without Keras and kitsseg every 2D model runs as LiteRT (also in int8) and as ONNX, and a 3D model as ONNX.

    A SavedModel needs TensorFlow, which imports Keras; it runs without kitsseg.
    """
    # random weights can make the result of an int8 addition constant, at which LiteRT ends the process (SIGABRT)
    keras.utils.set_random_seed(0)
    for name, build in NETWORKS.items():
        network = build()
        flat = len(network.input_shape) == 4
        size = (32, 48) if flat else (8, 12, 8)
        write_with_answer(network, tmp_path / f"{name}.onnx", "onnx", size)
        if flat:
            write_with_answer(network, tmp_path / f"{name}.tflite", "litert", size)
        if name in PAPERS_2D:
            write_with_answer(network, tmp_path / f"{name}-int8.tflite", "litert", size, "int8")
            write_with_answer(network, tmp_path / f"{name}-saved", "saved_model", size)
    run_alone("litert", sorted(tmp_path.glob("*.tflite")))
    run_alone("onnxruntime", sorted(tmp_path.glob("*.onnx")))
    run_alone("tensorflow", sorted(tmp_path.glob("*-saved")))


def test_a_3d_network_is_no_litert_file(trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "run")
    record = read_json(run / "run.json")
    record["settings"]["inference"] |= {"tile": [8, 16, 16], "margin": 2}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"3D network, and LiteRT .* onnx"):
        export_run(run, tmp_path / "network.tflite")


def export_micro(trained, out, progress=None, **options):
    return export_run(trained.run, out, ExportOptions(size=SIZE, **options), progress=progress)


def images_of(trained, count=6):
    cases = open_cache(trained.cache, trained.recipe.preprocess)
    return list(cached_images(list(cases.values()), (*SIZE, 1), trained.recipe.preprocess, count))


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param("network.tflite", {}, marks=needs_litert),
        pytest.param("network.tflite", {"precision": "float16", "softmax": True}, marks=needs_litert),
        pytest.param("network.tflite", {"precision": "int8-weights"}, marks=needs_litert),
        pytest.param("network.onnx", {"softmax": True}, marks=needs_onnx),
        ("network", {}),
    ],
    ids=["litert", "litert float16 softmax", "litert int8-weights", "onnx softmax", "saved_model"],
)
def test_equal_to_the_network_of_the_run(trained, tmp_path, name, options):
    result = export_micro(trained, tmp_path / name, **options)
    network = read_network(trained.run / "model.keras")
    exported = read_exported(tmp_path / name)
    source = exported.source
    compute = open_network(source)
    exact = "precision" not in options
    for image in images_of(trained):
        expected = np.asarray(network(image, training=False))
        if options.get("softmax"):
            expected = np.exp(expected) / np.exp(expected).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(compute.scores(image), expected, atol=1e-4 if exact else 0.05)
        np.testing.assert_allclose(compute(image).sum(axis=-1), 1, atol=1e-5)
    assert result.check.tk_dice >= (0.9999 if exact else 0.995)
    assert result.check.agreement >= (0.9999 if exact else 0.999)
    assert result.check.largest_difference < (1e-4 if exact else 0.05)
    assert result.input_shape == source.input_shape == (1, *SIZE, 1)
    assert (result.format, result.precision) == (source.format, exported.record.precision)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    written = [tmp_path / name] if source.format != "saved_model" else (tmp_path / name).rglob("*")
    assert result.n_bytes == sum(path.stat().st_size for path in written if path.is_file())


@needs_litert
def test_int8_is_small_and_close(trained, tmp_path, monkeypatch):
    """Three epochs of a micro network leave many near ties: what is asked for here is the size and the range."""
    monkeypatch.setitem(export_check.LEAST_DICE, "int8", (0.8, 0.0))
    monkeypatch.setattr(export, "CALIBRATED", 16)
    whole = export_micro(trained, tmp_path / "float.tflite")
    small = export_micro(trained, tmp_path / "int.tflite", precision="int8")
    assert small.n_bytes < whole.n_bytes
    compute = open_network(read_exported(tmp_path / "int.tflite").source)
    network = read_network(trained.run / "model.keras")
    expected = np.concatenate([np.asarray(network(image, training=False)) for image in images_of(trained)])
    found = np.concatenate([compute.scores(image) for image in images_of(trained)])
    assert np.abs(found - expected).mean() < 0.02 * np.ptp(expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


@needs_litert
def test_int8_weights_are_a_quarter_of_the_file_and_closer_than_int8(tmp_path):
    """LiteRT leaves kernels of fewer than 1,024 numbers in float32; these have 9,216."""
    inputs = x = keras.Input((*SIZE, 1), name="image")
    for number in range(4):
        x = layers.Conv2D(32, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    network = keras.Model(inputs, layers.Conv2D(3, 1, name="logits")(x))
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, *SIZE, 1)).astype("float32") for _ in range(4)]
    expected = np.asarray(network(images[0]))
    sizes, errors = {}, {}
    for precision in ("float32", "float16", "int8-weights", "int8"):
        path = tmp_path / f"{precision}.tflite"
        options = ExportOptions(format="litert", precision=precision)
        write_network(network, path, (*SIZE, 1), {}, options, images)
        sizes[precision] = path.stat().st_size
        errors[precision] = np.abs(engines._litert(path)(images[0]) - expected).mean() / expected.std()
    assert sizes["int8-weights"] < 0.4 * sizes["float32"] and sizes["int8-weights"] < 0.7 * sizes["float16"]
    assert 1e-4 < errors["int8-weights"] < errors["int8"] < 0.1


@needs_litert
def test_an_int8_file_that_would_end_the_process_is_not_kept(trained, tmp_path, monkeypatch):
    """An addition whose result is always 0: LiteRT answers with SIGABRT, not with an error."""
    inputs = keras.Input((*SIZE, 1), name="image")
    x = layers.Conv2D(2, 3, padding="same")(inputs)
    minus = layers.Conv2D(2, 1, use_bias=False, name="minus")
    dead = layers.Add()([x, minus(x)])
    network = keras.Model(inputs, layers.Conv2D(3, 1, name="logits")(dead))
    minus.set_weights([-np.eye(2, dtype=np.float32)[None, None]])
    image = np.random.default_rng(0).normal(size=(1, *SIZE, 1)).astype("float32")
    path = tmp_path / "dead.tflite"
    write_network(network, path, (*SIZE, 1), {}, ExportOptions(format="litert", precision="int8"), [image])
    monkeypatch.setattr(export, "CALIBRATED", 8)
    monkeypatch.setattr(export, "write_network", lambda _, temporary, *others: shutil.copy(path, temporary))
    out = tmp_path / "out" / "network.tflite"
    with pytest.raises(InputError, match="network.tflite: not kept: .* int8 .* int8-weights"):
        export_micro(trained, out, precision="int8")
    assert not list(out.parent.iterdir())


@needs_litert
def test_a_bad_quantization_is_not_kept(trained, tmp_path, monkeypatch):
    """Planted: calibrated on images without contrast, so that whatever is brighter saturates."""

    def badly(*arguments):
        *others, calibration = arguments
        write_network(*others, [np.minimum(image, -0.5) for image in calibration])

    monkeypatch.setattr(export, "write_network", badly)
    monkeypatch.setattr(export, "CALIBRATED", 8)
    out = tmp_path / "network.tflite"
    out.write_text("the one before")
    with pytest.raises(
        InputError,
        match=r"network.tflite: not kept: .* \d+ cached images: Dice 0.\d{3} .*expected 0.983.* --precision",
    ):
        export_micro(trained, out, precision="int8")
    assert out.read_text() == "the one before"
    assert len(list(tmp_path.iterdir())) == 1


@needs_litert
def test_checked_on_cases_that_training_has_not_seen(trained, tmp_path, monkeypatch):
    drawn = []

    def noted(cases, *arguments):
        drawn.append({case.name for case in cases})
        return cached_images(cases, *arguments)

    monkeypatch.setattr(export, "cached_images", noted)
    export_micro(trained, tmp_path / "network.tflite")
    assert drawn == [{*trained.split.validation, *trained.split.test}]


@needs_litert
def test_metadata_say_what_prediction_needs_and_name_no_patient(trained, tmp_path):
    export_micro(trained, tmp_path / "network.tflite")
    with zipfile.ZipFile(tmp_path / "network.tflite") as archive:  # as any unzip reads it
        text = archive.read("kitsseg.json").decode()
    record = json.loads(text)
    assert record["labels"] == {"0": "background", "1": "kidney", "2": "tumor"}
    assert record["input"]["shape"] == [1, *SIZE, 1]
    assert "not a medical device" in record["notice"]
    assert record["recipe"] == "unet2d:micro"
    assert record["split"] == {"name": trained.split.name, "hash": trained.split.hash}
    assert "case_" not in text
    assert str(trained.run.parent) not in text
    exported = read_exported(tmp_path / "network.tflite")
    assert exported.preprocess == trained.recipe.preprocess
    assert exported.inference == replace(trained.recipe.inference, tile=SIZE)
    assert exported.postprocess == trained.recipe.postprocess


@pytest.mark.parametrize(
    "name",
    [pytest.param("network.tflite", marks=needs_litert), pytest.param("network.onnx", marks=needs_onnx)],
)
def test_the_same_run_gives_the_same_bytes(trained, tmp_path, name):
    for folder in ("a", "b"):
        export_micro(trained, tmp_path / folder / name)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@needs_litert
def test_sparse_storage_only_where_it_pays(trained, tmp_path):
    out = tmp_path / "network.tflite"
    with pytest.raises(
        InputError, match=r"--sparse: the file has \d+ bytes, without it \d+: too few weights"
    ):
        export_micro(trained, out, sparse=True)
    assert not list(tmp_path.iterdir())
    network = build_wp_unet((None, None, 1), filters=(16, 32, 32, 32, 32))
    for layer in network.layers:
        layer.set_weights([v * (np.arange(v.size).reshape(v.shape) % 10 == 0) for v in layer.get_weights()])
    write_network(network, out, (32, 32, 1), {}, ExportOptions(format="litert"))
    dense = out.stat().st_size
    write_network(network, out, (32, 32, 1), {"input": 0}, ExportOptions(format="litert", sparse=True))
    assert out.stat().st_size < 0.8 * dense
    from ai_edge_litert.interpreter import Interpreter

    Interpreter(model_path=str(out)).allocate_tensors()


@needs_litert
def test_progress_and_no_notices(trained, tmp_path, capfd):
    calls = []
    export_micro(trained, tmp_path / "network.tflite", progress=lambda *call: calls.append(call))
    assert calls == [("load the network", 0, 3), ("convert", 1, 3), ("check", 2, 3)]
    assert capfd.readouterr() == ("", "")


@needs_litert
@needs_onnx
@pytest.mark.parametrize(
    "name, options, message",
    [
        ("network.pt", {}, r"name.*\.tflite \(litert\) or \.onnx"),
        ("network.onnx", {"format": "litert"}, r"found it with --format litert"),
        ("network.onnx", {"precision": "int8"}, r"only litert files have float16, 8-bit and sparse weights"),
        ("network", {"sparse": True}, r"--precision float32 and --sparse: only litert"),
        (
            "network.tflite",
            {"precision": "int4"},
            r"--precision int4: expected one of float32, float16, int8-weights, int8",
        ),
        (
            "network.tflite",
            {"size": None},
            r"whole slices.* Give --size .* --size 32,32",
        ),
        ("network.tflite", {"size": (40,)}, r"--size \(40,\): expected 2 sizes of at least 1: rows, columns"),
        ("network.tflite", {"size": (41, 48)}, r"expected multiples of 4, the network's stride"),
        ("network.tflite", {"cache": "nowhere"}, r"nowhere: .*cache preprocess-"),
    ],
)
def test_what_cannot_be_exported(trained, tmp_path, name, options, message):
    with pytest.raises(InputError, match=message):
        export_run(trained.run, tmp_path / name, ExportOptions(**{"size": SIZE, **options}))
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_overwritten(trained, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}: .*found one in use"):
        export_micro(trained, tmp_path)
    assert (tmp_path / "mine").exists()


def test_a_missing_package_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"--format litert: needs ai_edge_litert. .*pip install ai-edge-litert$"
    ):
        export_micro(trained, tmp_path / "network.tflite")
    monkeypatch.undo()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InputError, match=r"TensorFlow backend, found jax"):
        export_micro(trained, tmp_path / "network")


def test_cached_images_alternate_and_fill_the_size(trained):
    spec = trained.recipe.preprocess
    case = open_cache(trained.cache, spec)["case_00000"]
    images = list(cached_images([case], (64, 32, 1), spec, 4))
    assert [image.shape for image in images] == [(1, 64, 32, 1)] * 4
    low, high = ((hu - spec.hu_mean) / spec.hu_std for hu in spec.hu_window)
    assert all(low - 1e-5 <= image.min() and image.max() <= high + 1e-5 for image in images)
    # rows 40-63 are beyond the slice and repeat its last row
    np.testing.assert_array_equal(images[0][0, 40:], np.repeat(images[0][0, 39:40], 24, axis=0))
    # kidney is HU 100 and more, and lies in the first of each pair
    assert (images[0] > (100 - spec.hu_mean) / spec.hu_std).mean() > 0.05


@needs_litert
def test_the_command_says_what_was_checked(trained, tmp_path, capsys):
    out = tmp_path / "network.tflite"
    assert cli.main(["export", str(trained.run), "--out", str(out), "--size", "40,48", "--softmax"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"checked on \d+ cached images.*: Dice .* 1\.0000 of kidney with tumor, "
        r"(1\.0000 of tumor|neither finds tumor); largest difference \S+ \(probabilities\), "
        r"labels equal on 100\.0000%",
        printed,
    )
    assert f"wrote {out}: litert, float32, input 1 x 40 x 48 x 1, 0.0" in printed
    assert f"next: kitsseg predict {out} SCAN --out PREDICTIONS" in printed
    assert cli.main(["export", str(trained.run), "--out", str(tmp_path / "network.onnx"), "--sparse"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["export", str(trained.run), "--out", str(out), "--size", "large"])
    assert "expected sizes such as 256,256, found large" in capsys.readouterr().err
