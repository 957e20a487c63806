"""Widgets that show which pixels matter."""
