"""The one error for bad input: its message names the file, what was expected, what was found, what to do."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints the message as one line."""
