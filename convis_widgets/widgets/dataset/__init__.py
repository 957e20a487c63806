"""Widgets on a whole set of images."""
