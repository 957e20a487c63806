"""Techniques that synthesize images."""
