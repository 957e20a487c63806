"""Comparison of a Network with the module itself: batches of one in plain torch, and receptive fields by NaN."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from convis_widgets.core.network.layers import Layer
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import first_tensor
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques import integrated_gradients, occlusion, saliency

CHECKS = ("prediction", "occlusion", "saliency", "integrated gradients", "receptive fields")
STEPS = 4  # points on the path of integrated gradients
UNITS = 5  # (layer, channel, position) whose receptive fields are checked


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(1)


def same(output: Any) -> Any:
    return output


@dataclass(frozen=True)
class Case:
    """A network of the table, with what its module says, as functions in plain torch.

    Attributes
    ----------
    name, family : str
    build : callable() -> torch.nn.Module
    size : (int, int)
    channels : int
    mean, std : tuple of float
        Those of the published preprocessing; the Network has to find them.
    options : dict
        Keywords of `Network`; `size` is always given.
    scores : callable(output) -> (1, classes) tensor
        The class scores in the output of the module, for one image.
    values : callable(scores) -> (1, classes) tensor
        What is predicted and what occlusion measures: probabilities, or the scores themselves.
    logits : callable(module, batch) -> (1, classes) tensor, optional
        What gradients are taken of, if not the scores.
    pairs : bool
        Whether the module may run on two images at a time.
    random : bool
        Whether the module draws random numbers, which should be those of seed 0 in every pass.
    forward_passes : int
        Largest number of forward passes while the Network is made.
    remark : str
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    options: dict[str, Any] = field(default_factory=dict)
    scores: Callable[[Any], torch.Tensor] = same
    values: Callable[[torch.Tensor], torch.Tensor] = softmax
    logits: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    pairs: bool = True
    random: bool = False
    forward_passes: int = 5
    remark: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass
class Row:
    """What a network of the table does; `problems` has the message of each of `CHECKS` that did not hold."""

    case: Case
    layers: int = 0
    exact_layers: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    forward_passes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Mismatch(Exception):
    """A number of the package is not that of the module."""


class Reference:
    """A module on images in [0, 1], one at a time."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        self.case, self.module = case, module
        dtype = next(module.parameters()).dtype
        self.mean, self.std = (torch.tensor(values, dtype=dtype).view(1, -1, 1, 1) for values in (case.mean, case.std))

    def scores(self, batch: torch.Tensor) -> torch.Tensor:
        if self.case.random:
            torch.manual_seed(0)
        return self.case.scores(self.module((batch - self.mean) / self.std))

    def values(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.case.values(self.scores(batch))

    def gradients(self, batch: torch.Tensor, target: int) -> torch.Tensor:
        """Gradients (N, H, W, C) of the logit of a class, for several images.

        In pairs where the case allows it: PyTorch's gradient of a batch norm is wrong for a single image in some memory
        layouts, on the CPU (LeViT, XCiT and others); finite differences agree with those of pairs.
        """
        count = 2 if self.case.pairs else 1
        images = batch.repeat(count, 1, 1, 1) if len(batch) < count else batch
        parts = [self._gradients(images[i : i + count], target) for i in range(0, len(images), count)]
        return torch.cat(parts)[: len(batch)].permute(0, 2, 3, 1)

    def _gradients(self, batch: torch.Tensor, target: int) -> torch.Tensor:
        pixels = batch.clone().requires_grad_()
        if self.case.logits is None:
            logits = self.scores(pixels)
        else:
            logits = self.case.logits(self.module, (pixels - self.mean) / self.std)
        logits[:, target].sum().backward()  # not torch.autograd.grad, which reentrant checkpointing refuses
        assert pixels.grad is not None
        return pixels.grad

    def activations(self, layer: str, batch: torch.Tensor) -> torch.Tensor:
        """Raw output of a layer, by a hook on the module itself; ``name@2`` is the second call of a submodule."""
        name, _, call = layer.partition("@")
        found: list[torch.Tensor] = []

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            found.append(first_tensor(output).clone())
            if len(found) == int(call or 1):
                raise _Reached

        handle = self.module.get_submodule(name).register_forward_hook(hook)
        try:
            with torch.no_grad():
                self.module((batch - self.mean) / self.std)
        except _Reached:
            return found[-1]
        finally:
            handle.remove()
        raise AssertionError(f"{layer} was not called")


class _Reached(BaseException):
    """Ends a forward pass."""


# -- the table -------------------------------------------------------------------------------------------------------------


def make_row(case: Case) -> Row:
    """Construct a network, compare it with its module, and say what held."""
    row = Row(case)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(zlib.crc32(case.name.encode()))
        warnings.filterwarnings("ignore", module="(timm|torchvision|torch)\\..*")
        with _timed(row, "build"):
            module = calibrate(case.build(), case)
        reference = Reference(case, module)
        try:
            with _timed(row, "Network"), _counted(row, type(module)):
                net = make_network(case, module)
            row.layers, row.exact_layers = len(net.layers), sum(x.field is not None and x.field.exact for x in net.layers)
            if row.forward_passes > case.forward_passes:
                raise Mismatch(f"{row.forward_passes} forward passes while the Network is made")
        except Exception as error:  # noqa: BLE001 (any failure is a row of the table)
            row.problems = dict.fromkeys(CHECKS, _sentence(error))
            return row
        image = make_image(case)
        checks = (check_prediction, check_occlusion, check_saliency, check_integrated_gradients, check_fields)
        for name, check in zip(CHECKS, checks, strict=True):
            with _timed(row, name):
                try:
                    check(net, reference, image)
                except Exception as error:  # noqa: BLE001
                    row.problems[name] = _sentence(error)
    return row


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, (Mismatch, ValueError, TypeError)) else f"{type(error).__name__}: {error}"


def make_network(case: Case, module: nn.Module) -> Network:
    return Network(module, size=case.size, **case.options)


def make_image(case: Case) -> np.ndarray:
    """A seeded image (H, W, C) in [0, 1], coarse blobs and fine noise."""
    height, width = case.size
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    coarse, fine = (torch.rand(1, case.channels, *size, generator=generator) for size in ((5, 5), (height, width)))
    blobs = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (0.7 * blobs + 0.3 * fine)[0].permute(1, 2, 0).contiguous().numpy()


def calibrate(module: nn.Module, case: Case) -> nn.Module:
    """Make an untrained network sensitive to its input.

    Parameters that start at almost zero (gains of residual branches, heads) get small random values, batch-norm statistics
    those of one batch of noise, and the last layer is scaled to scores of standard deviation 3.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("bias") and parameter.abs().max() <= 1e-3:
                low, high = (0.2, 0.5) if parameter.squeeze().ndim < 2 else (-0.05, 0.05)
                parameter.copy_(low + (high - low) * torch.rand(parameter.shape, generator=generator))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (case.mean, case.std))
        images = torch.rand(4, case.channels, *case.size, generator=generator)
        images[0] = torch.from_numpy(make_image(case)).permute(2, 0, 1)
        norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        if norms and all(norm.track_running_stats for norm in norms):
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = 1.0
            module.train()
            module((images - mean) / std)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        module.eval()
        last = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1]
        spread = case.scores(module((images[:1] - mean) / std)).std(unbiased=False)
        if case.family != "odd module" and spread > 0:
            last.weight.mul_(3 / spread)
            if last.bias is not None:
                last.bias.mul_(3 / spread)
    return module


@contextlib.contextmanager
def _timed(row: Row, name: str) -> Iterator[None]:
    start = time.process_time()
    try:
        yield
    finally:
        row.seconds[name] = time.process_time() - start


@contextlib.contextmanager
def _counted(row: Row, kind: type[nn.Module]) -> Iterator[None]:
    """Count the outermost calls of the forward method of a class: the Network works on a copy, without hooks."""
    forward, own, depth = kind.forward, "forward" in vars(kind), 0

    def counting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        row.forward_passes += depth == 0
        depth += 1
        try:
            return forward(self, *args, **kwargs)
        finally:
            depth -= 1

    kind.forward = counting  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            kind.forward = forward  # type: ignore[method-assign]
        else:
            del kind.forward


# -- the checks ------------------------------------------------------------------------------------------------------------


def check_prediction(net: Network, reference: Reference, image: np.ndarray) -> None:
    expected = reference.values(net.single_batch(image))[0].numpy()
    predicted = net.predict_array(image)
    compare("prediction", predicted, expected, 1e-6)
    label, value = net.predict(image, k=1)[0]
    if label != net.labels[int(expected.argmax())] or value != predicted.max():
        raise Mismatch(f"predict says {label}, {value}; the module's largest value is {expected.max()}")


def check_occlusion(net: Network, reference: Reference, image: np.ndarray) -> None:
    """A patch in each of the four corners, and the unchanged image."""
    target, side = best_class(net, reference, image), min(image.shape[:2]) // 3
    stride, corners = max(image.shape[:2]) - side, (np.s_[:side], np.s_[-side:])

    def compare_maps(net: Network, reference: Reference, tolerance: float) -> None:
        batch = net.single_batch(image)
        frame = Run(occlusion(net, image, target=target, patch_size=side, stride=stride, baseline="gray")).run()
        unhidden, expected = reference.values(batch)[0, target].item(), np.zeros((2, 2))
        for i, rows in enumerate(corners):
            for j, columns in enumerate(corners):
                hidden = batch.clone()
                hidden[:, :, rows, columns] = 0.5
                expected[i, j] = reference.values(hidden)[0, target]
        name = "probability" if net.output.has_probabilities else "value"
        compare(name, frame.scalars[name], unhidden, 1e-6)
        found = frame.arrays[name]
        compare("occlusion", found - unhidden, expected - unhidden, tolerance, noise=2e-7 * abs(unhidden))

    _in_either_precision(compare_maps, net, reference)


def check_saliency(net: Network, reference: Reference, image: np.ndarray) -> None:
    target = best_class(net, reference, image)

    def compare_maps(net: Network, reference: Reference, tolerance: float) -> None:
        frame = Run(saliency(net, image, target=target)).run()
        (expected,) = reference.gradients(net.single_batch(image), target)
        compare("saliency", frame.arrays["gradient"], expected, tolerance)

    _in_either_precision(compare_maps, net, reference)


def check_integrated_gradients(net: Network, reference: Reference, image: np.ndarray) -> None:
    target = best_class(net, reference, image)

    def compare_maps(net: Network, reference: Reference, tolerance: float) -> None:
        batch = net.single_batch(image)
        frame = Run(integrated_gradients(net, image, target=target, steps=STEPS, baseline="gray")).run()
        points = torch.cat([0.5 + (k + 0.5) / STEPS * (batch - 0.5) for k in range(STEPS)])
        gradient = reference.gradients(points, target).mean(0)
        expected = (gradient * (batch[0].permute(1, 2, 0) - 0.5)).sum(2)
        compare("integrated gradients", frame.heat, expected, tolerance)

    _in_either_precision(compare_maps, net, reference)


def _in_either_precision(
    compare_maps: Callable[[Network, Reference, float], None], net: Network, reference: Reference
) -> None:
    """Compare in single precision and, where rounding seems to decide (gates of ReLUs), much closer in double precision."""
    try:
        compare_maps(net, reference, 1e-4)
    except Mismatch:
        case, module = reference.case, copy.deepcopy(reference.module).double()
        compare_maps(make_network(case, module), Reference(case, module), 1e-6)


def check_fields(net: Network, reference: Reference, image: np.ndarray) -> None:
    """NaN outside of the box leaves a unit unchanged; where the field is exact, NaN at each edge of the box reaches it."""
    batch = net.single_batch(image)
    random = np.random.default_rng(zlib.crc32(reference.case.name.encode()))
    layers = [layer for layer in net.layers if layer.field is not None and layer.map_shape is not None]
    layers = [layer for layer in layers if layer.is_spatial] or layers
    for layer in random.choice(np.array(layers, object), UNITS):
        channel, row, column = (int(random.integers(n)) for n in layer.map_shape)
        top, left, bottom, right = layer.box((row, column), channel)

        def value(image: torch.Tensor, layer: Layer = layer, unit: tuple[int, ...] = (0, channel, row, column)) -> float:
            return float(net.as_maps(layer.name, reference.activations(layer.name, image))[unit])

        where = f"{layer.name}, channel {channel}, position ({row}, {column}), box {(top, left, bottom, right)}"
        outside = torch.full_like(batch, torch.nan)
        outside[:, :, top:bottom, left:right] = batch[:, :, top:bottom, left:right]
        if not np.isclose(value(outside), value(batch), rtol=1e-4, atol=1e-6):
            raise Mismatch(f"too small: {where}")
        if layer.field.exact and bottom > top:
            edges = {
                "top": np.s_[top, left:right],
                "left": np.s_[top:bottom, left],
                "bottom": np.s_[bottom - 1, left:right],
                "right": np.s_[top:bottom, right - 1],
            }
            for edge, pixels in edges.items():
                changed = batch.clone()
                changed[(..., *pixels)] = torch.nan
                if not np.isnan(value(changed)):
                    raise Mismatch(f"exact, but the {edge} edge does not matter: {where}")


def best_class(net: Network, reference: Reference, image: np.ndarray) -> int:
    return int(reference.values(net.single_batch(image))[0].argmax())


def compare(what: str, found: Any, expected: Any, tolerance: float, noise: float = 0.0) -> None:
    """Raise Mismatch if two arrays differ by more than a part of the largest expected value, plus noise."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise Mismatch(f"{what} has shape {found.shape}, not {expected.shape}")
    largest = np.abs(expected).max()
    if not np.isfinite(largest) or largest == 0:
        raise Mismatch(f"{what}: there is nothing to compare, the module's own values are 0 or not finite")
    difference = np.abs(found - expected).max()
    if not difference <= tolerance * largest + noise:
        raise Mismatch(f"{what} is off by {difference / largest:.2g} of the largest value")
