"""Which slices of a long scan are kept for training."""

__all__ = ["cut_range"]


def cut_range(first, last, n, longest=200, margin=30):
    """Cut a scan to about ``longest`` slices without losing foreground.

    The foreground with ``margin`` slices on either side is kept whole, however long it is; where that is less
    than ``longest``, the cut is widened to ``longest`` slices around its middle.

    Args:
        first, last: first and last slice with kidney or tumor.
        n: slices of the scan; up to ``longest`` nothing is cut.

    Returns: (first slice kept, slice after the last one kept).
    Raises: ValueError if the foreground does not lie in the scan.
    Source: Daza et al. cut scans of more than 200 slices and keep all foreground; the margin of 30 is that of
        the same group's later public code.
    """
    if not 0 <= first <= last < n:
        raise ValueError(f"cut_range: foreground must lie in slices 0..{n - 1}, found {first}..{last}.")
    if n <= longest:
        return 0, n
    start, stop = max(first - margin, 0), min(last + 1 + margin, n)
    if stop - start >= longest:
        return start, stop
    start = min(max(start + (stop - start) // 2 - longest // 2, 0), n - longest)
    return start, start + longest
