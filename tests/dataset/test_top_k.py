from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from operators import Operators, fake_gpu
from torch.utils._pytree import tree_leaves

from convis_widgets.core.dataset import top_k as top_k_module
from convis_widgets.core.dataset.top_k import TopK

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("device_path")


@pytest.fixture(params=["cpu", "gpu"])
def device_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as on a CPU, once as on a GPU."""
    if request.param == "gpu":
        monkeypatch.setattr(top_k_module, "_SELECTING_DEVICES", ())


BOTH = pytest.mark.parametrize("one_per_image", [True, False])


def reference_top_k(maps: np.ndarray, k: int, one_per_image: bool, images: Sequence[int] | None = None) -> list[np.ndarray]:
    """Reference: keep everything, sort by value, then image, then position, and take the first k."""
    images = range(len(maps)) if images is None else images
    values, indices, positions = (np.full((maps.shape[1], k), fill) for fill in (-np.inf, -1, -1))
    for c in range(maps.shape[1]):
        everything = []
        for n in range(len(maps)):
            ranked = sorted((-float(v), images[n], i) for i, v in enumerate(maps[n, c].ravel()) if not np.isnan(v))
            everything += ranked[:1] if one_per_image else ranked
        for place, (value, image, position) in enumerate(sorted(everything)[:k]):
            values[c, place], indices[c, place], positions[c, place] = -value, image, position
    return [values.astype(np.float32), indices, positions]


def batched_top_k(
    maps: np.ndarray, k: int, one_per_image: bool, sizes: Sequence[int] = (), images: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Arrays of a TopK that is updated with these maps, in batches of these sizes, the rest as a last batch."""
    top_k = TopK(maps.shape[1:], k, one_per_image, CPU)
    images = list(range(len(maps)) if images is None else images)
    ends = [*itertools.accumulate(sizes), len(maps)]
    for start, end in itertools.pairwise([0, *ends]):
        if end > start:
            top_k.update(torch.from_numpy(maps[start:end]), images[start:end])
    return list(top_k.arrays())


def assert_same(given: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for a, b in zip(given, expected, strict=True):
        assert np.array_equal(a, b)


def random_maps(n: int = 9, channels: int = 5, h: int = 4, w: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, channels, h, w)).astype(np.float32)


def tied_maps(n: int = 9, channels: int = 6, h: int = 4, w: int = 3, seed: int = 0) -> np.ndarray:
    """Few distinct values; channel 0 is zero everywhere, channel 1 after the first image."""
    maps = np.random.default_rng(seed).integers(-1, 3, (n, channels, h, w)).astype(np.float32)
    maps[:, 0] = 0
    maps[1:, 1] = 0
    return maps


@BOTH
@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("make", [random_maps, tied_maps])
def test_top_k_matches_reference_sort(make: Callable[..., np.ndarray], k: int, one_per_image: bool) -> None:
    for seed in range(3):
        maps = make(seed=seed)
        assert_same(batched_top_k(maps, k, one_per_image, [2, 4]), reference_top_k(maps, k, one_per_image))


@BOTH
@pytest.mark.parametrize("make", [random_maps, tied_maps])
def test_top_k_is_bitwise_independent_of_batch_sizes(make: Callable[..., np.ndarray], one_per_image: bool) -> None:
    maps = make(n=5)
    whole = batched_top_k(maps, 6, one_per_image)
    for sizes in itertools.product(range(1, 5), repeat=4):
        if sum(sizes) <= 5:
            for a, b in zip(batched_top_k(maps, 6, one_per_image, sizes), whole, strict=True):
                assert a.tobytes() == b.tobytes()


@BOTH
def test_top_k_restore_continues_from_arrays(one_per_image: bool) -> None:
    maps = tied_maps()
    whole = TopK(maps.shape[1:], 5, one_per_image, CPU)
    whole.update(torch.from_numpy(maps[:4]), range(4))
    later = TopK(maps.shape[1:], 5, one_per_image, CPU)
    later.restore(*whole.arrays())
    later.update(torch.from_numpy(maps[4:]), range(4, 9))
    assert_same(later.arrays(), reference_top_k(maps, 5, one_per_image))


@BOTH
def test_top_k_breaks_ties_by_image_then_position(one_per_image: bool) -> None:
    values, images, positions = batched_top_k(np.ones((4, 1, 2, 2), np.float32), 6, one_per_image, [1, 2])
    if one_per_image:
        assert images.tolist() == [[0, 1, 2, 3, -1, -1]]
        assert positions.tolist() == [[0, 0, 0, 0, -1, -1]]
    else:
        assert images.tolist() == [[0, 0, 0, 0, 1, 1]]
        assert positions.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert set(values.ravel().tolist()) <= {1, -np.inf}


def test_top_k_of_dead_channel_is_zero() -> None:
    values, images, positions = batched_top_k(np.zeros((5, 2, 3, 3), np.float32), 3, True, [2])
    assert (values == 0).all()
    assert images.tolist() == [[0, 1, 2]] * 2
    assert (positions == 0).all()


@BOTH
def test_top_k_pads_with_minus_infinity_when_fewer_than_k(one_per_image: bool) -> None:
    maps = random_maps(n=2, h=1, w=3)
    values, images, positions = batched_top_k(maps, 9, one_per_image)
    available = 2 if one_per_image else 6
    assert np.isfinite(values[:, :available]).all()
    assert (values[:, available:] == -np.inf).all()
    assert (images[:, available:] == -1).all()
    assert (positions[:, available:] == -1).all()
    assert_same((values, images, positions), reference_top_k(maps, 9, one_per_image))


def test_top_k_is_empty_initially() -> None:
    values, images, positions = TopK((3, 2, 2), 4, True, CPU).arrays()
    assert values.shape == images.shape == positions.shape == (3, 4)
    assert (values == -np.inf).all()
    assert (images == -1).all()
    assert (positions == -1).all()


@BOTH
@pytest.mark.parametrize("shape", [(7, 3, 1, 1), (7, 1, 1, 5), (1, 4, 3, 2)])
def test_top_k_supports_k_larger_than_map(shape: tuple[int, ...], one_per_image: bool) -> None:
    maps = random_maps(*shape)
    for k in (2, 10, 50):
        assert_same(batched_top_k(maps, k, one_per_image, [1]), reference_top_k(maps, k, one_per_image))


@BOTH
def test_top_k_matches_reference_with_all_nan_maps(one_per_image: bool) -> None:
    maps = random_maps()
    maps[3, 0] = np.nan
    maps[:, 1] = np.nan
    maps[0, 2], maps[8, 4] = np.nan, np.nan
    for sizes in ([], [1], [4, 1]):
        assert_same(batched_top_k(maps, 4, one_per_image, sizes), reference_top_k(maps, 4, one_per_image))


@BOTH
def test_top_k_with_partly_nan_maps_has_no_nan_and_no_duplicates(one_per_image: bool) -> None:
    maps = random_maps()
    maps[::2, :, 1, 1] = np.nan
    values, images, positions = batched_top_k(maps, 50, one_per_image, [3])
    assert not np.isnan(values).any()
    for channel in range(maps.shape[1]):
        places = [(i, p) for i, p in zip(images[channel], positions[channel], strict=True) if i >= 0]
        assert len(places) == len(set(places))
        for place, (i, p) in enumerate(places):
            assert values[channel, place] == maps[i, channel].ravel()[p]


@BOTH
def test_top_k_keeps_infinity_and_drops_minus_infinity(one_per_image: bool) -> None:
    maps = random_maps(n=3)
    maps[1, 0, 2, 1], maps[:, 1], maps[2, 2] = np.inf, -np.inf, -np.inf
    values, images, positions = batched_top_k(maps, 4, one_per_image, [1])
    assert (values[0, 0], images[0, 0], positions[0, 0]) == (np.inf, 1, 7)
    assert (images[1] == -1).all()
    assert 2 not in images[2]


@BOTH
def test_top_k_supports_gaps_in_image_indices(one_per_image: bool) -> None:
    maps, images = tied_maps(n=4), [2, 3, 7, 100]
    assert_same(batched_top_k(maps, 5, one_per_image, [1, 2], images), reference_top_k(maps, 5, one_per_image, images))


@BOTH
def test_top_k_is_independent_of_memory_format(one_per_image: bool) -> None:
    maps = random_maps()
    top_k = TopK(maps.shape[1:], 4, one_per_image, CPU)
    top_k.update(torch.from_numpy(maps).to(memory_format=torch.channels_last), range(len(maps)))
    assert_same(top_k.arrays(), reference_top_k(maps, 4, one_per_image))


@BOTH
def test_top_k_is_independent_of_gather_chunk_size(one_per_image: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tied_maps()
    monkeypatch.setattr("convis_widgets.core.dataset.top_k.MAX_GATHERED", 13)
    assert_same(batched_top_k(maps, 4, one_per_image, [5]), reference_top_k(maps, 4, one_per_image))


@BOTH
def test_top_k_arrays_and_maps_are_copies(one_per_image: bool) -> None:
    maps = random_maps()
    updates = torch.from_numpy(maps.copy())
    top_k = TopK(maps.shape[1:], 4, one_per_image, CPU)
    top_k.update(updates[:4], range(4))
    read = top_k.arrays()
    top_k.update(updates[4:], range(4, 9))
    assert_same(read, reference_top_k(maps[:4], 4, one_per_image))
    updates.zero_()
    assert_same(top_k.arrays(), reference_top_k(maps, 4, one_per_image))


@BOTH
def test_top_k_memory_does_not_grow_with_number_of_images(one_per_image: bool) -> None:
    def allocated_bytes() -> int:
        parts = tree_leaves(vars(top_k))
        return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor))

    top_k = TopK((5, 4, 3), 4, one_per_image, CPU)
    at_first = allocated_bytes()
    for i in range(60):
        top_k.update(torch.from_numpy(random_maps(n=2, seed=i)), [2 * i, 2 * i + 1])
        assert allocated_bytes() == at_first
    assert top_k.arrays()[1].max() > 20, "later images were kept"


@BOTH
def test_top_k_on_a_gpu_is_never_waited_for(one_per_image: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch):
        top_k = TopK((3, 4, 5), 6, one_per_image, torch.device("cuda"))
        with Operators() as operators:
            top_k.update(torch.rand(7, 3, 4, 5, device="cuda"), torch.arange(7, device="cuda"))
    assert not operators.reads
    assert not operators.transfers
    assert top_k.state[0].device.type == "cuda"


def test_top_k_of_extreme_values_breaks_ties_as_a_stable_sort() -> None:
    """Infinities, both zeros, denormal numbers, and many ties."""
    rng = np.random.default_rng(0)
    pool = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0, 1.0000001, -1.0], np.float32)
    maps = rng.choice(pool, (6, 4, 5, 3))
    values, images, positions = batched_top_k(maps, 40, False, [2, 1])
    for c in range(4):
        order = sorted((-float(v), n, i) for n in range(6) for i, v in enumerate(maps[n, c].ravel()) if v > -np.inf)[:40]
        assert list(zip(-values[c], images[c], positions[c], strict=True)) == order
