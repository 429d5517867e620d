"""How a file is written, named, locked and hashed."""
