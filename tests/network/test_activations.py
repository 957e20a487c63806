from __future__ import annotations

import numpy as np
import torch

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.network.activations import activations


def test_activations_match_naive_convolution(tiny: Network, image: np.ndarray) -> None:
    maps = Run(activations(tiny, image, layer="conv1")).run().arrays["maps"]
    weight, bias = tiny.weights("conv1")
    x = np.pad((image - tiny.transform.mean) / tiny.transform.std, ((1, 1), (1, 1), (0, 0)))
    for c in range(6):
        for i in range(8):
            for j in range(8):
                patch = x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].transpose(2, 0, 1)
                assert np.isclose(maps[c, i, j], (patch * weight[c]).sum() + bias[c], atol=1e-4)


def test_activations_nonzero_fraction_per_channel(tiny: Network, image: np.ndarray) -> None:
    frame = Run(activations(tiny, image, layer="relu@2")).run()
    maps, share = frame.arrays["maps"], frame.arrays["nonzero"]
    for c in range(8):
        assert np.isclose(share[c], np.count_nonzero(maps[c]) / 64)


def test_activations_of_linear_layer_have_one_position(tiny: Network, image: np.ndarray) -> None:
    maps = Run(activations(tiny, image, layer="fc")).run().arrays["maps"]
    with torch.no_grad():
        assert np.allclose(maps[:, 0, 0], tiny(tiny.batch(image))[0].numpy())
