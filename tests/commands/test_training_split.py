"""Which split kitsseg train takes, and what it says about it."""

import json
import re

import pytest

from kitsseg.commands.training import choose_split
from kitsseg.errors import InputError


def split_file(path, train, validation, test):
    path.write_text(json.dumps({"train": train, "validation": validation, "test": test}))
    return str(path)


def test_cases_of_a_split_that_are_not_in_the_cache_are_named(trained, tmp_path, capsys):
    names = [f"case_0000{number}" for number in range(9)]
    file = split_file(
        tmp_path / "split.json", [*names[:6], "case_99999"], [names[6]], ["../case_00000", names[7]]
    )
    split = choose_split(trained.cache, trained.recipe, file)
    assert split.train == tuple(names[:6]) and split.test == (names[7],)
    [line] = [text for text in capsys.readouterr().out.splitlines() if "warning" in text]
    assert re.match(
        rf"warning: --split {file}: 2 of its 10 cases.*not in the cache.* \.\./case_00000: ", line
    )


def test_a_split_whose_cases_are_all_there_gives_no_warning(trained, tmp_path, capsys):
    names = [f"case_0000{number}" for number in range(9)]
    choose_split(
        trained.cache, trained.recipe, split_file(tmp_path / "s.json", names[:6], names[6:7], names[7:])
    )
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "names"), [("train", ([], ["case_00001"])), ("validation", (["case_00001"], []))]
)
def test_a_split_without_cases_for_a_part_is_refused(part, names, trained, tmp_path):
    file = split_file(tmp_path / "split.json", *names, ["case_00002"])
    with pytest.raises(InputError, match=f"--split {file}: .*expected at least one {part} case, found none"):
        choose_split(trained.cache, trained.recipe, file)
