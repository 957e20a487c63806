"""Pretrained networks on real images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_photos import METHODS, Shares, shares
from torch import nn

from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.embedding import embedding
from convis_widgets.techniques.dataset.neighbors import neighbors

NETWORKS = ["squeezenet", "mobilenet", "tiny_darknet"]
NAMES = {"squeezenet": "squeezenet1_1", "mobilenet": "mobilenet_v2", "tiny_darknet": "tiny_darknet"}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, real: Path) -> tuple[str, Network]:
    return NAMES[request.param], request.getfixturevalue(request.param)


def test_predict_top5_matches_reference(network: tuple[str, Network], real: Path) -> None:
    name, net = network
    for photo, expected in json.loads((real / "photos" / "reference_top5.json").read_text()).items():
        found = net.predict(real / "photos" / photo)
        wanted = [(net.labels[i], p) for i, _, p in expected[name]]
        assert [label for label, _ in found] == [label for label, _ in wanted], photo
        assert np.allclose([p for _, p in found], [p for _, p in wanted], atol=2e-4), photo


def heat_shares(
    method: str, network: tuple[str, Network], real: Path, capsys: Any, count: int | None = None
) -> list[Shares]:
    """Fraction of heat on each object, for the first `count` images with two objects or for all; also printed."""
    name, net = network
    rows = list(shares(net, real / "photos", METHODS[method], count))
    assert len(rows) >= 2 * (count or 4)
    with capsys.disabled():
        for row in rows:
            about = f"{name:14} {method:20} {row.photo:22} {row.thing:9}"
            print(f"\n{about} share in its own box {row.own:.3f}, of the other class {row.other:.3f}", end="")
    return rows


def difference(rows: list[Shares]) -> float:
    return float(np.mean([row.own - row.other for row in rows]))


@pytest.mark.parametrize(("method", "count"), [("saliency", None), ("grad_cam", None), ("integrated_gradients", 2)])
def test_attribution_of_class_lies_on_its_object(
    network: tuple[str, Network], real: Path, method: str, count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(row.right for row in heat_shares(method, network, real, capsys, count))


def test_occlusion_of_class_lies_on_its_object_with_one_exception(
    network: tuple[str, Network], real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # exception: the box of an elephant overlaps the head of the zebra in front of it, where SqueezeNet finds the zebra
    rows = heat_shares("occlusion", network, real, capsys)
    assert sum(not row.right for row in rows) <= 1
    assert difference(rows) > 0.2


def test_smooth_grad_of_class_lies_on_its_object_on_average(
    network: tuple[str, Network], real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # not on every object: SqueezeNet scores the noisy copies of the dog and the cat almost equally for both classes
    assert difference(heat_shares("smooth_grad", network, real, capsys, 2)) > 0.03


@pytest.mark.parametrize("name", ["squeezenet", "mobilenet"])
def test_deconvnet_ignores_class_and_guided_backprop_does_not(
    name: str, real: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nie et al. (2018, arXiv:1805.07039): both rules recover the image rather than explain a class. The deconvnet ignores
    # which ReLUs were active in the forward pass; for a class score averaged over all positions it propagates equally
    # from all of them. Guided backpropagation uses the active ReLUs and separates the classes here about as well as the
    # gradient; this is not true in general, so the threshold is low.
    network = NAMES[name], request.getfixturevalue(name)
    rows = heat_shares("deconvnet", network, real, capsys)
    assert all(0 < row.own < 1 and abs(row.own - row.other) < 0.02 for row in rows)
    assert difference(heat_shares("guided_backprop", network, real, capsys)) > 0.03


def test_backward_rules_reject_leaky_relu(tiny_darknet: Network, real: Path) -> None:
    for method in ("guided_backprop", "deconvnet"):
        with pytest.raises(ValueError, match="LeakyReLU"):
            next(shares(tiny_darknet, real / "photos", METHODS[method]))


def test_widgets_on_pretrained_network(squeezenet: Network, real: Path) -> None:
    from convis_widgets import ActivationExplorer, FilterGrid, SaliencyViewer

    photo = real / "photos" / "dog_cat.jpg"
    grid = FilterGrid(squeezenet)
    assert len(grid.mosaic) == 64
    explorer = ActivationExplorer(squeezenet, photo, layer="features.3")
    assert explorer.maps.shape == (128, 55, 55)
    assert "bull mastiff" in explorer.top5.value
    viewer = SaliencyViewer(squeezenet, photo, target="tiger cat")
    assert viewer.frame.heat.shape == (224, 224)
    assert len(viewer.controls["target"].box.options) == 1001


# -- datasets -------------------------------------------------------------------------------------------------------------


def test_scan_of_imagenet_reaches_published_accuracy(squeezenet: Network, real: Path, tmp_path: Path) -> None:
    with (real / "imagenet_sample" / "labels.csv").open() as file:
        truth = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    store = Scan(squeezenet, real / "imagenet_sample", cache=tmp_path)
    Run(store.frames()).run()
    assert store.complete
    assert not store.skipped
    expected = np.array([truth[name] for name in store.images.names])
    assert len(expected) == 750
    assert (store.predictions == expected).mean() == pytest.approx(0.637, abs=0.01)
    for layer, channel in (("features.0", 3), ("features.10.expand3x3", 17)):
        top = store.top(layer)
        image, row, col = (int(part[channel, 0]) for part in (top.images, top.rows, top.cols))
        with torch.no_grad(), trace(squeezenet, [layer], stop=True) as acts:
            squeezenet(squeezenet.batch(store.images[image]))
        values = acts[layer][0, channel]
        assert divmod(int(values.argmax()), values.shape[1]) == (row, col)
        assert float(values.max()) == pytest.approx(float(top.values[channel, 0]), rel=1e-4)


def test_neighbors_agree_more_in_features_than_in_pixels(squeezenet: Network, real: Path, tmp_path: Path) -> None:
    images = ImageSet(real / "cifar10_subset.npz", array="x_test")
    chosen = ImageSet([images[i] for i in range(0, 1000, 2)], labels=[images.label(i) for i in range(0, 1000, 2)])
    store = Scan(squeezenet, chosen, layers=["features.12"], cache=tmp_path)
    found = Run(neighbors(squeezenet, store, range(500))).run().scalars
    print(f"CIFAR-10: {found['pixels agreement']:.1%} in pixels, {found['features agreement']:.1%} in features")
    assert found["features agreement"] > 1.6 * found["pixels agreement"]
    assert found["features agreement"] > 0.3


def test_embedding_of_pixels_separates_mnist(real: Path, tmp_path: Path) -> None:
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    stored = np.load(real / "mnist_subset.npz")
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    store = Scan(net, ImageSet(stored["x"][:5000]), cache=tmp_path)
    points = Run(embedding(net, store, space="pixels")).run().arrays["points"]
    right = cross_val_score(KNeighborsClassifier(5), points, stored["y"][:5000], cv=5).mean()
    print(f"MNIST: {right:.1%} right by the five nearest in the map")
    assert right > 0.9
