"""Synthetic patients."""
