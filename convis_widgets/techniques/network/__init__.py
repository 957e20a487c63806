"""Techniques that show the network itself."""
