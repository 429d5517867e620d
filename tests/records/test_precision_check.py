"""The check of a lower precision that a run folder keeps."""

from dataclasses import replace

import pytest

from kitsseg.errors import InputError
from kitsseg.records import precision
from kitsseg.records.precision import PrecisionCheck, keep_check, kept_check

KEPT = PrecisionCheck(
    precision="bfloat16", weights_sha256="ab", engine="keras", slices=8, tk_dice=0.9991, tu_dice=0.9962
)


def test_a_check_counts_for_its_weights_engine_and_version_only(tmp_path):
    assert kept_check(tmp_path, "bfloat16", "ab", "keras") is None
    keep_check(tmp_path, KEPT)
    assert kept_check(tmp_path, "bfloat16", "ab", "keras") == KEPT
    for other in (("float16", "ab", "keras"), ("bfloat16", "cd", "keras"), ("bfloat16", "ab", "tensorflow")):
        assert kept_check(tmp_path, *other) is None
    keep_check(tmp_path, replace(KEPT, kitsseg="0.0.1"))
    assert kept_check(tmp_path, "bfloat16", "ab", "keras") is None


def test_the_lower_dice_counts():
    assert KEPT.lowest == 0.9962
    assert replace(KEPT, tu_dice=None).lowest == 0.9991
    assert "on 1 slice" in str(replace(KEPT, slices=1))


def test_a_folder_in_which_nobody_may_write_keeps_nothing(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError("denied")

    monkeypatch.setattr(precision, "write_record", denied)
    keep_check(tmp_path, KEPT)
    assert kept_check(tmp_path, "bfloat16", "ab", "keras") is None


def test_a_damaged_check_is_named(tmp_path):
    (tmp_path / "precision.json").write_text('{"precision": 3}')
    with pytest.raises(InputError, match=r"precision\.json: expected .*Remove that file"):
        kept_check(tmp_path, "bfloat16", "ab", "keras")
