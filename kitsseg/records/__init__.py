"""The files that one command writes for another."""
