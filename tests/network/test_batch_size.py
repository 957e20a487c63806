"""The number of images in a pass: halved where memory is short, with the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.errors import describe_error
from convis_widgets.core.network.batch_size import halve_if_needed
from convis_widgets.core.network.network import Network
from convis_widgets.core.registry import TECHNIQUES
from convis_widgets.core.runs.run import Run


@contextmanager
def memory_for(images: int, net: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let passes fail in their last layer with more images than this; gives the sizes of all passes."""
    sizes: list[int] = []
    last = list(net.module.modules())[-1]
    forward = last.forward

    def short_of_memory(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(x)

    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", short_of_memory, raising=False)
        yield sizes


@pytest.mark.parametrize("name", ["smooth_grad", "integrated_gradients", "score_cam", "deletion_insertion"])
def test_technique_goes_on_with_smaller_batches_where_memory_is_short(
    name: str, tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (np.arange(256.0).reshape(16, 16),) if name == "deletion_insertion" else ()

    def compute() -> np.ndarray:
        frame = Run(TECHNIQUES[name](tiny, image, *arguments, target=1)).run()
        return frame.arrays["deletion"] if name == "deletion_insertion" else frame.heat

    expected = compute()
    with memory_for(2, tiny, monkeypatch) as sizes:
        assert np.allclose(compute(), expected, atol=1e-5 * np.abs(expected).max())
    assert max(sizes) > 2
    assert sizes.count(2) > 1


@pytest.mark.parametrize("one_per_image", [True, False])
def test_scan_goes_on_with_smaller_batches_where_memory_is_short(
    one_per_image: bool, tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    scans = [
        Scan(tiny, images, layers="all", k=7, one_per_image=one_per_image, cache=tmp_path / str(part)) for part in (0, 1)
    ]
    Run(scans[0].frames()).run()
    with memory_for(3, tiny, monkeypatch) as sizes:
        Run(scans[1].frames()).run()
    assert max(sizes) == 11
    assert np.allclose(scans[0].features(), scans[1].features(), atol=1e-6)
    for layer in scans[0].layers:
        a, b = (scan.top(layer) for scan in scans)
        assert np.allclose(a.values, b.values, atol=1e-6)
        assert np.array_equal(a.images, b.images)


def test_halves_end_with_one_image() -> None:
    def never(_batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        halve_if_needed(never, torch.zeros(5))
    assert "choose a smaller image" in describe_error(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_halves_are_joined_in_order(size: int) -> None:
    def limited(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(batch) > size:
            raise torch.OutOfMemoryError
        return batch, -batch

    values, negative = halve_if_needed(limited, torch.arange(7))
    assert values.tolist() == list(range(7))
    assert torch.equal(negative, -values)
