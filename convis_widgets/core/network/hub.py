"""Networks of timm and transformers: by name from the Hugging Face Hub, and what a module says about its preprocessing.

Neither package is needed; they are imported only to load a network by name.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from ..errors import did_you_mean
from .labels import read_labels
from .pretrained import Known, imagenet_labels, resampling
from .transform import Transform


def load_from_hub(name: str) -> tuple[nn.Module, Transform | None, Sequence[str] | None]:
    """A classifier of the Hugging Face Hub, with its transform and labels; None if they are to be inferred.

    "timm/convnext_tiny" and "timm/convnext_tiny.in12k_ft_in1k" are loaded by timm, other names, such as
    "microsoft/resnet-50", by transformers. Weights are read from the cache of huggingface_hub or downloaded.

    Raises
    ------
    ImportError
        timm or transformers is not installed.
    ValueError, FileNotFoundError
        A file; there is no such network; its weights are not cached and cannot be downloaded, or they are damaged.
    """
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; load its weights into a torch.nn.Module and give the module")
    package = "timm" if name.startswith("timm/") else "transformers"
    try:
        library = import_module(package)
    except ImportError as error:
        raise ImportError(f"{name!r} needs {package}; install it with pip install {package}") from error
    try:
        return _load_timm(library, name) if package == "timm" else _load_transformers(library, name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({_first_line(error)})"
        ) from error
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded ({_first_line(error)})") from error


def find_known(module: nn.Module) -> Known | None:
    """Preprocessing and labels that a module of timm or transformers has; None for other modules."""
    return _known_timm(module) or _known_transformers(module)


def _load_timm(timm: Any, name: str) -> tuple[nn.Module, None, None]:
    architecture = name.removeprefix("timm/")
    if not timm.is_model(architecture.partition(".")[0]):
        raise ValueError(f"timm has no such network; {did_you_mean(architecture, timm.list_models())}")
    return timm.create_model(architecture, pretrained=True), None, None


def _load_transformers(transformers: Any, name: str) -> tuple[nn.Module, Transform | None, None]:
    module = transformers.AutoModelForImageClassification.from_pretrained(name)
    processor = None
    with contextlib.suppress(OSError, ValueError, ImportError):  # not every network has one
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    return module, None if processor is None else _processor_transform(processor, module), None


def _processor_transform(processor: Any, module: nn.Module) -> Transform | None:
    """The transform of an image processor of transformers."""

    def lengths(value: Any) -> tuple[int, ...]:
        value = {"shortest_edge": value} if isinstance(value, int) else value or {}
        get = value.get if isinstance(value, Mapping) else lambda key: getattr(value, key, None)
        return tuple(int(length) for key in ("height", "width", "shortest_edge") if (length := get(key)))

    resized = lengths(getattr(processor, "size", None))
    cropped = lengths(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else ()
    crop_fraction = getattr(processor, "crop_pct", None)
    if crop_fraction and len(resized) == 1 and not cropped:  # of ConvNeXt
        cropped = resized * 2
        resized = (int(resized[0] / crop_fraction),) if resized[0] < 384 else cropped
    size = (cropped or resized) * 2
    if not size:
        return None
    normalizes = getattr(processor, "do_normalize", False)
    mean = tuple(processor.image_mean) if normalizes else (0.0,)
    std = tuple(processor.image_std) if normalizes else (1.0,)
    scale = getattr(processor, "rescale_factor", None) or 1 / 255
    is_usual = getattr(processor, "do_rescale", True) and math.isclose(scale, 1 / 255, rel_tol=1e-3)
    return Transform(
        (size[0], size[1]),
        getattr(module.config, "num_channels", None) or 3,
        mean,
        std,
        resized[0] if len(resized) == 1 else resized[:2] or None,  # type: ignore[arg-type]
        Image.Resampling(getattr(processor, "resample", None) or Image.Resampling.BILINEAR),
        guessed=() if is_usual else ("mean", "std"),
    )


def _known_timm(module: nn.Module) -> Known | None:
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or "input_size" not in config:
        return None
    channels, height, width = config["input_size"]
    crop = config.get("crop_pct") or 0.875
    resize: int | tuple[int, int] = math.floor(min(height, width) / crop)
    if config.get("crop_mode") == "squash":
        resize = math.floor(height / crop), math.floor(width / crop)
    interpolation = resampling(config.get("interpolation") or "bicubic")
    transform = Transform((height, width), channels, tuple(config["mean"]), tuple(config["std"]), resize, interpolation)
    return Known(transform, config.get("label_names") or _labels_of_subset(config))


def _labels_of_subset(config: Mapping[str, Any]) -> Sequence[str] | None:
    """Labels of ImageNet, or of a subset of ImageNet-22k, by the number of classes."""
    if config.get("num_classes") == 1000:
        return imagenet_labels()
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        data = import_module("timm.data")
        subset = data.infer_imagenet_subset(config)
        if subset is not None:
            info = data.ImageNetInfo(subset)
            return [info.index_to_description(i) for i in range(info.num_classes())]
    return None


def _known_transformers(module: nn.Module) -> Known | None:
    config = getattr(module, "config", None)
    labels, size = getattr(config, "id2label", None), getattr(config, "image_size", None)
    if not isinstance(labels, Mapping):
        return None
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))[:2]
    guessed = ("mean", "std") if height else ("size", "mean", "std")
    transform = Transform((height, width), getattr(config, "num_channels", None) or 3, guessed=guessed)
    try:
        return Known(transform, read_labels(labels, len(labels)))
    except (TypeError, ValueError):
        return Known(transform, None)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
