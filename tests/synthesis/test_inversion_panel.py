"""InversionPanel, without a browser; tests shared by all image panels are in test_image_panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import traitlets
from PIL import Image
from widget_helpers import opening, settled, shown

from convis_widgets import InversionPanel, Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion
from convis_widgets.widgets.synthesis import inversion_panel
from convis_widgets.widgets.synthesis.inversion_panel import GAP, TILE_SIDE, TITLE_HEIGHT

IMAGES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
LAYERS = ("conv1", "relu", "conv2", "relu@2")


@pytest.fixture
def open_panel() -> Iterator[Callable[..., InversionPanel]]:
    with opening(InversionPanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> InversionPanel:
    return settled(open_panel(tiny, IMAGES, layers=LAYERS, iterations=2))


@pytest.fixture(autouse=True)
def rows_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_panel, "TILES_PER_ROW", 4)


def last_frame(net: Network, name: str = "a", **kwargs: Any) -> Frame:
    return Run(feature_inversion(net, IMAGES[name], **({"iterations": 2, "layers": LAYERS} | kwargs))).run()


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """The original of a 16-pixel image that is shown enlarged on the sheet."""
    top, left = row * (TILE_SIDE + TITLE_HEIGHT) + TITLE_HEIGHT, column * (TILE_SIDE + GAP)
    return sheet[top : top + TILE_SIDE : TILE_SIDE // 16, left : left + TILE_SIDE : TILE_SIDE // 16]


def pixels(image: np.ndarray) -> np.ndarray:
    return np.floor(image * 255 + 0.5).astype(np.uint8)


def test_inversion_panel_shows_image_and_reconstructions_in_rows(panel: InversionPanel) -> None:
    expected = last_frame(panel.network)
    sheet = shown(panel.view)
    assert sheet.shape == (2 * (TILE_SIDE + TITLE_HEIGHT), 4 * TILE_SIDE + 3 * GAP, 4)
    for i, image in enumerate((IMAGES["a"], *expected.arrays["inversions"])):
        shown_tile = tile(sheet, i // 4, i % 4)
        assert np.array_equal(shown_tile[..., :3], pixels(image)), i
        assert (shown_tile[..., 3] == 255).all()
    assert (tile(sheet, 1, 1)[..., 3] == 0).all(), "empty tiles are transparent"


def test_inversion_panel_scrub_hides_layers_not_yet_started(panel: InversionPanel) -> None:
    frames = list(feature_inversion(panel.network, IMAGES["a"], layers=LAYERS, iterations=2))
    panel.scrub.value = 2
    sheet = shown(panel.view)
    assert sheet.shape == (2 * (TILE_SIDE + TITLE_HEIGHT), 4 * TILE_SIDE + 3 * GAP, 4)
    inversions = frames[2].arrays["inversions"]
    assert len(inversions) == 2
    for i, expected in enumerate(inversions, 1):
        assert np.array_equal(tile(sheet, 0, i)[..., :3], pixels(expected))
    assert (tile(sheet, 0, 3)[..., 3] == 0).all()


def test_inversion_panel_film_has_size_of_final_image(panel: InversionPanel, tmp_path: Path) -> None:
    frames = list(feature_inversion(panel.network, IMAGES["a"], layers=LAYERS, iterations=2))
    with Image.open(panel.save(tmp_path / "film.gif")) as film:
        assert film.n_frames == 8
        assert film.size == (4 * TILE_SIDE + 3 * GAP, 2 * (TILE_SIDE + TITLE_HEIGHT))
        film.seek(7)
        sheet = np.asarray(film.convert("RGB")).astype(int)
    for i, expected in enumerate(frames[7].arrays["inversions"], 1):
        assert np.abs(tile(sheet, i // 4, i % 4) - pixels(expected)).mean() < 40, "256 colors for all"


def test_inversion_panel_table_matches_reference_errors(panel: InversionPanel) -> None:
    """Recomputed from the images."""
    net, inversions = panel.network, last_frame(panel.network).arrays["inversions"]
    batch = net.batch(IMAGES["a"])
    origin = net.transform.mean_pixel_tensor(batch)
    rows = re.findall("<tr><td>(.*?)</td><td>(.*?)%</td><td>(.*?)%</td></tr>", panel.table.value)
    assert [name for name, *_ in rows] == list(LAYERS)
    for (name, of_features, wrong), image in zip(rows, inversions, strict=True):
        inverted = net.batch(image)
        expected = 100 * (inverted - batch).square().sum() / (batch - origin).square().sum()
        assert float(wrong) == pytest.approx(float(expected), abs=0.06), name
        outputs = []
        for inputs in (batch, inverted):
            with trace(net, [name]) as acts:
                net(inputs)
            outputs.append(acts[name])
        distance = (outputs[1] - outputs[0]).square().sum() / outputs[0].square().sum()
        assert float(of_features) == pytest.approx(100 * float(distance), abs=0.06), name


def test_inversion_panel_restarts_on_layers_change(panel: InversionPanel) -> None:
    panel.layers = ("relu",)
    settled(panel)
    assert np.array_equal(panel.frame.arrays["inversions"], last_frame(panel.network, layers="relu").arrays["inversions"])
    assert shown(panel.view).shape == (TILE_SIDE + TITLE_HEIGHT, 2 * TILE_SIDE + GAP, 4)
    assert panel.controls["layers"].value == ("relu",)
    assert re.search(r"\brelu\b.*\ba\b", re.sub("<[^>]*>", " ", panel.caption.value))
    panel.controls["layers"].value = ("conv1", "relu@2")
    settled(panel)
    assert panel.layers == ("conv1", "relu@2")
    assert np.array_equal(panel.frame.image, last_frame(panel.network, layers=("conv1", "relu@2")).image)
    assert re.search(r"\bconv1, relu@2\b.*\ba\b", re.sub("<[^>]*>", " ", panel.caption.value))
    assert panel.table.value.count("<tr>") == 3


def test_inversion_panel_accepts_single_layer_name(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, IMAGES, layers="conv2", iterations=2))
    assert panel.layers == ("conv2",)
    assert np.array_equal(panel.frame.image, last_frame(tiny, layers="conv2").image)


def test_inversion_panel_rejects_unknown_or_missing_layers(tiny: Network, panel: InversionPanel) -> None:
    for wrong in ("conv7", ("conv1", "conv7")):
        with pytest.raises((ValueError, traitlets.TraitError), match="conv7"):
            InversionPanel(tiny, IMAGES, layers=wrong)
    with pytest.raises(traitlets.TraitError, match="relu@2"):
        panel.layers = ()
    panel.controls["layers"].value = ()
    assert "relu@2" in panel.status.value
    assert panel.layers == LAYERS
    panel.controls["layers"].value = ("relu",)
    settled(panel)
    assert (panel.run.state, panel.status.value) == ("done", "")


@pytest.mark.parametrize(("optimizer", "lr"), [("lbfgs", 1.0), ("gradient", 0.01), ("adam", 0.02)])
def test_inversion_panel_rate_control_shows_optimizer_default(optimizer: str, lr: float, panel: InversionPanel) -> None:
    panel.optimizer = optimizer
    settled(panel)
    assert panel.lr is None
    assert panel.controls["lr"].value == pytest.approx(lr)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, optimizer=optimizer, lr=lr).image)
