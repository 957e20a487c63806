"""Synthesis: objectives, the image optimizer, parameterizations, transforms, regularizers and the style loss."""
