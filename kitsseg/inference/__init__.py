"""From scans to label maps."""
