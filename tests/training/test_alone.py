"""Two processes never train in one folder: whichever command comes second says who is there, and changes nothing."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest

from kitsseg.errors import InputError
from kitsseg.files import locks
from kitsseg.files.locks import folder_lock
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.prune import prune_run
from kitsseg.workflows.shrink import shrink_run
from kitsseg.workflows.sweep import sweep_run

pytestmark = pytest.mark.usefixtures("eagerly")
HELD = rf"another process .*training here \(process {os.getpid()} on .* Wait .*stop it"


def contents(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".train.lock"
    }


def unfinished(trained, run):
    """A copy of the run that was stopped in its last epoch."""
    shutil.copytree(trained.run, run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "training"}))
    return run


@pytest.fixture
def at_work(trained, tmp_path):
    run = unfinished(trained, tmp_path / "run")
    with folder_lock(run, "train", wait=False, doing="training"):
        yield run


def train(trained, run, **options):
    return train_recipe(trained.recipe, trained.cache, trained.split, run, TrainOptions(seed=5, **options))


def prune(trained, out, options):
    prune_run(FromRun(trained.recipe, trained.run, trained.cache), out, 0.5, options)


def shrink(trained, out, options):
    shrink_run(FromRun(trained.recipe, trained.run, trained.cache), out, 0.5, options, multiple=2)


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_training_is_told_who_trains(resume, at_work, trained):
    before = contents(at_work)
    with pytest.raises(InputError, match=f"{at_work}: {HELD}"):
        train(trained, at_work, resume=resume)
    assert contents(at_work) == before


def test_a_training_that_has_only_just_begun_is_not_called_missing(trained, tmp_path):
    """A requeued job with --resume, while the first has locked the folder and not written run.json yet."""
    with (
        folder_lock(tmp_path / "run", "train", wait=False, doing="training"),
        pytest.raises(InputError, match=HELD),
    ):
        train(trained, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"run: .*found no run\.json"):
        train(trained, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_training_holds_its_folder_while_it_trains(trained, tmp_path):
    run, told = tmp_path / "run", []

    def progress(*call):
        if not told:
            with pytest.raises(InputError, match=HELD) as caught:
                train(trained, run, resume=True)
            told.append(str(caught.value))

    train(trained, run, progress=progress)
    assert len(told) == 1
    assert (run / "history.csv").read_text() == (trained.run / "history.csv").read_text()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("job", [prune, shrink])
def test_jobs_that_train_on_are_alone_in_a_folder_too(job, resume, at_work, trained):
    before = contents(at_work)
    with pytest.raises(InputError, match=f"{at_work}: {HELD}"):
        job(trained, at_work, TrainOptions(epochs=1, resume=resume))
    assert contents(at_work) == before


def test_a_table_of_sparsities_names_the_run_that_is_at_work(trained, tmp_path):
    out = tmp_path / "table"
    with (
        folder_lock(out / "magnitude-0.5", "train", wait=False, doing="training"),
        pytest.raises(InputError, match=f"{out / 'magnitude-0.5'}: {HELD}"),
    ):
        sweep_run(
            FromRun(trained.recipe, trained.run, trained.cache), out, (0.5, 0.9), TrainOptions(epochs=1)
        )


def test_a_folder_is_free_again_when_its_training_was_stopped(trained, tmp_path):
    def stop(_, step, __):
        if step == 10:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(trained, run, progress=stop)
    assert not (run / ".train.lock").exists()
    train(trained, run, resume=True)
    assert (run / "history.csv").read_text() == (trained.run / "history.csv").read_text()


def test_without_locks_one_line_says_so_and_training_goes_on(trained, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", none)
    said, recipe = [], trained.recipe
    run = train_recipe(
        recipe, trained.cache, trained.split, tmp_path / "run", replace(TrainOptions(seed=5), say=said.append)
    )
    assert sum("locks" in line for line in said) == 1
    assert (run / "history.csv").read_text() == (trained.run / "history.csv").read_text()
