"""From the scan's grid to the network's, and back."""
