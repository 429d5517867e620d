"""KiTS19 over HTTP, resumable and checked."""
