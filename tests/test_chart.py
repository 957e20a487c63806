"""Scatter plot of thumbnails: drawing, hit testing, panning and zooming."""

from __future__ import annotations

import numpy as np
import pytest

from convis_widgets.widgets.chart import GROUND, LARGEST, MARGIN, SMALLEST, Chart, Thumbnails, unit_square

MARK = (255, 0, 255)
NONE = np.empty(0, int)


def random_chart(n: int, **window: float) -> Chart:
    return Chart(np.random.default_rng(n).random((n, 2)), 90, 70, **window)


def colored_tiles(n: int, height: int, width: int) -> np.ndarray:
    """Thumbnails (n, height, width, 3) of one color each, the index in the red channel; none is white."""
    tiles = np.full((n, height, width, 3), 7, np.uint8)
    tiles[..., 0] = np.arange(n)[:, None, None]
    return tiles


def reference_draw(chart: Chart, tiles: np.ndarray) -> np.ndarray:
    """Reference: draw pixel by pixel, clipped to the window."""
    canvas = np.full((chart.height, chart.width, 3), GROUND, np.uint8)
    _, h, w, _ = tiles.shape
    for point, tile in zip(chart.on_screen(), tiles, strict=True):
        left, top = int(np.floor(point[0] - w / 2)), int(np.floor(point[1] - h / 2))
        for i in range(h):
            for j in range(w):
                if 0 <= top + i < chart.height and 0 <= left + j < chart.width:
                    canvas[top + i, left + j] = tile[i, j]
    return canvas


# -- drawing ------------------------------------------------------------------------------------------------------------

WINDOWS = [{}, {"zoom": 3.0, "x": 0.2, "y": 0.9}, {"zoom": 20.0, "x": 0.5, "y": 0.4}, {"x": 0.0, "y": 1.0}]


def test_scatter_shows_whole_map_with_margin() -> None:
    corners = Chart(np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]]), 100, 200, zoom=1.0).on_screen()
    assert (corners[0] >= (MARGIN * 100, MARGIN * 200)).all()
    assert np.allclose(corners[0] + corners[1], (100, 200)), "it is centered"
    assert np.allclose(corners[2], corners[0] + (0.5, 0.25) * (corners[1] - corners[0]))


@pytest.mark.parametrize("count", [1, 2, 4, 9, 40, 126])
def test_scatter_initial_view_cuts_off_no_thumbnail(count: int) -> None:
    places = unit_square(np.random.default_rng(count).random((count, 2)))
    chart = Chart(places, 600, 500)
    for tile in (48, 28):
        reach = Thumbnails(np.zeros((count, tile, tile, 3), np.uint8)).near(chart.side).shape[1] / 2
        assert (chart.on_screen() >= reach).all()
        assert (chart.on_screen() <= np.array([600, 500]) - reach).all()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(6, 9), (5, 5), (1, 4), (40, 12)])
def test_scatter_draw_matches_reference(shape: tuple[int, int], window: dict[str, float]) -> None:
    chart = random_chart(30, **window)
    tiles = np.random.default_rng(1).integers(0, 250, (30, *shape, 3), dtype=np.uint8)
    drawn = chart.draw(tiles, None, NONE, MARK)
    assert drawn.shape == (70, 90, 3)
    assert np.array_equal(drawn, reference_draw(chart, tiles))


def test_scatter_draw_skips_points_outside_window() -> None:
    chart = random_chart(30, zoom=64.0, x=2.0, y=2.0)
    assert (chart.draw(colored_tiles(30, 8, 8), None, NONE, MARK) == GROUND).all()


def test_scatter_draw_outlines_thumbnails_in_their_colors() -> None:
    chart = Chart(np.array([[0.2, 0.5], [0.8, 0.5]]), 90, 70)
    tiles, edges = np.zeros((2, 13, 13, 3), np.uint8), np.array([[10, 200, 30], [99, 5, 240]], np.uint8)
    drawn = chart.draw(tiles, edges, NONE, MARK)
    for point, color in zip(chart.on_screen(), edges, strict=True):
        rows, cols = np.nonzero((drawn == color).all(2))
        inside = (drawn[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] == 0).all(2)
        assert inside.sum() == 13 * 13
        assert len(rows) == inside.size - 13 * 13
        left, top = np.floor(point - 6.5).astype(int)
        assert (rows.min() < top, cols.min() < left) == (True, True)
        assert (rows.max() > top + 12, cols.max() > left + 12) == (True, True)


def test_scatter_draw_puts_marked_thumbnail_on_top_with_frame() -> None:
    chart = Chart(np.array([[0.5, 0.5], [0.55, 0.5], [0.5, 0.55]]), 90, 70)
    drawn = chart.draw(colored_tiles(3, 12, 12), None, np.array([0]), MARK)
    rows, cols = np.nonzero((drawn == colored_tiles(3, 1, 1)[0, 0, 0]).all(2))
    assert (len(rows), np.ptp(rows), np.ptp(cols)) == (144, 11, 11)
    frame = drawn[rows.min() - 3 : rows.max() + 4, cols.min() - 3 : cols.max() + 4]
    assert (frame == MARK).all(2).sum() == 18 * 18 - 144


def test_scatter_draw_does_not_modify_inputs() -> None:
    chart, tiles = random_chart(9), colored_tiles(9, 8, 8)
    points = chart.points.copy()
    once = chart.draw(tiles, np.zeros((9, 3), np.uint8), np.array([2]), MARK)
    assert np.array_equal(once, chart.draw(tiles, np.zeros((9, 3), np.uint8), np.array([2]), MARK))
    assert np.array_equal(tiles, colored_tiles(9, 8, 8))
    assert np.array_equal(points, chart.points)


def test_scatter_without_points_is_empty() -> None:
    chart = Chart(np.empty((0, 2)), 90, 70)
    assert (chart.draw(np.empty((0, 8, 8, 3), np.uint8), None, NONE, MARK) == GROUND).all()
    assert chart.at(45, 35, (8, 8)) is None
    assert not len(chart.within(0, 0, 90, 70))


# -- hit testing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(6, 9), (7, 4), (24, 24), (40, 36)])
def test_scatter_at_returns_thumbnail_drawn_at_pixel(shape: tuple[int, int], window: dict[str, float]) -> None:
    chart, tiles = random_chart(14, **window), colored_tiles(14, *shape)
    drawn = chart.draw(tiles, tiles[:, 0, 0], NONE, MARK)
    for y in range(0, 70, 2):
        for x in range(90):
            seen = None if (drawn[y, x] == GROUND).all() else int(drawn[y, x, 0])
            assert chart.at(x + 0.5, y + 0.5, shape) == seen, (x, y)


def test_scatter_draws_last_of_equal_points_on_top() -> None:
    chart = Chart(np.full((5, 2), 0.5), 90, 70)
    tiles = colored_tiles(5, 8, 8)
    (x, y), *_ = chart.on_screen()
    assert chart.at(x, y, (8, 8)) == 4
    drawn = chart.draw(tiles, None, NONE, MARK)
    assert (drawn != GROUND).any(2).sum() == 64
    assert (drawn == tiles[4, 0, 0]).all(2).sum() == 64


@pytest.mark.parametrize("window", WINDOWS)
def test_scatter_within_matches_reference_for_any_corner_order(window: dict[str, float]) -> None:
    chart = random_chart(60, **window)
    box = 20.5, 10.0, 61.0, 55.0
    expected = [n for n, (x, y) in enumerate(chart.on_screen()) if 20.5 <= x <= 61 and 10 <= y <= 55]
    x0, y0, x1, y1 = box
    for corners in (box, (x1, y1, x0, y0), (x0, y1, x1, y0), (x1, y0, x0, y1)):
        assert chart.within(*corners).tolist() == expected
    if not window:
        assert 5 < len(expected) < 55


# -- panning and zooming ------------------------------------------------------------------------------------------------


def test_scatter_on_map_inverts_on_screen() -> None:
    for window in WINDOWS:
        chart = random_chart(20, **window)
        back = [chart.on_map(x, y) for x, y in chart.on_screen()]
        assert np.allclose(back, chart.points)


@pytest.mark.parametrize("by", [(13, -8), (-20.5, 3), (0, 0)])
@pytest.mark.parametrize("zoom", [1.0, 2.5, 64.0])
def test_scatter_moved_shifts_points_by_given_pixels(by: tuple[float, float], zoom: float) -> None:
    chart = random_chart(20, zoom=zoom)
    assert np.allclose(chart.moved(*by).on_screen() - chart.on_screen(), by)
    assert chart.moved(*by).zoom == zoom


def test_scatter_moved_keeps_window_center_on_map() -> None:
    chart = random_chart(5, zoom=4.0)
    for across, down in ((1e6, -1e6), (-1e6, 1e6)):
        far = chart.moved(across, down)
        assert (far.x, far.y) == (float(across < 0), float(down < 0))


@pytest.mark.parametrize("place", [(45, 35), (5, 66), (88, 3), (30.5, 41.25)])
def test_scatter_zoomed_keeps_position_under_mouse(place: tuple[float, float]) -> None:
    chart = random_chart(20, zoom=3.0, x=0.4, y=0.6)
    for factor in (1.25, 8.0, 0.8):
        zoomed = chart.zoomed(factor, *place)
        assert zoomed.zoom == pytest.approx(3 * factor)
        assert zoomed.on_map(*place) == pytest.approx(chart.on_map(*place))


def test_scatter_zoomed_in_and_out_restores_view() -> None:
    chart = random_chart(20, zoom=5.0, x=0.4, y=0.6)
    back = chart.zoomed(1.25, 70, 20).zoomed(0.8, 70, 20)
    assert (back.x, back.y, back.zoom) == pytest.approx((chart.x, chart.y, chart.zoom))


def test_scatter_zoom_is_limited_to_1_and_64() -> None:
    chart = random_chart(20)
    near, far = chart, chart.zoomed(30, 10, 10)
    for _ in range(40):
        near, far = near.zoomed(1.25, 45, 35), far.zoomed(0.8, 80, 60)
    assert near.zoom == 64
    assert near.zoomed(1.25, 3, 3) == near
    assert (far.x, far.y, far.zoom) == (0.5, 0.5, 1)


def test_scatter_zoomed_keeps_center_on_map() -> None:
    chart = random_chart(20)
    for x, y in ((0, 0), (90, 0), (0, 70), (90, 70)):
        zoomed = chart
        for _ in range(30):
            zoomed = zoomed.zoomed(1.25, x, y)
        assert 0 <= zoomed.x <= 1
        assert 0 <= zoomed.y <= 1


# -- sizes ---------------------------------------------------------------------------------------------------------------


def test_scatter_side_depends_on_point_count_and_zoom() -> None:
    sides = [Chart(np.zeros((n, 2)), 600, 600).side for n in (1, 50, 400, 3000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert (sides[0], sides[-1]) == (LARGEST, SMALLEST)
    assert 0.5 < 400 * sides[2] ** 2 / 600**2 < 1
    near = Chart(np.zeros((3000, 2)), 600, 600, zoom=4.0).side
    assert sides[3] < near < 4 * sides[3]
    assert Chart(np.zeros((3000, 2)), 600, 600, zoom=64.0).side == LARGEST


@pytest.mark.parametrize("shape", [(48, 48), (28, 28), (48, 20), (7, 48), (1, 48)])
@pytest.mark.parametrize("side", [4, 9.3, 24, 47, 48, 70, 96])
def test_thumbnails_near_matches_reference(side: float, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    sized = Thumbnails(images).near(side)
    assert sized.dtype == np.uint8
    assert 0.65 * side <= max(sized.shape[1:3]) <= 1.5 * side
    height, width = sized.shape[1:3]
    if max(height, width) > max(shape):
        times = height // shape[0]
        expected = [[[image[y // times, x // times] for x in range(width)] for y in range(height)] for image in images]
        assert np.array_equal(sized, expected)
        return
    step = [max(shape) // max(height, width)] * 2 if min(shape) > 1 else [1, max(shape) // width]
    step = [min(one, side) for one, side in zip(step, shape, strict=True)]
    for image, small in zip(images, sized, strict=True):
        for y in range(height):
            for x in range(width):
                cell = image[y * step[0] : (y + 1) * step[0], x * step[1] : (x + 1) * step[1]]
                assert np.abs(small[y, x] - cell.mean((0, 1))).max() < 1


def test_thumbnails_near_caches_sizes() -> None:
    tiles = Thumbnails(np.zeros((2, 48, 48, 3), np.uint8))
    assert tiles.near(24) is tiles.near(23.5)


def test_unit_square_scales_points_and_keeps_proportions() -> None:
    points = np.array([[-3.0, 5.0], [1.0, 5.0], [-1.0, 7.0]])
    assert unit_square(points).tolist() == [[0, 0.25], [1, 0.25], [0.5, 0.75]]
    assert unit_square(points[:, ::-1]).tolist() == [[0.25, 0], [0.25, 1], [0.75, 0.5]]


def test_unit_square_centers_single_and_equal_points() -> None:
    for same in (np.full((1, 2), -7.0), np.full((4, 2), 2.5)):
        assert (unit_square(same) == 0.5).all()
    assert unit_square(np.array([[1.0, 2.0], [1.0, 4.0]])).tolist() == [[0.5, 0], [0.5, 1]]
