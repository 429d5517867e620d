"""The mathematics of masks, with values computed by hand; equality with tfmot is in test_pruning_tfmot.py."""

import numpy as np
import pytest

from kitsseg.pruning.masks import block_mask, global_masks, is_pointwise, m_by_n_mask, magnitude_mask, n_kept


@pytest.mark.parametrize(
    ("size", "sparsity", "kept"),
    [
        (5, 0.5, 2),  # 2.5 to even
        (7, 0.5, 4),  # 3.5 to even
        (10, 0.25, 8),  # 7.5 to even
        (10, 0.75, 2),  # 2.5 to even
        (10, 0.45, 6),  # 5.5 in float32
        (3, 0.9, 1),  # 0.3, but never none
        (100, 0.999, 1),
        (24, 0.7, 7),  # 7.2
        (72, 0.7, 22),  # 21.6
        (4, 0.0, 4),
    ],
)
def test_the_number_of_kept_weights_is_rounded_as_in_tfmot(size, sparsity, kept):
    assert n_kept(size, sparsity) == kept
    weights = np.random.default_rng(size).permutation(size) + 1.0
    mask, threshold = magnitude_mask(weights.astype(np.float32), sparsity)
    assert mask.sum() == kept
    assert threshold == size - kept + 1  # the kept-largest of 1, 2, ..., size
    np.testing.assert_array_equal(mask, weights >= threshold)


def test_ties_and_zeros_are_all_kept():
    mask, threshold = magnitude_mask(np.array([1, -1, 1, -1], np.float32), 0.5)
    assert mask.all()
    assert threshold == 1
    mask, threshold = magnitude_mask(np.array([0, 0, 0, 2], np.float32), 0.25)
    assert mask.all()  # three entries are kept, the smallest of them is 0, and every entry is at least 0
    assert threshold == 0


@pytest.mark.parametrize(
    ("shape", "sparsity"),
    [((3, 3, 8, 5), 0.5), ((1, 1, 12, 4), 0.5), ((3, 3, 6, 2), 1 / 3), ((10, 4), 0.4), ((3, 3, 1, 8), 0.0)],
)
def test_the_sparsity_that_two_of_four_reaches(shape, sparsity):
    """Of 6 inputs, four form a group that loses two; the other two are filled up with two zeros, and lose none.

    10 inputs lose 2 + 2 + 0.
    """
    mask = m_by_n_mask(np.random.default_rng(0).normal(size=shape) + 5, (2, 4))
    assert mask.shape == shape
    assert 1 - mask.mean() == pytest.approx(sparsity)


def test_two_of_four_by_hand():
    """Groups run along the inputs, here the rows, for each output by itself; the first of equals stays."""
    weights = np.array([[1, 5], [-4, 5], [3, -5], [2, 5]], np.float32)
    np.testing.assert_array_equal(
        m_by_n_mask(weights, (2, 4)), np.array([[0, 1], [1, 1], [1, 0], [0, 0]]) == 1
    )
    np.testing.assert_array_equal(
        m_by_n_mask(weights[None, None], (2, 4))[0, 0], m_by_n_mask(weights, (2, 4))
    )
    np.testing.assert_array_equal(m_by_n_mask(weights[:, :1], (1, 2)), [[False], [True], [True], [False]])


def test_m_by_n_refuses_what_tfmot_refuses():
    with pytest.raises(ValueError, match=r"found shape \(3, 3, 3, 4, 4\). tfmot has none for 1D and 3D"):
        m_by_n_mask(np.ones((3, 3, 3, 4, 4)), (2, 4))
    for m, n in ((4, 4), (0, 4), (5, 4)):
        with pytest.raises(ValueError, match=f"expected 0 < m < n, found {m}:{n}"):
            m_by_n_mask(np.ones((4, 4)), (m, n))


def test_blocks_by_hand():
    """Means of pairs: 2, 3 / 4, 1 and of the odd last column 5 / 0; three of six are kept: 5, 4 and 3."""
    weights = np.array([[1, -3, 3, 3, 5], [-8, 0, 1, 1, 0]], np.float32)
    mask, threshold = block_mask(weights, 0.5, 2)
    np.testing.assert_array_equal(mask, np.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]) == 1)
    assert threshold == 3
    same, _ = block_mask(weights[None, None], 0.5, 2)
    np.testing.assert_array_equal(same[0, 0], mask)


def test_blocks_hold_together_and_keep_the_sparsity():
    weights = np.random.default_rng(1).normal(size=(1, 1, 32, 64)).astype(np.float32)
    mask, _ = block_mask(weights, 0.75, 4)
    groups = mask.reshape(-1, 4)
    assert (groups.all(axis=1) | ~groups.any(axis=1)).all()
    assert 1 - mask.mean() == 0.75


def test_one_ranking_across_tensors():
    """Six entries, three zeros: 1, 2 and 3 go, wherever they are."""
    masks, threshold = global_masks([np.array([[1.0, -2.0], [3.0, 4.0]]), np.array([5.0, -6.0])], 0.5)
    np.testing.assert_array_equal(masks[0], [[False, False], [False, True]])
    np.testing.assert_array_equal(masks[1], [True, True])
    assert threshold == 4


def test_what_is_pointwise():
    assert is_pointwise((1, 1, 3, 4))
    assert is_pointwise((1, 1, 1, 3, 4))
    assert is_pointwise((3, 4))
    assert not is_pointwise((3, 1, 3, 4))
    assert not is_pointwise((1, 3, 3, 4))
    assert not is_pointwise((4,))
