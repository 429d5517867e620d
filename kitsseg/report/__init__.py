"""The HTML page about a run or its scores."""
