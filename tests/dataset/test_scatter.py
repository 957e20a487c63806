"""Scatter plot of thumbnails: drawing, hit testing, panning and zooming."""

from __future__ import annotations

import numpy as np
import pytest

from convis_widgets.widgets.drawing.scatter import (
    BACKGROUND,
    MARGIN,
    MAX_THUMBNAIL,
    MIN_THUMBNAIL,
    Scatter,
    Thumbnails,
    unit_square,
)

SELECTION_COLOR = (255, 0, 255)
NO_SELECTION = np.empty(0, int)


def random_scatter(n: int, **window: float) -> Scatter:
    return Scatter(np.random.default_rng(n).random((n, 2)), 90, 70, **window)


def colored_tiles(n: int, height: int, width: int) -> np.ndarray:
    """Thumbnails (n, height, width, 3) of one color each, the index in the red channel; none is white."""
    tiles = np.full((n, height, width, 3), 7, np.uint8)
    tiles[..., 0] = np.arange(n)[:, None, None]
    return tiles


def reference_draw(scatter: Scatter, tiles: np.ndarray) -> np.ndarray:
    """Reference: draw pixel by pixel, clipped to the window."""
    canvas = np.full((scatter.height, scatter.width, 3), BACKGROUND, np.uint8)
    _, h, w, _ = tiles.shape
    for point, tile in zip(scatter.to_screen(), tiles, strict=True):
        left, top = int(np.floor(point[0] - w / 2)), int(np.floor(point[1] - h / 2))
        for i in range(h):
            for j in range(w):
                if 0 <= top + i < scatter.height and 0 <= left + j < scatter.width:
                    canvas[top + i, left + j] = tile[i, j]
    return canvas


# -- drawing ------------------------------------------------------------------------------------------------------------

WINDOWS = [{}, {"zoom": 3.0, "x": 0.2, "y": 0.9}, {"zoom": 20.0, "x": 0.5, "y": 0.4}, {"x": 0.0, "y": 1.0}]


def test_scatter_shows_whole_map_with_margin() -> None:
    corners = Scatter(np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]]), 100, 200, zoom=1.0).to_screen()
    assert (corners[0] >= (MARGIN * 100, MARGIN * 200)).all()
    assert np.allclose(corners[0] + corners[1], (100, 200)), "it is centered"
    assert np.allclose(corners[2], corners[0] + (0.5, 0.25) * (corners[1] - corners[0]))


@pytest.mark.parametrize("count", [1, 2, 4, 9, 40, 126])
def test_scatter_initial_view_cuts_off_no_thumbnail(count: int) -> None:
    points = unit_square(np.random.default_rng(count).random((count, 2)))
    scatter = Scatter(points, 600, 500)
    for tile in (48, 28):
        reach = Thumbnails(np.zeros((count, tile, tile, 3), np.uint8)).at_size(scatter.side).shape[1] / 2
        assert (scatter.to_screen() >= reach).all()
        assert (scatter.to_screen() <= np.array([600, 500]) - reach).all()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(6, 9), (5, 5), (1, 4), (40, 12)])
def test_scatter_draw_matches_reference(shape: tuple[int, int], window: dict[str, float]) -> None:
    scatter = random_scatter(30, **window)
    tiles = np.random.default_rng(1).integers(0, 250, (30, *shape, 3), dtype=np.uint8)
    drawn = scatter.draw(tiles, None, NO_SELECTION, SELECTION_COLOR)
    assert drawn.shape == (70, 90, 3)
    assert np.array_equal(drawn, reference_draw(scatter, tiles))


def test_scatter_draw_skips_points_outside_window() -> None:
    scatter = random_scatter(30, zoom=64.0, x=2.0, y=2.0)
    assert (scatter.draw(colored_tiles(30, 8, 8), None, NO_SELECTION, SELECTION_COLOR) == BACKGROUND).all()


def test_scatter_draw_outlines_thumbnails_in_their_colors() -> None:
    scatter = Scatter(np.array([[0.2, 0.5], [0.8, 0.5]]), 90, 70)
    tiles, edges = np.zeros((2, 13, 13, 3), np.uint8), np.array([[10, 200, 30], [99, 5, 240]], np.uint8)
    drawn = scatter.draw(tiles, edges, NO_SELECTION, SELECTION_COLOR)
    for point, color in zip(scatter.to_screen(), edges, strict=True):
        rows, cols = np.nonzero((drawn == color).all(2))
        inside = (drawn[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] == 0).all(2)
        assert inside.sum() == 13 * 13
        assert len(rows) == inside.size - 13 * 13
        left, top = np.floor(point - 6.5).astype(int)
        assert (rows.min() < top, cols.min() < left) == (True, True)
        assert (rows.max() > top + 12, cols.max() > left + 12) == (True, True)


def test_scatter_draw_puts_selected_thumbnail_on_top_with_frame() -> None:
    scatter = Scatter(np.array([[0.5, 0.5], [0.55, 0.5], [0.5, 0.55]]), 90, 70)
    drawn = scatter.draw(colored_tiles(3, 12, 12), None, np.array([0]), SELECTION_COLOR)
    rows, cols = np.nonzero((drawn == colored_tiles(3, 1, 1)[0, 0, 0]).all(2))
    assert (len(rows), np.ptp(rows), np.ptp(cols)) == (144, 11, 11)
    frame = drawn[rows.min() - 3 : rows.max() + 4, cols.min() - 3 : cols.max() + 4]
    assert (frame == SELECTION_COLOR).all(2).sum() == 18 * 18 - 144


def test_scatter_draw_does_not_modify_inputs() -> None:
    scatter, tiles = random_scatter(9), colored_tiles(9, 8, 8)
    points = scatter.points.copy()
    first = scatter.draw(tiles, np.zeros((9, 3), np.uint8), np.array([2]), SELECTION_COLOR)
    assert np.array_equal(first, scatter.draw(tiles, np.zeros((9, 3), np.uint8), np.array([2]), SELECTION_COLOR))
    assert np.array_equal(tiles, colored_tiles(9, 8, 8))
    assert np.array_equal(points, scatter.points)


def test_scatter_without_points_is_empty() -> None:
    scatter = Scatter(np.empty((0, 2)), 90, 70)
    assert (scatter.draw(np.empty((0, 8, 8, 3), np.uint8), None, NO_SELECTION, SELECTION_COLOR) == BACKGROUND).all()
    assert scatter.thumbnail_at(45, 35, (8, 8)) is None
    assert not len(scatter.points_in_box(0, 0, 90, 70))


# -- hit testing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(6, 9), (7, 4), (24, 24), (40, 36)])
def test_thumbnail_at_returns_thumbnail_drawn_at_pixel(shape: tuple[int, int], window: dict[str, float]) -> None:
    scatter, tiles = random_scatter(14, **window), colored_tiles(14, *shape)
    drawn = scatter.draw(tiles, tiles[:, 0, 0], NO_SELECTION, SELECTION_COLOR)
    for y in range(0, 70, 2):
        for x in range(90):
            expected = None if (drawn[y, x] == BACKGROUND).all() else int(drawn[y, x, 0])
            assert scatter.thumbnail_at(x + 0.5, y + 0.5, shape) == expected, (x, y)


def test_scatter_draws_last_of_equal_points_on_top() -> None:
    scatter = Scatter(np.full((5, 2), 0.5), 90, 70)
    tiles = colored_tiles(5, 8, 8)
    (x, y), *_ = scatter.to_screen()
    assert scatter.thumbnail_at(x, y, (8, 8)) == 4
    drawn = scatter.draw(tiles, None, NO_SELECTION, SELECTION_COLOR)
    assert (drawn != BACKGROUND).any(2).sum() == 64
    assert (drawn == tiles[4, 0, 0]).all(2).sum() == 64


@pytest.mark.parametrize("window", WINDOWS)
def test_points_in_box_matches_reference_for_any_corner_order(window: dict[str, float]) -> None:
    scatter = random_scatter(60, **window)
    box = 20.5, 10.0, 61.0, 55.0
    expected = [n for n, (x, y) in enumerate(scatter.to_screen()) if 20.5 <= x <= 61 and 10 <= y <= 55]
    x0, y0, x1, y1 = box
    for corners in (box, (x1, y1, x0, y0), (x0, y1, x1, y0), (x1, y0, x0, y1)):
        assert scatter.points_in_box(*corners).tolist() == expected
    if not window:
        assert 5 < len(expected) < 55


# -- panning and zooming ------------------------------------------------------------------------------------------------


def test_to_map_inverts_to_screen() -> None:
    for window in WINDOWS:
        scatter = random_scatter(20, **window)
        restored = [scatter.to_map(x, y) for x, y in scatter.to_screen()]
        assert np.allclose(restored, scatter.points)


@pytest.mark.parametrize("offset", [(13, -8), (-20.5, 3), (0, 0)])
@pytest.mark.parametrize("zoom", [1.0, 2.5, 64.0])
def test_pan_shifts_points_by_given_pixels(offset: tuple[float, float], zoom: float) -> None:
    scatter = random_scatter(20, zoom=zoom)
    assert np.allclose(scatter.pan(*offset).to_screen() - scatter.to_screen(), offset)
    assert scatter.pan(*offset).zoom == zoom


def test_pan_keeps_window_center_on_map() -> None:
    scatter = random_scatter(5, zoom=4.0)
    for dx, dy in ((1e6, -1e6), (-1e6, 1e6)):
        panned = scatter.pan(dx, dy)
        assert (panned.x, panned.y) == (float(dx < 0), float(dy < 0))


@pytest.mark.parametrize("position", [(45, 35), (5, 66), (88, 3), (30.5, 41.25)])
def test_zoom_at_keeps_position_under_mouse(position: tuple[float, float]) -> None:
    scatter = random_scatter(20, zoom=3.0, x=0.4, y=0.6)
    for factor in (1.25, 8.0, 0.8):
        zoomed = scatter.zoom_at(factor, *position)
        assert zoomed.zoom == pytest.approx(3 * factor)
        assert zoomed.to_map(*position) == pytest.approx(scatter.to_map(*position))


def test_zoom_at_in_and_out_restores_view() -> None:
    scatter = random_scatter(20, zoom=5.0, x=0.4, y=0.6)
    restored = scatter.zoom_at(1.25, 70, 20).zoom_at(0.8, 70, 20)
    assert (restored.x, restored.y, restored.zoom) == pytest.approx((scatter.x, scatter.y, scatter.zoom))


def test_zoom_at_is_limited_to_1_and_64() -> None:
    scatter = random_scatter(20)
    near, far = scatter, scatter.zoom_at(30, 10, 10)
    for _ in range(40):
        near, far = near.zoom_at(1.25, 45, 35), far.zoom_at(0.8, 80, 60)
    assert near.zoom == 64
    assert near.zoom_at(1.25, 3, 3) == near
    assert (far.x, far.y, far.zoom) == (0.5, 0.5, 1)


def test_zoom_at_keeps_center_on_map() -> None:
    scatter = random_scatter(20)
    for x, y in ((0, 0), (90, 0), (0, 70), (90, 70)):
        zoomed = scatter
        for _ in range(30):
            zoomed = zoomed.zoom_at(1.25, x, y)
        assert 0 <= zoomed.x <= 1
        assert 0 <= zoomed.y <= 1


# -- sizes ---------------------------------------------------------------------------------------------------------------


def test_scatter_side_depends_on_point_count_and_zoom() -> None:
    sides = [Scatter(np.zeros((n, 2)), 600, 600).side for n in (1, 50, 400, 3000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert (sides[0], sides[-1]) == (MAX_THUMBNAIL, MIN_THUMBNAIL)
    assert 0.5 < 400 * sides[2] ** 2 / 600**2 < 1
    near = Scatter(np.zeros((3000, 2)), 600, 600, zoom=4.0).side
    assert sides[3] < near < 4 * sides[3]
    assert Scatter(np.zeros((3000, 2)), 600, 600, zoom=64.0).side == MAX_THUMBNAIL


@pytest.mark.parametrize("shape", [(48, 48), (28, 28), (48, 20), (7, 48), (1, 48)])
@pytest.mark.parametrize("side", [4, 9.3, 24, 47, 48, 70, 96])
def test_thumbnails_at_size_match_reference(side: float, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    sized = Thumbnails(images).at_size(side)
    assert sized.dtype == np.uint8
    assert 0.65 * side <= max(sized.shape[1:3]) <= 1.5 * side
    height, width = sized.shape[1:3]
    if max(height, width) > max(shape):
        times = height // shape[0]
        expected = [[[image[y // times, x // times] for x in range(width)] for y in range(height)] for image in images]
        assert np.array_equal(sized, expected)
        return
    step = [max(shape) // max(height, width)] * 2 if min(shape) > 1 else [1, max(shape) // width]
    step = [min(factor, length) for factor, length in zip(step, shape, strict=True)]
    for image, small in zip(images, sized, strict=True):
        for y in range(height):
            for x in range(width):
                cell = image[y * step[0] : (y + 1) * step[0], x * step[1] : (x + 1) * step[1]]
                assert np.abs(small[y, x] - cell.mean((0, 1))).max() < 1


def test_thumbnails_at_size_caches_sizes() -> None:
    tiles = Thumbnails(np.zeros((2, 48, 48, 3), np.uint8))
    assert tiles.at_size(24) is tiles.at_size(23.5)


def test_unit_square_scales_points_and_keeps_proportions() -> None:
    points = np.array([[-3.0, 5.0], [1.0, 5.0], [-1.0, 7.0]])
    assert unit_square(points).tolist() == [[0, 0.25], [1, 0.25], [0.5, 0.75]]
    assert unit_square(points[:, ::-1]).tolist() == [[0.25, 0], [0.25, 1], [0.75, 0.5]]


def test_unit_square_centers_single_and_equal_points() -> None:
    for same in (np.full((1, 2), -7.0), np.full((4, 2), 2.5)):
        assert (unit_square(same) == 0.5).all()
    assert unit_square(np.array([[1.0, 2.0], [1.0, 4.0]])).tolist() == [[0.5, 0], [0.5, 1]]
