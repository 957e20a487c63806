from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convis_widgets import demo
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis.default_layers import default_inversion_layers
from convis_widgets.core.synthesis.image_optimizer import noise
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion


def output(net: Network, name: str, image: np.ndarray) -> np.ndarray:
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(net.dtype)
    with torch.no_grad(), trace(net, [name]) as acts:
        net(batch)
    return acts[name][0].double().numpy()


def errors(net: Network, name: str, image: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Relative squared errors of the activations, and of the pixels minus the mean pixel."""
    a, b = output(net, name, image), output(net, name, target)
    mean = np.array(net.transform.mean_pixel)
    pixels = ((image - target).astype(np.float64) ** 2).sum() / ((target - mean) ** 2).sum()
    return ((a - b) ** 2).sum() / (b**2).sum(), pixels


def priors(net: Network, image: np.ndarray) -> tuple[float, float]:
    x = (image - np.array(net.transform.mean_pixel)).astype(np.float64)
    total = 0.0
    for i in range(x.shape[0] - 1):
        for j in range(x.shape[1] - 1):
            total += ((x[i, j + 1] - x[i, j]) ** 2 + (x[i + 1, j] - x[i, j]) ** 2).sum()
    return (x**6).sum(), total


@pytest.mark.parametrize("kwargs", [{}, {"optimizer": "lbfgs"}, {"optimizer": "gradient"}, {"lr": 0.1}])
def test_feature_inversion_scalars_match_reference(kwargs: dict[str, Any], tiny: Network, image: np.ndarray) -> None:
    names = ["conv1", "conv2", "fc"]
    frames = list(feature_inversion(tiny, image, layers=names, iterations=4, **kwargs))
    assert len(frames) == 12
    for k, name in enumerate(names):
        before = noise(tiny, 0.2, 0)[0].permute(1, 2, 0).numpy()
        for frame in frames[4 * k : 4 * k + 4]:
            expected = errors(tiny, name, before, image)
            assert (frame.scalars["features"], frame.scalars["pixels"]) == pytest.approx(expected, rel=1e-3)
            assert (frame.scalars["l6"], frame.scalars["tv"]) == pytest.approx(priors(tiny, before), rel=1e-3, abs=1e-6)
            before = frame.image


def test_feature_inversion_final_errors_match_final_images(tiny: Network, image: np.ndarray) -> None:
    names = ["conv1", "conv2"]
    frames = list(feature_inversion(tiny, image, layers=names, iterations=5))
    last = frames[-1]
    for k, name in enumerate(names):
        assert last.arrays["errors"][k] == pytest.approx(errors(tiny, name, last.arrays["inversions"][k], image), rel=1e-3)
    middle = frames[6].arrays["errors"]
    assert np.array_equal(middle[0], last.arrays["errors"][0])
    assert middle[1] == pytest.approx([frames[6].scalars["features"], frames[6].scalars["pixels"]])


def test_feature_inversion_adds_one_image_per_layer(tiny: Network, image: np.ndarray) -> None:
    names = ["conv1", "side", "pool"]
    frames = list(feature_inversion(tiny, image, layers=names, iterations=2))
    assert [frame.arrays["inversions"].shape for frame in frames] == [(k, 16, 16, 3) for k in (1, 1, 2, 2, 3, 3)]
    assert [frame.arrays["errors"].shape for frame in frames] == [(k, 2) for k in (1, 1, 2, 2, 3, 3)]
    for frame in frames:
        assert np.array_equal(frame.arrays["inversions"][-1], frame.image)
    for k in range(3):
        assert np.array_equal(frames[-1].arrays["inversions"][k], frames[2 * k + 1].image)


def test_default_inversion_layers_grow_in_depth(demo_net: Network, tiny_gray: Network) -> None:
    assert default_inversion_layers(demo_net) == ["relu1", "relu3", "relu5", "relu7"]
    assert "fc" not in default_inversion_layers(tiny_gray), "logits are not features"
    sizes = [tiny_gray.layers[name].map_shape[1:] for name in default_inversion_layers(tiny_gray)]
    assert sizes == sorted(set(sizes), reverse=True)


def test_feature_inversion_error_decreases_with_every_optimizer(demo_net: Network) -> None:
    scene = demo.images(1, label="fish")[0]
    for optimizer, factor in (("adam", 8), ("lbfgs", 8), ("gradient", 4)):
        frames = list(feature_inversion(demo_net, scene, layers="relu2", iterations=40, optimizer=optimizer))
        assert frames[0].scalars["features"] > factor * frames[-1].arrays["errors"][0, 0], optimizer


def test_feature_inversion_recovers_less_from_deeper_layers(demo_net: Network) -> None:
    scene = demo.images(1, label="star")[0]
    names = ["relu1", "relu2", "relu3", "relu7"]
    last = Run(feature_inversion(demo_net, scene, layers=names, iterations=100)).run()
    relative_errors = np.array(
        [errors(demo_net, name, last.arrays["inversions"][k], scene.image) for k, name in enumerate(names)]
    )
    assert (relative_errors[:3, 0] < 0.1).all()
    assert relative_errors[0, 1] < 0.05
    assert list(relative_errors[:, 1]) == sorted(relative_errors[:, 1])
    assert relative_errors[3, 1] > 10 * relative_errors[0, 1]


def test_feature_inversion_tv_weight_smooths_image(demo_net: Network) -> None:
    scene, roughness = demo.images(1, label="fish")[0], []
    for weight in (0.0, 20.0, 100.0):
        last = Run(feature_inversion(demo_net, scene, layers="relu3", iterations=60, tv_weight=weight)).run()
        roughness.append(np.abs(np.diff(last.image, axis=0)).mean())
    assert roughness[0] > 1.5 * roughness[1] > 1.5 * roughness[2]


def test_feature_inversion_alpha_weight_limits_magnitude(tiny: Network, image: np.ndarray) -> None:
    magnitudes = []
    for weight in (0.0, 100.0):
        last = Run(feature_inversion(tiny, image, layers="conv2", iterations=60, alpha_weight=weight, tv_weight=0.0)).run()
        magnitudes.append(priors(tiny, last.image)[0])
    assert magnitudes[1] < magnitudes[0] / 2


def test_feature_inversion_weights_are_live(tiny: Network, image: np.ndarray) -> None:
    frames = feature_inversion(tiny, image, layers="conv1", iterations=30, tv_weight=0.0)
    for _ in range(15):
        before = next(frames).image
    frames.send({"tv_weight": 100.0, "lr": 0.03})
    after = list(frames)[-1]
    assert np.abs(np.diff(after.image, axis=1)).mean() < 0.7 * np.abs(np.diff(before, axis=1)).mean()


def test_feature_inversion_rejects_unknown_layer(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="conv7"):
        next(feature_inversion(tiny, image, layers=["conv1", "conv7"]))


def test_feature_inversion_with_real_weights_recovers_less_with_depth(real: Path, squeezenet: Network) -> None:
    path = real / "photos" / "zebra.jpg"
    names = ["features.1", "features.6", "features.12"]
    last = Run(feature_inversion(squeezenet, path, layers=names, iterations=100)).run()
    target = squeezenet.image(path)
    relative_errors = [errors(squeezenet, name, last.arrays["inversions"][k], target) for k, name in enumerate(names)]
    assert relative_errors[0][0] < 0.1
    assert relative_errors[0][1] < relative_errors[1][1] < relative_errors[2][1]
    assert relative_errors[0][1] < 0.1
