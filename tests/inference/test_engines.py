"""Engines: all give the same labels, each is named when it is missing, and exported networks need no TensorFlow."""

import importlib.util
import subprocess
import sys

import keras
import numpy as np
import pytest
from support.cases import read_json

from kitsseg.commands import prediction
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.cache.windows import cached_images
from kitsseg.data.formats.nifti import read_labels
from kitsseg.errors import InputError
from kitsseg.inference import engines
from kitsseg.inference.cohort import predict_cases
from kitsseg.inference.engines import open_network, softmax
from kitsseg.inference.options import PredictOptions
from kitsseg.models import build_enhanced_unet
from kitsseg.models.loading import read_network
from kitsseg.records.networks import read_exported

ON_TENSORFLOW = keras.config.backend() == "tensorflow"
PACKAGES = {"litert": "ai_edge_litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}


def needs(*engines_needed):
    packages = [PACKAGES[name] for name in engines_needed] + ["tf2onnx"] * ("litert" not in engines_needed)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing) or not ON_TENSORFLOW, reason=f"needs TensorFlow and {missing}")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The micro run as every file that can be written here, by suffix."""
    from kitsseg.export.export import export_run
    from kitsseg.export.writers import ExportOptions

    folder, files = tmp_path_factory.mktemp("exported"), {}
    for suffix, packages in (
        (".tflite", ["ai_edge_litert"]),
        (".onnx", ["tf2onnx", "onnxruntime"]),
        ("", []),
    ):
        if all(importlib.util.find_spec(name) for name in packages):
            files[suffix] = folder / f"network{suffix}"
            export_run(trained.run, files[suffix], ExportOptions(size=(40, 48)))
    return files


@pytest.fixture
def images(trained):
    cases = open_cache(trained.cache, trained.recipe.preprocess)
    return list(cached_images(list(cases.values()), (40, 48, 1), trained.recipe.preprocess, 12))


@pytest.mark.parametrize(
    "suffix, engine",
    [
        ("run", "keras"),
        pytest.param("run", "tensorflow", marks=needs()),
        pytest.param("", "tensorflow", marks=needs()),
        pytest.param(".tflite", "litert", marks=needs("litert")),
        pytest.param(".onnx", "onnxruntime", marks=needs("onnxruntime")),
        pytest.param(".onnx", "openvino", marks=needs("onnxruntime", "openvino")),
    ],
)
def test_labels_equal_on_9999_of_10000_voxels(request, trained, images, suffix, engine):
    """For float32, against the network as Keras loads it."""
    reference = read_network(trained.run / "model.keras")
    source = trained.run / "model.keras"
    if suffix != "run":
        source = read_exported(request.getfixturevalue("exported")[suffix]).source
    network = open_network(source, engine)
    assert network.engine == engine
    equal = []
    for image in images:
        logits = np.asarray(reference(image, training=False))
        np.testing.assert_allclose(network.scores(image), logits, atol=1e-4)
        probabilities = network(image)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-5)
        equal.append(network.scores(image).argmax(-1) == logits.argmax(-1))
    assert np.mean(equal) >= 0.9999


def test_a_run_takes_slices_of_any_size(trained):
    """A graph is made for each size; the engine goes back and forth between them."""
    network, reference = open_network(trained.run / "model.keras"), read_network(trained.run / "model.keras")
    for shape in ((1, 32, 48, 1), (2, 40, 16, 1), (1, 32, 48, 1)):
        image = np.random.default_rng(0).normal(size=shape).astype("float32")
        np.testing.assert_allclose(network.scores(image), np.asarray(reference(image)), atol=1e-4)


def test_the_last_output_counts(tmp_path):
    """With deep supervision the network has four outputs, the last of full size."""
    model = build_enhanced_unet((None, None, 1), base=16)
    model.save(tmp_path / "model.keras")
    image = np.random.default_rng(0).normal(size=(1, 16, 32, 1)).astype("float32")
    found = open_network(tmp_path / "model.keras").scores(image)
    np.testing.assert_allclose(found, np.asarray(model(image)[-1]), atol=1e-5)


def test_softmax_by_hand():
    """exp of (log 1, log 2, log 5) is (1, 2, 5): eighths. Large logits do not overflow."""
    logits = np.log(np.array([[[1, 2, 5], [2, 5, 1]]], np.float32))
    expected = np.array([[[1, 2, 5], [2, 5, 1]]]) / 8
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-6)
    np.testing.assert_allclose(softmax(logits + np.float32(1e4)), expected, atol=1e-3)


@needs("litert")
def test_prediction_with_a_file_equals_that_with_the_run(trained, exported, tmp_path):
    run = predict_cases(trained.run, [trained.data], tmp_path / "run")
    file = predict_cases(exported[".tflite"], [trained.data], tmp_path / "file")
    assert [path.name for path in run] == [path.name for path in file]
    equal = [np.mean(read_labels(a).array == read_labels(b).array) for a, b in zip(run, file, strict=True)]
    assert np.mean(equal) >= 0.9999
    assert read_json(tmp_path / "run" / "predictions.json")["engine"] == "tensorflow"
    summary = read_json(tmp_path / "file" / "predictions.json")
    assert summary["engine"] == "litert"
    assert (tmp_path / "file" / summary["run"]).samefile(exported[".tflite"])
    assert summary["recipe"] == "unet2d:micro"


@needs("litert")
def test_larger_scans_are_predicted_in_windows(trained, tmp_path):
    """A file of 32 x 32 on slices of 40 x 48: the mean of overlapping windows, as a recipe with such tiles."""
    from kitsseg.export.export import export_run
    from kitsseg.export.writers import ExportOptions

    case = trained.data / "case_00000"
    export_run(trained.run, tmp_path / "network.tflite", ExportOptions(size=(32, 32)))
    [path] = predict_cases(tmp_path / "network.tflite", [case], tmp_path / "a")
    assert read_labels(path).array.shape == read_labels(case / "segmentation.nii.gz").array.shape
    assert read_json(tmp_path / "a" / "predictions.json")["inference"]["tile"] == [32, 32]
    with pytest.raises(InputError, match=r"--whole-slices: .* takes windows of \(32, 32\) only"):
        predict_cases(
            tmp_path / "network.tflite", [case], tmp_path / "b", options=PredictOptions(whole_slices=True)
        )
    with pytest.raises(InputError, match=r"--part test: .*exported network .*cases"):
        predict_cases(tmp_path / "network.tflite", [case], tmp_path / "b", part="test")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "suffix",
    [
        pytest.param(".tflite", marks=needs("litert")),
        pytest.param(".onnx", marks=needs("onnxruntime")),
    ],
)
def test_a_file_is_predicted_without_tensorflow_below_300_mb(trained, exported, tmp_path, suffix):
    """The command in a process of its own: which modules it imported, and its peak memory."""
    script = (
        "import re, sys; from kitsseg import cli\n"
        "code = cli.main(['predict', sys.argv[1], sys.argv[2], '--out', sys.argv[3]])\n"
        "heavy = {name.split('.')[0] for name in sys.modules} & {'tensorflow', 'keras', 'jax', 'torch'}\n"
        "[kilobytes] = re.findall(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())\n"
        "print(code, *heavy, int(kilobytes) / 1e3)"
    )
    case = trained.data / "case_00000"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::ResourceWarning",
            "-c",
            script,
            exported[suffix],
            case,
            tmp_path / "out",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    code, *heavy, megabytes = done.stdout.splitlines()[-1].split()
    assert (code, heavy, done.stderr) == ("0", [], "")
    assert float(megabytes) < 300
    engine = "litert" if suffix == ".tflite" else "onnxruntime"
    assert f"wrote 1 label map to {tmp_path / 'out'}, computed by {engine}" in done.stdout.replace("\n", "")


def test_an_engine_that_does_not_fit_or_is_not_there(trained, tmp_path, monkeypatch):
    weights = trained.run / "model.keras"
    with pytest.raises(InputError, match=r"--engine litert: .* keras or tensorflow\. .* export the run"):
        open_network(weights, "litert")
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InputError, match=r"--engine tensorflow: Keras .*on jax"):
        open_network(weights, "tensorflow")


@needs("litert")
@pytest.mark.parametrize(
    "suffix, engine, package",
    [
        (".tflite", "litert", "ai-edge-litert"),
        pytest.param(".onnx", "onnxruntime", "onnxruntime", marks=needs("onnxruntime")),
        pytest.param(".onnx", "openvino", "openvino", marks=needs("onnxruntime")),
    ],
)
def test_a_missing_engine_is_no_silent_fallback(exported, monkeypatch, suffix, engine, package):
    source = read_exported(exported[suffix]).source
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGES[engine]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, PACKAGES[engine], None)
    with pytest.raises(InputError, match=rf"--engine {engine}: .* missing .*pip install {package}$"):
        open_network(source, engine)
    with pytest.raises(InputError, match=r"--engine keras: .* can be run by"):
        open_network(source, "keras")


@pytest.mark.parametrize(
    "suffix",
    [pytest.param(".tflite", marks=needs("litert")), pytest.param(".onnx", marks=needs("onnxruntime"))],
)
def test_damaged_files(exported, tmp_path, suffix):
    content = exported[suffix].read_bytes()
    path = tmp_path / f"network{suffix}"
    with pytest.raises(InputError, match=rf"network{suffix}: .*\.tflite or \.onnx.*SavedModel, found none"):
        read_exported(path)
    for damaged in (b"", b"nonsense", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"network{suffix}: .*metadata.*kitsseg export.*found none"):
            read_exported(path)
    path.write_bytes(
        bytes(64) + content[64:] if suffix == ".tflite" else content[: 1 << 10] + content[1 << 11 :]
    )
    with pytest.raises(InputError, match=r"cannot load it|found none or damaged"):
        open_network(read_exported(path).source)


def test_images_of_another_size_are_refused(trained):
    compute = engines._one_by_one(lambda image: image, (1, 8, 8, 1))
    assert compute(np.zeros((3, 8, 8, 1), np.float32)).shape == (3, 8, 8, 1)
    with pytest.raises(ValueError, match=r"expected images of shape \(8, 8, 1\), found \(8, 9, 1\)"):
        compute(np.zeros((1, 8, 9, 1), np.float32))


def test_the_command_offers_every_engine():
    assert tuple(engines.ENGINES) == prediction.ENGINE_NAMES
