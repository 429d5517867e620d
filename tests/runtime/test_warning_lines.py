"""Warnings of kitsseg are lines, and the same line comes once."""

from support.cases import make_case

from kitsseg.cli import main
from kitsseg.runtime.warning_lines import warnings_as_lines


def test_a_command_that_searches_a_folder_twice_tells_once_what_it_left_out(tmp_path, capsys):
    for name in ("case_00000", "case_00001"):
        make_case(tmp_path / "data" / name)
    (tmp_path / "data" / "case_00002").mkdir()
    assert main(["preprocess", "unet2d:tiny", str(tmp_path / "data"), str(tmp_path / "cache")]) == 0
    text = " ".join("".join(capsys.readouterr()).split())
    assert text.count("case_00002: no files in the folder of a case") == 1


def test_other_blocks_and_other_texts_are_told_again(tmp_path):
    from kitsseg.data.layouts.find import find_cases

    make_case(tmp_path / "case_00000")
    for name in ("case_00001", "case_00002"):
        lines = []
        (tmp_path / name).mkdir()
        with warnings_as_lines(lines.append):
            for _ in range(3):
                find_cases(tmp_path)
        assert len(lines) == 1
    (tmp_path / "case_00001").rmdir()
    lines = []
    with warnings_as_lines(lines.append):
        find_cases(tmp_path)
        (tmp_path / "case_00003").mkdir()
        find_cases(tmp_path)
    assert [" and 1 more" in line for line in lines] == [False, True]
