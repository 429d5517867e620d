"""The way from the grid of a scan to the grid of a network, and back."""
