"""What is known of KiTS19's cases, and checking them against it."""
