"""The networks of torchvision: their weights, preprocessing and labels. The only file that imports torchvision."""

from __future__ import annotations

import functools
import hashlib
import math
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from PIL import Image
from torch import nn

from ..errors import did_you_mean
from .module_copy import unwrap
from .transform import IMAGENET_MEAN, IMAGENET_STD, Transform

# torchvision's builders set these options when they load weights, but they load them from arbitrary pickles
_BUILDER_OPTIONS = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
    "vgg": {"init_weights": False},
}
_HEADS = ("fc", "classifier", "head", "heads", "aux1", "aux2", "AuxLogits")
# number of parameters without `_HEADS` and position embeddings, which change with the classes and the size
_BODY_PARAMETERS = {
    "alexnet": 2469696, "convnext_base": 87564416, "convnext_large": 196227264, "convnext_small": 49453152,
    "convnext_tiny": 27818592, "densenet121": 6953856, "densenet161": 26472000, "densenet169": 12484480,
    "densenet201": 18092928, "efficientnet_b0": 4007548, "efficientnet_b1": 6513184, "efficientnet_b2": 7700994,
    "efficientnet_b3": 10696232, "efficientnet_b4": 17548616, "efficientnet_b5": 28340784, "efficientnet_b6": 40735704,
    "efficientnet_b7": 63786960, "efficientnet_v2_l": 117234272, "efficientnet_v2_m": 52858356,
    "efficientnet_v2_s": 20177488, "googlenet": 5599904, "inception_v3": 21785568, "maxvit_t": 30143944,
    "mnasnet0_5": 937512, "mnasnet0_75": 1889208, "mnasnet1_0": 3102312, "mnasnet1_3": 5001256, "mobilenet_v2": 2223872,
    "mobilenet_v3_large": 2971952, "mobilenet_v3_small": 927008, "regnet_x_16gf": 52229536, "regnet_x_1_6gf": 8277136,
    "regnet_x_32gf": 105290560, "regnet_x_3_2gf": 14287552, "regnet_x_400mf": 5094976, "regnet_x_800mf": 6586656,
    "regnet_x_8gf": 37651648, "regnet_y_128gf": 637419894, "regnet_y_16gf": 80565140, "regnet_y_1_6gf": 10313430,
    "regnet_y_32gf": 141333770, "regnet_y_3_2gf": 17923338, "regnet_y_400mf": 3903144, "regnet_y_800mf": 5647512,
    "regnet_y_8gf": 37364472, "resnet101": 42500160, "resnet152": 58143808, "resnet18": 11176512, "resnet34": 21284672,
    "resnet50": 23508032, "resnext101_32x8d": 86742336, "resnext101_64x4d": 81406272, "resnext50_32x4d": 22979904,
    "shufflenet_v2_x0_5": 341792, "shufflenet_v2_x1_0": 1253604, "shufflenet_v2_x1_5": 2478624,
    "shufflenet_v2_x2_0": 5344996, "squeezenet1_0": 735424, "squeezenet1_1": 722496, "swin_b": 86743224,
    "swin_s": 48837258, "swin_t": 27519354, "swin_v2_b": 86905848, "swin_v2_s": 48968442, "swin_v2_t": 27582570,
    "vgg11": 9220480, "vgg11_bn": 9225984, "vgg13": 9404992, "vgg13_bn": 9410880, "vgg16": 14714688,
    "vgg16_bn": 14723136, "vgg19": 20024384, "vgg19_bn": 20035392, "vit_b_16": 85647360, "vit_b_32": 87416832,
    "vit_h_14": 630435840, "vit_l_16": 303099904, "vit_l_32": 305459200, "wide_resnet101_2": 124837696,
    "wide_resnet50_2": 66834240,
}  # fmt: skip


class Known(NamedTuple):
    """The published preprocessing of a network, and its labels; None if they are unknown."""

    transform: Transform
    labels: Sequence[str] | None


def load_pretrained(name: str) -> tuple[nn.Module, Transform, Sequence[str]]:
    """A torchvision classifier with its default weights, its transform and its labels.

    Weights are read from the cache of torch.hub (``TORCH_HOME``) or downloaded. ValueError if there is no such classifier or
    the file is damaged; FileNotFoundError if it is not cached and cannot be downloaded. A warning if the file is not the
    published one.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(f"torchvision has no classifier {name!r}; {did_you_mean(name, names)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    again = f"delete it and download {weights.url} again"
    try:
        if path.is_file():
            _check_hash(path, again)
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (URLError, ConnectionError, TimeoutError) as error:
        raise FileNotFoundError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({error}); download {weights.url} "
            f"on another machine and put the file at {path}"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains more than tensors and was not opened, since it could run code; {again}"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read ({error}); {again}") from error
    options = next((options for prefix, options in _BUILDER_OPTIONS.items() if name.startswith(prefix)), {})
    if name.startswith("vit_"):
        options = {"image_size": weights.meta["min_size"][0]}
    module = torchvision.models.get_model(name, weights=None, **options)
    try:
        if name.startswith("densenet"):  # the published files use norm.1 for norm1
            state = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key): value for key, value in state.items()}
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the weights in {path} do not fit {name} ({reason}); delete the file") from error
    return module, _preset_transform(weights), weights.meta["categories"]


def find_known(module: nn.Module) -> Known | None:
    """Preprocessing and labels of a network of torchvision, also with another head; None for other modules.

    What is not published, such as the size for a network with another first layer, is in ``transform.guessed``.
    """
    if not any(getattr(torchvision.models, base.__name__, None) is base for base in type(module).__mro__):
        if type(module).__module__.startswith("torchvision.models.segmentation"):
            weights = torchvision.models.get_model_weights("fcn_resnet50").DEFAULT
            side = weights.transforms().resize_size[0]
            return Known(Transform((side, side), 3, IMAGENET_MEAN, IMAGENET_STD, side), weights.meta["categories"])
        return None
    position = getattr(getattr(module, "encoder", None), "pos_embedding", None)  # of vision transformers
    others = [child for name, child in module.named_children() if name in _HEADS]
    count = _count(module) - sum(map(_count, others)) - (position.numel() if isinstance(position, nn.Parameter) else 0)
    name = _body_names().get(_with_three_channels(module, count))
    labels = imagenet_labels()
    side = getattr(module, "image_size", None)  # of vision transformers
    if name is not None:
        published = list(torchvision.models.get_model_weights(name))
        fitting = [w for w in published if w.meta["num_params"] == _count(module)]
        fitting += [w for w in published if side in (None, *w.transforms().crop_size)]
        transform = _preset_transform((fitting or published)[0])
        if side is not None and transform.size != (side, side):
            transform = replace(transform, size=(side, side), resize=round(side * 256 / 224))
        return Known(transform, labels)
    if side is not None:
        resize = round(side * 256 / 224)
        return Known(Transform((side, side), 3, IMAGENET_MEAN, IMAGENET_STD, resize, guessed=("mean", "std")), labels)
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    side, resize = (299, 342) if type(module).__name__ == "Inception3" else (224, 256)
    if first is not None and max(first.stride) == 1:  # changed for small images
        side, resize = 0, 0
    guess = Transform((side, side), 3, IMAGENET_MEAN, IMAGENET_STD, resize or None, guessed=("size", "mean", "std"))
    return Known(guess, labels)


def find_known_body(module: nn.Module) -> tuple[str, Known] | None:
    """The first children of a module that together are a network of torchvision without its head, by parameters.

    Returns
    -------
    (str, Known) or None
        Name of the first of these children. A guess, except for children of torchvision's own classes.
    """
    first, count = "", 0
    for name, child in module.named_children():
        count += _count(child)
        first = first or (name if count else "")
        builder = _body_names().get(_with_three_channels(module, count)) if count else None
        if builder is not None:
            transform = _preset_transform(next(iter(torchvision.models.get_model_weights(builder))))
            is_own = any(type(part).__module__.startswith("torchvision.models") for part in module.modules())
            return first, Known(transform if is_own else replace(transform, guessed=("size", "mean", "std")), None)
    return None


@functools.cache
def imagenet_labels() -> Sequence[str]:
    """The 1000 labels of ImageNet."""
    return torchvision.models.get_model_weights("resnet18").DEFAULT.meta["categories"]


def resampling(name: str) -> Image.Resampling:
    """Pillow's constant for an interpolation, bilinear if unknown."""
    return getattr(Image.Resampling, name.upper(), Image.Resampling.BILINEAR)


def unwrap_module(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and the like; TypeError for TorchScript, which has no Python layers."""
    module = unwrap(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("a TorchScript module has no Python layers; give the torch.nn.Module it was created from")
    return module


@functools.cache
def _body_names() -> dict[int, str]:
    return {count: name for name, count in _BODY_PARAMETERS.items()}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _with_three_channels(module: nn.Module, count: int) -> int:
    """The number of parameters if the first convolution had three input channels."""
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.groups > 1 or first.in_channels == 3:
        return count
    # not the size of its weight, which would run a parametrization of the module
    return count + (3 - first.in_channels) * first.out_channels * math.prod(first.kernel_size) // first.groups


def _preset_transform(weights: torchvision.models.WeightsEnum) -> Transform:
    preset = weights.transforms()
    return Transform(
        tuple(preset.crop_size * 2)[:2],
        3,
        tuple(preset.mean),
        tuple(preset.std),
        preset.resize_size[0] if len(preset.resize_size) == 1 else tuple(preset.resize_size),
        resampling(preset.interpolation.value),
    )


_checked_files: set[tuple[str, int, int]] = set()


def _check_hash(path: Path, again: str) -> None:
    """Compare a file, once, with the first digits of its SHA-256, which are in its name.

    ValueError if it differs and is damaged; a warning if it differs and is a complete file, which somebody put there.
    """
    expected, stat = re.search(r"-([0-9a-f]{8,})\.", path.name), path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if expected is None or key in _checked_files:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected[1]):
        found = f"its SHA-256 begins with {digest[: len(expected[1])]}, not with {expected[1]}"
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error, ValueError):
            damaged = True
        if damaged:
            raise ValueError(f"{path} is damaged ({found}); {again}")
        message = f"{path} is not the file that torchvision published ({found}); unless you put it there, {again}"
        warnings.warn(message, stacklevel=2)
    _checked_files.add(key)
