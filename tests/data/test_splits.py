"""Splits by case: no patient on two sides, the same split everywhere."""

import csv
import json
import re
from collections import Counter

import numpy as np
import pytest
from support import REAL, ROOT

from kitsseg.data.splits import PARTS, CaseSplit, load_split, make_split, save_split, split_names
from kitsseg.errors import InputError

HOSPITALS = (67, 57, 13, 14, 7, 55)
KITS = [f"case_{i:05d}" for i in range(210)]


def test_an_overlap_is_an_error():
    with pytest.raises(InputError, match="mine: case_b .*train.* test"):
        CaseSplit("mine", ("case_a", "case_b"), ("case_c",), ("case_b",))
    with pytest.raises(InputError, match="case_a .*train.* train"):
        CaseSplit("mine", ("case_a", "case_a"), ("case_c",), ())


def test_any_overlap_is_found():
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = [list(rng.choice(KITS, rng.integers(1, 20), replace=False)) for _ in range(3)]
        everything = [case for part in parts for case in part]
        if len(set(everything)) < len(everything):
            with pytest.raises(InputError, match="split drawn: case_"):
                CaseSplit("drawn", *map(tuple, parts))
        else:
            CaseSplit("drawn", *map(tuple, parts))


def test_made_splits_cover_every_case_once_and_repeat():
    for n in (3, 5, 12, 24, 210):
        split = make_split(KITS[:n], seed=3)
        assert sorted(split.train + split.validation + split.test) == KITS[:n]
        assert min(map(len, (split.train, split.validation, split.test))) >= 1
        assert split == make_split(list(reversed(KITS[:n])), seed=3)
    assert make_split(KITS, seed=1).hash != make_split(KITS, seed=2).hash
    assert not make_split(KITS, (0.8, 0.2, 0)).test


def test_too_few_cases():
    with pytest.raises(InputError, match="3 parts .*found 2"):
        make_split(KITS[:2])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("80-10-10", (168, 21, 21)),  # Chen and Jin
        ("deeplab3d", (147, 63, 0)),  # Daza et al.
        ("wp_unet", (158, 52, 0)),
        ("squeeze_unet", (168, 42, 0)),
        ("mlperf42", (151, 17, 42)),
        *((f"5-fold-{i}", (168, 42, 0)) for i in range(5)),
        ("hospital-67", (162, 18, 30)),
        ("hospital-57", (175, 19, 16)),
        ("hospital-13", (176, 20, 14)),
        *((f"hospital-{number}", (178, 20, 12)) for number in (14, 7, 55)),
    ],
)
def test_named_splits(name, sizes):
    split = load_split(name)
    assert split.name == name
    assert tuple(map(len, (split.train, split.validation, split.test))) == sizes
    assert sorted(split.train + split.validation + split.test) == KITS
    assert split.source


def test_the_named_80_10_10_is_the_one_drawn_from_the_210():
    assert load_split("80-10-10").hash == make_split(KITS).hash


def test_folds_validate_every_case_once():
    folds = [load_split(f"5-fold-{i}").validation for i in range(5)]
    assert sorted(case for fold in folds for case in fold) == KITS


def test_every_file_is_named_here():
    assert set(split_names()) == {"80-10-10", "deeplab3d", "wp_unet", "squeeze_unet", "mlperf42"} | {
        *(f"5-fold-{i}" for i in range(5)),
        *(f"hospital-{number}" for number in HOSPITALS),
    }


def test_each_hospital_is_tested_by_one_split_and_trained_on_by_the_others():
    tests = {number: set(load_split(f"hospital-{number}").test) for number in HOSPITALS}
    assert sum(map(len, tests.values())) == len(set.union(*tests.values())) == 96
    for number, tested in tests.items():
        split = load_split(f"hospital-{number}")
        assert not tested & {*split.train, *split.validation}
        assert all(other <= {*split.train, *split.validation} for n, other in tests.items() if n != number)


@pytest.mark.skipif(not (REAL / "kits19_sites.csv").is_file(), reason="needs the table of hospitals")
def test_the_hospitals_are_those_of_the_table():
    with (REAL / "kits19_sites.csv").open() as file:
        sites = {row["case"]: int(row["site_id"]) for row in csv.DictReader(file)}
    for number in HOSPITALS:
        assert list(load_split(f"hospital-{number}").test) == [c for c in KITS if sites[c] == number]
    counts = Counter(sites[case] for case in KITS)
    assert {number for number, n in counts.items() if n >= 10} == set(HOSPITALS)


def test_the_papers_slices(real_data):
    """158 and 52 cases hold 35,826 and 9,598 slices (wp_unet)."""
    import csv

    with (real_data / "kits19_label_stats.csv").open() as file:
        slices = {row["case_id"]: int(row["nz"]) for row in csv.DictReader(file)}
    split = load_split("wp_unet")
    assert (sum(map(slices.get, split.train)), sum(map(slices.get, split.validation))) == (35826, 9598)


def test_files(tmp_path):
    split = make_split(KITS[:10])
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    values = json.loads((tmp_path / "split.json").read_text())
    values["test"].append(values["train"][0])
    (tmp_path / "split.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"split.json: .*train.* test"):
        load_split(tmp_path / "split.json")
    (tmp_path / "split.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="split.json: expected JSON .*train, validation and test"):
        load_split(tmp_path / "split.json")
    with pytest.raises(InputError, match="split file or .*5-fold-0"):
        load_split("60-40")


def test_only_the_cases_at_hand():
    split = CaseSplit("s", ("a", "b"), ("c",), ("d",))
    here, missing = split.among({"a", "c", "d"})
    assert (here.train, here.validation, here.test, missing) == (("a",), ("c",), ("d",), ["b"])
    with pytest.raises(InputError, match="none of its 1 validation cases"):
        split.among({"a", "b"})


def test_a_part_without_cases_is_said_to_be_empty():
    for split in (CaseSplit("s", (), ("c",), ("d",)), CaseSplit("s", ("a",), (), ("d",))):
        with pytest.raises(InputError, match="expected at least one (train|validation) case, found none"):
            split.among({"a", "c", "d"})


def test_the_page_lists_every_split_with_its_sizes():
    page = (ROOT / "docs" / "splits.md").read_text()
    rows = {
        name: tuple(map(int, sizes.split(", ")))
        for names, sizes in re.findall(r"^\| (`.*) \| (\d+, \d+, \d+) \|", page, re.M)
        for name in re.findall("`(.*?)`", names)
    }
    rows |= {f"5-fold-{i}": rows["5-fold-0"] for i in range(5)}
    assert rows == {
        name: tuple(len(getattr(load_split(name), part)) for part in PARTS) for name in split_names()
    }
