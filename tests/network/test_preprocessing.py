from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import regnet
from torchvision.transforms import v2

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.preprocessing import infer_preprocessing
from convis_widgets.core.network.transform import Transform

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CATEGORIES = models.ResNet18_Weights.DEFAULT.meta["categories"]


class Around(nn.Module):
    """A network, with something before and after it."""

    def __init__(
        self, net: nn.Module, before: Callable[..., Any] = lambda x: x, after: Callable[..., Any] = lambda y: y
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.net(self.before(x)))


class Keyword(Around):
    """A network that gets its image by keyword."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.net(x=self.before(x)))


class OwnHead(nn.Module):
    """A body and a linear head on the mean of its maps."""

    def __init__(self, body: nn.Module, width: int, classes: int = 7) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.body(x)
        return self.fc((maps["maps"] if isinstance(maps, dict) else maps).mean((2, 3)))


class Two(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


@pytest.fixture(scope="module")
def squeezenet_module() -> nn.Module:
    torch.manual_seed(0)
    return models.squeezenet1_1().eval()


@pytest.fixture(scope="module")
def resnet_module() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet18().eval()


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks without values are made in milliseconds."""
    original = regnet.BlockParams.from_init_params

    def computed(_cls: Any, *args: Any, **kwargs: Any) -> Any:  # it computes widths from tensors
        with torch.device("cpu"):
            return original(*args, **kwargs)

    for name in (
        "trunc_normal_",
        "normal_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "uniform_",
        "zeros_",
        "ones_",
        "constant_",
    ):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_args, **_kwargs: tensor)
    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(computed))
    with torch.device("meta"):
        yield


def without_running(module: nn.Module, channels: int = 3) -> Transform:
    trial: Any = SimpleNamespace(run=lambda transform, *_: transform.channels == channels)
    return infer_preprocessing(module, trial, name="net").transform


def published(name: str, side: int | None = None) -> tuple[Any, ...]:
    presets = [weights.transforms() for weights in models.get_model_weights(name)]
    preset = next(preset for preset in presets if side in (None, *preset.crop_size))
    resize = preset.resize_size[0]
    return preset.crop_size * 2, resize, preset.mean, preset.std, preset.interpolation.value.upper()


def as_published(transform: Transform) -> tuple[Any, ...]:
    return list(transform.size), transform.resize, [*transform.mean], [*transform.std], transform.resample.name


def test_torchvision_networks_with_another_head_keep_their_preprocessing(on_meta: None) -> None:
    names = models.list_models(module=models)
    assert len(names) >= 80
    for name in names:
        options = {"init_weights": False} if name.startswith(("vgg", "googlenet", "inception")) else {}
        module = models.get_model(name, weights=None, num_classes=5, **options)
        transform = without_running(module)
        assert as_published(transform) == published(name, getattr(module, "image_size", None)), name
        assert transform.guessed == (), name


@pytest.mark.parametrize(("name", "side"), [("vit_b_16", 384), ("vit_h_14", 518), ("vit_h_14", 224), ("vit_l_16", 512)])
@pytest.mark.parametrize("classes", [5, 1000])
def test_vision_transformer_of_another_size(name: str, side: int, classes: int, on_meta: None) -> None:
    module = models.get_model(name, weights=None, image_size=side, num_classes=classes)
    assert as_published(without_running(module)) == published(name, side)


def replaced(module: nn.Module, **parts: nn.Module) -> nn.Module:
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def test_head_of_several_layers_no_head_and_first_layer_for_gray_images(on_meta: None) -> None:
    b3 = published("efficientnet_b3")
    for head in (nn.Sequential(nn.Linear(1536, 64), nn.ReLU(), nn.Linear(64, 5)), nn.Identity()):
        assert as_published(without_running(replaced(models.efficientnet_b3(), classifier=head))) == b3
    gray = models.efficientnet_b3(num_classes=2)
    gray.features[0][0] = nn.Conv2d(1, 40, 3, 2, 1, bias=False)
    transform = without_running(gray, channels=1)
    assert (transform.size, transform.resize, transform.channels) == ((300, 300), 320, 1)
    assert transform.mean == pytest.approx([np.mean(IMAGENET[0])])
    assert transform.guessed == ("mean", "std"), "of three channels one was made"


def test_network_inside_a_module_keeps_its_preprocessing_and_labels(
    resnet_module: nn.Module, squeezenet_module: nn.Module
) -> None:
    image = np.random.default_rng(0).random((224, 224, 3)).astype(np.float32)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    normalize = torchvision.transforms.Normalize(*IMAGENET)
    with torch.no_grad():
        expected = squeezenet_module(normalize(batch)).softmax(1)[0]
    for module in (
        nn.Sequential(squeezenet_module),
        Around(nn.Sequential(squeezenet_module)),
        Around(squeezenet_module, after=lambda y: y.softmax(1)),
        Keyword(squeezenet_module),
        Keyword(squeezenet_module, before=normalize),
        nn.Sequential(nn.DataParallel(squeezenet_module)),
        nn.Sequential(normalize, squeezenet_module),  # must not be normalized twice
        nn.Sequential(v2.Normalize(*map(list, IMAGENET)), squeezenet_module),
    ):
        net = Network(module)
        assert (net.transform.size, net.transform.resize, net.transform.guessed) == ((224, 224), 256, ())
        assert np.allclose(net.predict_proba(image), expected, atol=1e-5)
        assert list(net.labels) == CATEGORIES
    both = Network(Two(resnet_module, squeezenet_module))
    assert (both.transform.mean, both.transform.std, both.transform.guessed) == (*IMAGENET, ())
    assert both.labels[0] == "class 0"


def test_labels_are_not_taken_behind_further_weights(squeezenet_module: nn.Module) -> None:
    assert Network(nn.Sequential(squeezenet_module, nn.Linear(1000, 1000))).labels[0] == "class 0"
    assert Network(nn.Sequential(squeezenet_module, nn.Linear(1000, 7))).labels[0] == "class 0"
    assert Network(OwnHead(copy.deepcopy(squeezenet_module).features, 512, 1000)).labels[0] == "class 0"


@pytest.mark.parametrize("before", [lambda x: 2 * x - 1, lambda x: 255 * x, lambda x: x.flip(1)])
def test_preprocessing_of_a_changed_image_is_a_guess(before: Callable[..., Any], squeezenet_module: nn.Module) -> None:
    net = Network(Around(squeezenet_module, before))
    assert (net.transform.size, net.transform.guessed) == ((224, 224), ("mean", "std"))
    assert set(net.transform.mean) == {0}
    assert net.labels[0] == "tench"


def test_network_that_the_forward_pass_does_not_use_says_nothing(squeezenet_module: nn.Module) -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.own = squeezenet_module, nn.Conv2d(3, 1000, 3, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.own(x).mean((2, 3))

    for statement in ({}, {"size": 32}):
        net = Network(Student(), channels=3, **statement)
        assert set(net.transform.mean) == {0}
        assert set(net.transform.guessed) >= {"mean", "std"}
        assert net.labels[0] == "class 0"


def test_stated_values_win_over_published_ones(squeezenet_module: nn.Module) -> None:
    for module in (squeezenet_module, nn.Sequential(squeezenet_module)):
        net = Network(module, size=(128, 160), mean=0.5)
        assert (net.transform.size, net.transform.mean, net.transform.std) == ((128, 160), (0.5,) * 3, IMAGENET[1])
        assert (net.transform.resize, net.transform.guessed, net.labels[0]) == (None, (), "tench")
        complete = Network(module, transform=Transform((64, 64)))
        assert (complete.transform, complete.labels[0]) == (Transform((64, 64)), "tench")


def test_network_that_resizes_its_image(squeezenet_module: nn.Module) -> None:
    net = Network(Around(squeezenet_module, lambda x: F.interpolate(x, (224, 224), mode="bilinear")), size=96)
    assert (net.transform.size, net.transform.mean, net.transform.guessed) == ((96, 96), IMAGENET[0], ())


@pytest.mark.parametrize(
    ("name", "cut", "width"),
    [
        ("resnet18", lambda net: nn.Sequential(*list(net.children())[:-2]), 512),
        ("efficientnet_b3", lambda net: net.features, 1536),
        ("densenet121", lambda net: net.features, 1024),
        ("mobilenet_v3_small", lambda net: net.features, 576),
    ],
)
def test_body_with_own_head_keeps_its_preprocessing(name: str, cut: Callable[..., nn.Module], width: int) -> None:
    net = Network(OwnHead(cut(models.get_model(name, weights=None)), width))
    assert as_published(net.transform) == published(name)
    assert net.transform.guessed == ()


def test_layers_of_resnet_in_one_sequence_with_own_head() -> None:
    layers = list(models.resnet18().children())[:-1]
    net = Network(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 7)))
    assert as_published(net.transform) == published("resnet18")


def test_body_of_plain_layers_is_taken_for_the_published_one_and_marked_as_a_guess() -> None:
    for body in (
        models.vgg11(init_weights=False).features,
        models.feature_extraction.create_feature_extractor(models.resnet18(), {"layer4": "maps"}),
    ):
        net = Network(OwnHead(body, 512))
        assert as_published(net.transform) == published("vgg11")
        assert net.transform.guessed == ("size", "mean", "std")


def test_vgg_for_small_images_is_not_taken_for_the_published_one() -> None:
    net = Network(nn.Sequential(models.vgg11(init_weights=False).features, nn.Flatten(), nn.Linear(512, 10)))
    assert (net.transform.size, set(net.transform.mean)) == ((32, 32), {0})
    assert net.transform.guessed == ("mean", "std"), "it runs on 32x32 only"


class UNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        widths = [4 * 2**i for i in range(depth + 1)]
        pairs = list(itertools.pairwise(widths))
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.first(x)]
        for down in self.down:
            maps.append(down(F.max_pool2d(maps[-1], 2)).relu())
        x = maps.pop()
        for up in self.up:
            x = up(x) + maps.pop()
        return self.last(x)


def test_size_found_by_trial_is_large_if_the_maps_become_small() -> None:
    assert Network(UNet(4)).transform.size == (224, 224)
    assert Network(UNet(2)).transform.size == (32, 32)
    stem = replaced(models.resnet18(num_classes=10), conv1=nn.Conv2d(3, 64, 3, padding=1, bias=False), maxpool=nn.Identity())
    net = Network(stem)
    assert (net.transform.size, net.transform.mean) == ((32, 32), IMAGENET[0])
    assert net.transform.guessed == ("size", "mean", "std")


def test_repr_widget_and_saved_image_say_what_was_guessed(image: np.ndarray) -> None:
    from widget_helpers import settled

    from convis_widgets.widgets import SaliencyViewer

    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Network(module)
    assert repr(net) == (
        "<Network Sequential: 3x32x32 -> 3 logits on cpu (guessed: size 32x32, mean 0, std 1, output_kind logits; "
        "state size=, mean=, std=, output_kind=)>"
    )
    viewer = SaliencyViewer(net, np.zeros((32, 32, 3), np.float32))
    settled(viewer)
    assert "guessed: size 32x32" in viewer.notice.value
    assert viewer.children[-1] is viewer.notice
    shown = viewer.snapshot()
    viewer.close()
    stated = Network(module, size=32, mean=0, std=1)
    assert "guess" not in repr(stated)
    viewer = SaliencyViewer(stated, np.zeros((32, 32, 3), np.float32))
    settled(viewer)
    assert viewer.notice is None
    assert viewer.snapshot().shape[0] < shown.shape[0], "a line less"
    viewer.close()
    for statement, guessed in (
        ({"size": 32}, ("mean", "std")),
        ({"mean": 0.5}, ("size", "std")),
        ({"std": 1}, ("size", "mean")),
    ):
        assert Network(module, **statement).transform.guessed == guessed
    one, probabilities = nn.Sequential(module, nn.Linear(3, 1)), nn.Sequential(module, nn.Softmax(1))
    for kind, net in (
        ("logits", Network(module, size=32)),
        ("values", Network(one, size=32)),
        (None, Network(module, size=32, output_kind="logits")),
        (None, Network(probabilities, size=32)),
        (None, stated),
    ):
        assert ("output_kind" in repr(net)) == (kind is not None)
        assert kind is None or f"std 1, output_kind {kind}; state mean=, std=, output_kind=" in repr(net)
        assert repr(pickle.loads(pickle.dumps(net))) == repr(net)
    fixed = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 10))
    assert (Network(fixed).transform.size, Network(fixed, mean=0, std=1).transform.guessed) == ((28, 28), ())


def test_timm_network_inside_a_module_and_with_other_channels() -> None:
    module = timm.create_model("test_resnet.r160_in1k")
    config = timm.data.resolve_model_data_config(module)
    net = Network(Around(module, after=lambda y: y.softmax(1)))
    assert (net.transform.size, net.transform.mean, net.transform.std) == (
        config["input_size"][1:], config["mean"], config["std"],
    )  # fmt: skip
    assert list(net.labels) == CATEGORIES
    assert Network(Keyword(module)).transform == net.transform
    tuned = Network(nn.Sequential(timm.create_model("test_resnet.r160_in1k", num_classes=3)))
    assert (tuned.transform, tuned.labels) == (net.transform, ("class 0", "class 1", "class 2"))
    gray = Network(timm.create_model("test_resnet.r160_in1k", in_chans=1))
    assert (gray.transform.channels, gray.transform.size, gray.transform.guessed) == (1, (160, 160), ())
    small = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1)
    assert (Network(small).transform.size, Network(small).transform.guessed) == ((96, 96), ())


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_a_network_whose_first_layer_gets_rearranged_pixels(channels: int) -> None:
    tresnet = timm.create_model("tresnet_m", in_chans=channels, num_classes=3).eval()  # space to depth
    first = nn.Conv2d(4 * channels, 64, 3, 1, 1, bias=False)
    unshuffled = replaced(models.resnet18(num_classes=3), conv1=nn.Sequential(nn.PixelUnshuffle(2), first)).eval()
    images = torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    for module in (tresnet, Around(tresnet), unshuffled):
        net = Network(module, size=64, mean=0, std=1)
        assert net.transform.channels == channels
        with torch.no_grad():
            torch.testing.assert_close(net(images), module(images))
    assert Network(tresnet).transform.size == (224, 224), "as published"


def test_segmentation_network_has_its_size_and_its_labels() -> None:
    module = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    weights = models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT
    net = Network(module)
    assert list(net.transform.size) == weights.transforms().resize_size * 2
    assert list(net.labels) == weights.meta["categories"]


# -- what a module is given ------------------------------------------------------------------------------------------------


def test_trial_image_is_normalized_as_stated() -> None:
    class Range(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.min() < 0, "expects -1 .. 1"
            assert x.max() > 0
            return x.mean((2, 3))

    net = Network(Range(), size=32, mean=0.5, std=0.5)
    assert len(net.graph.ops) > 0
    with pytest.raises(ValueError, match=r"Range.*\[0, 1\].*mean=, std=.*expects -1 \.\. 1"):
        Network(Range(), size=32)


class TakesTwo(nn.Module):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x + other


class TakesKeywords(nn.Module):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * mask * scale


class TakesDict(nn.Module):
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["pixel_values"].mean((2, 3))


def nested(depth: int) -> nn.Module:
    module: nn.Module = nn.Conv2d(3, 2, 3)
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


class TakesPair(nn.Module):
    def forward(self, pair: Any) -> torch.Tensor:
        first, _second = pair
        return first


class LooksUp(nn.Module):
    def forward(self, batch: Any) -> torch.Tensor:
        return batch.get("image").mean((2, 3))


def volumes(*window: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, window), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (TakesTwo(), "TakesTwo takes another argument, other; wrap it"),
        (TakesKeywords(), "TakesKeywords takes another argument, mask; wrap it"),
        (models.optical_flow.raft_small(), "RAFT takes another argument, image2; wrap it"),
        (TakesDict(), "TakesDict takes a dict with 'pixel_values'"),
        (LooksUp(), "LooksUp takes a dict with 'image'"),
        (TakesPair(), "TakesPair does not run on a 16x16 image with 3 channels.*ValueError.*unpack"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten()), "on sequences.*not on images.*conv1d"),
        (nn.LSTM(16, 4), "on sequences.*not on images"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Flatten()), "on indices.*not on images"),
        (volumes(3, 3, 3), "on volumes or videos.*not on images"),
        (volumes(1, 3, 3), "on volumes or videos.*not on images"),  # (C, H, W) would be one volume without channels
        (nn.Conv2d(4, 2, 3), "16x16 image with 3 channels.*4 channels"),
        (nested(300), "Sequential nests its modules too deeply; flatten its containers"),
        (nn.Conv2d(3, 2, 33), "16x16 image with 3 channels.*[Kk]ernel"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_says_why_a_module_does_not_run_and_asks_for_nothing_that_was_given(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Network(module, size=16, channels=3, mean=0.5, std=0.5)
    text = str(caught.value)
    assert not any(f"{key}=" in text for key in ("size", "channels", "mean", "std"))
    assert "\n" not in text
    assert caught.value.__cause__ is not None


def test_error_asks_for_what_was_not_given() -> None:
    with pytest.raises(ValueError, match=r"common size with 3 channels.*state size=, mean=, std= if"):
        Network(nn.Sequential(nn.Conv2d(4, 2, 3)), channels=3)
    with pytest.raises(ValueError, match=r"common size.*state size=, mean=, std=, channels= if"):
        Network(TakesPair())
    with pytest.raises(ValueError, match="volumes or videos"):
        Network(nn.Sequential(nn.Conv3d(3, 2, 3), nn.Flatten()))


def test_unsqueezed_image_can_go_through_a_convolution_in_three_dimensions() -> None:
    module = Around(volumes(3, 3, 3), lambda x: x[:, None])
    assert Network(module, size=16, channels=3).labels == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("stated", "size", "mean"),
    [
        ({"size": np.int64(40)}, (40, 40), 0),
        ({"size": (np.int32(40), torch.tensor(50))}, (40, 50), 0),
        ({"size": np.array([40, 50])}, (40, 50), 0),
        ({"size": torch.Size([40, 50])}, (40, 50), 0),
        ({"mean": np.array(0.5)}, (32, 32), 0.5),
        ({"mean": torch.full((3, 1, 1), 0.5)}, (32, 32), 0.5),
        ({"mean": np.float32(0.5), "channels": np.int8(3)}, (32, 32), 0.5),
    ],
)
def test_size_mean_and_channels_of_any_number_type(stated: dict[str, Any], size: tuple[int, int], mean: float) -> None:
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), **stated)
    assert (net.transform.size, net.transform.mean) == (size, (mean,) * 3)
    assert all(type(number) is int for number in (*net.transform.size, net.transform.channels))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"size": 0}, "size=0.*positive"),
        ({"size": (3, 40, 40)}, r"size=\(3, 40, 40\).*\(height, width\)"),
        ({"size": 40.0}, r"size=40\.0"),
        ({"size": True}, "size=True"),
        ({"channels": 0}, "channels=0"),
        ({"channels": "RGB"}, "channels='RGB'"),
        ({"mean": "x"}, "mean='x'"),
        ({"mean": float("nan")}, "nan.*finite"),
        ({"std": [0.5, 0, 0.5]}, "std.*above 0"),
        ({"std": [0.5, 0.5]}, "std has 2 values for 3 channels"),
        ({"mean": 127.5, "std": 127.5}, "divide.*255"),
        ({"transform": models.ResNet18_Weights.DEFAULT.transforms()}, "transform=.*ImageClassification.*Transform"),
        ({"transform": Transform((16, 16)), "size": 32, "mean": 0.5}, "transform=.*size=, mean="),
    ],
)
def test_statements_that_make_no_sense_are_rejected(stated: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), **stated)
