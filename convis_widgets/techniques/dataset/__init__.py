"""Techniques on a whole set of images."""
