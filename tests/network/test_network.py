from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace


@pytest.fixture(autouse=True)
def empty_name_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "_by_name", weakref.WeakValueDictionary())


def mnist_net(final: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 12 * 12, 10)]
    return nn.Sequential(*layers, *([final] if final else []))


def module_state(module: nn.Module) -> tuple[Any, ...]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules()]
    flags = [m.training for m in module.modules()]
    wants = [(p.requires_grad, p.grad is None, p.device, p.dtype) for p in module.parameters()]
    return hooks, flags, wants, [t.clone() for t in module.state_dict().values()]


def same_state(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[:3] == b[:3] and all(torch.equal(x, y) for x, y in zip(a[3], b[3], strict=True))


def test_network_leaves_user_module_unchanged(tiny_module: nn.Module, image: np.ndarray) -> None:
    tiny_module.train()
    tiny_module.fc.weight.requires_grad_(False)
    before = module_state(tiny_module)
    net = Network(tiny_module, size=16)
    net.predict(image)
    assert net.layers
    assert same_state(before, module_state(tiny_module))


def test_network_shares_weights_with_user_module(tiny_module: nn.Module, image: np.ndarray) -> None:
    net = Network(tiny_module, size=16)
    before = net.predict(image)
    with torch.no_grad():
        tiny_module.fc.bias[2] += 100
    assert net.predict(image)[0] == ("class 2", pytest.approx(1.0))
    assert before[0][1] < 1


def test_network_works_after_user_module_changes_dtype(tiny_module: nn.Module, image: np.ndarray) -> None:
    net = Network(tiny_module, size=16)
    before = net.predict(image)
    tiny_module.to(torch.float64)
    assert net.predict(image) == before


def test_network_runs_in_eval_mode(image: np.ndarray) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    module.train()
    net = Network(module, size=16)
    assert net.predict(image) == net.predict(image)


def test_network_computes_half_precision_in_float32(tiny_module: nn.Module, image: np.ndarray) -> None:
    expected = Network(tiny_module, size=16).predict(image)
    for dtype in (torch.float16, torch.bfloat16):
        net = Network(copy.deepcopy(tiny_module).to(dtype), size=16)
        assert net.dtype == torch.float32
        assert net.predict(image)[0][1] == pytest.approx(expected[0][1], abs=0.05)


def test_network_unwraps_data_parallel_and_compiled_modules(tiny_module: nn.Module, image: np.ndarray) -> None:
    expected = Network(tiny_module, size=16).predict(image)
    assert Network(nn.DataParallel(tiny_module), size=16).predict(image) == expected
    assert Network(torch.compile(tiny_module), size=16).predict(image) == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_network_rejects_torchscript(tiny_module: nn.Module) -> None:
    with pytest.raises(TypeError, match="(?i)TorchScript"):
        Network(torch.jit.trace(tiny_module, torch.rand(1, 3, 16, 16)))


def test_network_rejects_uninitialized_weights() -> None:
    with pytest.raises(ValueError, match="(?i)weight|parameter"):
        Network(nn.Sequential(nn.LazyConv2d(3, 3)))


@pytest.mark.parametrize("side", [28, 32])
def test_network_with_one_input_channel(side: int) -> None:
    flat = 4 * ((side - 4) // 2) ** 2
    module = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(flat, 7))
    net = Network(module, labels=list("abcdefg"))
    assert net.transform.size == (side, side)
    assert net.transform.channels == 1
    assert {label for label, _ in net.predict(np.zeros((side, side), np.uint8), k=99)} == set("abcdefg")
    assert len(net.predict(np.zeros((side, side, 3)))) == 5


@pytest.mark.parametrize(
    ("module", "size", "channels"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (28, 28), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), (32, 32), 3),
        (nn.Sequential(nn.Conv2d(3, 2, 7, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (224, 224), 3),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (32, 32), 3),
    ],
)
def test_network_infers_input_size(module: nn.Module, size: tuple[int, int], channels: int) -> None:
    net = Network(module)
    assert (net.transform.size, net.transform.channels) == (size, channels)


class Views(nn.Module):
    """The MNIST network of the PyTorch tutorial, which flattens with `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.view(-1, 320)))), 1)


def test_network_that_flattens_with_view() -> None:
    from convis_widgets.techniques.attribution.occlusion import occlusion
    from convis_widgets.techniques.attribution.saliency import saliency

    net, image = Network(Views()), np.random.default_rng(0).random((28, 28))
    assert (net.transform.size, net.output_activation) == ((28, 28), "log_softmax")
    assert sum(p for _, p in net.predict(image, k=10)) == pytest.approx(1)
    assert next(saliency(net, image)).heat.max() > 0
    assert list(occlusion(net, image, stride=9))[-1].done


def test_network_rejects_size_that_does_not_run() -> None:
    with pytest.raises(ValueError, match=r"50x50.*RuntimeError"):
        Network(mnist_net(), size=50)


def test_network_without_convolutions(image: np.ndarray) -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), size=16, channels=3)
    weights, _ = net.weights("1")
    assert weights.shape == (5, 3, 16, 16)
    scores = np.einsum("kcij,ijc->k", weights, image) + net.weights("1")[1]
    assert np.allclose(net(net.batch(image))[0].numpy(), scores, atol=1e-5)


@pytest.mark.parametrize("final", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_predict_is_unchanged_by_final_softmax(final: nn.Module) -> None:
    image = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    plain, ending = Network(mnist_net()), Network(mnist_net(final))
    assert ending.output_activation == ("softmax" if isinstance(final, nn.Softmax) else "log_softmax")
    assert [label for label, _ in ending.predict(image)] == [label for label, _ in plain.predict(image)]
    assert np.allclose([p for _, p in ending.predict(image)], [p for _, p in plain.predict(image)], atol=1e-5)


def test_predict_of_single_output_is_a_probability() -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(784, 1)))
    assert 0 < net.predict(np.zeros((28, 28)))[0][1] < 1


def test_network_applies_mean_and_std_once(image: np.ndarray) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * self.scale

    net = Network(Mean(), size=16, channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2])
    expected = (image.mean((0, 1)) - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2]
    assert np.allclose(net(net.batch(image))[0].numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"mean.*\b2\b.*\b3\b"):
        Network(Mean(), size=16, channels=3, mean=[0.1, 0.2])


def test_network_rejects_wrong_number_of_labels(tiny_module: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\b2\b.*\b4\b"):
        Network(tiny_module, size=16, labels=["a", "b"])


def test_unknown_layer_or_class_error_suggests_close_names(tiny: Network) -> None:
    with pytest.raises(ValueError, match="conv9.*conv[12]"):
        tiny.layers["conv9"]
    demo = Network.demo()
    with pytest.raises(ValueError, match="butterflies.*butterfly"):
        demo.class_index("butterflies")
    with pytest.raises(ValueError, match=r"(?=.*\b10\b).*\b0\D+9\b"):
        demo.class_index(10)
    assert demo.class_index("FACE") == demo.class_index(demo.labels.index("face"))


def test_layers_are_in_execution_order_with_numbered_calls(tiny: Network) -> None:
    assert [layer.name for layer in tiny.layers] == ["conv1", "relu", "conv2", "side", "relu@2", "pool", "fc"]
    assert tiny.layers["conv2"].shape == (8, 8, 8)
    assert tiny.layers["fc"].shape == (4,)
    assert tiny.layers["conv1"].parameters == 6 * 3 * 9 + 6
    assert "conv1 Conv2d 6x8x8 3x3 2 168" in " ".join(repr(tiny.layers).split())


def test_layers_repr_has_a_line_per_layer_whatever_their_names_are() -> None:
    module = nn.Sequential(OrderedDict({"conv\x1b[31m\n1": nn.Conv2d(1, 2, 3), "pool": nn.AdaptiveAvgPool2d(1)}))
    rows = [line.split("  ")[0] for line in repr(Network(nn.Sequential(module, nn.Flatten()), size=8).layers).splitlines()]
    assert rows == ["name", "0.conv\ufffd[31m 1", "0.pool", "1"]


def test_ensure_accepts_networks_modules_and_names(tiny: Network, tiny_module: nn.Module) -> None:
    assert Network.ensure(tiny) is tiny
    assert Network.ensure(None) is Network.ensure("demo") is Network.demo()
    assert Network.ensure("demo-ordinary") is Network.demo(robust=False)
    with pytest.raises(ValueError, match="'squeezenet'.*squeezenet1_"):
        Network.ensure("squeezenet")
    with pytest.raises(TypeError, match=r"\bint\b"):
        Network.ensure(3)


def test_demo_network_is_shared_while_referenced() -> None:
    net = Network.demo(checkpoint=0)
    assert Network.demo(checkpoint=0) is net
    del net
    gc.collect()
    assert ("demo", True, 0) not in Network._by_name


def test_network_reads_timm_preprocessing() -> None:
    import timm

    model = timm.create_model("resnet18.a1_in1k", pretrained=False)
    net = Network(model)
    config = model.pretrained_cfg
    assert net.transform.size == tuple(config["input_size"][1:])
    assert net.transform.mean == tuple(config["mean"])
    assert net.labels[0] == "tench"
    assert net.layers["layer1.0"].shape == (64, 56, 56)


def test_ensure_offline_error_names_weight_file_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def no_net(*_args: Any, **_kwargs: Any) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_net)
    with pytest.raises(FileNotFoundError) as caught:
        Network.ensure("alexnet")
    assert str(tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth") in str(caught.value)


def test_as_maps_arranges_vision_transformer_tokens_in_a_grid() -> None:
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    net = Network(vit)
    assert net.transform.size == (32, 32)
    layer = net.layers["encoder.layers.encoder_layer_1"]
    assert layer.map_shape == (16, 4, 4)
    assert layer.receptive_field == "whole image"
    assert net.layers["conv_proj"].receptive_field == (8, 8)
    image = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    with torch.no_grad(), trace(net, [layer.name]) as acts:
        net(net.batch(image))
    tokens = acts[layer.name]
    assert torch.equal(net.as_maps(layer.name, tokens)[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2])
    assert len(net.predict(image)) == 5


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_network_follows_both_kinds_of_weight_norm(norm: Any, image: np.ndarray) -> None:
    module = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net = Network(module, size=16)
    with torch.no_grad():
        for part in module[0].parameters():
            part.mul_(2)
        assert torch.allclose(net(net.batch(image)), module(net.batch(image)))


def test_network_does_not_call_user_hooks(tiny_module: nn.Module, image: np.ndarray) -> None:
    fired: list[int] = []
    tiny_module.conv1.register_forward_hook(lambda *_: fired.append(1))
    tiny_module.conv1.register_forward_pre_hook(lambda *_: fired.append(2))
    Network(tiny_module, size=16).predict(image)
    assert not fired


def test_network_of_module_with_activations_and_lock(image: np.ndarray) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lock, self.outputs = nn.Conv2d(3, 4, 3), threading.Lock(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                y = self.conv(x)
            self.outputs = [y]
            return y.mean((2, 3))

    module = Keeps()
    module(torch.rand(1, 3, 16, 16))
    stored = module.outputs[0]
    assert len(Network(module, size=16).predict(image)) == 4
    assert module.outputs[0] is stored


def test_network_of_module_that_modifies_its_input() -> None:
    class Centers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 0.5
            return self.conv(x).mean((2, 3))

    from convis_widgets.techniques.attribution.saliency import saliency

    net, batch = Network(Centers(), size=16), torch.rand(1, 3, 16, 16)
    before = batch.clone()
    with torch.no_grad():
        net(batch)
    assert torch.equal(batch, before)
    assert next(saliency(net, batch)).heat.max() > 0


@pytest.mark.parametrize("final", [nn.Identity(), nn.Sigmoid()])
def test_predict_applies_sigmoid_once(final: nn.Module) -> None:
    torch.manual_seed(0)
    kind = "independent probabilities" if isinstance(final, nn.Sigmoid) else "independent logits"
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(784, 1), final), output_kind=kind)
    assert net.output_activation == ("sigmoid" if isinstance(final, nn.Sigmoid) else "none")
    image = np.full((28, 28), 0.5, np.float32)
    weight, bias = net.weights("1")
    score = float((weight * 0.5).sum() + bias[0])
    assert net.predict(image)[0][1] == pytest.approx(1 / (1 + np.exp(-score)), abs=1e-5)
    from convis_widgets.techniques.attribution.saliency import saliency

    gradient = next(saliency(net, image)).arrays["gradient"]
    assert np.allclose(gradient[:, :, 0], weight[0, 0], atol=1e-6), "the gradient is that of the score before the sigmoid"


def test_batch_accepts_and_rejects_inputs(tiny: Network, image: np.ndarray) -> None:
    bytes_ = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.allclose(tiny.batch(bytes_), bytes_ / 255)
    assert tiny.batch(np.stack([image] * 3)).shape == (3, 3, 16, 16)
    for wrong, message in [
        (torch.randn(2, 3, 16, 16), "(?i)normali[sz]ed"),
        ([], "(?i)no image|empty"),
        ([image, image[:8]], "(?i)size|shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny.batch(wrong)
    with pytest.raises(ValueError, match=r"\b2\b"):
        tiny.predict(bytes_)


def test_target_accepts_only_integers(tiny: Network) -> None:
    assert tiny.class_index(np.int64(2)) == tiny.class_index(torch.tensor(2)) == 2
    for wrong in (2.7, np.float32(2.7), torch.tensor(2.7), True, np.True_, None):
        with pytest.raises(ValueError, match=r"\b0\D+3\b"):
            tiny.class_index(wrong)


@pytest.mark.parametrize("name", ["densenet121", "vit_h_14"])
def test_load_pretrained_when_weight_file_differs_from_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published DenseNet files say norm.1 for norm1; the default ViT-H/14 was trained on larger images."""
    from convis_widgets.core.network import pretrained

    weights = torchvision.models.get_model_weights(name).DEFAULT
    options = {"image_size": weights.meta["min_size"][0]} if name.startswith("vit") else {}
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None, **options).state_dict()
        if name.startswith("densenet"):
            state = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in state.items()}
            assert any(".norm.1." in key for key in state)
        monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: state)
        module, transform, _ = pretrained.load_pretrained(name)
    assert transform.size == tuple(weights.transforms().crop_size * 2)
    assert sum(p.numel() for p in module.parameters()) == weights.meta["num_params"]


def test_network_rejects_a_name() -> None:
    with pytest.raises(TypeError, match=r"\bstr\b.*Network\.ensure"):
        Network("squeezenet1_1")


def test_network_size_error_includes_cause() -> None:
    class Boom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("boom")

    with pytest.raises(ValueError, match="Boom.*boom") as caught:
        Network(Boom())
    assert str(caught.value.__cause__) == "boom"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean": [123, 116, 103], "std": [58, 57, 57]}, r"\b255\b"),
        ({"std": 0}, r"std.*\b0\b"),
        ({"size": "64"}, "size.*'64'"),
        ({"labels": "abcd"}, "labels.*abcd"),
    ],
)
def test_network_rejects_invalid_preprocessing(tiny_module: nn.Module, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Network(tiny_module, **({"size": 16} | kwargs))


def test_copy_has_independent_weights(tiny_module: nn.Module, image: np.ndarray) -> None:
    tiny_module.train()
    net = Network(tiny_module, size=16, labels=list("abcd"), name="tiny")
    before, states = net.predict(image), [module_state(module) for module in (tiny_module, net.module)]
    other = net.copy()
    assert other.predict(image) == before
    assert (other.transform, other.labels, other.name, other.device) == (net.transform, net.labels, net.name, net.device)
    with torch.no_grad():
        for tensor in other.module.state_dict().values():
            tensor.fill_(0.01)
    assert other.predict(image) != before
    assert net.predict(image) == before
    assert all(
        same_state(state, module_state(module)) for state, module in zip(states, (tiny_module, net.module), strict=True)
    )


def test_copy_can_be_traced(tiny: Network, image: np.ndarray) -> None:
    assert tiny.layers
    other = tiny.copy()
    assert [layer.name for layer in other.layers] == [layer.name for layer in tiny.layers]
    assert all(layer.module is not tiny.layers[layer.name].module for layer in other.layers)
    with torch.no_grad():
        other.module.conv1.weight.mul_(2)
        other.module.conv1.bias.mul_(2)
    traced = []
    for net in (tiny, other):
        with torch.no_grad(), trace(net, ["conv1"]) as acts:
            other(other.batch(image))
            net(net.batch(image))
        traced.append(acts["conv1"])
    assert torch.allclose(traced[1], 2 * traced[0], atol=1e-5)


def test_copy_of_demo_leaves_shared_network_unchanged(image: np.ndarray) -> None:
    net = Network.demo(checkpoint=0)
    other = net.copy()
    assert Network.demo(checkpoint=0) is net
    assert list(Network._by_name.values()) == [net]
    with torch.no_grad():
        other.module.conv1.weight.zero_()
    assert Network.demo(checkpoint=0).weights("conv1")[0].any()


def test_copy_keeps_tied_weights_tied() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16))
    module[2].weight = module[1].weight
    other = Network(module, size=4, channels=1).copy()
    assert other.module[2].weight is other.module[1].weight
    assert other.module[2].weight.data_ptr() != module[1].weight.data_ptr()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_copy_with_weight_norm_uses_its_own_parameters(norm: Any, image: np.ndarray) -> None:
    net = Network(nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    before = net(net.batch(image))
    other = net.copy()
    assert torch.equal(other(net.batch(image)), before)
    with torch.no_grad():
        for part in other.module[0].parameters():
            part.mul_(2)
    assert not torch.allclose(other(net.batch(image)), before)
    assert torch.equal(net(net.batch(image)), before)


def test_copy_of_module_with_activations_and_lock(image: np.ndarray) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lock, self.outputs = nn.Conv2d(3, 4, 3), threading.Lock(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                self.outputs = [self.conv(x)]
            return self.outputs[0].mean((2, 3))

    from convis_widgets.techniques.attribution.saliency import saliency

    net = Network(Keeps(), size=16)
    next(saliency(net, image))  # the stored activations are now part of an autograd graph
    assert net.copy().predict(image) == net.predict(image)


def layer_outputs(net: Network, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [layer.name for layer in net.layers]
    with torch.no_grad(), trace(net, names) as acts:
        net(batch)
    return {name: acts[name].clone() for name in names}


@pytest.mark.parametrize("name", ["tiny", "demo", "squeezenet1_1", "resnet18"])
def test_with_average_pooling_keeps_shapes_and_shares_weights(name: str, tiny: Network) -> None:
    made = {"tiny": lambda: tiny, "demo": Network.demo}
    net = made.get(name, lambda: Network(getattr(torchvision.models, name)(weights=None), size=61))()
    batch = torch.rand(1, 3, *net.transform.size, generator=torch.Generator().manual_seed(0))
    before, scores = layer_outputs(net, batch), net(batch)
    other = net.with_average_pooling()
    after = layer_outputs(other, batch)
    assert {layer: maps.shape for layer, maps in after.items()} == {layer: maps.shape for layer, maps in before.items()}
    for ours, theirs in zip(net.module.parameters(), other.module.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    first = next(layer.name for layer in net.layers if layer.kind == "MaxPool2d")
    assert not torch.allclose(after[first], before[first])
    assert torch.equal(net(batch), scores), "the original network is unchanged"


@pytest.mark.parametrize(("padding", "ceil_mode"), [(0, True), (1, False), (1, True)])
def test_with_average_pooling_matches_reference_at_border(padding: int, ceil_mode: bool) -> None:
    """The 3x3 windows of SqueezeNet and ResNet overlap the border; values outside the image are not counted."""
    pool = nn.MaxPool2d(3, 2, padding, ceil_mode=ceil_mode)
    side = pool(torch.zeros(1, 1, 8, 8)).shape[2]
    net = Network(nn.Sequential(pool, nn.Flatten(), nn.Linear(side**2, 2)), size=8, channels=1)
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pooled = layer_outputs(net.with_average_pooling(), x)["0"]
    for i in range(side):
        for j in range(side):
            top, left = 2 * i - padding, 2 * j - padding
            inside = x[0, 0, max(0, top) : top + 3, max(0, left) : left + 3].numpy()
            assert float(pooled[0, 0, i, j]) == pytest.approx(float(inside.mean()), rel=1e-5)


def test_with_average_pooling_of_network_without_max_pooling(image: np.ndarray) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 3)), size=16)
    assert torch.equal(net.with_average_pooling()(net.batch(image)), net(net.batch(image)))


def test_with_average_pooling_can_be_traced_and_copied(tiny: Network, image: np.ndarray) -> None:
    other = tiny.with_average_pooling()
    assert other.predict(image) != tiny.predict(image)
    assert other.copy().predict(image) == other.predict(image)
    with torch.no_grad():
        tiny.module.fc.bias[2] += 50
    assert other.predict(image, 1)[0][0] == "class 2", "both networks share the weights"
