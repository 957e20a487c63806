"""The contract of every registered technique, checked on a small seeded network."""

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
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.knob import get_knobs
from convis_widgets.core.network.network import Network
from convis_widgets.core.registry import TECHNIQUES
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run

ALL = sorted(name for name in TECHNIQUES if TECHNIQUES[name].__module__.startswith("convis_widgets"))

FOLDER = tempfile.TemporaryDirectory()


def new_scan(net: Network, image: np.ndarray) -> Scan:
    """A Scan of six images with an empty cache."""
    images = [np.roll(image, 2 * i, 1) for i in range(6)]
    return Scan(net, images, cache=tempfile.mkdtemp(dir=FOLDER.name))


def first_convolution(net: Network) -> str:
    return next(layer.name for layer in net.layers if layer.kind == "Conv2d")


# positional arguments, where they are not a single image
INPUTS = {
    "deletion_insertion": lambda _net, image: (image, np.atleast_3d(image).sum(2)),
    "pointing_game": lambda _net, image: ([(image, i, np.atleast_3d(image)[:, :, 0] > 0.5) for i in (0, 1)],),
    "scan": lambda net, image: (new_scan(net, image),),
    "max_patches": lambda net, image: (new_scan(net, image),),
    "neighbors": lambda net, image: (new_scan(net, image), [1, 4]),
    "embedding": lambda net, image: (new_scan(net, image),),
    "gradient_ascent": lambda _net, _picture: (),
    "template_match": lambda _net, _picture: (),
    "style_transfer": lambda _net, image: (image, image[::-1].copy()),
}
DATASET_TECHNIQUES = ("scan", "max_patches", "neighbors", "embedding")
# techniques that use an early layer in these tests
EARLY_LAYER = ("activations", "deep_dream", "feature_inversion", "style_transfer", "template_match", "texture")
ACCEPTS_LAYER = ("deep_dream", "gradient_ascent")  # accept a layer name for `objective`
WITHOUT_IMAGE = ("gradient_ascent", "template_match")
IMAGE_TECHNIQUES = sorted({*ALL} - {*DATASET_TECHNIQUES})
KEYWORDS = {
    "max_patches": lambda net: {"unit": (first_convolution(net), 1)},
    "embedding": lambda _net: {"iterations": 30},
    "deep_dream": lambda net: {"objective": first_convolution(net), "octaves": 2, "octave_scale": 1.2, "iterations": 3},
    "feature_inversion": lambda net: {"layers": first_convolution(net), "iterations": 4},
    "style_transfer": lambda _net: {"scales": 1, "iterations": 4},
    "template_match": lambda _net: {"iterations": 4},
    "texture": lambda _net: {"scales": 1, "iterations": 4},
    "fooling": lambda _net: {"iterations": 6, "lr": 1e-3},
    "gradient_ascent": lambda _net: {"objective": ("", 0), "iterations": 6, "preset": "cs231n", "blur_every": 1},
}
PADDED_WITH_NAN = {"patches", "projections"}  # smaller patches are padded with NaN


def start(name: str, net: Network, image: np.ndarray, **kwargs: Any) -> Any:
    inputs = INPUTS.get(name, lambda _net, image: (image,))(net, image)
    defaults = KEYWORDS.get(name, lambda _net: {})(net)
    if "target" in kwargs:  # `target` replaces `objective`
        defaults.pop("objective", None)
    return TECHNIQUES[name](net, *inputs, **{**defaults, **kwargs})


def digest(frame: Frame) -> str:
    h = hashlib.sha256(repr((frame.step, frame.total, frame.done, dict(frame.scalars))).encode())
    for array in (getattr(frame, "image", None), getattr(frame, "heat", None), *frame.arrays.values()):
        h.update(b"-" if array is None else array.tobytes() + repr((array.shape, array.dtype)).encode())
    return h.hexdigest()


@pytest.mark.parametrize("name", ALL)
def test_technique_yields_valid_frames_and_last_is_done(name: str, tiny: Network, image: np.ndarray) -> None:
    frames = list(start(name, tiny, image))
    assert frames
    assert [f.done for f in frames] == [False] * (len(frames) - 1) + [True]
    assert [f.step for f in frames] == sorted(f.step for f in frames)
    assert frames[-1].total in (None, frames[-1].step)
    for frame in frames:
        if hasattr(frame, "image"):
            assert frame.image.shape == (16, 16, 3)
            assert frame.image.dtype == np.float32
            assert 0 <= frame.image.min() <= frame.image.max() <= 1
        if hasattr(frame, "heat"):
            assert frame.heat.shape == (16, 16)
            assert frame.heat.dtype == np.float32
        assert all(np.isfinite(value) for value in frame.scalars.values())
        assert all(not array.flags.writeable for array in frame.arrays.values())
    last = frames[-1]
    numbers = [a for name, a in last.arrays.items() if a.dtype.kind != "U" and name not in PADDED_WITH_NAN]
    numbers += [last.heat] if hasattr(last, "heat") else []
    assert all(np.isfinite(a).all() for a in numbers)


@pytest.mark.parametrize("name", ALL)
def test_technique_frames_do_not_change_later(name: str, tiny: Network, image: np.ndarray) -> None:
    frames, digests = [], []
    for frame in start(name, tiny, image):
        frames.append(frame)
        digests.append(digest(frame))
    assert [digest(frame) for frame in frames] == digests


@pytest.mark.parametrize("name", ALL)
def test_technique_is_deterministic(name: str, tiny: Network, image: np.ndarray) -> None:
    once, again = ([digest(f) for f in start(name, tiny, image)] for _ in range(2))
    assert once == again


@pytest.mark.parametrize("name", ALL)
def test_technique_works_in_inference_mode(name: str, tiny: Network, image: np.ndarray) -> None:
    outside = [digest(frame) for frame in start(name, tiny, image)]
    with torch.inference_mode():
        assert [digest(frame) for frame in start(name, tiny, image)] == outside
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("name", sorted({*ALL} - {"activations", "randomization_check"}))
def test_technique_reports_nan_weights(name: str, tiny_module: nn.Module, image: np.ndarray) -> None:
    with torch.no_grad():
        (tiny_module.conv1 if name in EARLY_LAYER else tiny_module.fc).bias[0] = float("nan")
    net, numbers, message = Network(tiny_module, size=16), [0.0], ""
    try:
        last = Run(start(name, net, image)).run()
        numbers = [*last.scalars.values(), *([last.heat.max()] if hasattr(last, "heat") else [])]
    except ValueError as error:
        message = str(error)
    assert re.search("(?i)finite|NaN", message) or not np.isfinite(numbers).all()


class Broken(RuntimeError):
    pass


class Fuse(nn.Module):
    """Identity that raises after a given number of forward passes."""

    passes = math.inf

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes -= 1
        if self.passes < 0:
            raise Broken("in the middle of a pass")
        return x


def module_in_training() -> nn.Module:
    """A module in the middle of training: frozen weights, partly accumulated gradients, and user hooks."""
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
    module[0].register_forward_hook(unexpected_hook)
    module[0].register_forward_pre_hook(unexpected_hook)
    module[1][1].register_full_backward_hook(unexpected_hook)
    module[2][2].weight.register_hook(lambda gradient: gradient)
    return module


def unexpected_hook(*_: Any) -> None:
    raise AssertionError("a user hook was called")


def module_state(module: nn.Module) -> dict[str, Any]:
    """Everything a user could find changed: state of the module and global torch and random state."""

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


def run_to_end(frames: Any) -> None:
    assert list(frames)[-1].done


def close_half_way(frames: Any) -> None:
    next(frames)
    frames.close()


def close_before_start(frames: Any) -> None:
    frames.close()


def throw_into(frames: Any) -> None:
    next(frames)
    with pytest.raises(Broken, match="from outside"):
        frames.throw(Broken("from outside"))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("end", [run_to_end, close_half_way, close_before_start, throw_into])
@pytest.mark.parametrize("name", ALL)
def test_technique_leaves_user_module_unchanged(name: str, end: Any, grad: bool, image: np.ndarray) -> None:
    module = module_in_training()
    net = Network(module, size=16)
    assert net.layers
    with torch.set_grad_enabled(grad):
        before, shadow = module_state(module), module_state(net.module)
        frames = start(name, net, image)
        end(frames)
        assert module_state(module) == before
        after = module_state(net.module)
    after["attributes"] = shadow["attributes"]  # Fuse counts its passes
    assert after == shadow


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("name", ALL)
def test_technique_recovers_from_failing_forward_pass(name: str, passes: int, image: np.ndarray) -> None:
    module = module_in_training()
    net = Network(module, size=16)
    expected = [digest(frame) for frame in start(name, net, image)]
    before = module_state(module)
    net.module[1][0].passes = passes
    message = ""
    try:
        for _ in start(name, net, image):
            pass
    except Broken as error:
        message = str(error)
    if passes == 0 and name not in EARLY_LAYER:
        assert message == "in the middle of a pass"
    assert module_state(module) == before
    net.module[1][0].passes = math.inf
    assert [digest(frame) for frame in start(name, net, image)] == expected


@pytest.mark.parametrize("name", ALL)
def test_technique_leaves_user_module_unchanged_between_frames(name: str, image: np.ndarray) -> None:
    module = module_in_training()
    net = Network(module, size=16)
    assert net.layers
    before = module_state(module)
    for _ in start(name, net, image):
        assert module_state(module) == before


LIVE_KNOBS = [(name, knob) for name in ALL for knob, declared in get_knobs(TECHNIQUES[name]).items() if declared.live]


@pytest.mark.parametrize(("name", "knob"), LIVE_KNOBS)
def test_technique_live_knobs_change_next_frame(name: str, knob: str, tiny: Network, image: np.ndarray) -> None:
    declared = get_knobs(TECHNIQUES[name])[knob]
    unchanged, changed = start(name, tiny, image), start(name, tiny, image)
    next(unchanged)
    next(changed)
    other = True if bool in declared.types else declared.choices[-1] if declared.choices else declared.high
    assert digest(next(unchanged)) != digest(changed.send({knob: other}))


@pytest.mark.parametrize("name", ALL)
def test_technique_rejects_unknown_keyword_and_invalid_knob(name: str, tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        start(name, tiny, image, nonsense=1)
    for knob, declared in get_knobs(TECHNIQUES[name]).items():
        if declared.high is not None:
            with pytest.raises(ValueError, match=rf"{knob}=.*{re.escape(f'{declared.high:g}')}"):
                start(name, tiny, image, **{knob: declared.high + 1})


@pytest.mark.parametrize("name", ALL)
def test_technique_works_on_gray_network(name: str) -> None:
    torch.manual_seed(2)
    net = Network(nn.Sequential(nn.Conv2d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 24 * 24, 6)))
    last = Run(start(name, net, np.random.default_rng(0).random((28, 28)).astype(np.float32))).run()
    assert last.done
    assert name in (*DATASET_TECHNIQUES, "template_match") or last.image.shape == (28, 28, 1)


@pytest.mark.parametrize("name", ALL)
def test_technique_works_on_vision_transformer(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    module = torchvision.models.VisionTransformer(image_size=16, patch_size=4, **options)
    nn.init.normal_(module.heads.head.weight)  # initialized to zeros, so no pixel would matter
    net = Network(module)
    run = Run(start(name, net, np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)))
    if name in ("guided_backprop", "deconvnet"):
        with pytest.raises(ValueError, match=r"encoder\.ln.*LayerNorm"):
            run.run()
    else:
        assert run.run().done


def mentions(*facts: str) -> str:
    """A pattern for a message with all of these names and numbers, in any order."""
    return "".join(rf"(?=.*(?<![\w.]){re.escape(fact)}(?!\w))" for fact in facts)


# keyword arguments, the expected error, and a pattern for its message; synthesis techniques call `unit` `objective`
WRONG = [
    ({"target": "zebra"}, ValueError, mentions("zebra", "tiny", "class 0")),
    ({"target": 4}, ValueError, mentions("tiny", "0", "3", "4")),
    ({"target": -1}, ValueError, mentions("tiny", "0", "3", "-1")),
    ({"target": 1.5}, ValueError, mentions("tiny", "0", "3", "1.5")),
    ({"unit": ("conv9", 0)}, ValueError, "conv9.*conv[12]"),
    ({"unit": ("conv2", 8)}, ValueError, mentions("conv2", "0", "7", "8")),
    ({"unit": ("conv2", 0, (0, 8))}, ValueError, mentions("conv2", "8x8")),
    ({"unit": "conv2"}, TypeError, mentions("conv2")),
    ({"target": 1, "unit": ("conv2", 0)}, ValueError, mentions("target")),
    ({"layer": "conv9"}, ValueError, "conv9.*conv[12]"),
    ({"layers": ["conv9"]}, ValueError, "conv9.*conv[12]"),
]


def is_single_sentence(error: BaseException) -> bool:
    message = str(error)
    return 20 < len(message) < 300 and "\n" not in message and ". " not in message


@pytest.mark.parametrize("name", IMAGE_TECHNIQUES)
def test_technique_rejects_invalid_call_and_network_still_works(name: str, tiny: Network, image: np.ndarray) -> None:
    expected = [digest(frame) for frame in start(name, tiny, image)]
    knobs = inspect.signature(TECHNIQUES[name]).parameters
    for wrong_kwargs, error, message in WRONG:
        rename = {"unit": "objective"} if "objective" in knobs else {}
        kwargs = {rename.get(keyword, keyword): value for keyword, value in wrong_kwargs.items()}
        if kwargs.keys() <= knobs.keys() and not (kwargs == {"objective": "conv2"} and name in ACCEPTS_LAYER):
            with pytest.raises(error, match=message) as caught:
                list(start(name, tiny, image, **kwargs))
            assert is_single_sentence(caught.value)
    holed = image.copy()
    holed[3, 4, 1] = np.nan
    wrong = [
        (holed, mentions("1", "NaN")),
        (np.stack([image, image]), mentions("2")),
        (np.zeros((16, 16, 5)), mentions("(16, 16, 5)", "3")),
        (np.zeros((16, 0, 3)), mentions("(16, 0, 3)")),
    ]
    if name not in EARLY_LAYER:
        wrong.append((image[:1, :1], mentions("tiny", "16x16", "1x1")))
    for array, message in wrong if name not in WITHOUT_IMAGE else []:
        with pytest.raises(ValueError, match=message) as caught:
            list(start(name, tiny, array))
        assert is_single_sentence(caught.value)
    assert [digest(frame) for frame in start(name, tiny, image)] == expected


class Constant(nn.Module):
    """Scores that do not depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scores = nn.Conv2d(3, 4, 3), nn.Parameter(torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.conv(x)
        return self.scores.expand(len(x), -1)


def one_class() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))


def without_positions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 16), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4))


def quantized(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module.eval(), {nn.Linear}, dtype=torch.qint8)


# how the network is made from the ordinary one; a pattern for the error of techniques that cannot work on it; and where both
# should agree, the tolerance between their maps as a fraction of the largest value
UNUSUAL = {
    "compiled": (lambda tiny: torch.compile(tiny, backend="eager"), None, 0),
    "probabilities": (lambda tiny: nn.Sequential(tiny, nn.Softmax(1)), None, 1e-5),
    "half precision": (lambda tiny: tiny.half(), None, 0.05),
    "bfloat16": (lambda tiny: tiny.bfloat16(), None, None),
    "double precision": (lambda tiny: tiny.double(), None, None),
    "eight bits": (quantized, "differentiable|ReLU|layer", None),
    "constant": (lambda _: Constant(), "differentiable|depend", None),
    "one class": (lambda _: one_class(), r"\b0\D+0\D+1\b|class", None),
    "one class, no dimension for it": (
        lambda _: nn.Sequential(one_class(), nn.Flatten(0)),
        r"\b0\D+0\D+1\b|class",
        None,
    ),
    "no positions": (lambda _: without_positions(), "position|convolution", None),
}


@pytest.mark.filterwarnings("ignore:quantized.*autograd kernel was not registered:UserWarning")  # as expected
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", ALL)
def test_technique_works_on_or_rejects_unusual_network(
    name: str, kind: str, tiny_module: nn.Module, image: np.ndarray
) -> None:
    torch.manual_seed(4)
    make, pattern, tolerance = UNUSUAL[kind]
    net = Network(make(copy.deepcopy(tiny_module)), size=16)
    try:
        last = list(start(name, net, image))[-1]
    except (ValueError, TypeError) as error:
        refusal = error
    else:
        assert last.done
        numbers = [a for a in (getattr(last, "heat", None), *last.arrays.values()) if a is not None and a.dtype.kind != "U"]
        assert all(np.isfinite(a).all() for a in (*numbers, *last.scalars.values()))
        if tolerance is not None and hasattr(last, "heat"):
            expected = list(start(name, Network(tiny_module, size=16), image))[-1].heat
            assert np.abs(last.heat - expected).max() <= tolerance * np.abs(expected).max()
        return
    assert pattern is not None
    assert re.search(pattern, str(refusal))
    assert is_single_sentence(refusal)


@pytest.mark.filterwarnings("ignore:quantized.*autograd kernel was not registered:UserWarning")  # as expected
@pytest.mark.parametrize("kind", ["constant", "eight bits"])
@pytest.mark.parametrize(
    "name", ["saliency", "guided_backprop", "deconvnet", "grad_cam", "integrated_gradients", "smooth_grad"]
)
def test_gradient_techniques_reject_network_without_gradient(
    name: str, kind: str, tiny_module: nn.Module, image: np.ndarray
) -> None:
    make, pattern, _ = UNUSUAL[kind]
    with pytest.raises(ValueError, match=pattern):
        list(start(name, Network(make(tiny_module), size=16), image))


def test_occlusion_of_constant_network_is_zero(image: np.ndarray) -> None:
    assert not list(start("occlusion", Network(Constant(), size=16), image))[-1].heat.any()
