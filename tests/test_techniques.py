"""What holds for every technique, over the whole registry, on a small seeded network."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convis_widgets.techniques  # noqa: F401 (fills the registry)
from convis_widgets.core import TECHNIQUES, Frame, Network, Run, knobs_of

ALL = sorted(name for name in TECHNIQUES if TECHNIQUES[name].__module__.startswith("convis_widgets"))


def start(name: str, net: Network, picture: np.ndarray, **words: Any) -> Any:
    return TECHNIQUES[name](net, picture, **words)


def digest(frame: Frame) -> str:
    h = hashlib.sha256(repr((frame.step, frame.total, frame.done, dict(frame.scalars))).encode())
    for array in (frame.image, frame.heat, *frame.arrays.values()):
        h.update(b"-" if array is None else array.tobytes() + repr((array.shape, array.dtype)).encode())
    return h.hexdigest()


def hooks_of(*modules: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for module in modules
        for m in module.modules()
    )


@pytest.mark.parametrize("name", ALL)
def test_frames_are_of_the_right_make_and_the_last_is_done(name: str, tiny: Network, picture: np.ndarray) -> None:
    frames = list(start(name, tiny, picture))
    assert frames
    assert [f.done for f in frames] == [False] * (len(frames) - 1) + [True]
    assert [f.step for f in frames] == sorted(f.step for f in frames)
    assert frames[-1].total in (None, frames[-1].step)
    for frame in frames:
        if frame.image is not None:
            assert frame.image.shape == (16, 16, 3)
            assert frame.image.dtype == np.float32
            assert 0 <= frame.image.min() <= frame.image.max() <= 1
        if frame.heat is not None:
            assert frame.heat.shape == (16, 16)
            assert frame.heat.dtype == np.float32
        assert all(np.isfinite(value) for value in frame.scalars.values())
        assert all(not array.flags.writeable for array in frame.arrays.values())
    last = frames[-1]
    assert all(np.isfinite(a).all() for a in (last.heat, *last.arrays.values()) if a is not None)


@pytest.mark.parametrize("name", ALL)
def test_a_frame_does_not_change_later(name: str, tiny: Network, picture: np.ndarray) -> None:
    frames, digests = [], []
    for frame in start(name, tiny, picture):
        frames.append(frame)
        digests.append(digest(frame))
    assert [digest(frame) for frame in frames] == digests


@pytest.mark.parametrize("name", ALL)
def test_the_same_call_gives_the_same_frames(name: str, tiny: Network, picture: np.ndarray) -> None:
    once, again = ([digest(f) for f in start(name, tiny, picture)] for _ in range(2))
    assert once == again


@pytest.mark.parametrize("name", ALL)
def test_closed_half_way_it_leaves_nothing(name: str, tiny_module: nn.Module, picture: np.ndarray) -> None:
    tiny_module.train()
    tiny_module.conv1.weight.requires_grad_(False)
    net = Network(tiny_module, size=16)
    assert net.layers

    def state() -> tuple[Any, ...]:
        modules = (tiny_module, net.module)
        return (
            hooks_of(*modules),
            torch.is_grad_enabled(),
            [m.training for module in modules for m in module.modules()],
            [(p.requires_grad, p.grad is None) for module in modules for p in module.parameters()],
            hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in tiny_module.parameters())).hexdigest(),
        )

    before = state()
    frames = start(name, net, picture)
    next(frames)
    assert state() == before, "between two steps"
    frames.close()
    assert state() == before, "after closing"


@pytest.mark.parametrize("name", ALL)
def test_every_live_knob_sent_in_changes_the_next_frame(name: str, tiny: Network, picture: np.ndarray) -> None:
    for knob, declared in knobs_of(TECHNIQUES[name]).items():
        if declared.live:
            plain, turned = start(name, tiny, picture), start(name, tiny, picture)
            next(plain)
            next(turned)
            other = declared.choices[-1] if declared.choices else declared.high
            assert digest(next(plain)) != digest(turned.send({knob: other})), knob


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_keyword_or_a_wrong_knob_is_refused_at_once(name: str, tiny: Network, picture: np.ndarray) -> None:
    with pytest.raises(TypeError, match="has no knob 'nonsense'"):
        start(name, tiny, picture, nonsense=1)
    for knob, declared in knobs_of(TECHNIQUES[name]).items():
        if declared.high is not None:
            with pytest.raises(ValueError, match=f"{knob}=.* is outside"):
                start(name, tiny, picture, **{knob: declared.high + 1})


@pytest.mark.parametrize("name", ALL)
def test_gray_networks_and_small_pictures_work(name: str) -> None:
    torch.manual_seed(2)
    net = Network(nn.Sequential(nn.Conv2d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 24 * 24, 6)))
    last = Run(start(name, net, np.random.default_rng(0).random((28, 28)).astype(np.float32))).run()
    assert last.done
    assert last.image.shape == (28, 28, 1)


@pytest.mark.parametrize("name", ALL)
def test_vision_transformers_work(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    net = Network(torchvision.models.VisionTransformer(image_size=16, patch_size=4, **options))
    assert Run(start(name, net, np.random.default_rng(0).random((16, 16, 3)).astype(np.float32))).run().done
