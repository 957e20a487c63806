"""Networks: layers, activations, receptive fields, units, images."""
