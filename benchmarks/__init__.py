"""Measured numbers, printed side by side; not tests, since a machine may be busy."""
