"""Commands that train or predict more than once."""
