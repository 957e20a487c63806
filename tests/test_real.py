"""Real pretrained networks on real photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convis_widgets.core import Network, Run
from convis_widgets.core.images import open_photo
from convis_widgets.techniques import occlusion, saliency

NETWORKS = ["squeezenet", "mobilenet", "tiny_darknet"]
NAMES = {"squeezenet": "squeezenet1_1", "mobilenet": "mobilenet_v2", "tiny_darknet": "tiny_darknet"}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, real: Path) -> tuple[str, Network]:
    return NAMES[request.param], request.getfixturevalue(request.param)


def test_top_5_of_every_photo_as_measured_elsewhere(network: tuple[str, Network], real: Path) -> None:
    name, net = network
    for photo, expected in json.loads((real / "photos" / "reference_top5.json").read_text()).items():
        found = net.predict(real / "photos" / photo)
        wanted = [(net.labels[i], p) for i, _, p in expected[name]]
        assert [label for label, _ in found] == [label for label, _ in wanted], photo
        assert np.allclose([p for _, p in found], [p for _, p in wanted], atol=2e-4), photo


def two_objects(labels: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Photos with two objects, as (file, [{ids, box}, {ids, box}])."""
    return [(photo, list(about["boxes"].values())) for photo, about in labels.items() if len(about["boxes"]) == 2]


def share_inside(heat: np.ndarray, net: Network, photo: Path, box: list[float]) -> float:
    """The share of a map's positive heat inside a box given in the coordinates of the whole photo."""
    width, height = open_photo(photo).size
    left, top, right, bottom = net.transform.crop_box(width, height)
    h, w = heat.shape
    x0, x1 = ((box[i] * width - left) / (right - left) * w for i in (0, 2))
    y0, y1 = ((box[i] * height - top) / (bottom - top) * h for i in (1, 3))
    rows, cols = np.clip([y0, y1], 0, h).round().astype(int), np.clip([x0, x1], 0, w).round().astype(int)
    positive = np.clip(heat, 0, None)
    return float(positive[rows[0] : rows[1], cols[0] : cols[1]].sum() / positive.sum())


def seen_class(net: Network, photo: Path, ids: list[int]) -> int:
    """The most probable of the classes that mean an object."""
    p = dict(net.predict(photo, k=1000))
    return max(ids, key=lambda i: p[net.labels[i]])


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_with_two_objects_each_class_has_its_heat_on_its_own(
    network: tuple[str, Network], real: Path, photo_labels: dict[str, Any], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, net = network
    rows = []
    photos = two_objects(photo_labels)
    assert len(photos) >= 4
    for file, objects in photos if method == "gradient" else photos[:2]:
        photo = real / "photos" / file
        heats = []
        for thing in objects:
            target = seen_class(net, photo, thing["ids"])
            if method == "gradient":
                frames = saliency(net, photo, target=target)
            else:
                frames = occlusion(net, photo, target=target, patch=64, stride=20)
            heats.append(Run(frames).run().heat)
        for mine, other, thing in ((0, 1, objects[0]), (1, 0, objects[1])):
            box = thing["box_xyxy_norm"]
            rows.append((file, *(round(share_inside(heats[i], net, photo, box), 3) for i in (mine, other))))
    with capsys.disabled():
        for file, a, b in rows:
            print(f"\n{name:14} {method:10} {file:24} share in its own box {a:.3f}, of the other class {b:.3f}", end="")
    assert all(a > b for _, a, b in rows)


def test_widgets_on_a_real_network(squeezenet: Network, real: Path) -> None:
    from convis_widgets import ActivationExplorer, FilterGrid, SaliencyViewer

    photo = real / "photos" / "dog_cat.jpg"
    grid = FilterGrid(squeezenet)
    assert len(grid.mosaic) == 64
    explorer = ActivationExplorer(squeezenet, photo, layer="features.3")
    assert explorer.maps.shape == (128, 55, 55)
    assert "bull mastiff" in explorer.top5.value
    viewer = SaliencyViewer(squeezenet, photo, target="tiger cat")
    assert viewer.frame.heat.shape == (224, 224)
    assert len(viewer.classes.box.options) == 1001
