"""Batches of slices and patches: a pure function of seed and index."""
