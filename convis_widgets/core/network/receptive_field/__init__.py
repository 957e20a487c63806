"""Receptive fields, computed from the recorded forward pass."""
