"""Kidney and kidney tumor segmentation in CT with Keras 3: five KiTS19 papers, from NIfTI to scores."""

__version__ = "0.1.0"
