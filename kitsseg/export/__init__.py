"""Networks as files that other software runs."""
