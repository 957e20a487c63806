"""Image sets: reading them, scanning them with a network, the largest activations."""
