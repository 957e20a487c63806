from __future__ import annotations

import copy
import gc
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_leaves
from widget_helpers import written

from convis_widgets.core.dataset import batch_collector as collector_file
from convis_widgets.core.dataset import result_store as store_file
from convis_widgets.core.dataset import scan as scan_file
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace, watch_modules
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.scan import scan

BATCH = 4
PATIENCE = 60
LAYERS = ("conv1", "conv2", "side")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Batches of 4 images, and a cache folder per test."""
    monkeypatch.setattr(collector_file, "auto_batch_size", lambda *_: BATCH)
    monkeypatch.setenv("CONVIS_CACHE", str(tmp_path / "default"))


def pixels(n: int = 10, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def complete_scan(store: Scan) -> Scan:
    Run(store.frames()).run()
    return store


def results(store: Scan) -> dict[str, Any]:
    """All results of a Scan, as bytes."""
    top_arrays = {
        f"{name} {part}": getattr(store.top(name), part)
        for name in store.layers
        for part in ("values", "images", "rows", "cols")
    }
    stored = {"features": store.features(), "thumbnails": store.thumbnails(), "valid": store.valid}
    named = {name: getattr(store, name) for name in ("predictions", "probabilities", "labels")}
    return {"num_seen": store.num_seen, "skipped": store.skipped} | {
        name: (array.shape, array.tobytes()) for name, array in (top_arrays | stored | named).items()
    }


def reference_top(net: Network, images: list[Any], layer: str, k: int, one_per_image: bool) -> list[list[tuple[Any, ...]]]:
    """Reference: one image at a time, all values kept; for each channel the first k of (-value, image, row, col)."""
    everything: list[list[tuple[Any, ...]]] = [[] for _ in range(net.layers[layer].map_shape[0])]
    for i, image in enumerate(images):
        if image is None:
            continue
        with torch.no_grad(), trace(net, [layer]) as acts:
            net(net.batch(image))
        for c, heat in enumerate(acts[layer][0].numpy()):
            ranked = sorted((-float(heat[y, x]), i, y, x) for y in range(heat.shape[0]) for x in range(heat.shape[1]))
            everything[c] += ranked[:1] if one_per_image else ranked
    return [sorted(ranked)[:k] for ranked in everything]


def assert_top_matches_reference(store: Scan, images: list[Any]) -> None:
    for layer in store.layers:
        top = store.top(layer)
        for c, ranked in enumerate(reference_top(store.net, images, layer, store.k, store.one_per_image)):
            n = len(ranked)
            assert np.allclose(top.values[c, :n], [-entry[0] for entry in ranked], atol=1e-5)
            places = zip(top.images[c, :n], top.rows[c, :n], top.cols[c, :n], strict=True)
            assert [*places] == [entry[1:] for entry in ranked]
            assert (top.values[c, n:] == -np.inf).all()
            assert (top.images[c, n:] == -1).all()


def assert_top_matches_reference_up_to_ties(store: Scan, images: list[Any]) -> None:
    """Like `assert_top_matches_reference`, but equal values (duplicates, uniform images) may be in any order."""
    for layer in store.layers:
        top = store.top(layer)
        everything = reference_top(store.net, images, layer, 10**9, store.one_per_image)
        for c, ranked in enumerate(everything):
            values = {entry[1:]: -entry[0] for entry in ranked}
            places = [*zip(top.images[c].tolist(), top.rows[c].tolist(), top.cols[c].tolist(), strict=True)]
            assert len(set(places)) == store.k
            assert np.allclose(top.values[c], [values[place] for place in places], atol=1e-5)
            assert np.allclose(top.values[c], [-entry[0] for entry in ranked[: store.k]], atol=1e-5)


def count_forward_passes(net: Network, function: Callable[[], Any]) -> int:
    """Number of forward passes made by a function."""
    passes: list[int] = []
    with watch_modules(net.module, lambda *_: None, on_start=lambda: passes.append(1)):
        function()
    return len(passes)


# -- results ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "one_per_image"), [(3, True), (3, False), (16, True), (70, False)])
def test_scan_top_matches_reference_on_single_images(k: int, one_per_image: bool, tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    store = complete_scan(Scan(tiny, array, k=k, one_per_image=one_per_image, cache=tmp_path))
    assert store.layers == ["conv1", "conv2", "side"]
    assert_top_matches_reference(store, list(array))


def test_scan_top_is_taken_before_inplace_relu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.bias, -9.0)
    net = Network(nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    top = complete_scan(Scan(net, pixels(5), cache=tmp_path)).top("0")
    assert (top.values[:, :5] < 0).all()
    assert top.dead.tolist() == [0, 1, 2, 3]


def test_top_activations_dead_lists_channels_never_above_zero(tiny_module: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        for c, bias in ((1, -50.0), (4, 0.0)):
            tiny_module.conv1.weight[c], tiny_module.conv1.bias[c] = 0, bias
    top = complete_scan(Scan(Network(tiny_module, size=16), pixels(), layers="conv1", cache=tmp_path)).top("conv1")
    expected = [c for c in range(6) if max(top.values[c]) <= 0]
    assert top.dead.tolist() == expected
    assert {1, 4} <= set(expected) != set(range(6))


def test_top_activations_pads_with_minus_one_when_fewer_than_k(tiny: Network, tmp_path: Path) -> None:
    top = complete_scan(Scan(tiny, pixels(2), k=5, cache=tmp_path)).top("conv1")
    assert (top.values[:, 2:] == -np.inf).all()
    for part in (top.images, top.rows, top.cols):
        assert (part[:, 2:] == -1).all()
        assert (part[:, :2] >= 0).all()


def layer_inputs(module: nn.Module, last: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, args: caught.append(args[0].clone()))
    with torch.no_grad():
        module(batch)
    hook.remove()
    return caught[-1]


def test_scan_features_are_inputs_of_last_layer(tiny: Network, tiny_module: nn.Module, tmp_path: Path) -> None:
    array = pixels()
    store = complete_scan(Scan(tiny, array, cache=tmp_path))
    expected = layer_inputs(tiny_module, tiny_module.fc, tiny.transform.normalize(tiny.batch(array)))
    assert store.features().shape == (10, 8)
    assert store.features().dtype == np.float32
    assert np.allclose(store.features(), expected, atol=1e-5)
    assert np.array_equal(store.features(np.array([7, 2])), store.features()[[7, 2]])


def conv_classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)
    )


class KeywordHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(input=self.conv(x).mean((2, 3)))


def test_scan_features_of_a_last_layer_that_gets_them_by_keyword(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, array = Network(KeywordHead(), size=16, mean=0, std=1), pixels(3)
    store = complete_scan(Scan(net, array, cache=tmp_path))
    with torch.no_grad():
        expected = net.module.conv(torch.from_numpy(array).permute(0, 3, 1, 2) / 255).mean((2, 3))
    np.testing.assert_allclose(store.features(), expected, atol=1e-5)


class LinearPerPosition(nn.Module):
    """Linear layer at every position, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().permute(0, 2, 3, 1)).mean((1, 2))


class LinearPerToken(LinearPerPosition):
    """Linear layer at every token."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize(
    ("make", "name", "dims"),
    [(conv_classifier, "2", (2, 3)), (LinearPerPosition, "fc", (1, 2)), (LinearPerToken, "fc", (1,))],
)
def test_scan_features_are_averaged_over_positions(
    make: Callable[[], nn.Module], name: str, dims: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    array, module = pixels(), make()
    features = complete_scan(Scan(Network(module, size=16), array, cache=tmp_path)).features()
    batch = torch.from_numpy(array).permute(0, 3, 1, 2) / 255
    expected = layer_inputs(module, module.get_submodule(name), batch).mean(dims).numpy()
    assert features.shape == expected.shape == (10, 6)
    assert np.allclose(features, expected, atol=1e-5)


def test_scan_features_from_named_layer_match_its_activations(tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    for layer, count in (("conv1", 6), ("fc", 4)):
        store = complete_scan(Scan(tiny, array, feature_layer=layer, cache=tmp_path))
        with torch.no_grad(), trace(tiny, [layer]) as acts:
            tiny(tiny.batch(array))
        expected = acts[layer].flatten(2).mean(2) if acts[layer].ndim == 4 else acts[layer]
        assert store.features().shape == (10, count)
        assert np.allclose(store.features(), expected, atol=1e-5)


def test_scan_extract_features_returns_features_without_changing_results(tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    store = complete_scan(Scan(tiny, array[:6], cache=tmp_path))
    before = results(store)
    everything = complete_scan(Scan(tiny, array, cache=tmp_path)).features()
    assert np.allclose(store.extract_features([tiny.image(image) for image in array[6:]]), everything[6:], atol=1e-5)
    assert results(store) == before


def test_scan_predictions_and_probabilities_match_network(tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    store = complete_scan(Scan(tiny, array, cache=tmp_path))
    for i in range(10):
        label, p = tiny.predict(array[i], k=1)[0]
        assert tiny.labels[store.predictions[i]] == label
        assert store.probabilities[i] == pytest.approx(p, abs=1e-5)


def test_scan_labels_match_image_set_and_are_unknown_before_scanning(tiny: Network, tmp_path: Path) -> None:
    labels = [3, 1, -1, 0, 2, 2, 1, 0, 3, 3]
    store = Scan(tiny, ImageSet(pixels(), labels=labels), cache=tmp_path)
    store.step()
    assert store.labels.tolist() == labels[:4] + [-1] * 6
    assert complete_scan(store).labels.tolist() == labels
    pairs = [(image, label) for image, label in zip(pixels(), labels, strict=True)]
    assert complete_scan(Scan(tiny, pairs, cache=tmp_path)).labels.tolist() == labels


def test_scan_thumbnails_are_area_averaged_to_at_most_48_pixels(tiny: Network, tmp_path: Path) -> None:
    array = pixels(6)
    store = complete_scan(Scan(tiny, array, cache=tmp_path))
    assert np.array_equal(store.thumbnails(), array)
    assert np.array_equal(store.thumbnails(np.array([5, 0])), array[[5, 0]])
    large = np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), dtype=np.uint8)
    net = Network(nn.Sequential(nn.Conv2d(3, 2, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=(96, 64))
    thumbnails = complete_scan(Scan(net, large, cache=tmp_path)).thumbnails()
    assert thumbnails.shape == (3, 48, 32, 3)
    assert np.abs(thumbnails - large.reshape(3, 48, 2, 32, 2, 3).mean((2, 4))).max() <= 1


def test_scan_image_returns_network_input_and_reads_file_once(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels(1, 40)[0]).save(tmp_path / "1.png")
    store = Scan(tiny, tmp_path, cache=tmp_path / "cache")
    image = store.image(0)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.round(tiny.image(tmp_path / "1.png") * 255))
    monkeypatch.setattr(ImageSet, "load", lambda *_: pytest.fail("the file was read again"))
    assert np.array_equal(store.image(0), image)


def test_scan_image_cache_is_limited_in_bytes(tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_file, "IMAGE_CACHE_BYTES", 3 * 16 * 16 * 3)
    array = pixels()
    store = Scan(tiny, array, cache=tmp_path)
    for i in (0, 1, 2, 0, 3, 4):
        assert np.array_equal(store.image(i), array[i])
    assert list(store._image_cache) == [0, 3, 4]


def test_scan_gray_network_has_rgb_thumbnails(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    array = pixels(6, 28)[..., 0]
    store = complete_scan(Scan(net, array, k=3, cache=tmp_path))
    assert_top_matches_reference(store, list(array))
    assert np.array_equal(store.thumbnails(), np.repeat(array[..., None], 3, 3))
    assert store.features().shape == (6, 4 * 24 * 24)
    assert np.array_equal(store.image(2), array[2, :, :, None])


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_scan_supports_any_number_of_input_channels(channels: int, tmp_path: Path) -> None:
    net = Network(nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    array = pixels(6, channels=channels)
    store = complete_scan(Scan(net, array, k=3, cache=tmp_path))
    assert_top_matches_reference(store, list(array))
    assert store.thumbnails().shape == (6, 16, 16, 3)


class ConvInName(nn.Module):
    """Not a convolution, despite its name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = Standardized(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).relu()).sigmoid()


class Standardized(nn.Conv2d):
    """A convolution, despite its name."""


def test_scan_layers_defaults_to_convolutions_only(tiny: Network, tmp_path: Path) -> None:
    net = Network(nn.Sequential(ConvInName(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    assert Scan(net, pixels(2), cache=tmp_path).layers == ["0.inner", "0.outer"]
    everything = Scan(tiny, pixels(3), layers="all", k=2, cache=tmp_path)
    assert everything.layers == [layer.name for layer in tiny.layers if layer.map_shape]
    assert {"conv1", "relu", "relu@2", "pool", "fc"} <= set(everything.layers)
    assert_top_matches_reference(
        complete_scan(Scan(tiny, pixels(3), layers=["relu@2", "pool", "relu@2"], k=2, cache=tmp_path)), list(pixels(3))
    )


def test_scan_supports_layer_with_tuple_output(tmp_path: Path) -> None:
    class TupleOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return self.conv(x).sigmoid(), 1

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = TupleOutput()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(x)[0].mean((2, 3))

    net = Network(Model(), size=16, channels=3)
    store = complete_scan(Scan(net, pixels(5), layers="two", feature_layer="two", k=2, cache=tmp_path))
    assert_top_matches_reference(store, list(pixels(5)))
    assert store.features().shape == (5, 4)


# -- unreadable images --------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Images of several sizes and modes, duplicates, and six unreadable files."""
    root = tmp_path / "images"
    root.mkdir()
    image = Image.fromarray(pixels(1, 40)[0])
    image.save(root / "a.png")
    (root / "b corrupt.png").write_bytes((root / "a.png").read_bytes()[:300])
    (root / "c empty.jpg").touch()
    Image.fromarray(pixels(1, 1, seed=1)[0]).save(root / "d one pixel.png")
    (root / "e text.jpg").write_text("not an image")
    Image.fromarray(pixels(1, 700, seed=2)[0, :300]).save(root / "f large.jpg")
    image.save(root / "g duplicate.png")
    Image.fromarray(pixels(1, 30, seed=3)[0, :, :, 0]).save(root / "h gray.png")
    for name in ("i text.gif", os.fsdecode(b"j caf\xe9.jpg"), "k text\u00e9.jpg"):
        (root / name).write_text("not an image")
    Image.fromarray(pixels(1, 20, 4, seed=4)[0]).save(root / "l transparent.png")
    image.save(root / "m.png")
    return root


GOOD = [0, 3, 5, 6, 7, 11, 12]
BAD = [1, 2, 4, 8, 9, 10]


def test_scan_skips_counts_and_names_unreadable_files(tiny: Network, mixed_folder: Path, tmp_path: Path) -> None:
    store = Scan(tiny, mixed_folder, k=20, one_per_image=False, cache=tmp_path / "cache")
    frames = list(store.frames())
    assert [frame.scalars for frame in frames] == [
        {"images": 4, "skipped": 2},
        {"images": 8, "skipped": 3},
        {"images": 12, "skipped": 6},
        {"images": 13, "skipped": 6},
    ]
    assert sorted(store.skipped) == BAD
    assert all(store.skipped[i].startswith(store.images.names[i]) for i in BAD)
    assert re.search(r"\b6\b", repr(store))
    assert store.valid.tolist() == GOOD
    files = sorted(mixed_folder.iterdir())
    assert_top_matches_reference_up_to_ties(store, [file if i in GOOD else None for i, file in enumerate(files)])
    assert np.isnan(store.features()[BAD]).all()
    assert np.isfinite(store.features()[GOOD]).all()
    assert not store.thumbnails()[BAD].any()
    assert store.thumbnails()[GOOD].any((1, 2, 3)).all()
    assert store.predictions[BAD].tolist() == store.labels[BAD].tolist() == [-1] * 6
    assert np.isnan(store.probabilities[BAD]).all()
    assert np.isfinite(store.probabilities[GOOD]).all()
    again = Scan(tiny, mixed_folder, k=20, one_per_image=False, cache=tmp_path / "cache")
    assert results(again) == results(store)


def test_scan_counts_duplicates_as_separate_images(tiny: Network, mixed_folder: Path, tmp_path: Path) -> None:
    store = complete_scan(Scan(tiny, mixed_folder, cache=tmp_path / "cache"))
    assert np.allclose(store.features()[0], store.features()[[6, 12]], atol=1e-6)
    assert np.array_equal(store.thumbnails()[0], store.thumbnails()[6])
    for channel in store.top("conv1").images:
        assert sorted(channel[channel >= 0]) == GOOD


@pytest.mark.parametrize("readable", [9, 4, 3])
def test_scan_images_before_first_readable_one_have_nan_features(readable: int, tiny: Network, tmp_path: Path) -> None:
    images = [np.full((16, 16, 3), np.nan)] * 10
    images[readable] = pixels(1)[0]
    store = complete_scan(Scan(tiny, images, cache=tmp_path))
    assert store.valid.tolist() == [readable]
    assert np.isfinite(store.features()[readable]).all()
    assert np.isnan(np.delete(store.features(), readable, 0)).all()
    assert np.array_equal(store.thumbnails()[readable], images[readable])
    assert not np.delete(store.thumbnails(), readable, 0).any()
    assert results(Scan(tiny, images, cache=tmp_path)) == results(store)


def test_scan_without_readable_image_raises_with_first_reason(tiny: Network, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_text("not an image")
    first = Scan(tiny, tmp_path, cache=tmp_path / "cache")
    for store in (first, first, Scan(tiny, tmp_path, cache=tmp_path / "cache")):
        run = Run(store.frames())
        with pytest.raises(ValueError, match=rf"{tmp_path.name}.*0\.png") as caught:
            run.run()
        assert "\n" not in str(caught.value)
        assert run.state == "failed"


class Diverging(nn.Module):
    """Returns NaN for an image with a white corner."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.fc(self.conv(x).mean((2, 3)))
        return scores + torch.where(x[:, 0, :1, 0] > 0.999, torch.nan, 0.0)


def test_scan_raises_on_nonfinite_scores_and_keeps_earlier_results(tmp_path: Path) -> None:
    torch.manual_seed(0)
    array = pixels() // 2
    array[6] = 255
    store = Scan(Network(Diverging(), size=16), array, cache=tmp_path)
    store.step()
    before = results(store)
    for _ in range(2):
        with pytest.raises(ValueError, match="Diverging"):
            store.step()
        assert results(store) == before
    assert store.num_seen == BATCH
    with pytest.raises(ValueError, match="Diverging"):
        complete_scan(store)
    assert results(Scan(store.net, array, cache=tmp_path)) == before


# -- stopping and resuming ----------------------------------------------------------------------------------------------


@pytest.fixture
def uninterrupted(tiny: Network, mixed_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Results of an uninterrupted scan of `mixed_folder`."""
    return results(complete_scan(Scan(tiny, mixed_folder, k=5, cache=tmp_path / "uninterrupted")))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_saved_scan_resumes_with_same_final_results(
    steps: int, tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    first = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    for _ in range(steps):
        first.step()
    first.save()
    second = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    assert second.folder == first.folder
    assert results(second) == results(first)
    assert (second.num_seen, second.complete) == (steps * BATCH, False)
    assert count_forward_passes(tiny, lambda: complete_scan(second)) == 4 - steps
    assert results(second) == uninterrupted


def test_scan_is_found_again_by_network_copy_and_moved_folder(
    tiny: Network, tiny_module: nn.Module, mixed_folder: Path, tmp_path: Path
) -> None:
    before = results(complete_scan(Scan(tiny, mixed_folder, cache=tmp_path / "cache")))
    mixed_folder.rename(tmp_path / "moved")
    other = Network(copy.deepcopy(tiny_module), transform=tiny.transform)
    assert results(Scan(other, tmp_path / "moved", cache=tmp_path / "cache")) == before


def test_complete_scan_opens_without_reading_an_image(
    tiny: Network, mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results(complete_scan(Scan(tiny, mixed_folder, cache=tmp_path)))
    monkeypatch.setattr(ImageSet, "load", lambda *_: pytest.fail("an image was read"))

    def open_scan() -> None:
        store = Scan(tiny, mixed_folder, cache=tmp_path)
        assert store.complete
        assert results(store) == before
        assert [(frame.step, frame.total, frame.done) for frame in store.frames()] == [(13, 13, True)]
        assert list(store.frames(more=3)) == []

    assert count_forward_passes(tiny, open_scan) == 2, "of two images that show whether the network computes the same"


def test_scan_step_after_completion_changes_nothing(tiny: Network, tmp_path: Path) -> None:
    for n in (8, 10):
        store = complete_scan(Scan(tiny, pixels(n), cache=tmp_path))
        before = results(store)
        store.step()
        assert results(store) == before


def test_scan_frames_report_progress(tiny: Network, tmp_path: Path) -> None:
    frames = list(Scan(tiny, pixels(), cache=tmp_path).frames())
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(4, 10, False), (8, 10, False), (10, 10, True)]
    frames = list(Scan(tiny, pixels(seed=1), cache=tmp_path).frames(more=5))
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(4, 15, False), (8, 15, False), (10, 15, False)]


@pytest.mark.parametrize("taken", [0, 1])
def test_scan_frames_end_with_a_last_one_if_others_scan_the_last_images(taken: int, tiny: Network, tmp_path: Path) -> None:
    store = Scan(tiny, pixels(), cache=tmp_path)
    frames, with_more = store.frames(), store.frames(more=5)
    for _ in range(taken):
        next(frames)
        next(with_more, None)
    complete_scan(store)
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(10, 10, True)]
    assert list(with_more) == [], "the technique has more Frames of its own"


def test_scan_can_be_continued_by_second_run_after_stop(
    tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    store = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    first = Run(store.frames())
    first.subscribe(lambda run: run.stop() if run.last and run.last.step == 8 else None)
    first.run()
    assert (first.state, store.num_seen) == ("stopped", 8)
    second = Run(store.frames())
    assert second.run().done
    assert second.state == "done"
    assert results(store) == uninterrupted


def test_stopped_scan_is_saved_and_resumed_by_new_scan(
    tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(scan(tiny, mixed_folder, k=5, cache=tmp_path))
    run.subscribe(lambda run: run.stop() if run.last and run.last.step == 8 else None)
    run.run()
    store = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    assert store.num_seen == 8
    assert results(complete_scan(store)) == uninterrupted


class ForwardCallback(nn.Module):
    """Calls a function in the middle of a forward pass; not an attribute of the module, which would be copied with it."""

    callback: ClassVar[Callable[[], None]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ForwardCallback.callback()
        return x + 0


@pytest.mark.parametrize("one_per_image", [True, False])
def test_scan_stopped_during_forward_pass_counts_no_image_twice(
    one_per_image: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def callback() -> None:
        if runs and store.num_seen == stop_at:
            runs.pop().stop()

    runs: list[Run] = []
    monkeypatch.setattr(ForwardCallback, "callback", staticmethod(callback), raising=False)
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), ForwardCallback(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net, array = Network(nn.Sequential(*parts), size=16), pixels()
    kwargs = {"k": 12, "one_per_image": one_per_image}
    uninterrupted = results(complete_scan(Scan(net, array, cache=tmp_path / "uninterrupted", **kwargs)))
    for stop_at in (0, 4, 8):
        store = Scan(net, array, cache=tmp_path / str(stop_at), **kwargs)
        run = Run(store.frames())
        runs.append(run)
        run.start()
        assert run.join(60)
        assert (run.state, store.num_seen) == ("stopped", stop_at)
        assert results(complete_scan(store)) == uninterrupted


def test_scan_with_overlapping_runs_counts_no_image_twice(tiny: Network, tmp_path: Path) -> None:
    class Slow(list):  # the first read lasts until a second Run has had time to start
        def __getitem__(self, i: Any) -> Any:
            if waits:
                waits.pop()
                second.start()
                second.join(0.2)
            return super().__getitem__(i)

    array = pixels()
    uninterrupted = results(complete_scan(Scan(tiny, array, cache=tmp_path / "uninterrupted")))
    waits: list[int] = []
    store = Scan(tiny, Slow(array), cache=tmp_path)
    waits.append(1)
    second = Run(store.frames())
    first = Run(store.frames())
    first.start()
    assert first.join(PATIENCE)
    assert second.join(PATIENCE)
    assert (first.error, second.error) == (None, None)
    assert store.complete
    assert results(store) == uninterrupted


# -- killed and concurrent scans -----------------------------------------------------------------------------------------


def small_network() -> Network:
    torch.manual_seed(0)
    return Network(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), size=16
    )


def scan_until_killed(cache: str) -> None:
    """Run in a subprocess: save after every batch, report when image 10 is read, and wait there to be killed."""
    collector_file.auto_batch_size, scan_file.SAVE_PERIOD = lambda *_: BATCH, 0
    read = ImageSet.read

    def read_and_wait(self: ImageSet, index: int) -> Any:
        if index == 10:
            print("in the third batch", flush=True)
            sys.stdin.read()
        return read(self, index)

    ImageSet.read = read_and_wait
    complete_scan(Scan(small_network(), pixels(14), cache=cache))


def test_killed_scan_resumes_with_same_final_results(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}; import test_scan; "
    code += f"test_scan.scan_until_killed({str(tmp_path)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        try:
            assert process.stdout.readline() == "in the third batch\n"
        finally:
            process.kill()
    assert process.returncode != 0
    net = small_network()
    store = Scan(net, pixels(14), cache=tmp_path)
    assert store.num_seen == 8
    assert count_forward_passes(net, lambda: complete_scan(store)) == 2
    assert results(store) == results(complete_scan(Scan(net, pixels(14), cache=tmp_path / "uninterrupted")))


def test_two_interleaved_scans_end_with_same_results(
    tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_file, "SAVE_PERIOD", 0)
    a, b = (Scan(tiny, mixed_folder, k=5, cache=tmp_path) for _ in range(2))
    assert a.folder == b.folder
    for store in (a, b, a, a, b, a, b, b):
        store.step()
        opened = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
        assert opened.num_seen == max(a.num_seen, b.num_seen), "older state must not overwrite newer"
        assert np.array_equal(opened.features()[: store.num_seen], store.features(), equal_nan=True)
    assert results(a) == results(b) == results(Scan(tiny, mixed_folder, k=5, cache=tmp_path)) == uninterrupted


def test_two_scans_in_threads_end_with_same_results(
    tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_file, "SAVE_PERIOD", 0)
    stores = [Scan(tiny, mixed_folder, k=5, cache=tmp_path) for _ in range(2)]
    together = threading.Barrier(2)

    def frames(store: Scan) -> Iterator[Any]:
        for frame in store.frames():
            together.wait(PATIENCE)
            yield frame

    runs = [Run(frames(store)).start() for store in stores]
    assert all(run.join(PATIENCE) for run in runs)
    assert [run.error for run in runs] == [None, None]
    assert (
        results(stores[0]) == results(stores[1]) == results(Scan(tiny, mixed_folder, k=5, cache=tmp_path)) == uninterrupted
    )


def test_scan_save_that_fails_keeps_previous_state(
    tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    store.step()
    store.save()
    store.step()

    def full(file: Any, **_arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_file.np, "savez", full)
        with pytest.raises(OSError, match="no space left"):
            store.save()
    later = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    assert later.num_seen == BATCH
    assert sorted(path.name for path in store.folder.iterdir()) == ["features", "state.npz", "thumbnails"]
    assert results(complete_scan(later)) == uninterrupted


# -- the key of a scan -------------------------------------------------------------------------------------------------


def test_scan_key_depends_on_weights_buffers_and_transform(tiny_module: nn.Module, tmp_path: Path) -> None:
    def key(module: nn.Module = tiny_module, **kwargs: Any) -> str:
        return Scan(Network(module, **{"size": 16, **kwargs}), pixels(3), cache=tmp_path).key

    changed, renamed = copy.deepcopy(tiny_module), copy.deepcopy(tiny_module)
    with torch.no_grad():
        changed.fc.bias[2] += 1e-6
    renamed.other = renamed.side
    normalized = nn.Sequential(nn.BatchNorm2d(3), tiny_module)
    statistic = copy.deepcopy(normalized)
    statistic[0].running_mean[1] = 0.1
    keys = [key(), key(changed), key(normalized), key(statistic), key(mean=0.5), key(size=18)]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0] == key(copy.deepcopy(tiny_module), name="another name", labels=list("abcd"))


def test_scan_is_found_again_only_with_the_same_kind_of_output(tiny_module: nn.Module, tmp_path: Path) -> None:
    array, kinds = pixels(3), ("values", "logits", "independent logits")
    nets = {kind: Network(tiny_module, size=16, output_kind=kind) for kind in kinds}
    for net in nets.values():
        store = Scan(net, array, cache=tmp_path)
        assert store.num_seen == 0
        complete_scan(store)
        predictions = [net.predict_array(image) for image in array]
        classes = [net.output.default_class(prediction) for prediction in predictions]
        assert store.predictions.tolist() == classes
        expected = [prediction[index] for prediction, index in zip(predictions, classes, strict=True)]
        np.testing.assert_allclose(store.probabilities, expected, rtol=1e-5)
    assert Network(tiny_module, size=16).output.kind == "logits"
    assert Scan(Network(tiny_module, size=16), array, cache=tmp_path).complete, "of the stated kind that is inferred"


class Leaky(nn.Module):
    """Its output depends on more than its weights."""

    def __init__(self, slope: float, pool: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.slope, self.pool = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), slope, pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(nn.functional.leaky_relu(self.conv(x), self.slope), (2, 3)))


def test_scan_key_depends_on_forward_pass(tmp_path: Path) -> None:
    def key(slope: float, pool: Callable[..., torch.Tensor]) -> str:
        torch.manual_seed(0)
        return Scan(Network(Leaky(slope, pool), size=16), pixels(3), cache=tmp_path).key

    assert len({key(0.1, torch.mean), key(0.2, torch.mean), key(0.1, torch.amax)}) == 3
    assert key(0.1, torch.mean) == key(0.1, torch.mean)


def test_scan_key_depends_on_images_labels_and_arguments(tiny: Network, tmp_path: Path) -> None:
    array = pixels(5)
    changed = array.copy()
    changed[3, 4, 5, 0] ^= 1
    plain = Scan(tiny, array, cache=tmp_path)
    complete_scan(plain)
    others = [
        Scan(tiny, changed, cache=tmp_path),
        Scan(tiny, array[:4], cache=tmp_path),
        Scan(tiny, array[::-1], cache=tmp_path),
        Scan(tiny, ImageSet(array, labels=[0] * 5), cache=tmp_path),
        Scan(tiny, array, k=15, cache=tmp_path),
        Scan(tiny, array, one_per_image=False, cache=tmp_path),
        Scan(tiny, array, layers="conv1", cache=tmp_path),
        Scan(tiny, array, feature_layer="conv2", cache=tmp_path),
    ]
    assert len({store.key for store in [plain, *others]}) == len(others) + 1
    assert [store.num_seen for store in others] == [0] * len(others)
    assert results(Scan(tiny, array.copy(), cache=tmp_path)) == results(plain)


def test_scan_restarts_when_file_changes(tiny: Network, mixed_folder: Path, tmp_path: Path) -> None:
    complete_scan(Scan(tiny, mixed_folder, cache=tmp_path))
    Image.fromarray(pixels(1, 40, seed=9)[0]).save(mixed_folder / "e text.jpg")
    store = Scan(tiny, mixed_folder, cache=tmp_path)
    assert store.num_seen == 0
    assert sorted(complete_scan(store).skipped) == [i for i in BAD if i != 4]


# -- damaged results ----------------------------------------------------------------------------------------------------


def truncate_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_empty(path: Path) -> None:
    os.truncate(path, 0)


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 99)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[("state.npz", damage) for damage in (truncate_half, make_empty, fill_with_garbage, flip_byte, Path.unlink)],
        *[(name, damage) for name in ("features", "thumbnails") for damage in (truncate_half, make_empty, Path.unlink)],
    ],
)
def test_scan_recomputes_damaged_results(
    name: str,
    damage: Callable[[Path], None],
    tiny: Network,
    mixed_folder: Path,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
) -> None:
    damage(complete_scan(Scan(tiny, mixed_folder, k=5, cache=tmp_path)).folder / name)
    store = Scan(tiny, mixed_folder, k=5, cache=tmp_path)
    assert store.num_seen == 0
    assert store.skipped == {}
    assert results(complete_scan(store)) == uninterrupted
    assert results(Scan(tiny, mixed_folder, k=5, cache=tmp_path)) == uninterrupted


def test_scan_features_ignore_leftovers_of_damaged_file(tiny: Network, tmp_path: Path) -> None:
    images = [np.full((16, 16, 3), np.nan)] * 5 + list(pixels(3))
    store = complete_scan(Scan(tiny, images, cache=tmp_path))
    make_empty(store.folder / "features")
    again = complete_scan(Scan(tiny, images, cache=tmp_path))
    assert np.isnan(again.features()[:5]).all()
    assert results(again) == results(store)


def test_scan_recomputes_results_of_other_format(tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = complete_scan(Scan(tiny, pixels(5), cache=tmp_path))
    monkeypatch.setattr(scan_file, "FORMAT", 0)
    store.save()
    monkeypatch.undo()
    assert Scan(tiny, pixels(5), cache=tmp_path).num_seen == 0


# -- result folder -----------------------------------------------------------------------------------------------------


def test_scan_folder_comes_from_cache_argument_or_environment(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_argument = Scan(tiny, pixels(2), cache=str(tmp_path / "given"))
    assert with_argument.persistent
    assert with_argument.folder.is_relative_to(tmp_path / "given")
    assert Scan(tiny, pixels(2)).folder.is_relative_to(tmp_path / "default")
    monkeypatch.delenv("CONVIS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Scan(tiny, pixels(2)).folder.is_relative_to(tmp_path / "xdg" / "convis_widgets")


def test_scan_uses_temporary_folder_when_cache_is_not_writable(
    tiny: Network, mixed_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    store = complete_scan(Scan(tiny, mixed_folder, k=5, cache=tmp_path / "file" / "below"))
    assert not store.persistent
    assert results(store) == uninterrupted
    folder = store.folder
    assert (folder / "features").exists()
    assert not folder.is_relative_to(tmp_path / "file")
    del store
    gc.collect()
    assert not folder.exists()


def test_scan_memory_does_not_grow_with_number_of_images(tiny: Network, tmp_path: Path) -> None:
    def allocated_bytes() -> int:
        parts = [part for top_k in store._collector.top_k.values() for part in tree_leaves(vars(top_k))]
        return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor))

    store = Scan(tiny, pixels(40), one_per_image=False, cache=tmp_path)
    at_first = allocated_bytes()
    assert at_first == 22 * 16 * (4 + 8 + 8)  # channels, k, and bytes of a value, an image index and a position
    for _ in store.frames():
        assert allocated_bytes() == at_first
    assert len(store._image_cache) == 0


# -- errors -------------------------------------------------------------------------------------------------------------


def test_scan_top_of_unscanned_layer_raises_with_suggestion(tiny: Network, tmp_path: Path) -> None:
    store = Scan(tiny, pixels(2), layers=["conv1"], cache=tmp_path)
    with pytest.raises(ValueError, match=r"conv2.*conv1"):
        store.top("conv2")
    with pytest.raises(ValueError, match=r"conv9.*conv"):
        store.top("conv9")


def test_scan_top_of_relu_is_that_of_preceding_conv(tiny: Network, tmp_path: Path) -> None:
    store = complete_scan(Scan(tiny, pixels(), k=3, cache=tmp_path))
    assert store.scanned_layer("relu") == store.scanned_layer("conv1") == "conv1"
    assert np.array_equal(store.top("relu").rows, store.top("conv1").rows)


def test_scan_top_of_relu_after_sum_raises(tiny: Network, tmp_path: Path) -> None:
    store = Scan(tiny, pixels(2), cache=tmp_path)
    for layer in ("relu@2", "pool", "fc"):
        with pytest.raises(ValueError, match=layer):
            store.scanned_layer(layer)
        with pytest.raises(ValueError, match=layer):
            store.top(layer)


def test_scan_ensure_returns_open_scan_of_same_network_and_images(tiny: Network, tiny_module: nn.Module) -> None:
    store = Scan.ensure(tiny, pixels(5))
    assert Scan.ensure(tiny, pixels(5)) is store
    assert Scan.ensure(tiny, pixels(4)) is not store
    assert Scan.ensure(Network(tiny_module, transform=tiny.transform), pixels(5)) is not store


def module_without_spatial_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Unflatten(1, (2, 3)), nn.Flatten(1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": "conv9"}, "conv9"),
        ({"layers": ["0", "nope"]}, "nope"),
        ({"layers": "1"}, r"\b1\b"),
        ({"feature_layer": "nope"}, "nope"),
        ({"feature_layer": "1"}, r"\b1\b"),
        ({"k": 0}, r"\bk\b.*\b0\b"),
        ({"k": -3}, r"\bk\b.*-3\b"),
        ({"k": 2.5}, r"\bk\b.*2\.5"),
        ({"k": "3"}, r"\bk\b.*'3'"),
        ({"k": True}, r"\bk\b.*True"),
        ({"k": 10**6}, r"\bk\b.*1e\+06.*\b1\b.*10000"),
    ],
)
def test_scan_invalid_argument_raises_without_creating_folder(kwargs: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Scan(Network(module_without_spatial_layers(), size=16), pixels(2), cache=tmp_path, **kwargs)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_scan_without_convolutions_has_features(tmp_path: Path) -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 4)), size=16, channels=3)
    store = complete_scan(Scan(net, pixels(2), cache=tmp_path))
    assert store.layers == []
    assert np.allclose(store.features(), pixels(2).transpose(0, 3, 1, 2).reshape(2, -1) / 255)
    assert complete_scan(Scan(net, pixels(2), layers="1", cache=tmp_path)).top("1").values.shape == (4, 2)


def test_scan_ensure_rejects_scan_of_other_network(tiny: Network, tiny_module: nn.Module) -> None:
    store = Scan(tiny, pixels(2))
    assert Scan.ensure(tiny, store) is store
    assert Scan.ensure(tiny, pixels(2)).key == store.key
    with pytest.raises(ValueError, match="tiny"):
        Scan.ensure(Network(tiny_module, size=16), store)


def test_scan_technique_fills_scan_with_same_arguments(tiny: Network, tmp_path: Path) -> None:
    kwargs = {"layers": "conv2", "k": 3, "one_per_image": False, "feature_layer": "side", "cache": tmp_path}
    last = Run(scan(tiny, pixels(), **kwargs)).run()
    assert (last.step, last.done, dict(last.scalars)) == (10, True, {"images": 10, "skipped": 0})
    store = Scan(tiny, pixels(), **kwargs)
    assert store.complete
    assert_top_matches_reference(store, list(pixels()))
    resumed = Scan(tiny, pixels(seed=1), cache=tmp_path)
    resumed.step()
    assert Run(scan(tiny, resumed)).run().done
    assert resumed.complete


# -- changes while scanning --------------------------------------------------------------------------------------------


def change_weight(net: Network, way: str) -> None:
    """Change weights in one of the ways users do."""
    weight = net.module.conv2.weight
    if way == "in place":
        with torch.no_grad():
            weight[0, 0, 0, 0] += 1
    elif way == "data":
        weight.data.mul_(1.01)
    elif way == "shuffled":
        weight.data.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))
    elif way == "colors":
        first = net.module.conv1.weight
        first.data.copy_(first[:, [2, 1, 0]])
    elif way == "filters":
        weight.data.copy_(weight[[1, 0, *range(2, len(weight))]])
    else:
        net.module.load_state_dict({name: t * 2 for name, t in net.module.state_dict().items()})


@pytest.mark.parametrize("way", ["in place", "data", "state", "shuffled", "colors", "filters"])
def test_scan_raises_when_weights_change_and_discards_new_results(way: str, tiny: Network) -> None:
    store = Scan(tiny, pixels(), k=4)
    frames = store.frames()
    next(frames)
    frames.close()
    before = results(store)
    frames = store.frames()
    next(frames)
    change_weight(tiny, way)
    with pytest.raises(ValueError, match=r"(?i)weights.*tiny|tiny.*weights"):
        list(frames)
    assert results(store) == before, "results of the old weights are kept"
    fresh = complete_scan(Scan(tiny, pixels(), k=4))
    assert fresh.key != store.key
    assert_top_matches_reference(fresh, list(pixels()))


def test_scan_frames_raise_after_weights_change(tiny: Network) -> None:
    store = complete_scan(Scan(tiny, pixels()))
    change_weight(tiny, "data")
    with pytest.raises(ValueError, match=r"(?i)weights.*tiny|tiny.*weights"):
        list(store.frames())
    assert store.complete, "it keeps its results"


@pytest.mark.parametrize("when", [0, 1, 2])
def test_scan_recreates_folder_deleted_while_scanning(when: int, tiny: Network, tmp_path: Path) -> None:
    expected = results(complete_scan(Scan(tiny, pixels(), k=4, cache=tmp_path / "uninterrupted")))
    store = Scan(tiny, pixels(), k=4)
    frames = store.frames()
    for _ in range(when):
        next(frames)
    shutil.rmtree(store.folder)
    assert list(frames)[-1].done
    assert results(store) == expected
    assert results(Scan(tiny, pixels(), k=4)) == expected, "it is on disk again"


def test_scan_recomputes_results_deleted_after_completion(tiny: Network) -> None:
    store = complete_scan(Scan(tiny, pixels()))
    expected = results(store)
    shutil.rmtree(store.folder)
    assert list(store.frames())[-1].done
    assert results(store) == expected


def test_scan_image_of_missing_or_changed_file_is_gray(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "images", 6)
    store = complete_scan(Scan(tiny, folder))
    original = store.image(1)
    (folder / "1.png").unlink()
    assert np.array_equal(store.image(1), original), "it is cached"
    again = Scan(tiny, [folder / f"{i}.png" for i in range(6)])
    (folder / "2.png").unlink()
    Image.new("RGB", (30, 30), "red").save(folder / "3.png")
    for index in (2, 3):
        assert (again.image(index) == 128).all()
    assert "2.png" in again.missing[2]
    assert "3.png" in again.missing[3]
    assert set(again.missing) == {2, 3}
    assert not (again.image(4) == 128).all()


def test_scan_top_is_no_wider_than_available_activations(tiny: Network) -> None:
    assert Scan(tiny, pixels(5), k=10_000).top("conv1").values.shape == (6, 5)
    assert Scan(tiny, pixels(2), k=10_000, one_per_image=False).top("conv1").values.shape == (6, 2 * 8 * 8)


def test_scan_rereads_files_that_were_temporarily_missing(tiny: Network, tmp_path: Path) -> None:
    expected = results(complete_scan(Scan(tiny, written(tmp_path / "whole", 10), cache=tmp_path / "uninterrupted")))
    folder = written(tmp_path / "images", 10)
    store = Scan(tiny, folder)
    frames = store.frames()
    next(frames)
    folder.rename(tmp_path / "away")
    assert list(frames)[-1].scalars["skipped"] == 6
    assert "7.png" in store.skipped[7]
    (tmp_path / "away").rename(folder)
    again = Scan(tiny, folder)
    assert again.num_seen == BATCH
    assert results(complete_scan(again)) == expected


def test_scan_skips_file_that_changes_before_its_batch(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "images", 10)
    store = Scan(tiny, folder, k=10)
    frames = store.frames()
    next(frames)
    original = (folder / "7.png").read_bytes(), (folder / "7.png").stat().st_mtime_ns
    Image.new("RGB", (20, 20), "white").save(folder / "7.png")
    list(frames)
    assert list(store.skipped) == [7]
    assert 7 not in store.top("conv1").images
    (folder / "7.png").write_bytes(original[0])
    os.utime(folder / "7.png", ns=(original[1], original[1]))
    again = complete_scan(Scan(tiny, folder, k=10))
    assert not again.skipped
    assert_top_matches_reference(again, [Image.open(folder / f"{i}.png") for i in range(10)])


@pytest.mark.parametrize("name", ["features", "thumbnails", ""])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_scan_features_raise_when_result_files_are_incomplete(name: str, how: str, tiny: Network) -> None:
    store = complete_scan(Scan(tiny, pixels()))
    expected = results(store)
    path = store.folder / name
    if not name:
        shutil.rmtree(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileNotFoundError, match="(?i)deleted|missing"):
        store.features()
    assert list(store.frames())[-1].done
    assert results(store) == expected


def test_scan_with_older_state_does_not_overwrite_newer(tiny: Network) -> None:
    a, b = Scan(tiny, pixels()), Scan(tiny, pixels())
    frames = b.frames()
    next(frames)
    complete_scan(a)
    frames.close()
    assert Scan(tiny, pixels()).num_seen == 10


def test_scan_raises_on_full_disk_and_can_be_resumed(tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Scan(tiny, pixels())
    frames = store.frames()
    next(frames)

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_file.os, "open", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            list(frames)
        assert str(store.folder) in str(caught.value)
    assert results(complete_scan(store)) == results(complete_scan(Scan(tiny, pixels(), cache=tmp_path / "uninterrupted")))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": 5}, r"\b5\b"),
        ({"layers": None}, r"\bNone\b"),
        ({"feature_layer": 3}, r"\b3\b"),
        ({"workers": "two"}, r"workers.*'two'.*\b0\b.*256"),
        ({"workers": 1.5}, r"workers.*1\.5"),
        ({"workers": -1}, r"workers.*-1.*\b0\b.*256"),
        ({"one_per_image": "no"}, r"one_per_image.*'no'.*True.*False"),
    ],
)
def test_scan_argument_of_wrong_type_raises(kwargs: dict[str, Any], message: str, tiny: Network) -> None:
    with pytest.raises(ValueError, match=message):
        Scan(tiny, pixels(2), **kwargs)


def test_scan_accepts_scan_as_image_source(tiny: Network) -> None:
    store = complete_scan(Scan(tiny, pixels()))
    other = Scan(tiny, store, layers="conv1")
    assert other.images is store.images
    assert other.layers == ["conv1"]
