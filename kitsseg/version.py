"""The version, which files of runs and scores record."""

__all__ = ["__version__"]

__version__ = "0.1.0"
