"""Grid layout: move points to the cells of a regular grid."""

from __future__ import annotations

import math

import numpy as np

MAX_ASSIGNED = 1_000  # points assigned by one linear assignment; more are split first


def assign_to_grid(points: np.ndarray) -> np.ndarray:
    """Assign points (n, 2) to distinct cells of a regular grid, so that they move little.

    The grid is about square; only its last row may have empty cells. Up to 1,000 points the sum of squared displacements is
    minimal (linear assignment); larger sets are halved recursively first.

    Returns
    -------
    (n, 2) int64 array
        Column and row of each point.

    Examples
    --------
    >>> assign_to_grid(np.array([[0.9, 0.1], [0.1, 0.0], [0.0, 1.0], [1.0, 0.8]])).tolist()
    [[1, 0], [0, 0], [0, 1], [1, 1]]
    """
    count = len(points)
    side = math.ceil(math.sqrt(count))
    cells = np.stack([np.arange(count) % side, np.arange(count) // side], 1)
    low, span = points.min(0), np.ptp(points, axis=0)
    scaled = (points - low) / np.where(span > 0, span, 1) * (side - 1)
    assigned = np.empty((count, 2), np.int64)
    _assign(scaled.astype(np.float64), cells, np.arange(count), np.arange(count), assigned)
    return assigned


def _assign(
    points: np.ndarray, cells: np.ndarray, point_indices: np.ndarray, cell_indices: np.ndarray, assigned: np.ndarray
) -> None:
    """Fill `assigned` for these points with these cells, of which there are as many."""
    from scipy.optimize import linear_sum_assignment

    if len(point_indices) <= MAX_ASSIGNED:
        costs = ((points[point_indices, None] - cells[None, cell_indices]) ** 2).sum(2)
        rows, columns = linear_sum_assignment(costs)
        assigned[point_indices[rows]] = cells[cell_indices[columns]]
        return
    axis = int(np.ptp(cells[cell_indices], axis=0).argmax())
    point_indices = point_indices[np.argsort(points[point_indices, axis], kind="stable")]
    cell_indices = cell_indices[np.argsort(cells[cell_indices, axis], kind="stable")]
    half = len(point_indices) // 2
    _assign(points, cells, point_indices[:half], cell_indices[:half], assigned)
    _assign(points, cells, point_indices[half:], cell_indices[half:], assigned)
