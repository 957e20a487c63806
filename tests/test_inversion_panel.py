"""InversionPanel, without a browser; tests shared by all image panels are in test_picture_panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import traitlets
from PIL import Image
from seen import opening, settled, shown

from convis_widgets import InversionPanel, Network
from convis_widgets.core import Frame, Run, trace
from convis_widgets.techniques import feature_inversion
from convis_widgets.widgets import inversion_panel
from convis_widgets.widgets.inversion_panel import GAP, HEAD, RUNG

PICTURES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
LAYERS = ("conv1", "relu", "conv2", "relu@2")


@pytest.fixture
def open_panel() -> Iterator[Callable[..., InversionPanel]]:
    with opening(InversionPanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> InversionPanel:
    return settled(open_panel(tiny, PICTURES, layers=LAYERS, iterations=2))


@pytest.fixture(autouse=True)
def rows_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_panel, "ROW", 4)


def last(net: Network, name: str = "a", **words: Any) -> Frame:
    return Run(feature_inversion(net, PICTURES[name], **({"iterations": 2, "layer": LAYERS} | words))).run()


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """The original of a 16-pixel image that is shown enlarged on the sheet."""
    top, left = row * (RUNG + HEAD) + HEAD, column * (RUNG + GAP)
    return sheet[top : top + RUNG : RUNG // 16, left : left + RUNG : RUNG // 16]


def pixels(picture: np.ndarray) -> np.ndarray:
    return np.floor(picture * 255 + 0.5).astype(np.uint8)


def test_inversion_panel_shows_image_and_reconstructions_in_rows(panel: InversionPanel) -> None:
    expected = last(panel.network)
    sheet = shown(panel.view)
    assert sheet.shape == (2 * (RUNG + HEAD), 4 * RUNG + 3 * GAP, 4)
    for i, wanted in enumerate((PICTURES["a"], *expected.arrays["ladder"])):
        found = tile(sheet, i // 4, i % 4)
        assert np.array_equal(found[..., :3], pixels(wanted)), i
        assert (found[..., 3] == 255).all()
    assert (tile(sheet, 1, 1)[..., 3] == 0).all(), "empty tiles are transparent"


def test_inversion_panel_scrub_hides_layers_not_yet_started(panel: InversionPanel) -> None:
    frames = list(feature_inversion(panel.network, PICTURES["a"], layer=LAYERS, iterations=2))
    panel.scrub.value = 2
    sheet = shown(panel.view)
    assert sheet.shape == (2 * (RUNG + HEAD), 4 * RUNG + 3 * GAP, 4)
    ladder = frames[2].arrays["ladder"]
    assert len(ladder) == 2
    for i, wanted in enumerate(ladder, 1):
        assert np.array_equal(tile(sheet, 0, i)[..., :3], pixels(wanted))
    assert (tile(sheet, 0, 3)[..., 3] == 0).all()


def test_inversion_panel_film_has_size_of_final_image(panel: InversionPanel, tmp_path: Path) -> None:
    frames = list(feature_inversion(panel.network, PICTURES["a"], layer=LAYERS, iterations=2))
    with Image.open(panel.save(tmp_path / "film.gif")) as film:
        assert film.n_frames == 8
        assert film.size == (4 * RUNG + 3 * GAP, 2 * (RUNG + HEAD))
        film.seek(7)
        seen = np.asarray(film.convert("RGB")).astype(int)
    for i, wanted in enumerate(frames[7].arrays["ladder"], 1):
        assert np.abs(tile(seen, i // 4, i % 4) - pixels(wanted)).mean() < 40, "256 colors for all"


def test_inversion_panel_table_matches_reference_errors(panel: InversionPanel) -> None:
    """Recomputed from the images."""
    net, ladder = panel.network, last(panel.network).arrays["ladder"]
    batch = net.batch(PICTURES["a"])
    origin = net.transform.origin(batch)
    rows = re.findall("<tr><td>(.*?)</td><td>(.*?)%</td><td>(.*?)%</td></tr>", panel.table.value)
    assert [name for name, *_ in rows] == list(LAYERS)
    for (name, of_features, wrong), picture in zip(rows, ladder, strict=True):
        there = net.batch(picture)
        expected = 100 * (there - batch).square().sum() / (batch - origin).square().sum()
        assert float(wrong) == pytest.approx(float(expected), abs=0.06), name
        outputs = []
        for pixels in (batch, there):
            with trace(net, [name]) as acts:
                net(pixels)
            outputs.append(acts[name])
        distance = (outputs[1] - outputs[0]).square().sum() / outputs[0].square().sum()
        assert float(of_features) == pytest.approx(100 * float(distance), abs=0.06), name


def test_inversion_panel_restarts_on_layers_change(panel: InversionPanel) -> None:
    panel.layers = ("relu",)
    settled(panel)
    assert np.array_equal(panel.frame.arrays["ladder"], last(panel.network, layer="relu").arrays["ladder"])
    assert shown(panel.view).shape == (RUNG + HEAD, 2 * RUNG + GAP, 4)
    assert panel.menu.value == ("relu",)
    assert re.search(r"\brelu\b.*\ba\b", re.sub("<[^>]*>", " ", panel.caption.value))
    panel.menu.value = ("conv1", "relu@2")
    settled(panel)
    assert panel.layers == ("conv1", "relu@2")
    assert np.array_equal(panel.frame.image, last(panel.network, layer=("conv1", "relu@2")).image)
    assert re.search(r"\bconv1, relu@2\b.*\ba\b", re.sub("<[^>]*>", " ", panel.caption.value))
    assert panel.table.value.count("<tr>") == 3


def test_inversion_panel_accepts_single_layer_name(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, PICTURES, layers="conv2", iterations=2))
    assert panel.layers == ("conv2",)
    assert np.array_equal(panel.frame.image, last(tiny, layer="conv2").image)


def test_inversion_panel_rejects_unknown_or_missing_layers(tiny: Network, panel: InversionPanel) -> None:
    for wrong in ("conv7", ("conv1", "conv7")):
        with pytest.raises((ValueError, traitlets.TraitError), match="conv7"):
            InversionPanel(tiny, PICTURES, layers=wrong)
    with pytest.raises(traitlets.TraitError, match="relu@2"):
        panel.layers = ()
    panel.menu.value = ()
    assert "relu@2" in panel.status.value
    assert panel.layers == LAYERS
    panel.menu.value = ("relu",)
    settled(panel)
    assert (panel.run.state, panel.status.value) == ("done", "")


@pytest.mark.parametrize(("optimizer", "rate"), [("lbfgs", 1.0), ("gradient", 0.01), ("adam", 0.02)])
def test_inversion_panel_rate_control_shows_optimizer_default(optimizer: str, rate: float, panel: InversionPanel) -> None:
    panel.optimizer = optimizer
    settled(panel)
    assert panel.rate is None
    assert panel.controls["rate"].value == pytest.approx(rate)
    assert np.array_equal(panel.frame.image, last(panel.network, optimizer=optimizer, rate=rate).image)
