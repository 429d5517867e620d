"""A network file that is damaged, of another kind or without numbers: one line that names it, from every reader."""

import io
import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

from kitsseg.errors import InputError
from kitsseg.files.archives import check_archive, is_whole
from kitsseg.models.loading import check_form, read_network

MIB = 1 << 20


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    inputs = keras.Input((None, None, 1), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1, name="logits")(x), name="small")
    path = tmp_path_factory.mktemp("network") / "model.keras"
    model.save(path)
    return path


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def test_a_whole_network_is_read(network):
    assert read_network(network).name == "small"


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_named(share, network, tmp_path):
    data = network.read_bytes()
    (tmp_path / "model.keras").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"model\.keras: not a network .*this version.*Train again"):
        read_network(tmp_path / "model.keras")


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.97])
def test_a_changed_byte_is_noticed_or_does_not_matter(share, network, tmp_path):
    data = bytearray(network.read_bytes())
    data[int(len(data) * share)] ^= 1
    (tmp_path / "model.keras").write_bytes(data)
    try:
        found = read_network(tmp_path / "model.keras")
    except InputError as error:
        assert str(tmp_path / "model.keras") in str(error)
    else:  # a byte between the entries of the archive
        for one, other in zip(found.get_weights(), read_network(network).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"PK\3\4" + bytes(50), b"\x89HDF\r\n\x1a\n" + bytes(100), b"{}", bytes(1000)],
    ids=["empty", "text", "half a zip", "the older HDF5 format", "JSON", "zeros"],
)
def test_a_file_of_another_kind_is_named(content, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.keras: not a network .*this version"):
        read_network(path, advice="Do this.")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    (tmp_path / "folder.keras").mkdir()
    for name in ("none.keras", "folder.keras"):
        with pytest.raises(InputError, match=rf"{name}: missing.*no such file\. Do this\."):
            read_network(tmp_path / name, advice="Do this.")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda data: b""),
        ("config.json", lambda data: b"[" * 100_000),
        ("config.json", lambda data: b"\xff" + data),
        ("config.json", lambda data: data.replace(b'"Conv2D"', b'"NoSuchLayer"')),
        ("config.json", lambda data: data.replace(b'"filters": 4', b'"filters": -4')),
        ("config.json", lambda data: data.replace(b'"filters": 4', b'"filters": 5')),
        ("model.weights.h5", lambda data: data[:1000]),
        ("model.weights.h5", lambda data: b"nonsense"),
    ],
)
def test_contents_that_keras_cannot_read_are_one_line(name, change, network, tmp_path):
    files = entries(network)
    files[name] = change(files[name])
    write(tmp_path / "model.keras", files)
    with pytest.raises(InputError, match=r"model\.keras: not a network .*this version") as caught:
        read_network(tmp_path / "model.keras")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_entry_that_is_gone_is_named(network, tmp_path):
    for name in ("config.json", "model.weights.h5"):
        write(tmp_path / "model.keras", {key: data for key, data in entries(network).items() if key != name})
        with pytest.raises(InputError, match=r"model\.keras: not a network"):
            read_network(tmp_path / "model.keras")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 3, 5, -1])
def test_weights_that_are_no_numbers_are_refused(value, which, network, tmp_path):
    model = read_network(network)
    variable = model.weights[which]
    values = np.array(variable)
    values.flat[-1] = value
    variable.assign(values)
    model.save(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"model\.keras: the weights .* are not finite"):
        read_network(tmp_path / "model.keras")


def test_nan_in_the_bytes_of_an_archive_whose_checksums_are_right(network, tmp_path):
    files = entries(network)
    with h5py.File(whole := io.BytesIO(files["model.weights.h5"]), "r+") as weights:
        found = []
        weights.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        found[0][...] = np.nan
    write(tmp_path / "model.keras", files | {"model.weights.h5": whole.getvalue()})
    with pytest.raises(InputError, match="are not finite"):
        read_network(tmp_path / "model.keras")


def other_network(kind):
    image = keras.Input((8, 8, 1))
    if kind == "classifier":
        return keras.Model(
            image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)), name="other"
        )
    if kind == "two inputs":
        other = keras.Input((8, 8, 1))
        return keras.Model(
            [image, other], keras.layers.Conv2D(3, 1)(keras.layers.Add()([image, other])), name="other"
        )
    if kind == "of text":
        text = keras.Input((8,))
        return keras.Model(text, keras.layers.Dense(3)(text), name="other")
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["classifier", "two inputs", "of text"])
def test_a_network_for_something_else_is_refused(kind, tmp_path):
    other_network(kind).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"model\.keras: (expected a network .*labels|not a network)"):
        read_network(tmp_path / "model.keras")


def test_code_in_a_network_file_is_never_run(tmp_path):
    image = keras.Input((8, 8, 1))
    keras.Model(image, keras.layers.Lambda(lambda x: x + 1)(image)).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"model\.keras: not a network"):
        read_network(tmp_path / "model.keras")


def test_an_archive_that_would_unpack_to_far_more_is_refused_before(tmp_path):
    write(tmp_path / "bomb.keras", {"config.json": bytes(100 * MIB)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.keras").stat().st_size < MIB
    with pytest.raises(ValueError, match="would unpack to 104,857,600"):
        check_archive(tmp_path / "bomb.keras")
    assert not is_whole(tmp_path / "bomb.keras")
    with pytest.raises(InputError, match=r"bomb\.keras: not a network .*would unpack"):
        read_network(tmp_path / "bomb.keras")


def test_a_network_that_somebody_has_packed_is_still_read(network, tmp_path):
    write(tmp_path / "model.keras", entries(network), zipfile.ZIP_DEFLATED)
    assert is_whole(tmp_path / "model.keras")
    assert json.loads(entries(tmp_path / "model.keras")["config.json"])["class_name"] == "Functional"
    assert read_network(tmp_path / "model.keras").name == "small"


# the fourth and fifth of five channels would be labels that no reader knows; two channels have no tumor
OTHERS = {
    "two classes": ((None, None, 1), {}, 2),
    "five classes": ((None, None, 1), {}, 5),
    "three channels": ((None, None, 3), {}, 3),
    "another size": ((16, 16, 1), {}, 3),
    "half the size": ((None, None, 1), {"strides": 2}, 3),
    "smaller by its border": ((None, None, 1), {"padding": "valid"}, 3),
    "3D": ((None, None, None, 1), {}, 3),
}


def save_other(how, path):
    shape, options, classes = OTHERS[how]
    image = keras.Input(shape)
    layer = keras.layers.Conv3D if len(shape) == 4 else keras.layers.Conv2D
    keras.Model(image, layer(classes, 3, **{"padding": "same", **options})(image)).save(path)


@pytest.mark.parametrize("how", OTHERS)
def test_a_network_of_another_form_than_its_record_says_is_refused(how, tmp_path):
    path = tmp_path / "model.keras"
    save_other(how, path)
    with pytest.raises(
        InputError,
        match=r"model\.keras: expected .*, found .*: the record .*another network.*Train again",
    ):
        read_network(path, shape=(32, 32, 1), output="softmax")
    assert read_network(path).name  # a caller without a record of the network can read it


def test_the_form_of_a_network_is_that_of_its_last_output(tmp_path):
    image = keras.Input((None, None, 1))
    heads = [keras.layers.Conv2D(3, 1, strides=2)(image), keras.layers.Conv2D(2, 1)(image)]
    keras.Model(image, heads).save(tmp_path / "model.keras")
    network = read_network(tmp_path / "model.keras", shape=(16, 24, 1), output="regions")
    for output in ("sigmoid", None):
        check_form(network, "it", (8, 8, 1), output)
    for shape, output in (
        ((8, 8, 1), "softmax"),
        ((8, 8, 2), "sigmoid"),
        ((8, 8, 8, 1), None),
        ((8, 1), None),
    ):
        with pytest.raises(InputError, match="it: expected"):
            check_form(network, "it", shape, output)


def test_an_image_that_the_layers_of_a_network_cannot_take_is_refused():
    image = keras.Input((None, None, 1))
    network = keras.Model(image, keras.layers.Conv2D(3, 9)(keras.layers.ZeroPadding2D(2)(image)))
    with pytest.raises(InputError, match=r"it: .* found one .*cannot compute.* \(.*negative"):
        check_form(network, "it", (4, 4, 1), "softmax")


def damaged_run(run, folder, how):
    """A run whose record has no hash of its weights, as earlier versions wrote it: the network itself must tell."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"model_sha256": None}))
    path = folder / "model.keras"
    if how == "byte":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how in OTHERS:
        save_other(how, path)
    else:
        model = read_network(path)
        weights = model.get_weights()
        weights[0].reshape(-1)[0] = np.nan
        model.set_weights(weights)
        model.save(path)
    return folder


@pytest.mark.parametrize("how", ["byte", "one NaN", "five classes"])
def test_every_command_that_reads_a_network_says_so(how, trained, tmp_path, monkeypatch, capfd):
    from kitsseg import recipes
    from kitsseg.cli import main

    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    run = damaged_run(trained.run, tmp_path / "run", how)
    out, cache, scan = tmp_path / "out", trained.cache, trained.data / "case_00000"
    for command in (
        ["predict", run, scan, "--out", out / "maps"],
        ["predict", trained.run, scan, "--out", out / "maps", "--also", run],
        ["predict", run, scan, "--out", out / "maps", "--engine", "keras"],
        ["export", run, "--out", out / "net.tflite", "--size", "32,32", "--cache", cache],
        ["prune", run, cache, out / "pruned", "--sparsity", "0.5", "--epochs", "1"],
        ["prune", run, cache, out / "table", "--sparsity", "0.5,0.8", "--epochs", "1"],
        ["shrink", run, cache, out / "small", "--keep", "0.5", "--epochs", "1", "--multiple", "1"],
        ["train", "unet2d:micro", cache, out / "new", "--from", run, "--split", run / "split.json"],
    ):
        capfd.readouterr()
        assert main([str(word) for word in command]) == 1, command
        lines = [line for line in capfd.readouterr().err.splitlines() if line]
        assert len(lines) == 1, (command, lines)
        if how in OTHERS and "--from" in command:  # which compares every weight with those of the recipe
            assert lines[0].startswith(
                f"kitsseg: --from {run}: expected the network of {trained.recipe.name}"
            )
        else:
            assert lines[0].startswith(f"kitsseg: {run / 'model.keras'}: ")
            assert how not in OTHERS or "describes another network" in lines[0]
        left = [path for path in out.rglob("*") if path.is_file()]
        assert not [path for path in left if path.suffix in (".gz", ".keras", ".tflite", ".jsonl")]
        assert not list(out.rglob(".*"))
        assert not (out / "maps").exists()
