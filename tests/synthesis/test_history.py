from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from convis_widgets.widgets.synthesis.history import MAX_IMAGES, History


def history_of(count: int) -> History:
    history = History()
    for step in range(1, count + 1):
        if history.accepts(step) or step == count:
            history.add(step, np.full((4, 5, 3), step % 256, np.uint8), last=step == count)
    return history


@pytest.mark.parametrize("count", [1, 10, MAX_IMAGES, MAX_IMAGES + 1, 1000, 4999])
def test_history_is_bounded_and_evenly_spaced(count: int) -> None:
    history = history_of(count)
    assert len(history.steps) == len(history.images) <= MAX_IMAGES + 1
    assert history.steps[-1] == count
    assert len(history) > min(count, MAX_IMAGES) // 2 - 2
    gaps = np.diff(history.steps[:-1])
    assert len(set(gaps.tolist())) <= 1
    assert all((image == step % 256).all() for step, image in zip(history.steps, history.images, strict=True))


def test_gif_has_all_images_and_holds_the_last() -> None:
    gif = Image.open(io.BytesIO(history_of(12).to_gif()))
    assert (gif.n_frames, gif.size) == (12, (5, 4))
    durations = []
    for i in range(12):
        gif.seek(i)
        assert abs(int(np.asarray(gif.convert("RGB"))[0, 0, 0]) - (i + 1)) <= 1
        durations.append(gif.info["duration"])
    assert durations[-1] > 5 * durations[0]


def test_gif_of_empty_history_raises() -> None:
    with pytest.raises(ValueError, match="image"):
        History().to_gif()
