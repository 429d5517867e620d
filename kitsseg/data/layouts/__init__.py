"""Find the cases of a folder: KiTS, nnU-Net, DICOM series, patterns."""
