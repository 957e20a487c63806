"""Techniques that show which pixels matter, and checks of their maps."""
