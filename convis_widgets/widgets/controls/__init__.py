"""Controls: images, the run bar, pickers, color bars and curves."""
