from __future__ import annotations

import numpy as np
import pytest

from convis_widgets.widgets.drawing.mosaic import Mosaic, choose_layout


def tiles(n: int, h: int = 3, w: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (n, h, w, 3), dtype=np.uint8)


def test_mosaic_image_matches_reference() -> None:
    images = tiles(7)
    mosaic = Mosaic(images, 3, 5, 2)
    assert mosaic.image.shape == (3 * (15 + 2) + 2, 3 * (20 + 2) + 2, 4)
    covered = np.zeros(mosaic.image.shape[:2], bool)
    for n in range(7):
        top, left = 2 + (n // 3) * 17, 2 + (n % 3) * 22
        assert mosaic.box(n) == (top, left, top + 15, left + 20)
        for y in range(15):
            for x in range(20):
                assert (mosaic.image[top + y, left + x, :3] == images[n, y // 5, x // 5]).all()
                covered[top + y, left + x] = True
    assert ((mosaic.image[..., 3] == 255) == covered).all(), "gaps are transparent"


def test_index_at_finds_tile() -> None:
    mosaic = Mosaic(tiles(7), 3, 5, 2)
    for n in range(7):
        top, left, bottom, right = mosaic.box(n)
        for x, y in ((left, top), (right - 0.5, bottom - 0.5)):
            assert mosaic.index_at(x, y) == n
    assert mosaic.index_at(60, 40) is None  # past the last tile
    assert mosaic.index_at(500, 3) is None
    assert mosaic.index_at(-5, 3) is None


def test_box_of_no_tile() -> None:
    mosaic = Mosaic(tiles(6), 3, 4)
    assert mosaic.box(None) is mosaic.box(6) is mosaic.box(-1) is None


@pytest.mark.parametrize("count", [1, 2, 10, 32, 64, 96, 512, 1000])
@pytest.mark.parametrize("side", [1, 3, 7, 11, 55, 224])
def test_choose_layout_fits_width(count: int, side: int) -> None:
    columns, times = choose_layout(count, side, side, 640)
    assert 1 <= columns <= count
    assert columns * (side * times + 3) <= 640 or columns == 1
    assert times >= 1
