"""A scan is found again by networks that compute the same, and by no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


def make_network(forward: Forward, **attributes: Any) -> Network:
    """A network with this forward pass, the same weights every time, and plain attributes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(12, 4)
            for name, value in attributes.items():
                setattr(self, name, value)

        def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.a(x).relu().mean((2, 3)), self.b(self.a(x)).relu().mean((2, 3))]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, x)

    return Network(Net(), size=12)


def classify(net: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    return 20 * net.fc(torch.cat(parts, 1))


DIFFERENT: dict[str, tuple[Forward, Any, Any]] = {
    "mean": (lambda net, x: classify(net, net.parts(x - net.v)), torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)),
    "temperature": (lambda net, x: net.v * classify(net, net.parts(x)), torch.tensor(1.0), torch.tensor(0.2)),
    "number": (lambda net, x: net.v * classify(net, net.parts(x)), 1.0, 0.2),
    "mask of classes": (
        lambda net, x: classify(net, net.parts(x)).masked_fill(net.v, -9.0),
        torch.tensor([False] * 4),
        torch.tensor([False, True, True, True]),
    ),
    "tensor in a dict": (
        lambda net, x: classify(net, net.parts(x - net.v["mean"])),
        {"mean": torch.zeros(1)},
        {"mean": torch.full((1,), 0.5)},
    ),
    "NumPy array": (
        lambda net, x: classify(net, net.parts(x - torch.from_numpy(net.v))),
        np.zeros(1, np.float32),
        np.full(1, 0.5, np.float32),
    ),
    "half precision": (
        lambda net, x: classify(net, [part * net.v for part in net.parts(x)]),
        torch.ones(6, dtype=torch.float16),
        torch.tensor([1, 0] * 3, dtype=torch.float16),
    ),
    "sparse matrix": (
        lambda net, x: torch.sparse.mm(net.v, classify(net, net.parts(x)).T).T,
        torch.eye(4).to_sparse(),
        torch.diag(torch.tensor([1, 2, 3, 4.0])).to_sparse(),
    ),
    "order of cat": (lambda net, x: classify(net, net.parts(x)[:: net.v]), 1, -1),
    "order of a difference": (
        lambda net, x: 20 * (net.parts(x)[net.v] - net.parts(x)[1 - net.v]),
        0,
        1,
    ),
    "which layer is used twice": (lambda net, x: classify(net, net.parts(net.a(x)[:, :3] if net.v else x)), 0, 1),
    "branch in Python": (
        lambda net, x: (1 if float(x.mean()) < net.v else -1) * classify(net, net.parts(x)),
        0.2,
        0.45,
    ),
    "branch for bright images": (
        lambda net, x: (-1 if float(x.mean()) > net.v else 1) * classify(net, net.parts(x)),
        0.6,
        0.9,
    ),
    "computation in NumPy": (
        lambda net, x: classify(net, net.parts(x)) * float(np.where(x.numpy().mean() < 0.4, net.v, 1)),
        1.0,
        0.1,
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_scan_is_not_taken_from_a_network_that_computes_something_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.core.dataset.batch_collector.auto_batch_size", lambda *_: 1)  # some use x.mean()
    forward, first, second = DIFFERENT[name]
    base = np.random.default_rng(0).random((8, 12, 12, 3)).astype(np.float32)
    images = np.concatenate([0.6 * base, 1 - 0.6 * base])

    def scanned(value: Any) -> Scan:
        scan = Scan(make_network(forward, v=value), images, cache=tmp_path)
        Run(scan.frames()).run()
        return scan

    one, other, again = scanned(first), scanned(second), Scan(make_network(forward, v=first), images, cache=tmp_path)
    for scan in (one, other):
        expected = [scan.net.predict_proba(image).max() for image in images]
        assert np.allclose(scan.probabilities, expected, atol=1e-4)
    assert not np.allclose(one.probabilities, other.probabilities, atol=1e-4), "the two differ"
    assert again.num_seen in ((16,) if again.key != other.key else (0, 16))


class ShowsFunction(nn.Module):
    """Its text contains a memory address."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), lambda x: x.relu()

    def extra_repr(self) -> str:
        return f"function={self.function}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.conv(x)).mean((2, 3))


class Counts(nn.Module):
    """Counts its calls in a buffer, in a tensor and in an attribute, and remembers its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.plain, self.number, self.last = nn.Conv2d(3, 4, 3), torch.zeros(1), 0, None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.plain[:1] += 1
        self.number += 1
        self.last = self.conv(x).mean((2, 3))
        return self.last


class Overwrites(nn.Module):
    """Copies its input to memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.memory = nn.Conv2d(3, 4, 3), torch.zeros(300, 3, 12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.memory[: len(x)].copy_(x)
        return self.conv(self.memory[: len(x)]).mean((2, 3))


@pytest.mark.parametrize("kind", [ShowsFunction, Counts, Overwrites])
def test_scan_is_found_again_by_an_equal_network(kind: type[nn.Module], tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 12, 12, 3)).astype(np.float32)

    def make_scan() -> Scan:
        torch.manual_seed(0)
        return Scan(Network(kind(), size=12), images, cache=tmp_path)

    scan = make_scan()
    Run(scan.frames()).run()
    assert np.allclose(scan.probabilities, [scan.net.predict_proba(image).max() for image in images], atol=1e-5)
    again = make_scan()
    assert again.complete
    assert Scan(scan.net, images, cache=tmp_path).complete
    assert np.array_equal(again.features(), scan.features())


def test_scan_notices_that_a_plain_tensor_has_changed(tmp_path: Path) -> None:
    mean = torch.zeros(1, 3, 1, 1)
    scan = Scan(make_network(DIFFERENT["mean"][0], v=mean), np.zeros((4, 12, 12, 3), np.float32), cache=tmp_path)
    Run(scan.frames()).run()
    mean.fill_(0.5)
    with pytest.raises(ValueError, match="have changed"):
        list(scan.frames())
    assert Scan(scan.net, scan.images, cache=tmp_path).num_seen == 0


def test_scan_of_a_network_that_differs_by_rounding_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).random((4, 12, 12, 3)).astype(np.float32)
    net = make_network(lambda net, x: classify(net, net.parts(x)))
    Run(Scan(net, images, cache=tmp_path).frames()).run()
    probabilities = Network.predictions
    for difference, seen in ((1e-4, 4), (1e-1, 0)):
        monkeypatch.setattr(Network, "predictions", lambda self, batch, d=difference: probabilities(self, batch) * (1 + d))
        assert Scan(net, images, cache=tmp_path).num_seen == seen
