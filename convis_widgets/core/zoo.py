"""The zoo: what torchvision and timm know about a model: weights, preprocessing, labels."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from PIL import Image
from torch import nn

from .errors import nearest
from .transform import IMAGENET_MEAN, IMAGENET_STD, Transform

# torchvision's builders do this themselves when they load weights, but they load them with arbitrary pickles allowed.
_BUILD = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
    "vgg": {"init_weights": False},
}


class SizeUnknown(ValueError):
    """No usual picture size fits a module."""


def load(name: str) -> tuple[nn.Module, Transform, Sequence[str]]:
    """A torchvision classifier with its default weights, its transform and its labels.

    The weights come through torchvision's own loader: from the cache of torch.hub (``TORCH_HOME``), or the net.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; {nearest(name, known)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (URLError, ConnectionError, TimeoutError) as error:
        raise FileNotFoundError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({error}); download {weights.url} "
            f"on another one and put the file at {path}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than plain tensors and was not opened, since it could run code; delete it and download "
            f"{weights.url} again"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and download {weights.url} again") from error
    extra = next((options for start, options in _BUILD.items() if name.startswith(start)), {})
    if name.startswith("vit_"):
        extra = {"image_size": weights.meta["min_size"][0]}
    if name.startswith("densenet"):  # the published files say norm.1 where the module says norm1
        state = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key): value for key, value in state.items()}
    module = torchvision.models.get_model(name, weights=None, **extra)
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the weights in {path} do not fit {name} ({first}); delete the file") from error
    return module, _preset(weights), weights.meta["categories"]


def _preset(weights: torchvision.models.WeightsEnum) -> Transform:
    preset = weights.transforms()
    return Transform(
        tuple(preset.crop_size * 2)[:2],
        3,
        tuple(preset.mean),
        tuple(preset.std),
        preset.resize_size[0] if len(preset.resize_size) == 1 else tuple(preset.resize_size),
        _resample(preset.interpolation.value),
    )


def plain_module(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and the like; TypeError for what has no layers in Python."""
    while True:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError("a TorchScript module has no layers to look into; give the torch.nn.Module it was made from")
        if hasattr(module, "_orig_mod"):  # torch.compile
            module = module._orig_mod
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def transform_for(
    module: nn.Module,
    accepts: Callable[[int, int, int], bool],
    *,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    channels: int | None,
) -> Transform:
    """The preprocessing of a module: what was said, then what timm or torchvision know of it, then a guess."""
    known = _timm(module) or _torchvision(module)
    if not isinstance(size, (int, tuple, list, NoneType)):
        raise TypeError(f"size={size!r} should be a number of pixels, or (height, width)")
    if isinstance(size, int):
        size = (size, size)
    if known is not None:
        channels = channels or _first_channels(module) or known.channels
    else:
        channels = channels or _first_channels(module) or 3
        known = Transform((0, 0), channels)
    resize = known.resize if size in (None, known.size) else None
    size = size or (known.size if known.size[0] else _guess_size(module, channels, accepts))
    return Transform(
        size,
        channels,
        _per_channel(mean, known.mean, channels, "mean"),
        _per_channel(std, known.std, channels, "std"),
        resize,
        known.resample,
    )


def labels_for(module: nn.Module, classes: int) -> Sequence[str] | None:
    """The ImageNet labels for torchvision's and timm's classifiers with 1000 outputs; None for others."""
    if classes == 1000 and (_timm(module) or _torchvision(module)):
        return torchvision.models.get_model_weights("resnet18").DEFAULT.meta["categories"]
    return None


def _per_channel(given: Any, known: tuple[float, ...], channels: int, what: str) -> tuple[float, ...]:
    values = known if given is None else tuple(given) if hasattr(given, "__len__") else (float(given),)
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        if given is None:
            return (sum(values) / len(values),) * channels
        raise ValueError(f"{what} has {len(values)} values for {channels} channels; give one per channel")
    return tuple(float(v) for v in values)


def _torchvision(module: nn.Module) -> Transform | None:
    if not type(module).__module__.startswith("torchvision.models"):
        return None
    count = sum(p.numel() for p in module.parameters())
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = next(iter(torchvision.models.get_model_weights(name)))  # later ones differ in the resizing at most
        if weights.meta["num_params"] == count:  # tells the variants of one class from each other
            return _preset(weights)
    if type(module).__name__ == "Inception3":
        return Transform((299, 299), 3, IMAGENET_MEAN, IMAGENET_STD, 342)
    size = getattr(module, "image_size", 224)  # vision transformers know theirs
    return Transform((size, size), 3, IMAGENET_MEAN, IMAGENET_STD, round(size * 256 / 224))


def _timm(module: nn.Module) -> Transform | None:
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, dict) or "input_size" not in config:
        return None
    channels, height, width = config["input_size"]
    crop = config.get("crop_pct") or 0.875
    resize: int | tuple[int, int] = math.floor(min(height, width) / crop)
    if config.get("crop_mode") == "squash":
        resize = math.floor(height / crop), math.floor(width / crop)
    interpolation = config.get("interpolation") or "bicubic"
    return Transform((height, width), channels, config["mean"], config["std"], resize, _resample(interpolation))


def _resample(name: str) -> Image.Resampling:
    return getattr(Image.Resampling, name.upper(), Image.Resampling.BILINEAR)


def _first_channels(module: nn.Module) -> int | None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
        if isinstance(part, nn.Linear):  # on flattened pixels: 784 is 1 x 28 x 28, 3072 is 3 x 32 x 32
            return next((c for c in (1, 3) if math.isqrt(part.in_features // c) ** 2 * c == part.in_features), None)
    return None


def _guess_size(module: nn.Module, channels: int, accepts: Callable[[int, int, int], bool]) -> tuple[int, int]:
    """The first usual size on which the module runs.

    Many modules run on any size. Then a first layer with stride 1, or gray pictures, speak for small pictures.
    """
    first = next((part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))), None)
    if isinstance(first, nn.Linear) and channels:
        side = math.isqrt(first.in_features // channels)
        if accepts(channels, side, side):
            return side, side
    fine = channels == 1 or (isinstance(first, nn.Conv2d) and max(first.stride) == 1)
    small, large = ([28, 32] if channels == 1 else [32, 28]), [224, 227, 299, 256]
    for side in [*(small if fine else large), *(large if fine else small), 64, 48, 96, 128, 160, 192, 384, 512]:
        if accepts(channels, side, side):
            return side, side
    raise SizeUnknown(f"cannot tell the input size of {type(module).__name__}; pass size=(height, width) and channels=")
