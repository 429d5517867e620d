"""A full disk, a vanished folder or a damaged checkpoint gives one clear error or goes back by one epoch.

No finished epoch is lost.
"""

import errno
import io
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.cases import read_json

from kitsseg import recipes
from kitsseg.cli import main
from kitsseg.data.splits import make_split, save_split
from kitsseg.errors import InputError
from kitsseg.files import atomic
from kitsseg.files.archives import is_whole
from kitsseg.recipe import Progressive, Pruning
from kitsseg.records.checkpoints import go_back
from kitsseg.records.run import create_run, read_history, write_history
from kitsseg.training.options import TrainOptions
from kitsseg.training.progressive import read_rounds
from kitsseg.training.train import train_recipe

pytestmark = [
    pytest.mark.usefixtures("eagerly"),
    pytest.mark.filterwarnings("ignore:.*whole validation cases"),
]
STEPS = 2
GOES_BACK = r"00002\.(keras|npz): (damaged|gone); .*checkpoint before it: 1 epoch from epoch 2"


def recipe_of(trained, **changes):
    """The micro recipe with a network of one pooling."""
    tiny = trained.recipe
    phase = replace(tiny.phases[0], **{"epochs": 3, "steps_per_epoch": STEPS} | changes)
    model = {**tiny.model, "start_filters": 2, "n_pools": 1}
    return replace(tiny, model=model, phases=(phase,), inference=replace(tiny.inference, multiple=2))


def stop_in_third_epoch(_, done, total):
    if done == 2 * STEPS + 1:
        raise KeyboardInterrupt


def train(trained, recipe, run, resume=True, progress=None):
    return train_recipe(
        recipe, trained.cache, trained.split, run, TrainOptions(seed=5, resume=resume, progress=progress)
    )


@pytest.fixture(scope="module")
def pruning(trained):
    """A recipe whose masks are drawn with each of the first four steps."""
    words = Pruning(sparsity=0.5, schedule="polynomial", until=0.7, frequency=1)
    return recipe_of(trained, pruning=words)


@pytest.fixture(scope="module")
def runs(trained, pruning, tmp_path_factory):
    """One run without a fault, and one that was stopped in its third epoch."""
    folder = tmp_path_factory.mktemp("faults")
    train(trained, pruning, folder / "whole", resume=False)
    with pytest.raises(KeyboardInterrupt):
        train(trained, pruning, folder / "stopped", False, stop_in_third_epoch)
    return folder


@pytest.fixture
def stopped(runs, tmp_path):
    shutil.copytree(runs / "stopped", tmp_path / "run")
    return tmp_path / "run"


def check_nothing_is_lost(run, runs):
    """The history of the run that never met a fault. (Bit for bit: test_sigkill_resume.py, on one thread.)"""
    ours, theirs = read_history(run), read_history(runs / "whole")
    assert [row["epoch"] for row in ours] == [1, 2, 3]
    for key in ("loss", "val_loss", "learning_rate", "sparsity"):
        np.testing.assert_allclose([row[key] for row in ours], [row[key] for row in theirs], rtol=1e-4)
    assert read_json(run / "run.json")["status"] == "finished"
    assert {path.name for path in run.iterdir()} == {path.name for path in (runs / "whole").iterdir()}


def test_the_epoch_before_the_last_is_kept(stopped):
    names = {path.name for path in (stopped / "checkpoint").iterdir()}
    assert names == {f"train-0000{epoch}.{end}" for epoch in (1, 2) for end in ("keras", "npz")}


def weights_of(path, group):
    """Bytes of the largest array below a group of the weights in a .keras file, as they stand in it."""
    arrays = []
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file[group].visititems(lambda _, item: arrays.append(item[()]) if hasattr(item, "shape") else None)
    return max(arrays, key=lambda array: array.size).tobytes()


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def flipped_weight(run):
    path = run / "checkpoint" / "train-00002.keras"
    flip(path, path.read_bytes().index(weights_of(path, "layers")) + 2)


def flipped_optimizer(run):
    path = run / "checkpoint" / "train-00002.keras"
    flip(path, path.read_bytes().index(weights_of(path, "optimizer")) + 2)


def cut_off(run):
    path = run / "checkpoint" / "train-00002.keras"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(run):
    (run / "checkpoint" / "train-00002.keras").write_bytes(b"")


def removed(run):
    (run / "checkpoint" / "train-00002.keras").unlink()


def flipped_mask(run):
    path = run / "checkpoint" / "train-00002.npz"
    flip(path, path.stat().st_size // 3)


def cut_off_mask(run):
    path = run / "checkpoint" / "train-00002.npz"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [flipped_weight, flipped_mask])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(damage, stopped, runs, trained, pruning):
    damage(stopped)
    with pytest.warns(UserWarning, match=GOES_BACK):
        train(trained, pruning, stopped)
    check_nothing_is_lost(stopped, runs)


def check_goes_on(trained, recipe, run, epoch):
    """The first step that is trained is that of this epoch."""
    seen = []

    def stop(_, done, total):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trained, recipe, run, progress=stop)
    assert seen == [(epoch - 1) * STEPS + 1]


@pytest.mark.parametrize("damage", [flipped_optimizer, cut_off, emptied, removed, cut_off_mask])
def test_a_checkpoint_damaged_in_another_way_is_refused_too(damage, stopped, trained, pruning):
    damage(stopped)
    with pytest.warns(UserWarning, match=GOES_BACK):
        check_goes_on(trained, pruning, stopped, 2)


def test_if_every_checkpoint_is_damaged_one_error_says_so_each_time(stopped, trained, pruning):
    kept = {path: path.read_bytes() for path in (stopped / "checkpoint").iterdir()}
    for path in kept:
        path.write_bytes(kept[path][:100])
    for _ in range(2):
        with pytest.raises(InputError, match=r"train-00002\.keras: damaged, .*every .*after 2 epochs"):
            train(trained, pruning, stopped)
        assert len(read_history(stopped)) == 2
    for path, content in kept.items():  # brought back from a backup
        path.write_bytes(content)
    check_goes_on(trained, pruning, stopped, 3)


def test_a_checkpoint_folder_that_is_gone_is_one_error_until_it_is_back(stopped, trained, pruning, tmp_path):
    (stopped / "checkpoint").rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"checkpoint/train-00002.keras: gone, .*Bring .*checkpoint back"
        ):
            train(trained, pruning, stopped)
    shutil.rmtree(stopped / "checkpoint")
    (tmp_path / "elsewhere").rename(stopped / "checkpoint")
    check_goes_on(trained, pruning, stopped, 3)


@pytest.mark.parametrize("what", ["checkpoint", ""])
def test_a_folder_that_vanishes_during_training_stops_it(what, stopped, trained, pruning, tmp_path):
    """The checkpoint folder or the whole run vanishes. It is not made anew; training goes on when it is back."""

    def vanish(_, done, total):
        if done == 2 * STEPS + 1:
            (stopped / what).rename(tmp_path / "elsewhere")

    with pytest.raises(InputError, match=f"{stopped}: .* has vanished. Bring it back"):
        train(trained, pruning, stopped, progress=vanish)
    assert not (stopped / what).exists()
    (tmp_path / "elsewhere").rename(stopped / what)
    check_goes_on(trained, pruning, stopped, 3)


FULL = Path("/dev/full")


def fill_disk(monkeypatch, run, name):
    """From now on the disk is full for one file: its temporary file is a link to /dev/full."""
    temporary = run / Path(name).parent / f".{Path(name).stem}-kitsseg-00000000{Path(name).suffix}"
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda n: "0" * 2 * n)
    monkeypatch.setattr(atomic, "_removed", lambda *_: [])  # do not remove the link as a leftover
    temporary.symlink_to(FULL)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("checkpoint/train-00003.keras", 2),
        ("history.csv", 2),  # an epoch has happened only when it is in the history
        ("model.keras", 3),
        ("model_card.md", 3),
    ],
)
def test_a_full_disk_is_one_error_and_nothing_is_lost(name, epochs, stopped, runs, trained, pruning):
    with pytest.MonkeyPatch.context() as patch:

        def fill(_, done, total):
            if done == 3 * STEPS:
                fill_disk(patch, stopped, name)

        with pytest.raises(OSError) as caught:
            train(trained, pruning, stopped, progress=fill)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(stopped / name)
    assert len(read_history(stopped)) == epochs
    train(trained, pruning, stopped)
    check_nothing_is_lost(stopped, runs)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_train_says_in_one_line_that_the_disk_is_full(trained, pruning, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "get", lambda name: pruning)
    save_split(trained.split, tmp_path / "split.json")
    command = ["train", "unet2d:micro", trained.cache, tmp_path / "run", "--split", tmp_path / "split.json"]
    (tmp_path / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, tmp_path / "run", "split.json")
        assert main([str(argument) for argument in command]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kitsseg: {tmp_path / 'run' / 'split.json'}: no space left")
    assert not list((tmp_path / "run").iterdir())


def test_a_round_s_best_weights_come_back_from_their_checkpoint(trained, tmp_path):
    """Progressive training keeps a copy of the best round's weights; damaged, it is copied anew."""
    words = Progressive(rounds=2, subset=0.6, round_decay=0.5, min_delta=0.0, patience=2)
    recipe, run = recipe_of(trained, epochs=1, progressive=words, schedule=None), tmp_path / "run"

    def stop(_, done, total):
        if done == STEPS + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trained, recipe, run, False, stop)
    assert [row["kept"] for row in read_rounds(run)] == [1]
    best = run / "checkpoint" / "best-of-train.keras"
    assert best.read_bytes() == (run / "checkpoint" / "train-0-00001.keras").read_bytes()
    best.write_bytes(best.read_bytes()[:1000])
    train(trained, recipe, run)
    assert [row["round"] for row in read_rounds(run)] == [0, 1]
    assert read_json(run / "run.json")["status"] == "finished"


def test_whatever_is_cut_off_or_changed_is_noticed(tmp_path):
    """A small file is cut off at every place, and each bit is flipped: it is not whole, or it holds the same."""
    path, entries = tmp_path / "a.keras", {"a": b"weights", "b": b"state"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    content = path.read_bytes()
    assert is_whole(path)
    for n in range(len(content)):
        path.write_bytes(content[:n])
        assert not is_whole(path)
    harmless = set()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        if is_whole(path):
            harmless.add(bit // 8)
            with zipfile.ZipFile(path) as archive:
                assert {name: archive.read(name) for name in archive.namelist()} == entries
    assert harmless  # times, versions and attributes of the entries
    for value in entries.values():
        assert not harmless & {content.index(value) + i for i in range(len(value))}
    assert not is_whole(tmp_path / "none.npz") and not is_whole(tmp_path)


def rows(*epochs):
    return [{"phase": phase, "epoch": epoch} for phase, epoch in epochs]


@pytest.mark.parametrize(
    ("whole", "left", "message"),
    [
        ({"a1", "a2", "b1"}, 3, None),
        (
            {"a1", "a2"},
            2,
            r"b1\.npz: gone; .* before it: 1 epoch from epoch 1 of phase b .*trained again",
        ),
        ({"a1"}, 1, r"b1\.npz: gone; .* before it: 2 epochs from epoch 2 of phase a .*trained again"),
    ],
)
def test_go_back_takes_the_newest_that_is_whole(whole, left, message, tmp_path):
    for name in whole:
        np.savez(tmp_path / f"{name}.npz", np.zeros(1))

    def needed(rows):
        return [tmp_path / "{phase}{epoch}.npz".format(**rows[-1])]

    history = rows(("a", 1), ("a", 2), ("b", 1))
    said = go_back(tmp_path, history, needed)
    assert history == rows(("a", 1), ("a", 2), ("b", 1))[:left]
    if message is None:
        assert said is None
    else:
        assert re.search(message, said)


def test_go_back_begins_anew_only_if_a_single_epoch_is_lost(tmp_path):
    gone = [tmp_path / "gone.keras"]
    history = rows(("a", 1))
    assert "1 epoch from epoch 1 of phase a " in go_back(tmp_path, history, lambda _: gone)
    assert history == []
    history = rows(("a", 1), ("a", 2))
    with pytest.raises(
        InputError, match=r"gone\.keras: gone, .*every checkpoint before it; .*after 2 epochs"
    ):
        go_back(tmp_path, history, lambda _: gone)
    assert len(history) == 2


def test_a_history_that_is_cut_off_is_refused_or_ends_with_a_whole_epoch(tmp_path):
    complete = [
        {"phase": "train", "epoch": 1, "learning_rate": 1e-3, "loss": 0.9876543210123, "val_loss": 1.25},
        {"phase": "prune", "epoch": 1, "learning_rate": 1e-4, "loss": 0.5, "val_loss": 0.75, "sparsity": 0.5},
    ]
    write_history(tmp_path, complete)
    path = tmp_path / "history.csv"
    content = path.read_bytes()
    assert read_history(tmp_path) == complete
    lines = [n for n in range(1, len(content) + 1) if content[:n].endswith(b"\n")]
    for n in range(1, len(content)):
        path.write_bytes(content[:n])
        if n in lines:
            assert read_history(tmp_path) == complete[: lines.index(n)]
        else:
            with pytest.raises(InputError, match=r"history\.csv: .*row for each epoch"):
                read_history(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"history\.csv: .*row for each epoch"):
        read_history(tmp_path)


def test_a_run_that_was_killed_at_its_start_can_be_started_again(micro_recipe, tmp_path):
    """It was killed after split.json and before run.json. It is no run yet, so that --resume could not continue it."""
    split, run = make_split([f"case_{i:05d}" for i in range(9)]), tmp_path / "run"
    run.mkdir()
    save_split(split, run / "split.json")
    (run / ".run-kitsseg-0a1b2c3d.json").write_text("{")
    create_run(run, micro_recipe, split, 0, {})
    assert {path.name for path in run.iterdir()} == {"run.json", "split.json"}
    for folder in ("other", "used"):
        (tmp_path / folder).mkdir()
    save_split(make_split([f"case_{i:05d}" for i in range(8)]), tmp_path / "other" / "split.json")
    (tmp_path / "used" / "split.json").write_text("my notes")
    found = {"run": "unfinished run of unet2d:micro.*--resume", "other": "one in use", "used": "one in use"}
    for folder, words in found.items():
        with pytest.raises(InputError, match=f"{folder}: .*found .*{words}"):
            create_run(tmp_path / folder, micro_recipe, split, 0, {})
    assert (tmp_path / "used" / "split.json").read_text() == "my notes"
