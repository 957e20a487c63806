"""Widgets that show a network itself."""
