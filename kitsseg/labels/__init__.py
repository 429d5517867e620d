"""What is done to a label map, whichever network made it."""
