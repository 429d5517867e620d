"""One run of one recipe."""
