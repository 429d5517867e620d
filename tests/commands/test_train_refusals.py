"""What kitsseg train refuses before it makes a folder; the advice in its error works."""

import re
import urllib.request

import pytest
from support.cases import make_case

from kitsseg.cli import main
from kitsseg.records.run import read_run


@pytest.fixture
def cache(tmp_path):
    for i in range(3):
        make_case(tmp_path / "data" / f"case_{i:05d}", (4, 24, 24), seed=i, positive=(1, 4))
    assert main(["preprocess", "squeeze_unet", str(tmp_path / "data"), str(tmp_path / "cache")]) == 0
    return tmp_path / "cache"


def test_without_internet_the_weights_are_missed_before_a_folder_is_made(
    cache, tmp_path, monkeypatch, capsys, eager
):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("KITSSEG_CACHE", str(tmp_path / "weights"))
    capsys.readouterr()
    train = ["train", "squeeze_unet", str(cache), str(tmp_path / "run")]
    assert main(train) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "squeezenet1_1" in err
    assert not (tmp_path / "run").exists()
    [option, value] = re.search(r"\((--set) (model\.weights=none)\)", err).groups()
    quick = ["--epochs", "1", "--steps", "1", "--set", "phases.train.sampler.batch_size=1"]
    assert main([*train, option, value, *quick]) == 0
    assert read_run(tmp_path / "run").given["model.weights"] is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model.encoder=resnet17", "resnet17"),
        ("model.decoder=heavy", "heavy"),
        ("model.weights=/no/such/file.pth", "/no/such/file.pth"),
        ("model.input_shape=8,8,3", "17"),
        ("loss.from_logits=maybe", "maybe"),
    ],
)
def test_options_that_nothing_can_be_built_from_make_no_folder(text, part, cache, tmp_path, capsys):
    arguments = ["train", "squeeze_unet", str(cache), str(tmp_path / "run"), "--set", "model.weights=none"]
    if text.startswith("model.weights"):
        del arguments[-2:]
    capsys.readouterr()
    assert main([*arguments, "--set", text]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert part in err
    assert not (tmp_path / "run").exists()
