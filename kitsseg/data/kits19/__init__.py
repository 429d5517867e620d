"""The manifest of KiTS19's cases, and the check of a data folder against it."""
