"""Weights, preprocessing and labels of pretrained models. The only file that imports torchvision."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from PIL import Image
from torch import nn

from ..errors import did_you_mean
from .transform import IMAGENET_MEAN, IMAGENET_STD, Transform

# torchvision's builders set these options when they load weights, but they load them from arbitrary pickles
_BUILDER_OPTIONS = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
    "vgg": {"init_weights": False},
}


class InputSizeUnknown(ValueError):
    """A module does not run on images of any common size."""


def load_pretrained(name: str) -> tuple[nn.Module, Transform, Sequence[str]]:
    """A torchvision classifier with its default weights, its transform and its labels.

    Weights are read from the cache of torch.hub (``TORCH_HOME``) or downloaded. ValueError if there is no such classifier or
    the file is damaged; FileNotFoundError if it is not cached and cannot be downloaded.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(f"torchvision has no classifier {name!r}; {did_you_mean(name, names)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (URLError, ConnectionError, TimeoutError) as error:
        raise FileNotFoundError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({error}); download {weights.url} "
            f"on another machine and put the file at {path}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains more than tensors and was not opened, since it could run code; delete it and download "
            f"{weights.url} again"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and download {weights.url} again") from error
    options = next((options for prefix, options in _BUILDER_OPTIONS.items() if name.startswith(prefix)), {})
    if name.startswith("vit_"):
        options = {"image_size": weights.meta["min_size"][0]}
    if name.startswith("densenet"):  # the published files use norm.1 for norm1
        state = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key): value for key, value in state.items()}
    module = torchvision.models.get_model(name, weights=None, **options)
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the weights in {path} do not fit {name} ({reason}); delete the file") from error
    return module, _preset_transform(weights), weights.meta["categories"]


def _preset_transform(weights: torchvision.models.WeightsEnum) -> Transform:
    preset = weights.transforms()
    return Transform(
        tuple(preset.crop_size * 2)[:2],
        3,
        tuple(preset.mean),
        tuple(preset.std),
        preset.resize_size[0] if len(preset.resize_size) == 1 else tuple(preset.resize_size),
        _resample(preset.interpolation.value),
    )


def unwrap_module(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and the like; TypeError for TorchScript, which has no Python layers."""
    while True:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError("a TorchScript module has no Python layers; give the torch.nn.Module it was created from")
        original = getattr(module, "_orig_mod", None)
        if isinstance(original, nn.Module):  # torch.compile
            module = original
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def infer_transform(
    module: nn.Module,
    accepts: Callable[[int, int, int], bool],
    *,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    channels: int | None,
) -> Transform:
    """The preprocessing of a module: as given, else known to timm or torchvision, else guessed.

    Parameters
    ----------
    module : torch.nn.Module
    accepts : callable(channels, height, width) -> bool
        Whether the module runs on an image of this shape.
    size, mean, std, channels
        See `Network`.

    Raises
    ------
    InputSizeUnknown
        The module does not run on images of any common size.
    TypeError, ValueError
        An invalid size, mean or std.
    """
    known = _timm_transform(module) or _torchvision_transform(module)
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


def infer_labels(module: nn.Module, classes: int) -> Sequence[str] | None:
    """ImageNet labels for classifiers of torchvision and timm with 1000 classes; None for others.

    Parameters
    ----------
    module : torch.nn.Module
    classes : int
        Number of class scores that the module returns.
    """
    if classes == 1000 and (_timm_transform(module) or _torchvision_transform(module)):
        return torchvision.models.get_model_weights("resnet18").DEFAULT.meta["categories"]
    return None


def check_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Labels of all classes, as strings without surrounding spaces.

    Parameters
    ----------
    labels : sequence of str or None
        "class 0", "class 1" and so on if None.
    classes : int
        Number of classes of the network.

    Raises
    ------
    TypeError
        `labels` is a string.
    ValueError
        The number of labels is not `classes`.
    """
    if labels is None:
        return tuple(f"class {i}" for i in range(classes))
    if isinstance(labels, str):
        raise TypeError(f"labels={labels!r} is a string; give a list with one label per class")
    labels = tuple(str(label).strip() for label in labels)
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for a network with {classes} classes; give one label per class")
    return labels


def _per_channel(
    values: Sequence[float] | float | None, default: tuple[float, ...], channels: int, name: str
) -> tuple[float, ...]:
    if values is None:
        per_channel = tuple(map(float, default)) if len(default) in (1, channels) else (sum(default) / len(default),)
    else:
        per_channel = tuple(map(float, values)) if isinstance(values, Iterable) else (float(values),)
    if len(per_channel) == 1:
        return per_channel * channels
    if len(per_channel) != channels:
        raise ValueError(f"{name} has {len(per_channel)} values for {channels} channels; give one per channel")
    return per_channel


def _torchvision_transform(module: nn.Module) -> Transform | None:
    if not type(module).__module__.startswith("torchvision.models"):
        return None
    count = sum(p.numel() for p in module.parameters())
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = next(iter(torchvision.models.get_model_weights(name)))  # later weights differ at most in the resizing
        if weights.meta["num_params"] == count:  # distinguishes the variants of a class
            return _preset_transform(weights)
    if type(module).__name__ == "Inception3":
        return Transform((299, 299), 3, IMAGENET_MEAN, IMAGENET_STD, 342)
    size = getattr(module, "image_size", 224)  # an attribute of vision transformers
    return Transform((size, size), 3, IMAGENET_MEAN, IMAGENET_STD, round(size * 256 / 224))


def _timm_transform(module: nn.Module) -> Transform | None:
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
    """The first common size on which the module runs.

    Many modules run on any size. Small sizes are tried first if the first layer has stride 1 or one input channel.
    """
    first = next((part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))), None)
    if isinstance(first, nn.Linear) and channels:
        side = math.isqrt(first.in_features // channels)
        if accepts(channels, side, side):
            return side, side
    small_first = channels == 1 or (isinstance(first, nn.Conv2d) and max(first.stride) == 1)
    small, large = ([28, 32] if channels == 1 else [32, 28]), [224, 227, 299, 256]
    for side in [
        *(small if small_first else large),
        *(large if small_first else small),
        64,
        48,
        96,
        128,
        160,
        192,
        384,
        512,
    ]:
        if accepts(channels, side, side):
            return side, side
    raise InputSizeUnknown(f"the input size of {type(module).__name__} is unknown; pass size=(height, width) and channels=")
