from __future__ import annotations

import numpy as np
import pytest
import torch

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.techniques.attribution.smooth_grad import smooth_grad


def test_smooth_grad_matches_reference_sample_by_sample(tiny: Network, image: np.ndarray) -> None:
    frame = Run(smooth_grad(tiny, image, target=1, samples=6, noise_level=0.2, seed=7)).run()
    noise = torch.randn((6, 3, 16, 16), generator=torch.Generator().manual_seed(7))
    deviation = 0.2 * float(image.max() - image.min())
    total = np.zeros((16, 16, 3))
    for sample in noise:
        noisy = torch.from_numpy(image).permute(2, 0, 1) + deviation * sample
        pixels = noisy[None].to(tiny.device).requires_grad_()
        (gradient,) = torch.autograd.grad(tiny(pixels)[0, 1], pixels)
        total += gradient[0].permute(1, 2, 0).cpu().numpy()
    assert np.abs(total).max() > 1e-2
    assert np.allclose(frame.arrays["gradient"], total / 6, rtol=1e-4, atol=1e-5)
    assert np.allclose(frame.heat, np.abs(total / 6).max(2), rtol=1e-4, atol=1e-5)


def test_smooth_grad_without_noise_equals_saliency(tiny: Network, image: np.ndarray) -> None:
    frame = Run(smooth_grad(tiny, image, target=1, samples=3, noise_level=0)).run()
    assert np.allclose(frame.heat, next(saliency(tiny, image, target=1)).heat, rtol=1e-5)


def test_smooth_grad_streams_and_depends_on_seed(tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run(smooth_grad(tiny, image, target=1, samples=20, seed=1)).run()
    monkeypatch.setattr("convis_widgets.techniques.attribution.smooth_grad.auto_batch_size", lambda *_, **__: 8)
    frames = list(smooth_grad(tiny, image, target=1, samples=20, seed=1))
    assert [frame.step for frame in frames] == [8, 16, 20]
    assert np.allclose(frames[-1].heat, whole.heat, rtol=1e-4), "independent of the batch size"
    other = Run(smooth_grad(tiny, image, target=1, samples=20, seed=2)).run()
    assert not np.allclose(other.heat, whole.heat, rtol=1e-2)
