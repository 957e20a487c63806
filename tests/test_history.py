from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from convis_widgets.widgets.history import MOST, History


def filled(count: int) -> History:
    history = History()
    for step in range(1, count + 1):
        if history.wants(step) or step == count:
            history.add(step, np.full((4, 5, 3), step % 256, np.uint8), last=step == count)
    return history


@pytest.mark.parametrize("count", [1, 10, MOST, MOST + 1, 1000, 4999])
def test_history_is_bounded_and_evenly_spaced(count: int) -> None:
    history = filled(count)
    assert len(history.steps) == len(history.pictures) <= MOST + 1
    assert history.steps[-1] == count
    assert len(history) > min(count, MOST) // 2 - 2
    gaps = np.diff(history.steps[:-1])
    assert len(set(gaps.tolist())) <= 1
    assert all((picture == step % 256).all() for step, picture in zip(history.steps, history.pictures, strict=True))


def test_film_has_all_images_and_holds_the_last() -> None:
    film = Image.open(io.BytesIO(filled(12).film()))
    assert (film.n_frames, film.size) == (12, (5, 4))
    durations = []
    for i in range(12):
        film.seek(i)
        assert abs(int(np.asarray(film.convert("RGB"))[0, 0, 0]) - (i + 1)) <= 1
        durations.append(film.info["duration"])
    assert durations[-1] > 5 * durations[0]


def test_film_of_empty_history_raises() -> None:
    with pytest.raises(ValueError, match="(?i)picture|image"):
        History().film()
