"""A run that holds network.onnx is predicted without Keras, with the labels of its weights, or says why not."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.cases import make_case, read_json

from kitsseg.cli import main
from kitsseg.commands import training_options
from kitsseg.data.formats.nifti import read_labels
from kitsseg.errors import InputError
from kitsseg.export import export
from kitsseg.export.export import write_quick_start
from kitsseg.inference import ensemble as ensembles
from kitsseg.inference.cohort import predict_cases
from kitsseg.inference.engines import open_network
from kitsseg.inference.ensemble import computed_as, ensemble_of, needs_keras
from kitsseg.inference.options import PredictOptions
from kitsseg.records.exported import ExportedInput, read_metadata
from kitsseg.records.networks import QUICK_START, finished_run
from kitsseg.records.run import read_run, update_run

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow"
    or not all(importlib.util.find_spec(name) for name in ("onnx", "tf2onnx", "onnxruntime")),
    reason="needs TensorFlow and what the extra export installs",
)


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch):
    monkeypatch.setattr(ensembles, "may_have_gpu", lambda: False)


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """A copy of the micro run with the file for a quick start, and the result of writing it."""
    run = shutil.copytree(trained.run, tmp_path_factory.mktemp("quick") / "run")
    return run, write_quick_start(run)


@pytest.fixture
def run(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "run")


def engine_of(folder):
    return read_json(folder / "predictions.json")["engine"]


def change_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_file_is_for_slices_of_any_size_and_names_its_weights(written):
    run, result = written
    assert result.path == run / QUICK_START
    assert result.input_shape == (1, None, None, 1)
    assert result.check.images == 8
    metadata, source = read_metadata(run / QUICK_START)
    assert metadata.weights_sha256 == read_run(run).model_sha256
    assert source.example == (1, 32, 32, 1)


@pytest.mark.parametrize("shape", [(8, 40, 48), (5, 33, 62)])
def test_labels_are_those_of_the_weights(run, tmp_path, shape):
    """Also of slices whose sizes are no multiples of the stride."""
    scan = tmp_path / "case_00007" / "imaging.nii.gz"
    make_case(scan.parent, shape, seed=3, positive=(1, 4))
    [quick] = predict_cases(run, [scan], tmp_path / "quick")
    [slow] = predict_cases(run, [scan], tmp_path / "slow", options=PredictOptions(engine="tensorflow"))
    assert (engine_of(tmp_path / "quick"), engine_of(tmp_path / "slow")) == ("onnxruntime", "tensorflow")
    a, b = read_labels(quick).array, read_labels(slow).array
    assert a.any()
    np.testing.assert_array_equal(a, b)
    networks = [read_json(tmp_path / name / "predictions.json")["networks"] for name in ("quick", "slow")]
    assert networks[0] == networks[1]


def test_the_file_by_itself_is_an_exported_network(run, trained, tmp_path):
    scan = trained.data / "case_00000"
    [file] = predict_cases(run / QUICK_START, [scan], tmp_path / "file")
    [whole] = predict_cases(run, [scan], tmp_path / "run-maps")
    np.testing.assert_array_equal(read_labels(file).array, read_labels(whole).array)


def test_the_command_imports_neither_keras_nor_tensorflow(run, trained, tmp_path):
    script = (
        "import sys; from kitsseg import cli\n"
        "code = cli.main(['predict', *sys.argv[1:3], '--out', sys.argv[3]])\n"
        "print(code, *{name.split('.')[0] for name in sys.modules} & {'tensorflow', 'keras', 'jax', 'torch'})"
    )
    arguments = [run, trained.data / "case_00000", tmp_path / "out"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")
    assert "computed by onnxruntime" in done.stdout


def test_a_damaged_file_is_told_and_the_weights_are_used(run, trained, tmp_path):
    change_a_byte(run / QUICK_START)
    with pytest.warns(
        UserWarning, match=rf"{QUICK_START}: .*checksum is wrong.*Keras computes the weights now"
    ):
        predict_cases(run, [trained.data / "case_00000"], tmp_path / "out")
    assert engine_of(tmp_path / "out") == "tensorflow"
    options = PredictOptions(engine="onnxruntime")
    with pytest.raises(InputError, match=rf"{QUICK_START}: .*checksum is wrong"):
        predict_cases(run, [trained.data / "case_00000"], tmp_path / "other", options=options)
    assert not (tmp_path / "other").exists()


def test_a_file_of_other_weights_is_told(run):
    network = keras.models.load_model(run / "model.keras", compile=False)
    network.set_weights([weight + 0.01 for weight in network.get_weights()])
    network.save(run / "model.keras")
    record = read_run(run)
    record.model_sha256 = None  # as in runs of older versions
    update_run(run, record)
    options = PredictOptions()
    with pytest.warns(UserWarning, match="was made from other weights. Make it again: kitsseg export"):
        assert needs_keras(computed_as(ensemble_of([run]), options))
    write_quick_start(run)
    assert not needs_keras(computed_as(ensemble_of([run]), options))


@pytest.mark.parametrize(
    "options",
    [
        PredictOptions(engine="keras"),
        PredictOptions(engine="tensorflow"),
        PredictOptions(precision="bfloat16"),
        PredictOptions(scheduler="tcp://localhost:1"),
    ],
)
def test_what_the_user_chose_is_computed_by_keras(run, options):
    assert needs_keras(computed_as(ensemble_of([run]), options))


def test_without_the_runtime_or_with_a_gpu_keras_computes_as_before(run, monkeypatch):
    known = computed_as(ensemble_of([run]), PredictOptions())
    assert not needs_keras(known)
    monkeypatch.setattr(ensembles, "may_have_gpu", lambda: True)
    assert needs_keras(computed_as(ensemble_of([run]), PredictOptions()))
    monkeypatch.undo()
    monkeypatch.setattr(ensembles, "find_spec", lambda name: None)
    assert needs_keras(computed_as(ensemble_of([run]), PredictOptions()))


def test_one_run_without_the_file_and_keras_computes_all(run, trained):
    both = computed_as(ensemble_of([run, trained.run]), PredictOptions())
    assert [network.source for network in both.networks] == [
        run / "model.keras",
        trained.run.resolve() / "model.keras",
    ]
    with pytest.raises(
        InputError, match=rf"{trained.run}/{QUICK_START}: missing.* kitsseg export {trained.run}"
    ):
        computed_as(ensemble_of([run, trained.run]), PredictOptions(engine="onnxruntime"))


@pytest.mark.parametrize("engine", ["tensorflow", "onnxruntime"])
def test_a_folder_goes_on_with_the_engine_it_was_begun_with(run, trained, tmp_path, engine, monkeypatch):
    first, second = (trained.data / name for name in ("case_00000", "case_00001"))
    predict_cases(run, [first], tmp_path / "out", options=PredictOptions(engine=engine))
    monkeypatch.setattr(ensembles, "may_have_gpu", lambda: engine == "onnxruntime")
    assert len(predict_cases(run, [first, second], tmp_path / "out")) == 2
    assert engine_of(tmp_path / "out") == engine


def test_what_was_written_equals_what_was_tried(run, trained, monkeypatch):
    """A file that would give other labels does not replace the one that is there."""
    before = (run / QUICK_START).read_bytes()
    monkeypatch.setattr(
        export,
        "open_network",
        lambda *_, **__: replace(open_network(trained.run / "model.keras"), scores=lambda image: -image),
    )
    with pytest.raises(InputError, match=r"network.onnx: not kept: "):
        write_quick_start(run)
    assert (run / QUICK_START).read_bytes() == before


def test_the_size_of_slices_is_fixed_where_the_recipe_fixes_it(trained):
    found = finished_run(trained.run)

    def network(*shape):
        image = keras.Input(shape)
        return keras.Model(image, keras.layers.Identity()(image))

    def shapes(network, **changes):
        spec = replace(found.preprocess, slice_size=changes.pop("slice_size", None))
        inference = replace(found.inference, **changes)
        return export._shapes_of_slices(network, replace(found, preprocess=spec, inference=inference))

    assert shapes(network(None, None, 1), tile=(24, 40)) == ((24, 40, 1), [(24, 40, 1)])
    assert shapes(network(None, None, 1), slice_size=(30, 40)) == ((32, 40, 1), [(32, 40, 1)])
    assert shapes(network(None, None, 1)) == ((None, None, 1), [(32, 32, 1), (36, 40, 1)])
    assert shapes(network(64, 48, 1)) == ((64, 48, 1), [(64, 48, 1)])


def test_a_3d_network_gets_no_file(trained):
    found = finished_run(trained.run)
    assert export.takes_quick_start(found)
    assert not export.takes_quick_start(
        replace(found, inference=replace(found.inference, tile=(8, 16, 16), margin=2))
    )


@pytest.mark.parametrize(
    "shape, example",
    [((1, None, None, 1), None), ((1, None, 32, 1), (1, 16, 16, 1)), ((1, None, 32, 1), (1, 16, 32))],
)
def test_an_example_must_fit_the_shape(shape, example):
    from kitsseg.records.exported import _checked

    with pytest.raises(ValueError, match="an input of shape"):
        _checked(ExportedInput(shape=shape, example=example))


def test_the_end_of_a_training_says_in_one_line_what_became_of_the_file(run, monkeypatch):
    said = []
    monkeypatch.setattr(training_options, "say", said.append)
    write = training_options._write_quick_start
    write(run)
    assert said.pop().startswith(f"wrote {run / QUICK_START} in ")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "tf2onnx" else object())
    write(run)
    assert said.pop().startswith(f"{run / QUICK_START}: needs tf2onnx. Install with: pip install tf2onnx")
    monkeypatch.undo()
    monkeypatch.setattr(training_options, "say", said.append)

    def fail(*_):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(export, "write_network", fail)
    write(run)
    assert said.pop() == f"warning: {run}: no file for a quick start (RuntimeError: no way)"
    monkeypatch.setattr(export, "takes_quick_start", lambda run: False)
    write(run)
    assert said == []


def test_export_without_out_writes_into_the_run(trained, tmp_path, capsys):
    run = shutil.copytree(trained.run, tmp_path / "run")
    assert main(["export", str(run), "--softmax"]) == 1
    assert "or give --out" in capsys.readouterr().err
    assert main(["export", str(run)]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "input 1 x any x any x 1" in out
    assert f"next: kitsseg predict {run} SCAN" in out
    assert (run / QUICK_START).is_file()


def test_an_engine_without_bfloat16_is_refused(run, trained, tmp_path):
    options = PredictOptions(engine="onnxruntime", precision="bfloat16")
    with pytest.raises(
        InputError, match=r"--precision bfloat16: onnxruntime .*network\.onnx in float32 only.*openvino"
    ):
        predict_cases(run, [trained.data / "case_00000"], tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_openvino_is_told_its_precision(run, monkeypatch, precision, hint):
    """A stand-in for the package: what it would be asked for, and that the engine's name says the precision."""
    asked = []

    class Core:
        def compile_model(self, path, device, settings):
            asked.append((path, device, settings["INFERENCE_PRECISION_HINT"]))
            infer = SimpleNamespace(infer=lambda images: [np.zeros((*images[0].shape[:-1], 3), np.float32)])
            return SimpleNamespace(create_infer_request=lambda: infer)

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    source = read_metadata(run / QUICK_START)[1]
    network = open_network(source, "openvino", precision=precision)
    assert asked == [(str(run / QUICK_START), "CPU", hint)]
    assert network.engine == ("openvino" if precision == "float32" else "openvino in bfloat16")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_computes_a_run_in_bfloat16_and_compares_it_with_itself(run, trained, tmp_path):
    options = PredictOptions(engine="openvino", precision="bfloat16")
    [half] = predict_cases(run, [trained.data / "case_00000"], tmp_path / "half", options=options)
    [full] = predict_cases(run, [trained.data / "case_00000"], tmp_path / "full")
    assert engine_of(tmp_path / "half") == "openvino in bfloat16"
    a, b = read_labels(half).array > 0, read_labels(full).array > 0
    assert 2 * (a & b).sum() >= 0.995 * (a.sum() + b.sum()) > 0
    assert read_json(run / "precision.json")["engine"] == "openvino in bfloat16"
