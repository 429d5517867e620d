"""The cases spread over a Dask scheduler with two workers: the same files as one process."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TESTS
from support.cases import make_case, read_json, spec_of_tests
from support.slices import make_slices

from kitsseg.data.cache.build import fill_cache, plan_cache
from kitsseg.errors import InputError
from kitsseg.inference.cohort import predict_cases, predict_cohort
from kitsseg.inference.options import PredictOptions
from kitsseg.runtime.cluster import on_cluster

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Address of a scheduler in a process of its own, with two workers in theirs."""
    folder = tmp_path_factory.mktemp("dask")
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{TESTS}",  # workers import ``double`` from here
    }
    file, processes = folder / "scheduler.json", []

    def start(*arguments):
        with (folder / f"log{len(processes)}").open("w") as log:
            command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
            processes.append(
                subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )

    shared = ("--scheduler-file", str(file))
    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *shared)
        until(file.exists, "the scheduler never began")
        for name in "ab":
            start("dask_worker", "--no-nanny", "--no-dashboard", "--nthreads", "2", "--name", name, *shared)
        address = read_json(file)["address"]
        with distributed.Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address
    finally:
        for process in processes:
            process.kill()  # a worker without its scheduler would wait for it
        for process in processes:
            process.wait(30)


def until(reached, message):
    last = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < last, message
        time.sleep(0.05)


def double(number, worst):
    if number == worst:
        raise ArithmeticError(f"not {number}")
    return 2 * number, os.getpid()


def test_jobs_are_shared_by_the_workers(scheduler):
    """Both work, each in a process that is not this one. What a job raises comes back as it is."""
    results = list(on_cluster(scheduler, double, [(number, None) for number in range(40)]))
    assert sorted(job[0] for job, _, _ in results) == list(range(40))
    assert all(result[0] == 2 * job[0] and error is None for job, result, error in results)
    pids = {result[1] for _, result, _ in results}
    assert len(pids) == 2
    assert os.getpid() not in pids
    with pytest.raises(ArithmeticError, match="not 3"):
        list(on_cluster(scheduler, double, [(number, 3) for number in range(8)]))


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr("kitsseg.runtime.cluster.ANSWERS_WITHIN", 1)
    with pytest.raises(InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: .*Dask scheduler, found none"):
        list(on_cluster("tcp://127.0.0.1:9", double, [(1, 2)]))
    with pytest.raises(InputError, match=r"--scheduler nonsense://: .*Dask scheduler, found none"):
        list(on_cluster("nonsense://", double, [(1, 2)]))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"--scheduler: .*distributed is missing .*pip install distributed"):
        list(on_cluster("tcp://127.0.0.1:9", double, [(1, 2)]))


@pytest.mark.slow  # two workers import TensorFlow
def test_two_workers_give_the_same_files_as_one_process(scheduler, trained, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "data")
    bad = data / "case_00004" / "imaging.nii.gz"
    os.truncate(bad, bad.stat().st_size // 2)
    calls = []
    here = predict_cohort(trained.run, [data], tmp_path / "here")
    there = predict_cohort(
        trained.run,
        [data],
        tmp_path / "there",
        progress=lambda *call: calls.append(call),
        options=PredictOptions(scheduler=scheduler),
    )
    assert list(here.failed) == list(there.failed) == ["case_00004"]
    assert [path.name for path in here.written] == [path.name for path in there.written]
    for one, two in zip(here.written, there.written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    records = [read_json(tmp_path / name / "predictions.json") for name in ("here", "there")]
    assert unlike_times(records[0]) == unlike_times(records[1])
    assert calls[-1][1:] == (9, 9)
    # a call without the cluster keeps the label maps and adds the missing one
    bad.write_bytes((trained.data / "case_00004" / "imaging.nii.gz").read_bytes())
    assert len(predict_cases(trained.run, [data], tmp_path / "there")) == 9


def test_cases_are_preprocessed_by_two_workers_as_by_one_process(scheduler, tmp_path, monkeypatch):
    """Relative paths, a compressed cache, a damaged scan, and single slices are the same files on the workers."""
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        make_case(Path("data") / f"case_{i:05d}", seed=i)
    bad = Path("data/case_00003/imaging.nii.gz")
    os.truncate(bad, bad.stat().st_size // 2)
    make_slices(tmp_path / "slices", patients=3)
    spec = spec_of_tests()
    for number, (data, compress) in enumerate((("data", False), ("data", True), ("slices", False))):
        outcomes, caches = [], [Path(f"{number}-{where}") for where in ("here", "there")]
        for cache, address in zip(caches, (None, scheduler), strict=True):
            calls = []
            try:
                plan = plan_cache(data, cache, spec, compress=compress)
                outcome = fill_cache(
                    plan, scheduler=address, progress=lambda *call, calls=calls: calls.append(call)
                )
                outcomes.append(outcome[1:])
            except InputError as error:
                outcomes.append(str(error).replace(f"{tmp_path}/", ""))  # the workers have absolute paths
            assert calls[-1][1] == calls[-1][2] > 1
        assert outcomes[0] == outcomes[1]
        assert ("case_00003" in outcomes[0]) == (data == "data")
        assert files_of(caches[0]) == files_of(caches[1])
    # what is mended is added
    make_case(Path("data/case_00003"), seed=3)
    assert fill_cache(plan_cache("data", "0-there", spec), scheduler=scheduler)[1] == ["case_00003"]


def files_of(cache):
    """Path -> content of each file; what a record says of the time of its sources is left out."""
    found = {}
    for path in sorted(cache.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "case.json":
                record = json.loads(content)
                del record["sources"], record["sha256"]
                content = record
            found[path.relative_to(cache)] = content
    return found


def unlike_times(record):
    for entry in (*record["cases"].values(), *record["failed"].values()):
        del entry["finished"]
        entry.pop("seconds", None)
        entry.get("source", {}).pop("stamp", None)  # only of a file that has not changed in the last seconds
    return record


def test_the_module_is_not_needed_without_a_scheduler():
    code = "import sys, kitsseg.inference.cohort; print({'distributed', 'tensorflow', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
