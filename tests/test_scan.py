from __future__ import annotations

import copy
import gc
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seen import written
from torch import nn
from torch.utils._pytree import tree_leaves

from convis_widgets.core import ImageSet, Network, Run, Scan, trace
from convis_widgets.core import examine as examine_file
from convis_widgets.core import scan as scan_file
from convis_widgets.core import store as store_file
from convis_widgets.core.trace import watch
from convis_widgets.techniques import scan

BATCH = 4
PATIENCE = 60
LAYERS = ("conv1", "conv2", "side")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Batches of 4 pictures, and no cache but the test's own."""
    monkeypatch.setattr(examine_file, "passes", lambda *_: BATCH)
    monkeypatch.setenv("CONVIS_CACHE", str(tmp_path / "default"))


def pixels(n: int = 10, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def finished(store: Scan) -> Scan:
    Run(store.frames()).run()
    return store


def found(store: Scan) -> dict[str, Any]:
    """All that a Scan has found, as bytes."""
    tops = {
        f"{name} {part}": getattr(store.top(name), part)
        for name in store.layers
        for part in ("values", "images", "rows", "cols")
    }
    rows = {"features": store.features(), "thumbnails": store.thumbnails(), "known": store.known}
    named = {name: getattr(store, name) for name in ("predictions", "probabilities", "labels")}
    return {"seen": store.seen, "skipped": store.skipped} | {
        name: (array.shape, array.tobytes()) for name, array in (tops | rows | named).items()
    }


def slow_top(net: Network, pictures: list[Any], layer: str, k: int, one_per_image: bool) -> list[list[tuple[Any, ...]]]:
    """The definition: every picture alone, every value kept; for each channel the first k of (-value, picture, row, col)."""
    everything: list[list[tuple[Any, ...]]] = [[] for _ in range(net.layers[layer].maps[0])]
    for i, picture in enumerate(pictures):
        if picture is None:
            continue
        with torch.no_grad(), trace(net, [layer]) as acts:
            net(net.batch(picture))
        for c, heat in enumerate(acts[layer][0].numpy()):
            ranked = sorted((-float(heat[y, x]), i, y, x) for y in range(heat.shape[0]) for x in range(heat.shape[1]))
            everything[c] += ranked[:1] if one_per_image else ranked
    return [sorted(ranked)[:k] for ranked in everything]


def assert_top_is_the_slow_twins(store: Scan, pictures: list[Any]) -> None:
    for layer in store.layers:
        top = store.top(layer)
        for c, ranked in enumerate(slow_top(store.net, pictures, layer, store.k, store.one_per_image)):
            n = len(ranked)
            assert np.allclose(top.values[c, :n], [-entry[0] for entry in ranked], atol=1e-5)
            places = zip(top.images[c, :n], top.rows[c, :n], top.cols[c, :n], strict=True)
            assert [*places] == [entry[1:] for entry in ranked]
            assert (top.values[c, n:] == -np.inf).all()
            assert (top.images[c, n:] == -1).all()


def assert_top_is_strong(store: Scan, pictures: list[Any]) -> None:
    """As above, where equal values, of duplicates or of one color, may have changed places."""
    for layer in store.layers:
        top = store.top(layer)
        whole = slow_top(store.net, pictures, layer, 10**9, store.one_per_image)
        for c, ranked in enumerate(whole):
            worth = {entry[1:]: -entry[0] for entry in ranked}
            places = [*zip(top.images[c].tolist(), top.rows[c].tolist(), top.cols[c].tolist(), strict=True)]
            assert len(set(places)) == store.k
            assert np.allclose(top.values[c], [worth[place] for place in places], atol=1e-5)
            assert np.allclose(top.values[c], [-entry[0] for entry in ranked[: store.k]], atol=1e-5)


def counted(net: Network, function: Callable[[], Any]) -> int:
    """How many forward passes a function makes."""
    passes: list[int] = []
    with watch(net.module, lambda *_: None, begun=lambda: passes.append(1)):
        function()
    return len(passes)


# -- what it finds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "one_per_image"), [(3, True), (3, False), (16, True), (70, False)])
def test_slow_twin_the_top_is_the_strongest_of_every_picture_looked_at_alone(
    k: int, one_per_image: bool, tiny: Network, tmp_path: Path
) -> None:
    array = pixels()
    store = finished(Scan(tiny, array, k=k, one_per_image=one_per_image, cache=tmp_path))
    assert store.layers == ["conv1", "conv2", "side"]
    assert_top_is_the_slow_twins(store, list(array))


def test_what_an_in_place_rectifier_makes_of_a_layer_is_not_taken_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.bias, -9.0)
    net = Network(nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    top = finished(Scan(net, pixels(5), cache=tmp_path)).top("0")
    assert (top.values[:, :5] < 0).all()
    assert top.dead.tolist() == [0, 1, 2, 3]


def test_dead_channels_are_those_that_are_nowhere_above_zero(tiny_module: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        for c, bias in ((1, -50.0), (4, 0.0)):
            tiny_module.conv1.weight[c], tiny_module.conv1.bias[c] = 0, bias
    top = finished(Scan(Network(tiny_module, size=16), pixels(), layers="conv1", cache=tmp_path)).top("conv1")
    expected = [c for c in range(6) if max(top.values[c]) <= 0]
    assert top.dead.tolist() == expected
    assert {1, 4} <= set(expected) != set(range(6))


def test_where_there_are_fewer_than_k_there_is_no_picture_and_no_place(tiny: Network, tmp_path: Path) -> None:
    top = finished(Scan(tiny, pixels(2), k=5, cache=tmp_path)).top("conv1")
    assert (top.values[:, 2:] == -np.inf).all()
    for part in (top.images, top.rows, top.cols):
        assert (part[:, 2:] == -1).all()
        assert (part[:, :2] >= 0).all()


def inputs_of(module: nn.Module, last: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, args: caught.append(args[0].clone()))
    with torch.no_grad():
        module(batch)
    hook.remove()
    return caught[-1]


def test_features_are_what_goes_into_the_last_layer(tiny: Network, tiny_module: nn.Module, tmp_path: Path) -> None:
    array = pixels()
    store = finished(Scan(tiny, array, cache=tmp_path))
    expected = inputs_of(tiny_module, tiny_module.fc, tiny.transform.normalize(tiny.batch(array)))
    assert store.features().shape == (10, 8)
    assert store.features().dtype == np.float32
    assert np.allclose(store.features(), expected, atol=1e-5)
    assert np.array_equal(store.features(np.array([7, 2])), store.features()[[7, 2]])


def ends_in_a_convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)
    )


class Everywhere(nn.Module):
    """A fully connected layer at every position, with the channels at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().permute(0, 2, 3, 1)).mean((1, 2))


class Tokens(Everywhere):
    """A fully connected layer at every token."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize(
    ("make", "name", "dims"),
    [(ends_in_a_convolution, "2", (2, 3)), (Everywhere, "fc", (1, 2)), (Tokens, "fc", (1,))],
)
def test_features_are_averaged_over_the_positions_of_the_last_layers_input(
    make: Callable[[], nn.Module], name: str, dims: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    array, module = pixels(), make()
    features = finished(Scan(Network(module, size=16), array, cache=tmp_path)).features()
    batch = torch.from_numpy(array).permute(0, 3, 1, 2) / 255
    expected = inputs_of(module, module.get_submodule(name), batch).mean(dims).numpy()
    assert features.shape == expected.shape == (10, 6)
    assert np.allclose(features, expected, atol=1e-5)


def test_features_may_be_what_a_named_layer_puts_out(tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    for layer, count in (("conv1", 6), ("fc", 4)):
        store = finished(Scan(tiny, array, features=layer, cache=tmp_path))
        with torch.no_grad(), trace(tiny, [layer]) as acts:
            tiny(tiny.batch(array))
        expected = acts[layer].flatten(2).mean(2) if acts[layer].ndim == 4 else acts[layer]
        assert store.features().shape == (10, count)
        assert np.allclose(store.features(), expected, atol=1e-5)


def test_other_pictures_can_be_looked_at_for_their_features_alone(tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    store = finished(Scan(tiny, array[:6], cache=tmp_path))
    before = found(store)
    everything = finished(Scan(tiny, array, cache=tmp_path)).features()
    assert np.allclose(store.look([tiny.image(picture) for picture in array[6:]]), everything[6:], atol=1e-5)
    assert found(store) == before


def test_predictions_and_probabilities_are_the_networks(tiny: Network, tmp_path: Path) -> None:
    array = pixels()
    store = finished(Scan(tiny, array, cache=tmp_path))
    for i in range(10):
        label, p = tiny.predict(array[i], k=1)[0]
        assert tiny.labels[store.predictions[i]] == label
        assert store.probabilities[i] == pytest.approx(p, abs=1e-5)


def test_labels_are_those_of_the_set_and_unknown_before_a_picture_was_looked_at(tiny: Network, tmp_path: Path) -> None:
    labels = [3, 1, -1, 0, 2, 2, 1, 0, 3, 3]
    store = Scan(tiny, ImageSet(pixels(), labels=labels), cache=tmp_path)
    store.advance()
    assert store.labels.tolist() == labels[:4] + [-1] * 6
    assert finished(store).labels.tolist() == labels
    pairs = [(picture, label) for picture, label in zip(pixels(), labels, strict=True)]
    assert finished(Scan(tiny, pairs, cache=tmp_path)).labels.tolist() == labels


def test_thumbnails_are_the_pictures_at_most_48_pixels_long_averaged(tiny: Network, tmp_path: Path) -> None:
    array = pixels(6)
    store = finished(Scan(tiny, array, cache=tmp_path))
    assert np.array_equal(store.thumbnails(), array)
    assert np.array_equal(store.thumbnails(np.array([5, 0])), array[[5, 0]])
    large = np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), dtype=np.uint8)
    net = Network(nn.Sequential(nn.Conv2d(3, 2, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=(96, 64))
    thumbnails = finished(Scan(net, large, cache=tmp_path)).thumbnails()
    assert thumbnails.shape == (3, 48, 32, 3)
    assert np.abs(thumbnails - large.reshape(3, 48, 2, 32, 2, 3).mean((2, 4))).max() <= 1


def test_a_picture_is_seen_as_the_network_does_and_read_once(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels(1, 40)[0]).save(tmp_path / "1.png")
    store = Scan(tiny, tmp_path, cache=tmp_path / "cache")
    seen = store.view(0)
    assert seen.dtype == np.uint8
    assert np.array_equal(seen, np.round(tiny.image(tmp_path / "1.png") * 255))
    monkeypatch.setattr(ImageSet, "view", lambda *_: pytest.fail("it was read again"))
    assert np.array_equal(store.view(0), seen)


def test_pictures_that_stay_in_memory_are_limited(tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_file, "KEPT", 3 * 16 * 16 * 3)
    array = pixels()
    store = Scan(tiny, array, cache=tmp_path)
    for i in (0, 1, 2, 0, 3, 4):
        assert np.array_equal(store.view(i), array[i])
    assert list(store._pictures) == [0, 3, 4]


def test_gray_networks_have_gray_pictures_and_thumbnails_in_three_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    array = pixels(6, 28)[..., 0]
    store = finished(Scan(net, array, k=3, cache=tmp_path))
    assert_top_is_the_slow_twins(store, list(array))
    assert np.array_equal(store.thumbnails(), np.repeat(array[..., None], 3, 3))
    assert store.features().shape == (6, 4 * 24 * 24)
    assert np.array_equal(store.view(2), array[2, :, :, None])


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_networks_of_other_channels_are_no_matter(channels: int, tmp_path: Path) -> None:
    net = Network(nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    array = pixels(6, channels=channels)
    store = finished(Scan(net, array, k=3, cache=tmp_path))
    assert_top_is_the_slow_twins(store, list(array))
    assert store.thumbnails().shape == (6, 16, 16, 3)


class ConvBlock(nn.Module):
    """Is no convolution, whatever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = Standardized(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).relu()).sigmoid()


class Standardized(nn.Conv2d):
    """Is a convolution, whatever it is called."""


def test_all_convolutions_are_scanned_and_nothing_else_unless_it_is_asked_for(tiny: Network, tmp_path: Path) -> None:
    net = Network(nn.Sequential(ConvBlock(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    assert Scan(net, pixels(2), cache=tmp_path).layers == ["0.inner", "0.outer"]
    everything = Scan(tiny, pixels(3), layers="all", k=2, cache=tmp_path)
    assert everything.layers == [layer.name for layer in tiny.layers if layer.maps]
    assert {"conv1", "relu", "relu@2", "pool", "fc"} <= set(everything.layers)
    assert_top_is_the_slow_twins(
        finished(Scan(tiny, pixels(3), layers=["relu@2", "pool", "relu@2"], k=2, cache=tmp_path)), list(pixels(3))
    )


def test_layers_that_put_out_several_things_are_scanned_too(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return self.conv(x).sigmoid(), 1

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(x)[0].mean((2, 3))

    net = Network(Whole(), size=16, channels=3)
    store = finished(Scan(net, pixels(5), layers="two", features="two", k=2, cache=tmp_path))
    assert_top_is_the_slow_twins(store, list(pixels(5)))
    assert store.features().shape == (5, 4)


# -- what cannot be read ------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good pictures of several sizes and modes, duplicates, and six that cannot be read."""
    root = tmp_path / "pictures"
    root.mkdir()
    picture = Image.fromarray(pixels(1, 40)[0])
    picture.save(root / "a.png")
    (root / "b corrupt.png").write_bytes((root / "a.png").read_bytes()[:300])
    (root / "c empty.jpg").touch()
    Image.fromarray(pixels(1, 1, seed=1)[0]).save(root / "d one pixel.png")
    (root / "e text.jpg").write_text("no picture")
    Image.fromarray(pixels(1, 700, seed=2)[0, :300]).save(root / "f large.jpg")
    picture.save(root / "g duplicate.png")
    Image.fromarray(pixels(1, 30, seed=3)[0, :, :, 0]).save(root / "h gray.png")
    for name in ("i text.gif", os.fsdecode(b"j caf\xe9.jpg"), "k text\u00e9.jpg"):
        (root / name).write_text("no picture")
    Image.fromarray(pixels(1, 20, 4, seed=4)[0]).save(root / "l transparent.png")
    picture.save(root / "m.png")
    return root


GOOD = [0, 3, 5, 6, 7, 11, 12]
BAD = [1, 2, 4, 8, 9, 10]


def test_files_that_cannot_be_read_are_counted_named_and_left_out(tiny: Network, mixed: Path, tmp_path: Path) -> None:
    store = Scan(tiny, mixed, k=20, one_per_image=False, cache=tmp_path / "cache")
    frames = list(store.frames())
    assert [frame.scalars for frame in frames] == [
        {"images": 4, "skipped": 2},
        {"images": 8, "skipped": 3},
        {"images": 12, "skipped": 6},
        {"images": 13, "skipped": 6},
    ]
    assert sorted(store.skipped) == BAD
    assert all(store.skipped[i].startswith(f"{store.images.names[i]}: ") for i in BAD)
    assert "6 could not be read" in repr(store)
    assert store.known.tolist() == GOOD
    files = sorted(mixed.iterdir())
    assert_top_is_strong(store, [file if i in GOOD else None for i, file in enumerate(files)])
    assert np.isnan(store.features()[BAD]).all()
    assert np.isfinite(store.features()[GOOD]).all()
    assert not store.thumbnails()[BAD].any()
    assert store.thumbnails()[GOOD].any((1, 2, 3)).all()
    assert store.predictions[BAD].tolist() == store.labels[BAD].tolist() == [-1] * 6
    assert np.isnan(store.probabilities[BAD]).all()
    assert np.isfinite(store.probabilities[GOOD]).all()
    again = Scan(tiny, mixed, k=20, one_per_image=False, cache=tmp_path / "cache")
    assert found(again) == found(store)


def test_a_duplicate_counts_as_a_picture_of_its_own(tiny: Network, mixed: Path, tmp_path: Path) -> None:
    store = finished(Scan(tiny, mixed, cache=tmp_path / "cache"))
    assert np.allclose(store.features()[0], store.features()[[6, 12]], atol=1e-6)
    assert np.array_equal(store.thumbnails()[0], store.thumbnails()[6])
    for channel in store.top("conv1").images:
        assert sorted(channel[channel >= 0]) == GOOD


@pytest.mark.parametrize("readable", [9, 4, 3])
def test_pictures_before_the_first_readable_one_have_no_features(readable: int, tiny: Network, tmp_path: Path) -> None:
    pictures = [np.full((16, 16, 3), np.nan)] * 10
    pictures[readable] = pixels(1)[0]
    store = finished(Scan(tiny, pictures, cache=tmp_path))
    assert store.known.tolist() == [readable]
    assert np.isfinite(store.features()[readable]).all()
    assert np.isnan(np.delete(store.features(), readable, 0)).all()
    assert np.array_equal(store.thumbnails()[readable], pictures[readable])
    assert not np.delete(store.thumbnails(), readable, 0).any()
    assert found(Scan(tiny, pictures, cache=tmp_path)) == found(store)


def test_where_nothing_can_be_read_one_error_says_so_and_why(tiny: Network, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_text("no picture")
    first = Scan(tiny, tmp_path, cache=tmp_path / "cache")
    for store in (first, first, Scan(tiny, tmp_path, cache=tmp_path / "cache")):
        run = Run(store.frames())
        with pytest.raises(
            ValueError, match=rf"no picture of {tmp_path.name} could be read; 0\.png: .* not a picture"
        ) as caught:
            run.run()
        assert "\n" not in str(caught.value)
        assert run.state == "failed"


class Diverging(nn.Module):
    """Gives NaN for a picture with a white corner."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.fc(self.conv(x).mean((2, 3)))
        return scores + torch.where(x[:, 0, :1, 0] > 0.999, torch.nan, 0.0)


def test_scores_that_are_not_finite_are_an_error_and_what_was_found_before_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    array = pixels() // 2
    array[6] = 255
    store = Scan(Network(Diverging(), size=16), array, cache=tmp_path)
    store.advance()
    before = found(store)
    for _ in range(2):
        with pytest.raises(ValueError, match="the scores of Diverging are not finite; its weights may have diverged"):
            store.advance()
        assert found(store) == before
    assert store.seen == BATCH
    with pytest.raises(ValueError, match="not finite"):
        finished(store)
    assert found(Scan(store.net, array, cache=tmp_path)) == before


# -- stopping and going on ----------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tiny: Network, mixed: Path, tmp_path: Path) -> dict[str, Any]:
    """What an uninterrupted scan finds of the pictures in `mixed`, some of which cannot be read."""
    return found(finished(Scan(tiny, mixed, k=5, cache=tmp_path / "uninterrupted")))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_saved_scan_goes_on_where_it_was_and_ends_the_same(
    steps: int, tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    first = Scan(tiny, mixed, k=5, cache=tmp_path)
    for _ in range(steps):
        first.advance()
    first.save()
    second = Scan(tiny, mixed, k=5, cache=tmp_path)
    assert second.folder == first.folder
    assert found(second) == found(first)
    assert (second.seen, second.complete) == (steps * BATCH, False)
    assert counted(tiny, lambda: finished(second)) == 4 - steps
    assert found(second) == whole


def test_a_copy_of_the_network_and_a_moved_folder_find_the_same_scan(
    tiny: Network, tiny_module: nn.Module, mixed: Path, tmp_path: Path
) -> None:
    before = found(finished(Scan(tiny, mixed, cache=tmp_path / "cache")))
    mixed.rename(tmp_path / "moved")
    other = Network(copy.deepcopy(tiny_module), transform=tiny.transform)
    assert found(Scan(other, tmp_path / "moved", cache=tmp_path / "cache")) == before


def test_a_complete_scan_opens_without_a_forward_pass_or_a_picture_read(
    tiny: Network, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found(finished(Scan(tiny, mixed, cache=tmp_path)))
    monkeypatch.setattr(ImageSet, "view", lambda *_: pytest.fail("a picture was read"))

    def open_it() -> None:
        store = Scan(tiny, mixed, cache=tmp_path)
        assert store.complete
        assert found(store) == before
        assert [(frame.step, frame.total, frame.done) for frame in store.frames()] == [(13, 13, True)]
        assert list(store.frames(more=3)) == []

    assert counted(tiny, open_it) == 0


def test_to_advance_when_all_was_looked_at_changes_nothing(tiny: Network, tmp_path: Path) -> None:
    for n in (8, 10):
        store = finished(Scan(tiny, pixels(n), cache=tmp_path))
        before = found(store)
        store.advance()
        assert found(store) == before


def test_frames_say_how_far_it_is(tiny: Network, tmp_path: Path) -> None:
    frames = list(Scan(tiny, pixels(), cache=tmp_path).frames())
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(4, 10, False), (8, 10, False), (10, 10, True)]
    frames = list(Scan(tiny, pixels(seed=1), cache=tmp_path).frames(more=5))
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(4, 15, False), (8, 15, False), (10, 15, False)]


def test_a_stopped_run_can_be_followed_by_another_over_the_same_scan(
    tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    store = Scan(tiny, mixed, k=5, cache=tmp_path)
    first = Run(store.frames())
    first.subscribe(lambda run: run.stop() if run.last and run.last.step == 8 else None)
    first.run()
    assert (first.state, store.seen) == ("stopped", 8)
    second = Run(store.frames())
    assert second.run().done
    assert second.state == "done"
    assert found(store) == whole


def test_a_stopped_scan_is_found_again_with_all_that_it_had_looked_at(
    tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(scan(tiny, mixed, k=5, cache=tmp_path))
    run.subscribe(lambda run: run.stop() if run.last and run.last.step == 8 else None)
    run.run()
    store = Scan(tiny, mixed, k=5, cache=tmp_path)
    assert store.seen == 8
    assert found(finished(store)) == whole


class Bell(nn.Module):
    """Rings in the middle of a forward pass."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self.ring = ring

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ring()
        return x + 0


@pytest.mark.parametrize("one_per_image", [True, False])
def test_stopped_in_the_middle_of_a_forward_pass_it_counts_no_picture_twice(one_per_image: bool, tmp_path: Path) -> None:
    def ring() -> None:
        if runs and store.seen == stop_at:
            runs.pop().stop()

    runs: list[Run] = []
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), Bell(ring), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net, array = Network(nn.Sequential(*parts), size=16), pixels()
    words = {"k": 12, "one_per_image": one_per_image}
    whole = found(finished(Scan(net, array, cache=tmp_path / "uninterrupted", **words)))
    for stop_at in (0, 4, 8):
        store = Scan(net, array, cache=tmp_path / str(stop_at), **words)
        run = Run(store.frames())
        runs.append(run)
        run.run()
        assert (run.state, store.seen) == ("stopped", stop_at)
        assert found(finished(store)) == whole


def test_stopped_and_begun_again_before_the_first_has_ended_it_counts_no_picture_twice(
    tiny: Network, tmp_path: Path
) -> None:
    class Slow(list):  # the first reading lasts until a second Run has had time to begin
        def __getitem__(self, i: Any) -> Any:
            if waits:
                waits.pop()
                second.start()
                second.join(0.2)
            return super().__getitem__(i)

    array = pixels()
    whole = found(finished(Scan(tiny, array, cache=tmp_path / "uninterrupted")))
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
    assert found(store) == whole


# -- killed, and two at once --------------------------------------------------------------------------------------------


def small() -> Network:
    torch.manual_seed(0)
    return Network(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), size=16
    )


def scanned_until_killed(cache: str) -> None:
    """In a process of its own: saves after every batch, says when it reads picture 10, and waits there for its end."""
    examine_file.passes, scan_file.SAVED = lambda *_: BATCH, 0
    view = ImageSet.view

    def view_and_wait(self: ImageSet, index: int, transform: Any) -> Any:
        if index == 10:
            print("in the third batch", flush=True)
            sys.stdin.read()
        return view(self, index, transform)

    ImageSet.view = view_and_wait
    finished(Scan(small(), pixels(14), cache=cache))


def test_a_killed_scan_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_scan; "
    code += f"test_scan.scanned_until_killed({str(tmp_path)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        try:
            assert process.stdout.readline() == "in the third batch\n"
        finally:
            process.kill()
    assert process.returncode != 0
    net = small()
    store = Scan(net, pixels(14), cache=tmp_path)
    assert store.seen == 8
    assert counted(net, lambda: finished(store)) == 2
    assert found(store) == found(finished(Scan(net, pixels(14), cache=tmp_path / "uninterrupted")))


def test_two_scans_of_the_same_in_turn_end_the_same(
    tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_file, "SAVED", 0)
    a, b = (Scan(tiny, mixed, k=5, cache=tmp_path) for _ in range(2))
    assert a.folder == b.folder
    for store in (a, b, a, a, b, a, b, b):
        store.advance()
        opened = Scan(tiny, mixed, k=5, cache=tmp_path)
        assert opened.seen == max(a.seen, b.seen), "who has seen less does not undo what the other has done"
        assert np.array_equal(opened.features()[: store.seen], store.features(), equal_nan=True)
    assert found(a) == found(b) == found(Scan(tiny, mixed, k=5, cache=tmp_path)) == whole


def test_two_scans_of_the_same_in_two_threads_end_the_same(
    tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_file, "SAVED", 0)
    stores = [Scan(tiny, mixed, k=5, cache=tmp_path) for _ in range(2)]
    together = threading.Barrier(2)

    def frames(store: Scan) -> Iterator[Any]:
        for frame in store.frames():
            together.wait(PATIENCE)
            yield frame

    runs = [Run(frames(store)).start() for store in stores]
    assert all(run.join(PATIENCE) for run in runs)
    assert [run.error for run in runs] == [None, None]
    assert found(stores[0]) == found(stores[1]) == found(Scan(tiny, mixed, k=5, cache=tmp_path)) == whole


def test_a_save_that_fails_in_the_middle_leaves_the_one_before(
    tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Scan(tiny, mixed, k=5, cache=tmp_path)
    store.advance()
    store.save()
    store.advance()

    def full(file: Any, **_arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_file.np, "savez", full)
        with pytest.raises(OSError, match="no space left"):
            store.save()
    later = Scan(tiny, mixed, k=5, cache=tmp_path)
    assert later.seen == BATCH
    assert sorted(path.name for path in store.folder.iterdir()) == ["features", "state.npz", "thumbnails"]
    assert found(finished(later)) == whole


# -- what makes it another scan -----------------------------------------------------------------------------------------


def test_another_weight_statistic_or_preprocessing_is_another_scan(tiny_module: nn.Module, tmp_path: Path) -> None:
    def key(module: nn.Module = tiny_module, **words: Any) -> str:
        return Scan(Network(module, **{"size": 16, **words}), pixels(3), cache=tmp_path).key

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


class Leaky(nn.Module):
    """What it computes is not only in its weights."""

    def __init__(self, slope: float, pool: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.slope, self.pool = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), slope, pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(nn.functional.leaky_relu(self.conv(x), self.slope), (2, 3)))


def test_the_same_weights_in_another_forward_pass_are_another_scan(tmp_path: Path) -> None:
    def key(slope: float, pool: Callable[..., torch.Tensor]) -> str:
        torch.manual_seed(0)
        return Scan(Network(Leaky(slope, pool), size=16), pixels(3), cache=tmp_path).key

    assert len({key(0.1, torch.mean), key(0.2, torch.mean), key(0.1, torch.amax)}) == 3
    assert key(0.1, torch.mean) == key(0.1, torch.mean)


def test_other_pictures_labels_or_words_are_another_scan(tiny: Network, tmp_path: Path) -> None:
    array = pixels(5)
    changed = array.copy()
    changed[3, 4, 5, 0] ^= 1
    plain = Scan(tiny, array, cache=tmp_path)
    finished(plain)
    others = [
        Scan(tiny, changed, cache=tmp_path),
        Scan(tiny, array[:4], cache=tmp_path),
        Scan(tiny, array[::-1], cache=tmp_path),
        Scan(tiny, ImageSet(array, labels=[0] * 5), cache=tmp_path),
        Scan(tiny, array, k=15, cache=tmp_path),
        Scan(tiny, array, one_per_image=False, cache=tmp_path),
        Scan(tiny, array, layers="conv1", cache=tmp_path),
        Scan(tiny, array, features="conv2", cache=tmp_path),
    ]
    assert len({store.key for store in [plain, *others]}) == len(others) + 1
    assert [store.seen for store in others] == [0] * len(others)
    assert found(Scan(tiny, array.copy(), cache=tmp_path)) == found(plain)


def test_a_changed_file_starts_anew(tiny: Network, mixed: Path, tmp_path: Path) -> None:
    finished(Scan(tiny, mixed, cache=tmp_path))
    Image.fromarray(pixels(1, 40, seed=9)[0]).save(mixed / "e text.jpg")
    store = Scan(tiny, mixed, cache=tmp_path)
    assert store.seen == 0
    assert sorted(finished(store).skipped) == [i for i in BAD if i != 4]


# -- damaged results ----------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 99)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[("state.npz", damage) for damage in (cut, empty, garbage, flipped, Path.unlink)],
        *[(name, damage) for name in ("features", "thumbnails") for damage in (cut, empty, Path.unlink)],
    ],
)
def test_damaged_results_are_computed_again(
    name: str, damage: Callable[[Path], None], tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    damage(finished(Scan(tiny, mixed, k=5, cache=tmp_path)).folder / name)
    store = Scan(tiny, mixed, k=5, cache=tmp_path)
    assert store.seen == 0
    assert store.skipped == {}
    assert found(finished(store)) == whole
    assert found(Scan(tiny, mixed, k=5, cache=tmp_path)) == whole


def test_what_a_damaged_file_left_is_not_taken_for_features(tiny: Network, tmp_path: Path) -> None:
    pictures = [np.full((16, 16, 3), np.nan)] * 5 + list(pixels(3))
    store = finished(Scan(tiny, pictures, cache=tmp_path))
    empty(store.folder / "features")
    again = finished(Scan(tiny, pictures, cache=tmp_path))
    assert np.isnan(again.features()[:5]).all()
    assert found(again) == found(store)


def test_results_of_another_format_are_computed_again(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finished(Scan(tiny, pixels(5), cache=tmp_path))
    monkeypatch.setattr(scan_file, "FORMAT", 0)
    store.save()
    monkeypatch.undo()
    assert Scan(tiny, pixels(5), cache=tmp_path).seen == 0


# -- where results are --------------------------------------------------------------------------------------------------


def test_results_are_in_the_given_folder_or_in_that_of_the_environment(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Scan(tiny, pixels(2), cache=str(tmp_path / "given"))
    assert given.kept
    assert given.folder.is_relative_to(tmp_path / "given")
    assert Scan(tiny, pixels(2)).folder.is_relative_to(tmp_path / "default")
    monkeypatch.delenv("CONVIS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Scan(tiny, pixels(2)).folder.is_relative_to(tmp_path / "xdg" / "convis_widgets")


def test_where_nothing_can_be_written_results_last_as_long_as_the_scan(
    tiny: Network, mixed: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    store = finished(Scan(tiny, mixed, k=5, cache=tmp_path / "file" / "below"))
    assert not store.kept
    assert found(store) == whole
    folder = store.folder
    assert (folder / "features").exists()
    assert not folder.is_relative_to(tmp_path / "file")
    del store
    gc.collect()
    assert not folder.exists()


def test_memory_does_not_grow_with_the_number_of_pictures(tiny: Network, tmp_path: Path) -> None:
    def held() -> int:
        parts = [part for strongest in store._examiner.tops.values() for part in tree_leaves(vars(strongest))]
        return sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, torch.Tensor))

    store = Scan(tiny, pixels(40), one_per_image=False, cache=tmp_path)
    at_first = held()
    assert at_first == 22 * 16 * (4 + 8 + 8)  # channels, k, and a value, a picture and a position
    for _ in store.frames():
        assert held() == at_first
    assert len(store._pictures) == 0


# -- errors -------------------------------------------------------------------------------------------------------------


def test_a_layer_that_was_not_scanned_or_is_none_is_told_with_near_ones(tiny: Network, tmp_path: Path) -> None:
    store = Scan(tiny, pixels(2), layers=["conv1"], cache=tmp_path)
    with pytest.raises(ValueError, match="conv2 was not scanned; nearest: conv1"):
        store.top("conv2")
    with pytest.raises(ValueError, match="no layer 'conv9'; nearest: conv"):
        store.top("conv9")


def test_a_rectifier_has_the_top_of_the_layer_that_it_rectifies(tiny: Network, tmp_path: Path) -> None:
    store = finished(Scan(tiny, pixels(), k=3, cache=tmp_path))
    assert store.home("relu") == store.home("conv1") == "conv1"
    assert np.array_equal(store.top("relu").rows, store.top("conv1").rows)


def test_a_rectifier_of_a_sum_has_not_the_top_of_one_of_its_terms(tiny: Network, tmp_path: Path) -> None:
    store = Scan(tiny, pixels(2), cache=tmp_path)
    for layer in ("relu@2", "pool", "fc"):
        with pytest.raises(ValueError, match=f"{layer} was not scanned"):
            store.home(layer)
        with pytest.raises(ValueError, match=f"{layer} was not scanned"):
            store.top(layer)


def test_whoever_asks_for_the_same_scan_while_it_is_open_gets_the_same_one(tiny: Network, tiny_module: nn.Module) -> None:
    store = Scan.ensure(tiny, pixels(5))
    assert Scan.ensure(tiny, pixels(5)) is store
    assert Scan.ensure(tiny, pixels(4)) is not store
    assert Scan.ensure(Network(tiny_module, transform=tiny.transform), pixels(5)) is not store


def without_maps() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Unflatten(1, (2, 3)), nn.Flatten(1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"layers": "conv9"}, "no layer 'conv9'; "),
        ({"layers": ["0", "nope"]}, "no layer 'nope'"),
        ({"layers": "1"}, "1 has no maps; choose another layer"),
        ({"features": "nope"}, "no layer 'nope'"),
        ({"features": "1"}, "choose another layer"),
        ({"k": 0}, "k"),
        ({"k": -3}, "k"),
        ({"k": 2.5}, "k=2.5 should be a whole number"),
        ({"k": "3"}, "k='3' should be a whole number"),
        ({"k": True}, "k=True should be a whole number"),
        ({"k": 10**6}, r"k=1e\+06 is outside 1 to 10000"),
    ],
)
def test_a_wrong_word_is_an_error_at_once_and_leaves_no_folder(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Scan(Network(without_maps(), size=16), pixels(2), cache=tmp_path, **words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_of_a_network_without_convolutions_there_are_features(tmp_path: Path) -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 4)), size=16, channels=3)
    store = finished(Scan(net, pixels(2), cache=tmp_path))
    assert store.layers == []
    assert np.allclose(store.features(), pixels(2).transpose(0, 3, 1, 2).reshape(2, -1) / 255)
    assert finished(Scan(net, pixels(2), layers="1", cache=tmp_path)).top("1").values.shape == (4, 2)


def test_a_scan_stands_for_its_pictures_with_its_own_network_only(tiny: Network, tiny_module: nn.Module) -> None:
    store = Scan(tiny, pixels(2))
    assert Scan.ensure(tiny, store) is store
    assert Scan.ensure(tiny, pixels(2)).key == store.key
    with pytest.raises(ValueError, match="were scanned by tiny, not by this network"):
        Scan.ensure(Network(tiny_module, size=16), store)


def test_the_technique_makes_the_scan_that_the_same_words_open(tiny: Network, tmp_path: Path) -> None:
    words = {"layers": "conv2", "k": 3, "one_per_image": False, "features": "side", "cache": tmp_path}
    last = Run(scan(tiny, pixels(), **words)).run()
    assert (last.step, last.done, dict(last.scalars)) == (10, True, {"images": 10, "skipped": 0})
    store = Scan(tiny, pixels(), **words)
    assert store.complete
    assert_top_is_the_slow_twins(store, list(pixels()))
    going_on = Scan(tiny, pixels(seed=1), cache=tmp_path)
    going_on.advance()
    assert Run(scan(tiny, going_on)).run().done
    assert going_on.complete


# -- what changes under its hands ----------------------------------------------------------------------------------------


def nudged(net: Network, way: str) -> None:
    """Change a weight, the ways that users do."""
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
def test_weights_that_change_in_the_middle_end_it_and_nothing_of_it_is_kept(way: str, tiny: Network) -> None:
    store = Scan(tiny, pixels(), k=4)
    frames = store.frames()
    next(frames)
    frames.close()
    before = found(store)
    frames = store.frames()
    next(frames)
    nudged(tiny, way)
    with pytest.raises(ValueError, match="the weights of tiny have changed since this scan was made; make a new one"):
        list(frames)
    assert found(store) == before, "what the old weights gave is kept"
    fresh = finished(Scan(tiny, pixels(), k=4))
    assert fresh.key != store.key
    assert_top_is_the_slow_twins(fresh, list(pixels()))


def test_a_scan_of_other_weights_is_used_by_no_technique(tiny: Network) -> None:
    store = finished(Scan(tiny, pixels()))
    nudged(tiny, "data")
    with pytest.raises(ValueError, match="the weights of tiny have changed"):
        list(store.frames())
    assert store.complete, "and it still has what it found"


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_folder_deleted_in_the_middle_is_made_again(when: int, tiny: Network, tmp_path: Path) -> None:
    expected = found(finished(Scan(tiny, pixels(), k=4, cache=tmp_path / "apart")))
    store = Scan(tiny, pixels(), k=4)
    frames = store.frames()
    for _ in range(when):
        next(frames)
    shutil.rmtree(store.folder)
    assert list(frames)[-1].done
    assert found(store) == expected
    assert found(Scan(tiny, pixels(), k=4)) == expected, "and is on disk again"


def test_results_deleted_after_the_scan_are_found_again(tiny: Network) -> None:
    store = finished(Scan(tiny, pixels()))
    expected = found(store)
    shutil.rmtree(store.folder)
    assert list(store.frames())[-1].done
    assert found(store) == expected


def test_a_file_that_is_gone_or_changed_is_gray_and_named(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "pictures", 6)
    store = finished(Scan(tiny, folder))
    as_it_was = store.view(1)
    (folder / "1.png").unlink()
    assert np.array_equal(store.view(1), as_it_was), "it is still known"
    again = Scan(tiny, [folder / f"{i}.png" for i in range(6)])
    (folder / "2.png").unlink()
    Image.new("RGB", (30, 30), "red").save(folder / "3.png")
    for index in (2, 3):
        assert (again.view(index) == 128).all()
    assert "2.png does not exist" in again.lost[2]
    assert "3.png has changed since it was looked at" in again.lost[3]
    assert set(again.lost) == {2, 3}
    assert not (again.view(4) == 128).all()


def test_no_more_is_reserved_than_there_can_be(tiny: Network) -> None:
    assert Scan(tiny, pixels(5), k=10_000).top("conv1").values.shape == (6, 5)
    assert Scan(tiny, pixels(2), k=10_000, one_per_image=False).top("conv1").values.shape == (6, 2 * 8 * 8)


def test_files_that_are_away_for_a_while_are_looked_at_again(tiny: Network, tmp_path: Path) -> None:
    expected = found(finished(Scan(tiny, written(tmp_path / "whole", 10), cache=tmp_path / "apart")))
    folder = written(tmp_path / "pictures", 10)
    store = Scan(tiny, folder)
    frames = store.frames()
    next(frames)
    folder.rename(tmp_path / "away")
    assert list(frames)[-1].scalars["skipped"] == 6
    assert "has changed since the scan was begun" in store.skipped[7]
    (tmp_path / "away").rename(folder)
    again = Scan(tiny, folder)
    assert again.seen == BATCH
    assert found(finished(again)) == expected


def test_a_file_that_changes_before_its_turn_is_not_taken_for_the_old_one(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "pictures", 10)
    store = Scan(tiny, folder, k=10)
    frames = store.frames()
    next(frames)
    kept = (folder / "7.png").read_bytes(), (folder / "7.png").stat().st_mtime_ns
    Image.new("RGB", (20, 20), "white").save(folder / "7.png")
    list(frames)
    assert list(store.skipped) == [7]
    assert 7 not in store.top("conv1").images
    (folder / "7.png").write_bytes(kept[0])
    os.utime(folder / "7.png", ns=(kept[1], kept[1]))
    again = finished(Scan(tiny, folder, k=10))
    assert not again.skipped
    assert_top_is_the_slow_twins(again, [Image.open(folder / f"{i}.png") for i in range(10)])


@pytest.mark.parametrize("name", ["features", "thumbnails", ""])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_part_of_the_results_is_no_result(name: str, how: str, tiny: Network) -> None:
    store = finished(Scan(tiny, pixels()))
    expected = found(store)
    path = store.folder / name
    if not name:
        shutil.rmtree(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileNotFoundError, match="were deleted; scan once more"):
        store.features()
    assert list(store.frames())[-1].done
    assert found(store) == expected


def test_who_has_seen_less_does_not_undo_what_another_has_done(tiny: Network) -> None:
    a, b = Scan(tiny, pixels()), Scan(tiny, pixels())
    frames = b.frames()
    next(frames)
    finished(a)
    frames.close()
    assert Scan(tiny, pixels()).seen == 10


def test_a_full_disk_is_told_and_it_goes_on_when_there_is_room(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Scan(tiny, pixels())
    frames = store.frames()
    next(frames)

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_file.os, "open", full)
        with pytest.raises(OSError, match=r"results cannot be written to .* \(No space left on device\); make room there"):
            list(frames)
    assert found(finished(store)) == found(finished(Scan(tiny, pixels(), cache=tmp_path / "apart")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"layers": 5}, "5 names no layers; give a name or a list of names"),
        ({"layers": None}, "None names no layers"),
        ({"features": 3}, "3 names no layers"),
        ({"workers": "two"}, "workers='two' should be a whole number from 0 to 256"),
        ({"workers": 1.5}, "workers=1.5 should be a whole number"),
        ({"workers": -1}, "workers=-1 is outside 0 to 256"),
        ({"one_per_image": "no"}, "one_per_image='no' should be True or False"),
    ],
)
def test_words_of_the_wrong_kind_are_told(words: dict[str, Any], message: str, tiny: Network) -> None:
    with pytest.raises(ValueError, match=message):
        Scan(tiny, pixels(2), **words)


def test_a_scan_of_a_scan_is_one_of_its_pictures(tiny: Network) -> None:
    store = finished(Scan(tiny, pixels()))
    other = Scan(tiny, store, layers="conv1")
    assert other.images is store.images
    assert other.layers == ["conv1"]
