"""Schedules, averages of weights, AdamW by group."""
