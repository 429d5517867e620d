"""Which slices of a long scan are kept (3D DeepLab, line 6)."""

import pytest

from kitsseg.data.geometry.geometry import cut_range


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        # 100..139 and 30 on either side: 70..170, 100 long; middle 120: 120 - 100 = 20
        (100, 139, (20, 220)),
        # 20 - 30 < 0; 261 + 30 = 291: longer than 200, kept whole
        (20, 260, (0, 291)),
        # at the front the middle of 0..50 is 25: 25 - 100 < 0; at the back 250..300: 275 - 100 > 300 - 200
        (10, 19, (0, 200)),
        (280, 289, (100, 300)),
        # 80..219 with 30 on either side: 50..250, exactly 200 long; one less: 51 + 199 // 2 - 100 = 50
        (80, 219, (50, 250)),
        (81, 219, (50, 250)),
        (0, 299, (0, 300)),
    ],
)
def test_a_scan_of_300_slices_is_cut_around_its_foreground(first, last, expected):
    assert cut_range(first, last, 300) == expected


@pytest.mark.parametrize("n", [1, 60, 200])
def test_short_scans_stay_whole(n):
    assert cut_range(0, n - 1, n) == (0, n)
    assert cut_range(n // 2, n // 2, n) == (0, n)


@pytest.mark.parametrize(("longest", "margin"), [(200, 30), (25, 3), (24, 0), (1, 0)])
def test_all_foreground_and_its_margin_are_kept_and_no_more_than_needed(longest, margin):
    for n in (longest + 1, longest + 2, 2 * longest + 31):
        for first in range(0, n, 1 if n < 100 else 13):
            for last in range(first, n, 1 if n < 100 else 11):
                start, stop = cut_range(first, last, n, longest, margin)
                assert 0 <= start <= max(first - margin, 0)
                assert min(last + 1 + margin, n) <= stop <= n
                wanted = min(last + 1 + margin, n) - max(first - margin, 0)
                assert stop - start == max(longest, wanted)


@pytest.mark.parametrize(("first", "last"), [(-1, 5), (5, 4), (0, 300)])
def test_foreground_outside_the_scan_is_an_error(first, last):
    with pytest.raises(ValueError, match=r"slices 0\.\.299, found"):
        cut_range(first, last, 300)
