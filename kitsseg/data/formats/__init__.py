"""NIfTI and DICOM: volumes, label maps and the grid they lie on."""
