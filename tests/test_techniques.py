"""What holds for every technique, over the whole registry, on a small seeded network."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import random
import re
import tempfile
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convis_widgets.techniques  # noqa: F401 (fills the registry)
from convis_widgets.core import TECHNIQUES, Frame, Network, Run, Scan, knobs_of

ALL = sorted(name for name in TECHNIQUES if TECHNIQUES[name].__module__.startswith("convis_widgets"))

FOLDER = tempfile.TemporaryDirectory()


def several(net: Network, picture: np.ndarray) -> Scan:
    """Six pictures that were not looked at before."""
    pictures = [np.roll(picture, 2 * i, 1) for i in range(6)]
    return Scan(net, pictures, cache=tempfile.mkdtemp(dir=FOLDER.name))


def first_convolution(net: Network) -> str:
    return next(one.name for one in net.layers if one.kind == "Conv2d")


# what a technique looks at, where it is not just the picture
THINGS = {
    "deletion_insertion": lambda _net, picture: (picture, np.atleast_3d(picture).sum(2)),
    "pointing_game": lambda _net, picture: ([(picture, i, np.atleast_3d(picture)[:, :, 0] > 0.5) for i in (0, 1)],),
    "scan": lambda net, picture: (several(net, picture),),
    "max_patches": lambda net, picture: (several(net, picture),),
    "neighbors": lambda net, picture: (several(net, picture), [1, 4]),
    "embedding": lambda net, picture: (several(net, picture),),
    "gradient_ascent": lambda _net, _picture: (),
    "template_match": lambda _net, _picture: (),
    "style_transfer": lambda _net, picture: (picture, picture[::-1].copy()),
}
OF_SETS = ("scan", "max_patches", "neighbors", "embedding")
EARLY = ("activations", "deep_dream", "feature_inversion", "style_transfer", "template_match", "texture")  # layers, as here
OF_LAYERS = ("deep_dream", "gradient_ascent")  # that take a layer's name for `of`
FROM_NOTHING = ("gradient_ascent", "template_match")
OF_A_PICTURE = sorted({*ALL} - {*OF_SETS})
WORDS = {
    "max_patches": lambda net: {"of": (first_convolution(net), 1)},
    "embedding": lambda _net: {"iterations": 30},
    "deep_dream": lambda net: {"of": first_convolution(net), "octaves": 2, "octave_scale": 1.2, "iterations": 3},
    "feature_inversion": lambda net: {"layer": first_convolution(net), "iterations": 4},
    "style_transfer": lambda _net: {"sizes": 1, "iterations": 4},
    "template_match": lambda _net: {"iterations": 4},
    "texture": lambda _net: {"sizes": 1, "iterations": 4},
    "fooling": lambda _net: {"iterations": 6, "rate": 1e-3},
    "gradient_ascent": lambda _net: {"of": ("", 0), "iterations": 6, "preset": "cs231n", "blur_every": 1},
}
NOT_EVERYWHERE = {"patches", "projections"}  # NaN beside smaller ones


def start(name: str, net: Network, picture: np.ndarray, **words: Any) -> Any:
    things = THINGS.get(name, lambda _net, picture: (picture,))(net, picture)
    usual = WORDS.get(name, lambda _net: {})(net)
    if "target" in words:  # it takes the place of another question
        usual.pop("of", None)
    return TECHNIQUES[name](net, *things, **{**usual, **words})


def digest(frame: Frame) -> str:
    h = hashlib.sha256(repr((frame.step, frame.total, frame.done, dict(frame.scalars))).encode())
    for array in (frame.image, frame.heat, *frame.arrays.values()):
        h.update(b"-" if array is None else array.tobytes() + repr((array.shape, array.dtype)).encode())
    return h.hexdigest()


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
    numbers = [a for name, a in last.arrays.items() if a.dtype.kind != "U" and name not in NOT_EVERYWHERE]
    numbers += [last.heat] if last.heat is not None else []
    assert all(np.isfinite(a).all() for a in numbers)


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
def test_a_caller_in_inference_mode_gets_the_same_frames(name: str, tiny: Network, picture: np.ndarray) -> None:
    outside = [digest(frame) for frame in start(name, tiny, picture)]
    with torch.inference_mode():
        assert [digest(frame) for frame in start(name, tiny, picture)] == outside
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("name", sorted({*ALL} - {"activations", "randomization_check"}))
def test_a_network_that_has_diverged_is_refused_or_its_maps_are_not_finite(
    name: str, tiny_module: nn.Module, picture: np.ndarray
) -> None:
    with torch.no_grad():
        (tiny_module.conv1 if name in EARLY else tiny_module.fc).bias[0] = float("nan")
    net, numbers, sentence = Network(tiny_module, size=16), [0.0], ""
    try:
        last = Run(start(name, net, picture)).run()
        numbers = [*last.scalars.values(), *([] if last.heat is None else [last.heat.max()])]
    except ValueError as error:
        sentence = str(error)
    assert "not finite; its weights may have diverged" in sentence or not np.isfinite(numbers).all()


class Broken(RuntimeError):
    pass


class Fuse(nn.Module):
    """Hands on its input, and fails when the passes it is good for are used up."""

    passes = math.inf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes -= 1
        if self.passes < 0:
            raise Broken("in the middle of a pass")
        return x


def in_training() -> nn.Module:
    """A model of a user who is training it: some weights frozen, gradients half accumulated, hooks of the user's own."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        nn.Sequential(Fuse(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5)).eval(),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    module[1].train()
    module[0].eval()
    module(torch.rand(2, 3, 16, 16)).pow(2).sum().backward()
    module[0][0].weight.requires_grad_(False)
    module[2][2].bias.grad = None
    module[0].register_forward_hook(unwanted)
    module[0].register_forward_pre_hook(unwanted)
    module[1][1].register_full_backward_hook(unwanted)
    module[2][2].weight.register_hook(lambda gradient: gradient)
    return module


def unwanted(*_: Any) -> None:
    raise AssertionError("a hook of the user's was called")


def state_of(module: nn.Module) -> dict[str, Any]:
    """All of a module, and of what threads share, that a user could find changed."""

    def bits(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else (id(tensor), tensor._version, tensor.detach().numpy().tobytes())

    def keys(hooks: Any) -> Any:
        return [(key, id(hook)) for key, hook in (hooks or {}).items()]

    parameters = dict(module.named_parameters())
    return {
        "values": {name: bits(tensor) for name, tensor in module.state_dict(keep_vars=True).items()},
        "gradients": {name: bits(p.grad) for name, p in parameters.items()},
        "flags": {name: (p.requires_grad, p.is_leaf, p.grad_fn) for name, p in parameters.items()},
        "hooks on tensors": {name: keys(p._backward_hooks) for name, p in parameters.items()},
        "training": [m.training for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
        "hooks": [[(k, keys(v)) for k, v in vars(m).items() if "hooks" in k and v] for m in module.modules()],
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "seeds": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
    }


def to_the_end(frames: Any) -> None:
    assert list(frames)[-1].done


def closed_half_way(frames: Any) -> None:
    next(frames)
    frames.close()


def closed_before_it_began(frames: Any) -> None:
    frames.close()


def broken_from_outside(frames: Any) -> None:
    next(frames)
    with pytest.raises(Broken, match="from outside"):
        frames.throw(Broken("from outside"))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("end", [to_the_end, closed_half_way, closed_before_it_began, broken_from_outside])
@pytest.mark.parametrize("name", ALL)
def test_the_users_model_is_left_alone(name: str, end: Any, grad: bool, picture: np.ndarray) -> None:
    module = in_training()
    net = Network(module, size=16)
    assert net.layers
    with torch.set_grad_enabled(grad):
        before, shadow = state_of(module), state_of(net.module)
        frames = start(name, net, picture)
        end(frames)
        assert state_of(module) == before
        after = state_of(net.module)
    after["attributes"] = shadow["attributes"]  # the fuse counts
    assert after == shadow


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("name", ALL)
def test_a_pass_that_fails_leaves_the_users_model_alone_and_the_network_works_on(
    name: str, passes: int, picture: np.ndarray
) -> None:
    module = in_training()
    net = Network(module, size=16)
    expected = [digest(frame) for frame in start(name, net, picture)]
    before = state_of(module)
    net.module[1][0].passes = passes
    said = ""
    try:
        for _ in start(name, net, picture):
            pass
    except Broken as error:
        said = str(error)
    assert said == "in the middle of a pass" or (passes > 0 or name in EARLY)
    assert state_of(module) == before
    net.module[1][0].passes = math.inf
    assert [digest(frame) for frame in start(name, net, picture)] == expected


@pytest.mark.parametrize("name", ALL)
def test_between_two_frames_nothing_is_changed(name: str, picture: np.ndarray) -> None:
    module = in_training()
    net = Network(module, size=16)
    assert net.layers
    before = state_of(module)
    for _ in start(name, net, picture):
        assert state_of(module) == before


@pytest.mark.parametrize("name", ALL)
def test_every_live_knob_sent_in_changes_the_next_frame(name: str, tiny: Network, picture: np.ndarray) -> None:
    for knob, declared in knobs_of(TECHNIQUES[name]).items():
        if declared.live:
            plain, turned = start(name, tiny, picture), start(name, tiny, picture)
            next(plain)
            next(turned)
            other = True if bool in declared.kinds else declared.choices[-1] if declared.choices else declared.high
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
    assert name in (*OF_SETS, "template_match") or last.image.shape == (28, 28, 1)


@pytest.mark.parametrize("name", ALL)
def test_vision_transformers_work(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    module = torchvision.models.VisionTransformer(image_size=16, patch_size=4, **options)
    nn.init.normal_(module.heads.head.weight)  # zeros to begin with: no pixel would matter
    net = Network(module)
    run = Run(start(name, net, np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)))
    if name in ("guided_backprop", "deconvnet"):
        with pytest.raises(ValueError, match=r"defined for ReLU only, and encoder\.ln \(LayerNorm\)"):
            run.run()
    else:
        assert run.run().done


# what is wrong with a call: its words, the error, and a part of the sentence
WRONG = [
    ({"target": "zebra"}, ValueError, "no class 'zebra' in tiny; there are: class 0"),
    ({"target": 4}, ValueError, "tiny has classes 0 to 3, not 4"),
    ({"target": -1}, ValueError, "tiny has classes 0 to 3, not -1"),
    ({"target": 1.5}, ValueError, "tiny has classes 0 to 3, not 1.5"),
    ({"of": ("conv9", 0)}, ValueError, "no layer 'conv9'; nearest: conv"),
    ({"of": ("conv2", 8)}, ValueError, "conv2 has channels 0 to 7, not 8"),
    ({"of": ("conv2", 0, (0, 8))}, ValueError, "conv2 has 8x8 positions"),
    ({"of": "conv2"}, TypeError, "names no unit; write"),
    ({"target": 1, "of": ("conv2", 0)}, ValueError, "not both"),
    ({"layer": "conv9"}, ValueError, "no layer 'conv9'; nearest: conv"),
]


def one_sentence(error: BaseException) -> bool:
    said = str(error)
    return 20 < len(said) < 300 and "\n" not in said and ". " not in said


@pytest.mark.parametrize("name", OF_A_PICTURE)
def test_a_wrong_call_is_told_in_one_sentence_and_the_network_works_on(
    name: str, tiny: Network, picture: np.ndarray
) -> None:
    expected = [digest(frame) for frame in start(name, tiny, picture)]
    knobs = inspect.signature(TECHNIQUES[name]).parameters
    for words, error, message in WRONG:
        if words.keys() <= knobs.keys() and not (words == {"of": "conv2"} and name in OF_LAYERS):
            with pytest.raises(error, match=re.escape(message)) as told:
                list(start(name, tiny, picture, **words))
            assert one_sentence(told.value)
    holed = picture.copy()
    holed[3, 4, 1] = np.nan
    wrong = [
        (holed, "1 of the picture's values are NaN or infinite; replace them"),
        (np.stack([picture, picture]), "2 pictures were given; give one"),
        (np.zeros((16, 16, 5)), "(16, 16, 5) is no picture; the shape should be"),
        (np.zeros((16, 0, 3)), "(16, 0, 3) is no picture; the shape should be"),
    ]
    if name not in EARLY:
        wrong.append((picture[:1, :1], "tiny takes 16x16 pictures and cannot run on 1x1"))
    for image, message in wrong if name not in FROM_NOTHING else []:
        with pytest.raises(ValueError, match=re.escape(message)) as told:
            list(start(name, tiny, image))
        assert one_sentence(told.value)
    assert [digest(frame) for frame in start(name, tiny, picture)] == expected


class Constant(nn.Module):
    """Scores that do not depend on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scores = nn.Conv2d(3, 4, 3), nn.Parameter(torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.conv(x)
        return self.scores.expand(len(x), -1)


def one_class() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))


def no_positions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 16), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4))


def in_eight_bits(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module.eval(), {nn.Linear}, dtype=torch.qint8)


# how a network is made from the ordinary one; what a technique that cannot work on it says; and how far its map may be from
# that of the ordinary network, as a share of the largest value, where they should agree
UNUSUAL = {
    "compiled": (lambda tiny: torch.compile(tiny, backend="eager"), None, 0),
    "probabilities": (lambda tiny: nn.Sequential(tiny, nn.Softmax(1)), None, 1e-5),
    "half precision": (lambda tiny: tiny.half(), None, 0.05),
    "bfloat16": (lambda tiny: tiny.bfloat16(), None, None),
    "double precision": (lambda tiny: tiny.double(), None, None),
    "eight bits": (in_eight_bits, "by a differentiable path|defined for ReLU only|choose a layer before it", None),
    "constant": (lambda _: Constant(), "the score does not depend on the picture by a differentiable path", None),
    "one class": (lambda _: one_class(), "has classes 0 to 0, not 1|it has no other class", None),
    "one class, no dimension for it": (
        lambda _: nn.Sequential(one_class(), nn.Flatten(0)),
        "classes 0 to 0, not 1|it has no other class",
        None,
    ),
    "no positions": (lambda _: no_positions(), "before the score has positions|no ReLU and no convolution", None),
}


@pytest.mark.filterwarnings("ignore:quantized.*autograd kernel was not registered:UserWarning")  # which is so
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", ALL)
def test_unusual_networks_work_or_are_refused_in_one_sentence(
    name: str, kind: str, tiny_module: nn.Module, picture: np.ndarray
) -> None:
    torch.manual_seed(4)
    make, refusal, apart = UNUSUAL[kind]
    net = Network(make(copy.deepcopy(tiny_module)), size=16)
    try:
        found = list(start(name, net, picture))[-1]
    except (ValueError, TypeError) as error:
        said = error
    else:
        assert found.done
        numbers = [a for a in (found.heat, *found.arrays.values()) if a is not None and a.dtype.kind != "U"]
        assert all(np.isfinite(a).all() for a in (*numbers, *found.scalars.values()))
        if apart is not None and found.heat is not None:
            expected = list(start(name, Network(tiny_module, size=16), picture))[-1].heat
            assert np.abs(found.heat - expected).max() <= apart * np.abs(expected).max()
        return
    assert refusal is not None
    assert re.search(refusal, str(said))
    assert one_sentence(said)


@pytest.mark.filterwarnings("ignore:quantized.*autograd kernel was not registered:UserWarning")  # which is so
@pytest.mark.parametrize("kind", ["constant", "eight bits"])
@pytest.mark.parametrize(
    "name", ["saliency", "guided_backprop", "deconvnet", "grad_cam", "integrated_gradients", "smooth_grad"]
)
def test_without_a_gradient_there_is_no_map(name: str, kind: str, tiny_module: nn.Module, picture: np.ndarray) -> None:
    make, refusal, _ = UNUSUAL[kind]
    with pytest.raises(ValueError, match=refusal):
        list(start(name, Network(make(tiny_module), size=16), picture))


def test_what_the_score_does_not_depend_on_may_be_hidden(picture: np.ndarray) -> None:
    assert not list(start("occlusion", Network(Constant(), size=16), picture))[-1].heat.any()
