"""From NIfTI cases to batches. The modules are imported one by one; this package costs nothing."""
