"""kitsseg train --validate-cases-every and --tensorboard, and what it prints meanwhile."""

import re

import pytest

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.training import train


@pytest.fixture
def asked(trained, monkeypatch):
    """What the command gives to ``train_recipe``, in place of training."""
    found = {}

    def train_recipe(recipe, cache, split, run, options):
        found.update(vars(options))
        options.say("train, epoch 1 of 1: [all] well")
        options.say("warning: not so [bold]well")

    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    monkeypatch.setattr(train, "train_recipe", train_recipe)
    return found


def test_options_reach_training(asked, trained, tmp_path, capsys):
    arguments = ["train", "unet2d", str(trained.cache), str(tmp_path / "run")]
    folder = tmp_path / "events"
    assert main([*arguments, "--validate-cases-every", "0", "--tensorboard", str(folder)]) == 0
    assert (asked["validate_cases_every"], asked["tensorboard"]) == (0, folder)
    out = capsys.readouterr().out.splitlines()
    # as it is: nothing in brackets is taken for a style
    assert out[1:3] == ["train, epoch 1 of 1: [all] well", "warning: not so [bold]well"]
    assert main(arguments) == 0
    assert (asked["validate_cases_every"], asked["tensorboard"]) == (None, None)


def test_a_number_below_zero_is_refused(asked, trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "unet2d", str(trained.cache), str(tmp_path / "run"), "--validate-cases-every", "-1"])
    assert "whole number from 0, found -1" in capsys.readouterr().err


def test_a_tensorboard_folder_that_is_a_file_is_refused_before_anything_is_written(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recipes, "get", lambda name: trained.recipe)
    (tmp_path / "file").write_text("")
    arguments = ["train", "unet2d", str(trained.cache), str(tmp_path / "run")]
    assert main([*arguments, "--tensorboard", str(tmp_path / "file")]) == 1
    assert re.search("new folder .*found a file", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
