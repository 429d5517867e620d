"""The check of exported networks: by hand, and with differences that the share of equal voxels hides."""

import numpy as np
import pytest

from kitsseg.errors import InputError
from kitsseg.export.check import FEW, LEAST_AGREEMENT, LEAST_DICE, check, compare

SIZE = 128


def scores(labels):
    """Logits of which ``labels`` is the arg-max."""
    return 4.0 * np.eye(3, dtype=np.float32)[labels][None]


def labels_of(kidney, tumor, size=SIZE):
    """A slice with so many voxels of kidney, and behind them of tumor."""
    labels = np.zeros(size * size, int)
    labels[:kidney] = 1
    labels[kidney : kidney + tumor] = 2
    return labels.reshape(size, size)


def compared(expected, found):
    return compare([(scores(expected), scores(found))])


def test_by_hand():
    """Network: kidney 0-5, tumor 6-9. File: kidney 0-3, background 4-5, tumor 6-8, kidney 9, tumor 10-11."""
    network = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0]])
    file = np.array([[1, 1, 1, 1, 0, 0, 2, 2, 2, 1, 2, 2, 0, 0, 0, 0]])
    found = compared(network, file)
    assert (found.images, found.largest_difference) == (1, 4.0)
    # 11 of 16 voxels alike: 4, 5, 9, 10 and 11 are not
    assert found.agreement == 11 / 16
    # kidney with tumor: both 8 of 10 and 10; tumor: both 3 of 4 and 5
    assert (found.tk_dice, found.tk_differing) == (2 * 8 / (10 + 10), 4)
    assert (found.tu_dice, found.tu_differing) == (2 * 3 / (4 + 5), 3)


def test_voxels_of_all_images_are_pooled():
    one, two = labels_of(100, 0), labels_of(300, 0)
    found = compare([(scores(one), scores(one)), (scores(two), scores(labels_of(200, 0)))])
    # both 100 + 200; network 100 + 300, file 100 + 200
    assert found.tk_dice == pytest.approx(2 * 300 / (400 + 300))
    assert found.tu_dice is None
    assert found.images == 2


@pytest.mark.parametrize("precision", LEAST_DICE)
def test_background_does_not_hide_a_lost_tumor(precision):
    """A tumor of 40 voxels becomes kidney: 99.76 % of voxels are alike, and all of kidney with tumor."""
    found = compared(labels_of(400, 40), labels_of(440, 0))
    assert found.agreement == 1 - 40 / SIZE**2 > 0.997
    assert found.tk_dice == 1 and found.tu_dice == 0
    with pytest.raises(
        InputError, match=r"on 1 cached images: Dice 0.000 between both's tumor, expected 0.\d+"
    ):
        check(found, precision)


@pytest.mark.parametrize("precision", LEAST_DICE)
def test_background_does_not_hide_a_smaller_kidney(precision):
    """60 of 400 voxels lost: Dice 2 * 340 / (400 + 340) = 0.919 where 99.63 % of voxels are alike."""
    found = compared(labels_of(400, 0), labels_of(340, 0))
    assert found.agreement > 0.996
    with pytest.raises(InputError, match=r"Dice 0\.919 .*kidney with tumor, expected 0\.9"):
        check(found, precision)


def test_an_invented_tumor_counts_as_a_lost_one():
    with pytest.raises(
        InputError, match=r"Dice 0.000 between both's tumor, expected 0.923. Choose --precision int8-weights"
    ):
        check(compared(labels_of(400, 0), labels_of(380, 20)), "int8")


def test_as_far_as_two_annotators():
    """int8 may differ as they do: kidney with tumor 0.983, tumor 0.923; float32 may not."""
    # kidney with tumor 1000 and 970: 2 * 970 / 1970 = 0.9848
    close = compared(labels_of(1000, 0), labels_of(970, 0))
    check(close, "int8")
    for precision in ("float16", "float32"):
        with pytest.raises(InputError, match=r"Dice 0.985 between both's kidney"):
            check(close, precision)
    # 2 * 960 / 1960 = 0.9796
    with pytest.raises(InputError, match=r"Dice 0\.980 .*kidney with tumor, expected 0\.983"):
        check(compared(labels_of(1000, 0), labels_of(960, 0)), "int8")


def test_a_few_near_ties_in_a_tiny_tumor_are_none():
    """A tumor of 12 voxels that loses FEW of them has a Dice of 0.29, but so few voxels are no reason for an error."""
    check(compared(labels_of(400, 12), labels_of(400 + FEW, 12 - FEW)), "int8")
    with pytest.raises(InputError, match=r"between both's tumor"):
        check(compared(labels_of(400, 12), labels_of(400 + FEW + 1, 12 - FEW - 1)), "int8")


def test_float32_is_judged_on_all_voxels_too():
    """20 of 100,000 kidney voxels: Dice 0.9999, but 99.9878 % of 128 x 128 x 10 voxels."""
    expected = [labels_of(10_000, 0)] * 10
    found = [labels_of(9_998, 0)] * 10
    comparison = compare([(scores(a), scores(b)) for a, b in zip(expected, found, strict=True)])
    assert comparison.tk_dice > LEAST_DICE["float32"][0]
    assert comparison.agreement < LEAST_AGREEMENT
    with pytest.raises(InputError, match=r"equal labels on 99.988% of voxels, expected 99.99%. Train again"):
        check(comparison, "float32")
    check(comparison, "float16")


def test_nothing_to_compare():
    empty = labels_of(0, 0)
    with pytest.raises(InputError, match=r"3 cached images neither .*kidney or tumor.* --cache"):
        compare([(scores(empty), scores(empty))] * 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_numbers_and_other_shapes(value):
    expected = scores(labels_of(4, 0))
    found = expected.copy()
    found[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"gives \(1, 128, 128, 3\), .*no numbers"):
        compare([(expected, found)])
    with pytest.raises(InputError, match=r"gives \(1, 128, 128, 2\), expected \(1, 128, 128, 3\)"):
        compare([(expected, expected[..., :2])])
