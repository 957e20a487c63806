"""Widgets that synthesize images."""
