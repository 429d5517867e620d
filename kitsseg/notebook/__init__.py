"""What the Colab notebooks call."""
