from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.techniques.attribution.grad_cam import grad_cam


def test_grad_cam_matches_captum(tiny: Network, image: np.ndarray) -> None:
    from captum.attr import LayerAttribution, LayerGradCam

    batch = tiny.batch(image)
    theirs = LayerGradCam(tiny, tiny.module.conv2).attribute(batch, target=1, relu_attributions=True)
    theirs = LayerAttribution.interpolate(theirs, (16, 16), "bilinear")[0, 0].detach().numpy()
    frame = next(grad_cam(tiny, image, target=1, layer="conv2"))
    assert theirs.max() > 1e-4
    assert np.abs(frame.heat - theirs).max() <= 1e-4 * theirs.max()


def test_grad_cam_matches_reference_on_global_average_pooling(image: np.ndarray) -> None:
    """Convolution, global mean, linear: a channel's weight is the linear layer's weight over the number of positions."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    net = Network(module, size=16)
    frame = next(grad_cam(net, image, target=2))
    with torch.no_grad():
        maps = module[:2](net.batch(image))[0].numpy()
    weights = module[4].weight[2].detach().numpy() / (14 * 14)
    assert np.allclose(frame.arrays["weights"], weights, atol=1e-7)
    coarse = np.maximum(sum(w * m for w, m in zip(weights, maps, strict=True)), 0)
    assert coarse.max() > 0
    assert np.allclose(frame.arrays["coarse"], coarse, atol=1e-6)


@pytest.mark.parametrize(("unit", "layer"), [(("fc8", 0), "relu5"), (("fc7", 9), "relu5"), (("conv3", 5), "relu2")])
def test_grad_cam_default_layer_is_last_spatial_non_pooling_layer(
    demo_net: Network, image: np.ndarray, unit: tuple[str, int], layer: str
) -> None:
    assert [net_layer.name for net_layer in demo_net.layers][3:8] == ["conv2", "relu2", "conv3", "relu3", "pool3"]
    big = np.kron(image, np.ones((4, 4, 1), np.float32))
    frames = [next(grad_cam(demo_net, big, unit=unit, **kwargs)) for kwargs in ({}, {"layer": layer})]
    assert np.array_equal(frames[0].heat, frames[1].heat)


def test_grad_cam_rejects_layer_after_unit_and_network_without_maps(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="conv1.*conv2"):
        next(grad_cam(tiny, image, unit=("conv1", 0), layer="conv2"))
    flat = Network(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), size=16, channels=3)
    with pytest.raises(ValueError, match="saliency"):
        next(grad_cam(flat, image))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "features.11"),
        ("squeezenet1_1", "classifier.2"),
        ("resnet18", "layer4.1"),
        ("mobilenet_v3_small", "features.12.2"),
        ("shufflenet_v2_x0_5", "conv5.2"),
        ("mnasnet0_5", "layers.16"),
    ],
)
def test_default_layer_of_convolutional_networks(name: str, layer: str) -> None:
    import torchvision

    from convis_widgets.core.attribution.cam import resolve_cam_layer
    from convis_widgets.core.network.unit import logit

    net = Network(torchvision.models.get_model(name, weights=None), size=64)
    assert resolve_cam_layer(net, logit(1)).name == layer


def test_default_layer_is_one_that_the_score_depends_on(image: np.ndarray) -> None:
    """The last layers compute a mask that is returned beside the scores, and a detached one."""

    class WithMask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
            self.gate, self.mask = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 1, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.body(x)
            gate = self.gate(y).detach().sigmoid()
            scores = self.fc((y * gate).relu().mean((2, 3)))
            return {"scores": scores, "mask": self.mask(y)}

    torch.manual_seed(0)
    net = Network(WithMask(), size=16, output="scores")
    frame = next(grad_cam(net, image, target=1))
    assert np.array_equal(frame.heat, next(grad_cam(net, image, target=1, layer="body")).heat)
    assert frame.arrays["weights"].any()
