"""Benchmarks: measured numbers, printed side by side. They are not tests, since a machine may be busy."""
