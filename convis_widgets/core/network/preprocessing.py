"""The preprocessing of a module: as stated, else published for its network, else a guess, which is marked as one."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import hub, pretrained
from .module_copy import unwrap
from .pretrained import Known
from .transform import Transform
from .trial import Trial, failure_text

_UNKNOWN = Known(Transform((0, 0), guessed=("size", "mean", "std")), None)
_SMALL, _LARGE, _OTHER_SIDES = (32, 28), (224, 227, 299, 256), (64, 48, 96, 128, 160, 192, 384, 512)


def infer_preprocessing(
    module: nn.Module,
    trial: Trial,
    *,
    name: str,
    transform: Transform | None = None,
    size: Any = None,
    mean: Any = None,
    std: Any = None,
    channels: Any = None,
) -> Known:
    """The preprocessing of a module, with which it runs, and its labels if they are published.

    The network of torchvision, timm or transformers may be inside the module, if it gets the image.

    Parameters
    ----------
    module : torch.nn.Module
    trial : Trial
        Of this module.
    name : str
        Name of the network, for messages.
    transform, size, mean, std, channels
        See `Network`.

    Raises
    ------
    TypeError, ValueError
        An invalid size, mean, std or number of channels; the module does not run on images.
    """
    stated = {"size": _read_size(size), "mean": mean, "std": std, "channels": _read_channels(channels)}
    parts = list(_known_parts(module))
    if transform is not None:
        _check_transform(transform, stated)
        known = Known(transform, parts[0][1].labels if parts else None)
        if trial.run(transform, [part for part, _ in parts if part]) and trial.inputs:
            known = Known(transform, _known_of_image(module, trial, parts).labels)
    else:
        known = _infer(module, trial, parts, stated)
    if not known.transform.size[0] or not trial.run(known.transform):
        unstated = [f"{key}=" for key, value in stated.items() if value is None and transform is None]
        raise ValueError(failure_text(trial, name, known.transform, unstated)) from trial.error
    return known


def _infer(module: nn.Module, trial: Trial, parts: Sequence[tuple[str, Known]], stated: dict[str, Any]) -> Known:
    known = parts[0][1] if parts else _UNKNOWN
    inside = [part for part, _ in parts if part]
    if stated["channels"] is None:
        stated = stated | {"channels": _find_channels(module, trial, known.transform, stated["size"])}
    transform = published = _with_stated(known.transform, stated)
    if stated["size"] is None and not (transform.size[0] and trial.run(transform, inside)):
        if inside and "size" in known.transform.guessed:  # the weights fit by chance
            return _infer(module, trial, [], stated)
        transform = _with_size_found_by_trial(module, transform, trial)
    if inside and transform.size[0] and trial.run(transform, inside):
        called = [part for part in parts if part[0] in trial.inputs]
        if len(called) < len(parts):
            return _infer(module, trial, called, stated)
        known = _known_of_image(module, trial, parts)
        if transform.size == published.size:
            transform = _with_stated(known.transform, stated)
        else:
            size, resize, is_guess = transform.size, transform.resize, "size" in transform.guessed
            transform = _with_stated(replace(known.transform, size=size), stated)
            transform = replace(transform, resize=resize, guessed=_guesses(transform, size=is_guess))
    return Known(transform, known.labels)


def _known_parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, Known]]:
    """The published networks in a module, with the names of the submodules that would get the image."""
    module = unwrap(module)  # as in the copy that is run
    known = hub.find_known(module) or pretrained.find_known(module)
    if known is not None:
        yield name, known
        return
    body = pretrained.find_known_body(module)
    if body is not None:
        yield _join(name, body[0]), body[1]
        return
    for child_name, child in module.named_children():
        yield from _known_parts(child, _join(name, child_name))


def _known_of_image(module: nn.Module, trial: Trial, parts: Sequence[tuple[str, Known]]) -> Known:
    """What is known of a module from the networks inside it: only from those that get the image."""
    changes = [(known.transform, _change(trial.inputs.get(name), trial.batch[:1])) for name, known in parts]
    plain = [transform for transform, change in changes if change is not None and _is_identity(*change)]
    normalized = [(transform, *change) for transform, change in changes if change is not None]
    transform = parts[0][1].transform
    if plain:
        transform = plain[0]
        differing = [key for key in ("size", "mean", "std") if len({getattr(other, key) for other in plain}) > 1]
        transform = replace(transform, guessed=_guesses(transform, **dict.fromkeys(differing, True)))
    else:  # a normalization in the module must not be applied twice
        is_guess = not any(_is_normalization(scale, offset, wanted) for wanted, scale, offset in normalized)
        received = [tensor for tensor in trial.inputs.values() if tensor is not None]
        same_size = all(tensor.shape[2:] == trial.batch.shape[2:] for tensor in received)
        guesses = _guesses(transform, size=not same_size, mean=is_guess, std=is_guess)
        transform = replace(transform, mean=(0.0,), std=(1.0,), guessed=guesses)
    own = sum(p.numel() for p in module.parameters())
    own -= sum(p.numel() for name, _ in parts for p in module.get_submodule(name).parameters())
    one_network = len(parts) == 1 and own < 1000  # more weights could make other classes of its output
    return Known(transform, parts[0][1].labels if one_network else None)


def _change(received: torch.Tensor | None, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and offset of each channel of what was an image; None if more than these and its size has changed."""
    if received is None or received.ndim != 4 or len(received) != 1 or batch.shape[1] not in (1, received.shape[1]):
        return None
    tolerance = 1e-3
    x, y = batch.cpu().double().expand(-1, received.shape[1], -1, -1), received.cpu().double()
    if x.shape != y.shape:  # resized
        tolerance = 0.05
        x, y = (nn.functional.adaptive_avg_pool2d(tensor, 4) for tensor in (x, y))
    x, y = x[0].flatten(1), y[0].flatten(1)
    centered = x - x.mean(1, keepdim=True)
    scale = (centered * y).sum(1, keepdim=True) / centered.square().sum(1, keepdim=True)
    offset = y.mean(1, keepdim=True) - scale * x.mean(1, keepdim=True)
    is_affine = bool(((scale * x + offset - y).abs() <= tolerance * y.abs().max()).all())
    return (scale.flatten(), offset.flatten()) if is_affine else None


def _is_identity(scale: torch.Tensor, offset: torch.Tensor) -> bool:
    return bool(((scale - 1).abs() < 0.02).all() and (offset.abs() < 0.02).all())


def _is_normalization(scale: torch.Tensor, offset: torch.Tensor, transform: Transform) -> bool:
    """Whether a change of the channels is that of a transform, to a few percent."""
    if len(transform.mean) not in (1, len(scale)):
        return False
    mean, std = scale.new_tensor(transform.mean), scale.new_tensor(transform.std)
    return bool(((-offset / scale - mean).abs() < 0.03).all() and ((1 / scale / std - 1).abs() < 0.05).all())


def _find_channels(module: nn.Module, trial: Trial, known: Transform, size: tuple[int, int] | None) -> int:
    """Number of channels: those of the first layer, unless the module runs with as many as are published.

    The first layer may follow a rearrangement of the pixels, such as space to depth. Then the module may also be one for
    gray images.
    """
    first = _first_channels(module) or known.channels
    if first == known.channels or known is _UNKNOWN.transform or not (size or known.size)[0]:
        return first

    def runs_with(channels: int) -> bool:
        return trial.run(_with_stated(known, {"size": size, "channels": channels, "mean": None, "std": None}))

    return next(filter(runs_with, (known.channels, first, 1)), first)


def _with_stated(known: Transform, stated: dict[str, Any]) -> Transform:
    """The known preprocessing, with what the user has stated instead."""
    channels = stated["channels"]
    size = stated["size"] or known.size
    values = {"mean": known.mean, "std": known.std}
    mixed = [key for key, value in values.items() if len(value) != channels and len(set(value)) > 1]  # the mean is a guess
    return Transform(
        size,
        channels,
        _per_channel(stated["mean"], known.mean, channels, "mean"),
        _per_channel(stated["std"], known.std, channels, "std"),
        known.resize if size == known.size else None,
        known.resample,
        guessed=tuple(
            key for key in ("size", "mean", "std") if stated[key] is None and (key in known.guessed or key in mixed)
        ),
    )


def _with_size_found_by_trial(module: nn.Module, transform: Transform, trial: Trial) -> Transform:
    """The first common size on which the module runs; (0, 0) if there is none.

    It is a guess if the module also runs on another size. Small sizes are tried first if the first layer has stride 1 or one
    input channel; if the maps are then too small to have been meant, a large one is taken.
    """
    first = next((part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))), None)
    sides = [*_LARGE, *_SMALL, *_OTHER_SIDES]
    if isinstance(first, nn.Linear):
        sides.insert(0, math.isqrt(first.in_features // transform.channels))
    elif transform.channels == 1:
        sides = [*reversed(_SMALL), *_LARGE, *_OTHER_SIDES]
    elif first is not None and max(first.stride) == 1:
        sides = [*_SMALL, *_LARGE, *_OTHER_SIDES]

    def with_side(side: int) -> Transform:
        known_side, resize = min(transform.size), transform.resize
        resize = side * resize // known_side if known_side and isinstance(resize, int) else None
        return replace(transform, size=(side, side), resize=resize)

    for side in filter(None, sides):
        if trial.run(with_side(side)):
            for_large_images = side in _SMALL and 0 < trial.smallest_side <= 2
            other = _LARGE[0] if for_large_images else side + 32
            is_guess = Trial(trial.module, trial.device, trial.dtype).run(with_side(other))
            return replace(
                with_side(other if is_guess and for_large_images else side), guessed=_guesses(transform, size=is_guess)
            )
    return replace(transform, size=(0, 0))


def _guesses(transform: Transform, **changed: bool) -> tuple[str, ...]:
    """The guesses of a transform, with those changed that are given by name."""
    return tuple(key for key in ("size", "mean", "std") if changed.get(key, key in transform.guessed))


def _check_transform(transform: Any, stated: dict[str, Any]) -> None:
    if not isinstance(transform, Transform):
        raise TypeError(f"transform= is a {type(transform).__name__}; give a Transform, or size=, mean= and std=")
    also = [f"{key}=" for key, value in stated.items() if value is not None]
    if also:
        raise ValueError(f"transform= is the complete preprocessing; state {', '.join(also)} in it, or leave it out")


def _read_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        values = [operator.index(size)] * 2 if not isinstance(size, Iterable) else [operator.index(n) for n in size]
    except TypeError:
        values = []
    if len(values) != 2 or min(values) < 1 or isinstance(size, bool):
        raise TypeError(f"size={size!r} should be a positive number of pixels, or (height, width)")
    return values[0], values[1]


def _read_channels(channels: Any) -> int | None:
    if channels is None:
        return None
    try:
        count = operator.index(channels)
    except TypeError:
        count = 0
    if count < 1 or isinstance(channels, bool):
        raise TypeError(f"channels={channels!r} should be a number, 1 for gray and 3 for color")
    return count


def _per_channel(values: Any, default: tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    if values is None:
        per_channel = tuple(map(float, default)) if len(default) in (1, channels) else (sum(default) / len(default),)
    else:
        try:
            per_channel = tuple(torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten().tolist())
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}={values!r} should be a number, or one number per channel") from None
    if len(per_channel) == 1:
        return per_channel * channels
    if len(per_channel) != channels:
        raise ValueError(f"{name} has {len(per_channel)} values for {channels} channels; give one per channel")
    return per_channel


def _first_channels(module: nn.Module) -> int | None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
        if isinstance(part, nn.Linear):  # on flattened pixels: 784 is 1 x 28 x 28, 3072 is 3 x 32 x 32
            return next((c for c in (1, 3) if math.isqrt(part.in_features // c) ** 2 * c == part.in_features), None)
    return None


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child
