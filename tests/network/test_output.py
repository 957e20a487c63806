"""What a network returns: which tensor, which axis, and what its numbers are."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convis_widgets import (
    Run,
    SaliencyViewer,
    deletion_insertion,
    fooling,
    gradient_ascent,
    integrated_gradients,
    occlusion,
    saliency,
    score_cam,
    smooth_grad,
)
from convis_widgets.core import Network, Scan
from convis_widgets.core.attribution.method import ATTRIBUTION_METHODS
from convis_widgets.core.network.output import Output, tensors_in
from convis_widgets.core.network.unit import Unit
from convis_widgets.techniques import activations

IMAGE = np.random.default_rng(0).random((32, 32, 3), np.float32)


class Ending(nn.Module):
    """Two convolutions and a linear layer; `end` makes the output of the logits (N, classes) and the maps (N, 8, H, W)."""

    def __init__(self, end: Callable[..., Any], classes: int = 4, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.middle, self.fc, self.end = middle or nn.Identity(), nn.Linear(8, classes), end

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.conv2(self.middle(self.conv1(x)).relu()).relu()
        return self.end(10 * self.fc(3 * maps.mean((2, 3))), maps)


def logits_of(module: Ending, image: np.ndarray = IMAGE) -> torch.Tensor:
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        maps = module.conv2(module.middle(module.conv1(batch)).relu()).relu()
        return 10 * module.fc(3 * maps.mean((2, 3)))[0]


@dataclasses.dataclass
class Result:
    loss: torch.Tensor | None
    scores: torch.Tensor


class Pair(NamedTuple):
    tokens: torch.Tensor
    scores: torch.Tensor


SELECTED: dict[str, Callable[..., Any]] = {
    "tensor": lambda y, maps: y,
    "loss first": lambda y, maps: (y.mean(), y),
    "key logits": lambda y, maps: {"mask": maps, "logits": y},
    "key out": lambda y, maps: collections.OrderedDict(out=y, aux=y + 1),
    "dataclass": lambda y, maps: Result(None, y),
    "named tuple": lambda y, maps: Pair(maps.flatten(2).transpose(1, 2), y),
    "nested": lambda y, maps: ({"heads": [y]}, None, "text"),
    "whole numbers beside": lambda y, maps: (y.argmax(1), y),
    "squeezed": lambda y, maps: y.squeeze(),
    "two more dimensions": lambda y, maps: y[:, :, None, None],
    "one more dimension": lambda y, maps: y[:, None],
    "maps of classes": lambda y, maps: y[:, :, None, None] + maps[:, :1] - maps[:, :1].mean((2, 3), keepdim=True),
    "maps with classes last": lambda y, maps: (y[:, :, None, None] + 0 * maps[:, :1]).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("name", SELECTED)
def test_scores_are_found_in_any_structure(name: str) -> None:
    module = Ending(SELECTED[name]).eval()
    net = Network(module, size=32)
    assert str(net.output) == "4 logits"
    assert np.allclose(net.predict_proba(IMAGE), logits_of(module).softmax(0), atol=1e-6)
    with torch.no_grad():
        batch = torch.rand(3, 3, 32, 32)
        assert torch.allclose(net(batch), torch.cat([net(image) for image in batch.split(1)]), atol=1e-5)


@pytest.mark.parametrize("output", [1, -1, lambda output: output[1]])
def test_output_argument_selects_a_tensor(output: Any) -> None:
    module = Ending(lambda y, maps: (maps, y)).eval()
    net = Network(module, size=32, output=output)
    assert np.allclose(net.predict_proba(IMAGE), logits_of(module).softmax(0), atol=1e-6)
    module = Ending(lambda y, maps: {"a": maps, "b": y}).eval()
    assert np.allclose(Network(module, size=32, output="b").predict_proba(IMAGE), logits_of(module).softmax(0), atol=1e-6)
    sequence = Ending(lambda y, maps: y.view(-1, 2, 2), 4).eval()
    assert str(Network(sequence, size=32, output=lambda output: output[:, 1]).output) == "2 logits"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            lambda y, maps: (maps, y),
            r"several tensors: \[0\] \(1, 8, 32, 32\), \[1\] \(1, 4\); choose one with output=",
        ),
        (lambda y, maps: {"a": y, "b": y}, r"returns several tensors: \['a'\] \(1, 4\), \['b'\] \(1, 4\)"),
        (lambda y, maps: y.argmax(1), "of int64; return the scores .* before argmax"),
        (lambda y, maps: y > 0, "of bool; return the scores"),
        (lambda y, maps: y.view(-1, 2, 2), r"not return scores of an image, \(N, classes\), but \(1, 2, 2\); give output="),
        (lambda y, maps: y[:, None].expand(-1, 7, -1).transpose(0, 1), r"but \(7, 1, 4\)"),
        (lambda y, maps: y.T, r"but \(4, 1\)"),
        (lambda y, maps: [{"boxes": torch.rand(5, 4), "scores": torch.rand(5)} for _ in y], r"\[0\]\['boxes'\] \(5, 4\)"),
        (lambda y, maps: y.tolist(), "does not return a tensor"),
        (lambda y, maps: None, "does not return a tensor"),
        (lambda y, maps: y[:, :0], "not return scores of an image"),
    ],
)
def test_outputs_that_are_not_scores_are_refused(end: Callable[..., Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Network(Ending(end), size=32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": 4}, "output=4 is not a tensor in the output of the module; available"),
        ({"output": "logits"}, "output='logits' is not a tensor"),
        ({"output": 1.5}, "output=1.5 should be a key, an index, or a function"),
        ({"output": lambda output: 3}, "output= returned int; it should return a tensor"),
        ({"output": 1, "output_kind": "softmax"}, "output_kind='softmax' is unknown; choose one of logits, "),
    ],
)
def test_output_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Network(Ending(lambda y, maps: (maps, y)), size=32, **arguments)


KINDS: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    "softmax": (lambda y: y.softmax(1), "probabilities"),
    "exponential of log softmax": (lambda y: y.log_softmax(1).exp(), "probabilities"),
    "softmax and epsilon": (lambda y: y.softmax(1) + 1e-6, "probabilities"),
    "clamped softmax": (lambda y: y.softmax(1).clamp(1e-6, 1), "probabilities"),
    "softmax over channels": (lambda y: y[:, :, None, None].softmax(1)[:, :, 0, 0], "probabilities"),
    "reordered softmax": (lambda y: y.softmax(1)[:, [2, 1, 0, 3]], "probabilities"),
    "mean of two": (lambda y: (y.softmax(1) + (2 * y).softmax(1)) / 2, "probabilities"),
    "softmax by hand": (lambda y: y.exp() / y.exp().sum(1, keepdim=True), "probabilities"),
    "square": (lambda y: y.square() / y.square().sum(1, keepdim=True), "probabilities"),
    "temperature": (lambda y: (y / 7).softmax(1), "probabilities"),
    "label smoothing": (lambda y: 0.9 * y.softmax(1) + 0.1 / 4, "probabilities"),
    "log softmax": (lambda y: y.log_softmax(1), "log-probabilities"),
    "logarithm of softmax": (lambda y: y.softmax(1).log(), "log-probabilities"),
    "log softmax by hand": (lambda y: y - y.logsumexp(1, keepdim=True), "log-probabilities"),
    "sigmoid": (lambda y: y.sigmoid(), "independent probabilities"),
    "sigmoid times one": (lambda y: y.sigmoid() * 1.0, "independent probabilities"),
    "hard sigmoid": (F.hardsigmoid, "independent probabilities"),
    "hard sigmoid by hand": (lambda y: F.relu6(y + 3) / 6, "independent probabilities"),
    "half of tanh": (lambda y: (y.tanh() + 1) / 2, "independent probabilities"),
    "without the background": (lambda y: y.softmax(1)[:, 1:], "independent probabilities"),
    "logits": (lambda y: y, "logits"),
    "small logits": (lambda y: y / 100 + 0.25, "logits"),
    "temperature of logits": (lambda y: y / 100 + torch.tensor([0.1, 0.2, 0.3, 0.4]), "logits"),
    "rectified": (lambda y: y.relu(), "logits"),
    "softplus": (lambda y: F.softplus(y), "logits"),
    "tanh": (lambda y: y.tanh(), "logits"),
}


@pytest.mark.parametrize("name", KINDS)
def test_probabilities_are_those_of_the_module_however_they_are_computed(name: str) -> None:
    end, kind = KINDS[name]
    module = Ending(lambda y, maps: end(y)).eval()
    net = Network(module, size=32)
    assert net.output.kind == kind
    with torch.no_grad():
        own = end(logits_of(module)[None])[0]
    expected = {"logits": own.softmax(0), "log-probabilities": own.exp()}.get(kind, own).numpy()
    assert np.allclose(net.predict_proba(IMAGE), expected, atol=1e-6)
    assert net.predict(IMAGE, k=1) == [(f"class {expected.argmax()}", pytest.approx(expected.max(), abs=1e-6))]
    assert str(net.output) in repr(net)


@pytest.mark.parametrize(
    ("end", "kind", "expected"),
    [
        (lambda y: y, "independent logits", torch.sigmoid),
        (lambda y: y, "values", lambda y: y),
        (lambda y: y.sigmoid(), "values", torch.sigmoid),
        (lambda y: y.log_softmax(1), "logits", lambda y: y.softmax(-1)),
    ],
)
def test_output_kind_argument(end: Callable[..., Any], kind: str, expected: Callable[..., torch.Tensor]) -> None:
    module = Ending(lambda y, maps: end(y)).eval()
    net = Network(module, size=32, output_kind=kind)
    with torch.no_grad():
        p = net.predictions(net.batch(IMAGE))[0]
    assert torch.allclose(p, expected(logits_of(module)), atol=1e-6)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda y: y, "values"),
        (lambda y: 2 * y + 58, "values"),
        (lambda y: y.sigmoid(), "independent probabilities"),
        (lambda y: y.sigmoid()[:, 0], "independent probabilities"),
        (lambda y: y.tanh(), "values"),
        (lambda y: y.exp(), "values"),
        (lambda y: y.squeeze(), "values"),
        (lambda y: y.mean(), "values"),
        (lambda y: 100 * y.sigmoid(), "values"),
    ],
)
def test_kind_of_a_single_number(end: Callable[..., Any], kind: str) -> None:
    module = Ending(lambda y, maps: end(y), 1).eval()
    net = Network(module, size=32, labels=["age"])
    assert net.output.kind == kind
    own = float(module(torch.from_numpy(IMAGE).permute(2, 0, 1)[None]).detach())
    assert net.predict(IMAGE) == [("age", pytest.approx(own, abs=1e-5))]


def regression() -> Ending:
    return Ending(lambda y, maps: 2 * y + 58, 1).eval()


def test_regression_reads_as_its_value() -> None:
    module = regression()
    net = Network(module, size=32, mean=0, std=1, labels=["age"])
    age = 2 * float(logits_of(module)) + 58
    assert repr(net) == "<Network Ending: 3x32x32 -> 1 value on cpu>"
    assert (net.output.describe("age", age), net.output.symbol("age")) == (f"age {age:.4g}", "age")
    with pytest.raises(ValueError, match="returns values, not class probabilities"):
        net.predict_proba(IMAGE)
    with pytest.raises(ValueError, match="no class to fool it into"):
        next(fooling(net, IMAGE))


def test_occlusion_and_deletion_of_regression_show_the_change_of_the_value() -> None:
    module = regression()
    net = Network(module, size=32)
    frame = Run(occlusion(net, IMAGE, patch_size=8, stride=8, baseline="black")).run()
    expected = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            hidden = IMAGE.copy()
            hidden[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = 0
            expected[i, j] = 2 * float(logits_of(module, hidden)) + 58
    assert np.ptp(expected) > 0.01
    assert np.allclose(frame.arrays["value"], expected, atol=1e-4)
    assert frame.scalars["value"] == pytest.approx(2 * float(logits_of(module)) + 58, abs=1e-4)
    curves = Run(deletion_insertion(net, IMAGE, IMAGE.mean(2), steps=4)).run().arrays
    assert curves["deletion"][0] == pytest.approx(2 * float(logits_of(module)) + 58, abs=1e-4)
    assert curves["insertion"][-1] == pytest.approx(2 * float(logits_of(module)) + 58, abs=1e-4)


def test_several_values_keep_their_order_and_are_not_compared() -> None:
    module = Ending(lambda y, maps: y * torch.tensor([1.0, 100.0, -5.0, 2.0]), 4).eval()
    net = Network(module, size=32, labels=["x", "y", "width", "height"], output_kind="values")
    own = logits_of(module) * torch.tensor([1.0, 100.0, -5.0, 2.0])
    assert [label for label, _ in net.predict(IMAGE)] == ["x", "y", "width", "height"]
    assert np.allclose([value for _, value in net.predict(IMAGE)], own, atol=1e-4)
    assert next(saliency(net, IMAGE)).scalars["value"] == pytest.approx(float(own[0]), abs=1e-4), "the first is the default"
    scan = Scan(net, [IMAGE, 1 - IMAGE])
    Run(scan.frames()).run()
    assert scan.predictions.tolist() == [0, 0]
    assert scan.probabilities[0] == pytest.approx(float(own[0]), abs=1e-4)
    assert Run(gradient_ascent(net, target="y", iterations=2)).run().step == 2


@pytest.mark.parametrize("end", [lambda y: y.softmax(1), lambda y: y.log_softmax(1), lambda y: y.sigmoid()])
def test_gradients_bypass_an_activation_only_if_its_numbers_are_probabilities(end: Callable[..., Any]) -> None:
    def gradient(module: nn.Module, **arguments: Any) -> np.ndarray:
        net = Network(module, size=32, **arguments)
        return next(saliency(net, IMAGE, target=1, reduction="signed")).arrays["gradient"]

    plain = gradient(Ending(lambda y, maps: y))
    assert np.allclose(gradient(Ending(lambda y, maps: end(y))), plain, atol=1e-6)
    batch = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].requires_grad_()
    end(Ending(lambda y, maps: y)(batch))[0, 1].backward()
    assert batch.grad is not None
    own = batch.grad[0].permute(1, 2, 0).numpy()
    assert np.allclose(gradient(Ending(lambda y, maps: end(y)), output_kind="values"), own, atol=1e-6)
    assert not np.allclose(own, plain, atol=1e-6)


# -- an image's answer does not depend on others -------------------------------------------------------------------------


class SingleImage(nn.Module):
    def __init__(self, flatten: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.flatten = nn.Conv2d(3, 8, 3, 2), nn.Linear(8 * 15 * 15, 5), flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * self.fc(self.flatten(self.conv(x).relu()))


class UnnormalizedByBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / x.std()


class Branching(nn.Module):
    """Decides by values of the images, which are on the same side of the threshold for usual images."""

    def __init__(self, decide: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.decide = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), decide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(self.conv(x).relu().mean((2, 3)))
        return 30 * y if self.decide(x) else y


def batch_norm() -> nn.Module:
    return nn.BatchNorm2d(8, track_running_stats=False)


DEPENDENT: dict[str, Callable[[], nn.Module]] = {
    "batch statistics": lambda: Ending(lambda y, maps: y, middle=batch_norm()),
    "spread of the batch": lambda: Ending(lambda y, maps: y / (1 + y.std(0, correction=0))),
    "mean over the batch": lambda: Ending(lambda y, maps: y - y.mean(0) / 2),
    "normalized over all": lambda: Ending(lambda y, maps: y, middle=UnnormalizedByBatch()),
    "softmax over the batch": lambda: Ending(lambda y, maps: y * maps.mean((1, 2, 3)).softmax(0)[:, None]),
    "one image only": lambda: SingleImage(lambda x: x.view(1, -1)),
    "first image of the batch": lambda: SingleImage(lambda x: x[0].flatten()),
    "branch by the mean of the first": lambda: Branching(lambda x: x[0].mean() > 0.6),
    "branch by any image": lambda: Branching(lambda x: (x.mean((1, 2, 3)) < 0.2).any()),
    "branch by a number": lambda: Branching(lambda x: x.detach().max().item() < 0.5),
    "flattened output": lambda: Ending(lambda y, maps: y.flatten()),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_networks_that_mix_images_are_computed_one_by_one(name: str) -> None:
    module = DEPENDENT[name]().eval()
    net = Network(module, size=32)
    assert net.one_image_at_a_time
    assert "one by one" in repr(net) or "one image at a time" in repr(net)
    images = [IMAGE, 1 - IMAGE, 0.3 * IMAGE]

    def own(batch: torch.Tensor) -> torch.Tensor:
        return module(batch).reshape(-1)

    singles = [net.batch(image) for image in images]
    with torch.no_grad():
        expected = torch.stack([own(batch) for batch in singles])
        assert torch.allclose(net(torch.cat(singles)), expected, atol=1e-6)
    scan = Scan(net, images)
    Run(scan.frames()).run()
    assert np.allclose(scan.probabilities, expected.softmax(1).max(1).values, atol=1e-6)

    baseline = torch.full((1, 3, 32, 32), 0.5)
    points = [baseline + (k + 0.5) / 8 * (singles[0] - baseline) for k in range(8)]
    gradients = [torch.autograd.grad(own(p.requires_grad_())[1], p)[0] for p in points]
    attribution = (torch.stack(gradients).mean(0) * (singles[0] - baseline))[0].sum(0)
    frame = Run(integrated_gradients(net, IMAGE, target=1, steps=8, baseline="gray")).run()
    assert np.allclose(frame.heat, attribution, atol=1e-5)
    with torch.no_grad():
        assert frame.scalars["rise"] == pytest.approx(float((own(singles[0]) - own(baseline))[1]), abs=1e-5)

    hidden = singles[0].clone()
    hidden[:, :, 16:, :16] = 0.5
    with torch.no_grad():
        p = own(hidden).softmax(0)[1]
    frame = Run(occlusion(net, IMAGE, target=1, patch_size=16, stride=16, baseline="gray")).run()
    assert frame.arrays["probability"][1, 0] == pytest.approx(float(p), abs=1e-6)
    curves = Run(deletion_insertion(net, IMAGE, IMAGE.mean(2), target=1, steps=2)).run().arrays
    assert curves["deletion"][0] == pytest.approx(float(expected[0].softmax(0)[1]), abs=1e-6)


def test_techniques_with_noise_and_masks_on_a_network_that_mixes_images() -> None:
    module = DEPENDENT["batch statistics"]().eval()
    net = Network(module, size=32)
    frame = Run(smooth_grad(net, IMAGE, target=1, samples=3, noise_level=0.2, seed=3)).run()
    generator, total = torch.Generator().manual_seed(3), torch.zeros(3, 32, 32)
    for _ in range(3):
        noise = torch.randn((1, 3, 32, 32), generator=generator)
        batch = net.batch(IMAGE) + 0.2 * float(np.ptp(IMAGE)) * noise
        total += torch.autograd.grad(module(batch.requires_grad_())[0, 1], batch)[0][0]
    assert np.allclose(frame.arrays["gradient"], (total / 3).permute(1, 2, 0), atol=1e-5)
    first, again = (Run(score_cam(net, IMAGE, target=1, layer="conv2")).run() for _ in range(2))
    assert np.array_equal(first.heat, again.heat)
    maps = Run(activations(net, IMAGE, layer="middle")).run()
    with torch.no_grad():
        assert np.allclose(maps.arrays["maps"], module.middle(module.conv1(net.batch(IMAGE)))[0], atol=1e-6)


@pytest.mark.parametrize("middle", [nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.LocalResponseNorm(3), nn.BatchNorm2d(8)])
def test_independent_networks_are_computed_in_batches(middle: nn.Module) -> None:
    net = Network(Ending(lambda y, maps: y, middle=middle), size=32, mean=0, std=1)
    assert not net.one_image_at_a_time
    assert not net.is_random
    assert net.notes == []


@pytest.mark.parametrize(
    "end", [lambda y, maps: F.dropout(y, 0.5), lambda y, maps: y + torch.randn_like(y), lambda y, maps: y * torch.rand(4)]
)
def test_random_networks_give_the_same_answer_every_time(end: Callable[..., Any]) -> None:
    net = Network(Ending(end), size=32)
    assert net.is_random
    assert "random numbers" in repr(net)
    state = torch.get_rng_state()
    with torch.no_grad():
        batch = net.batch([IMAGE, 1 - IMAGE])
        together, alone = net(batch), torch.cat([net(batch[:1]), net(batch[1:])])
    assert torch.equal(together, alone)
    maps = [Run(occlusion(net, IMAGE, target=1, patch_size=8, stride=8)).run().heat for _ in range(2)]
    assert np.array_equal(maps[0], maps[1])
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_random_numbers_of_python_and_numpy_are_the_same_every_time(draw: Callable[[], float]) -> None:
    states = random.getstate(), torch.get_rng_state()
    net = Network(Ending(lambda y, maps: y * draw()), size=32)
    assert (random.getstate(), torch.equal(torch.get_rng_state(), states[1])) == (states[0], True)
    assert net.is_random
    assert net.predict(IMAGE) == net.predict(IMAGE)


def test_network_that_keeps_a_state_says_so() -> None:
    class Counting(Ending):
        calls = 0

        def forward(self, x: torch.Tensor) -> Any:
            self.calls += 1
            return super().forward(x) * self.calls

    assert "it keeps a state" in repr(Network(Counting(lambda y, maps: y), size=32))


class Hooked(nn.Module):
    """The head gets its input from a hook that is a method of the module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.body.register_forward_hook(self.keep)

    def keep(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        self.features = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(x)
        return 10 * self.head(self.features.relu().mean((2, 3)))


def test_hooks_that_are_methods_of_the_module_run_and_others_are_named() -> None:
    module = Hooked().eval()
    module(torch.rand(1, 3, 32, 32))
    net = Network(module, size=32, mean=0, std=1)
    assert not any("hook" in note for note in net.notes)
    for image in (IMAGE, 0 * IMAGE):
        with torch.no_grad():
            assert np.allclose(net.predict_proba(image), module(net.batch(image))[0].softmax(0), atol=1e-6)
    module.head.register_forward_hook(lambda _module, _args, output: 30 * output)
    assert "hooks of the module are not called" in repr(Network(module, size=32))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_maps_with_classes_last_are_recognized_in_any_size(stride: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, stride, padding=1), Last())
    net = Network(module, size=32)
    assert str(net.output) == "5 logits"
    with torch.no_grad():
        assert torch.allclose(net(net.batch(IMAGE)), module(net.batch(IMAGE)).mean((1, 2)), atol=1e-6)


class Last(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities", "independent probabilities"])
def test_kind_that_contradicts_the_numbers_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"output_kind='{kind}', but Ending returns numbers from"):
        Network(Ending(lambda y, maps: y + torch.tensor([3.0, -3.0, 0.0, 0.0])), size=32, output_kind=kind)


@pytest.mark.parametrize("key", [1, (1, 2), "b"])
def test_any_key_of_a_dict_can_be_chosen(key: Any) -> None:
    module = Ending(lambda y, maps: {0: maps, key: y}).eval()
    assert np.allclose(Network(module, size=32, output=key).predict_proba(IMAGE), logits_of(module).softmax(0), atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("name", list(ATTRIBUTION_METHODS))
def test_image_of_a_frame_is_the_one_that_was_given(name: str, channels: int) -> None:
    if name == "segmentation":
        pytest.skip("takes gray and color images only")
    module = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    image = np.random.default_rng(0).random((12, 9, channels), np.float32)
    frame = Run(ATTRIBUTION_METHODS[name].technique(Network(module, size=(12, 9)), image)).run()
    assert np.array_equal(frame.image, image)
    viewer = SaliencyViewer(Network(module, size=(12, 9)), image, method=name)
    assert viewer.run.join(60)
    assert (viewer.run.error, viewer.status.value) == (None, "")
    assert np.array_equal(viewer.frames[ATTRIBUTION_METHODS[name].technique.__name__].image, image)
    viewer.close()


def test_making_a_network_costs_at_most_three_more_forward_passes() -> None:
    calls = []

    class Counting(Ending):
        def forward(self, x: torch.Tensor) -> Any:
            calls.append(len(x))
            return super().forward(x)

    Network(Counting(lambda y, maps: y), size=32)
    assert len(calls) <= 2 + 3, "one to try the size, one to record the graph, three to probe"


def test_output_of_pickled_and_copied_network() -> None:
    import pickle

    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=8, output_kind="values")
    for other in (net.copy(), pickle.loads(pickle.dumps(net)), net.with_average_pooling()):
        assert other.output.kind == "values"
        assert other.graph.output.shape == (1, 4)


def test_tensors_in_lists_paths() -> None:
    x = torch.zeros(1)
    found = tensors_in(({"a": [x]}, Result(None, x), Pair(x, x), 3, None))
    assert [path for path, _ in found] == ["[0]['a'][0]", "[1].scores", "[2].tokens", "[2].scores"]


def test_top_of_ties_is_in_the_order_of_the_classes() -> None:
    output = Output("logits", (4,), lambda output: output)
    values, indices = output.top(torch.tensor([[0.1, 0.4, 0.4, 0.1]]), 3)
    assert indices.tolist() == [[1, 2, 0]]
    assert values.tolist()[0] == pytest.approx([0.4, 0.4, 0.1])
    assert Unit("", 0).values(torch.tensor([[3.0, 4.0]])).tolist() == [3.0]
