from __future__ import annotations

import numpy as np
import pytest
import torch

from convis_widgets.core.runs.frame import Frame


def test_frame_copies_its_inputs() -> None:
    tensor, array = torch.zeros(2, 2), np.zeros((2, 2))
    frame = Frame(1, heat=tensor, arrays={"a": array}, scalars={"s": tensor[0, 0]})
    tensor += 1
    array += 1
    assert frame.heat.sum() == 0
    assert frame.arrays["a"].sum() == 0
    assert frame.scalars["s"] == 0


def test_frame_arrays_are_read_only_and_float32() -> None:
    frame = Frame(1, 2, image=torch.rand(4, 4, 3, dtype=torch.float64), heat=np.eye(3))
    assert frame.image.dtype == frame.heat.dtype == np.float32
    for array in (frame.image, frame.heat):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError):
        frame.scalars["x"] = 1


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_frame_image_tensor_is_converted_to_channels_last(channels: int) -> None:
    tensor = torch.rand(channels, 6, 7)
    expected = tensor.numpy().transpose(1, 2, 0)
    for image in (tensor, tensor[None], expected):
        assert np.array_equal(Frame(1, image=image).image, expected)
    if channels != 5:
        assert np.array_equal(Frame(1, image=torch.from_numpy(expected)).image, expected)


def test_frame_repr_lists_contents() -> None:
    assert repr(Frame(3, 9, heat=np.eye(2), scalars={"loss": 1.0})) == "Frame(3/9, heat, loss)"
