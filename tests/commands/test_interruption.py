"""Real processes that SIGINT (Ctrl-C), SIGTERM or SIGKILL stops in the middle.

Every case that remains is whole, and the next command goes on from there.
"""

import argparse
import re
import shutil
import signal
import sys

import pytest
from support.cases import make_case, read_json
from support.processes import contents, hidden, start_held, stop_when

from kitsseg import cli, recipes
from kitsseg.cli import main
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.nifti import read_image, read_labels
from kitsseg.data.layouts.find import find_cases
from kitsseg.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

ONE_LINE = r"kitsseg: interrupted; [^\n]*finished[^\n]*\n"
CASES = [f"case_{i:05d}" for i in range(8)]
SHAPE = (32, 192, 192)


def whole_cases(folder):
    """Names of the cases of a folder; each can be read to its end."""
    cases = find_cases(folder)
    for case in cases:
        assert read_image(case.image).array.shape == read_labels(case.labels).array.shape
    return [case.name for case in cases]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_synthesize_stopped_in_the_middle_of_a_scan(number, tmp_path):
    data, size = tmp_path / "data", ",".join(map(str, SHAPE))
    process = start_held(
        rf"\.{CASES[1]}-.*imaging", ["synthesize", "data", "--cases", "8", "--size", size], tmp_path
    )

    def in_the_second_scan():
        return (data / CASES[0]).exists() and any(data.glob(f".{CASES[1]}-*/.imaging-*"))

    code, out, err = stop_when(process, in_the_second_scan, number)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert hidden(data)  # what a killed process leaves is never taken for a case
    else:
        assert (code, out) == (130, "") and re.fullmatch(ONE_LINE, err), err
        assert not hidden(tmp_path)
    names = whole_cases(data)
    assert names == CASES[: len(names)]
    assert 1 <= len(names) < len(CASES)
    assert main(["preprocess", "unet2d:tiny", str(data), str(tmp_path / "cache")]) == 0
    assert list(open_cache(tmp_path / "cache", recipes.get("unet2d:tiny").preprocess)) == names


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Cases that take a moment each, and what preprocessing without any interruption makes of them."""
    folder = tmp_path_factory.mktemp("larger")
    for i, name in enumerate(CASES):
        make_case(folder / "data" / name, (48, 256, 256), seed=i)
    assert main(["preprocess", "unet2d:tiny", str(folder / "data"), str(folder / "whole")]) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_preprocess_stopped_in_the_middle_of_a_case(number, larger, capsys):
    cache = larger / f"cache-{number}"
    (whole,) = (larger / "whole").iterdir()
    folder = cache / whole.name
    process = start_held(rf"{CASES[1]}$", ["preprocess", "unet2d:tiny", "data", cache.name], larger)

    def in_the_second_case():
        return (folder / CASES[0]).exists() and any(folder.glob(f".{CASES[1]}-*"))

    code, out, err = stop_when(process, in_the_second_case, number)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert (code, out) == (130, "") and re.fullmatch(ONE_LINE, err), err
        assert not hidden(cache)
    done = [name for name in CASES if (folder / name).exists()]
    assert 1 <= len(done) < len(CASES)
    assert list(open_cache(cache, recipes.get("unet2d:tiny").preprocess)) == done
    assert contents(folder, done) == contents(whole, done)

    capsys.readouterr()
    assert main(["preprocess", "unet2d:tiny", str(larger / "data"), str(cache)]) == 0
    assert not hidden(cache)  # what the killed one left half made is gone
    left = len(CASES) - len(done)
    out = capsys.readouterr().out
    assert f"preprocessed {left} cases into {folder}" in out and f"({len(done)} there" in out
    assert list(open_cache(cache, recipes.get("unet2d:tiny").preprocess)) == CASES
    assert contents(folder, CASES) == contents(whole, CASES)


def test_what_a_killed_process_left_is_no_case(data, tmp_path):
    """Hidden leftovers count neither as data nor as predictions."""
    shutil.copytree(data / "case_00000", data / ".case_00000-x7a")
    assert [case.name for case in find_cases(data)] == [f"case_{i:05d}" for i in range(9)]
    shutil.copy(data / "case_00001" / "segmentation.nii.gz", data / ".case_00001-x7a.nii.gz")
    assert main(["evaluate", str(data), str(data), "--out", str(tmp_path / "scores.csv")]) == 0
    assert list(read_json(tmp_path / "scores.json")["cases"]) == [f"case_{i:05d}" for i in range(9)]


@pytest.fixture
def hears_ctrl_c():
    """React to Ctrl-C: a shell that starts the tests in the background lets them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Parser:
    """Reads any command line as one command."""

    def __init__(self, command):
        self.command = command

    def parse_known_args(self, _):
        return argparse.Namespace(run_command=self.command), []


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "error", [SystemError, RuntimeError, InputError, OSError, MemoryError, KeyboardInterrupt]
)
def test_whatever_a_library_makes_of_a_signal_is_an_interruption(error, number, monkeypatch, capsys):
    """If a signal arrives while TensorFlow runs C code, TensorFlow raises SystemError, which once gave a traceback."""

    def command(_):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise error("of a library") from None

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(cli, "build_parser", lambda: Parser(command))
    assert main(["info"]) == 130
    assert re.fullmatch(ONE_LINE, capsys.readouterr().err)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_without_a_signal_an_error_of_a_library_is_one(monkeypatch):
    def command(_):
        raise SystemError("of a library")

    monkeypatch.setattr(cli, "build_parser", lambda: Parser(command))
    with pytest.raises(SystemError, match="of a library"):
        main(["info"])


def test_a_job_that_ignores_ctrl_c_goes_on(monkeypatch):
    """As of ``nohup``, or in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(cli, "build_parser", lambda: Parser(lambda _: signal.raise_signal(signal.SIGINT)))
        assert main(["info"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
