"""Where the cases of a folder are: KiTS, nnU-Net, DICOM series, patterns."""
