"""Encoders with weights from elsewhere."""
