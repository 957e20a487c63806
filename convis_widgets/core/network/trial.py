"""Trial: a forward pass of a module on a test image, and the sentence that says why it failed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import format_shape
from .modes import plain_mode
from .shadow import private_writes
from .trace import first_tensor, watch_modules
from .transform import Transform

# what a module takes whose first layer is one of these
_OTHER_INPUTS: dict[tuple[type[nn.Module], ...], str] = {
    (nn.Conv3d, nn.ConvTranspose3d): "volumes or videos (N, C, depth, height, width)",
    (nn.Conv1d, nn.ConvTranspose1d): "sequences (N, C, length)",
    (nn.Embedding, nn.EmbeddingBag): "indices, such as tokens",
    (nn.RNNBase,): "sequences",
}
_FIRST_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *(kind for kinds in _OTHER_INPUTS for kind in kinds))


class Trial:
    """Forward passes of a module on a test image. The last one that succeeded is not repeated.

    Parameters
    ----------
    module : torch.nn.Module
        With hooks, see `trace.add_hooks`.
    device : torch.device
    dtype : torch.dtype

    Attributes
    ----------
    batch : (2, C, H, W) tensor
        Two test images as the module gets them, normalized. Only the first is run here.
    output : object
        What the module returned for the first one.
    inputs : dict of str to tensor or None
        First tensor that a submodule got in its first call, by name. Only submodules that were called.
    smallest_side : int
        Of the maps of all convolutions with a window of more than one pixel.
    error : Exception or None
        Why the last pass failed.
    """

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.module, self.device, self.dtype = module, device, dtype
        self.transform: Transform | None = None
        self.batch, self.output = torch.empty(0), None
        self.inputs: dict[str, torch.Tensor | None] = {}
        self.smallest_side = 0
        self.error: Exception | None = None

    def run(self, transform: Transform, watched: Iterable[str] = ()) -> bool:
        """Whether the module runs on an image with this preprocessing.

        Parameters
        ----------
        transform : Transform
            Size and channels of the image, and how it is normalized.
        watched : iterable of str
            Submodules whose inputs are kept.
        """
        if transform == self.transform and set(watched) <= set(self.inputs):
            return True
        self.transform, self.error, inputs, sides = None, None, dict[str, torch.Tensor | None](), list[int]()

        def on_enter(name: str, args: tuple[Any, ...]) -> None:
            if name in watched:
                tensor = first_tensor(args)
                inputs[name] = None if tensor is None else tensor.clone()  # which may be written into

        def on_exit(name: str, part: nn.Module, output: Any) -> None:
            if isinstance(part, nn.Conv3d) and output.ndim == 4:  # it takes a batch of images for a volume
                raise TypeError(f"{name} takes volumes")
            if isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1 and isinstance(output, torch.Tensor):
                sides.append(min(output.shape[-2:]))

        batch = trial_batch(transform, self.device, self.dtype)
        try:
            watched_pass = watch_modules(self.module, on_exit, on_enter)
            with plain_mode(), torch.no_grad(), private_writes(self.module), watched_pass:
                output = self.module(batch[:1].clone())  # the module may write into it
        except Exception as error:  # noqa: BLE001 (a module may fail in any way on an unexpected shape)
            self.error = error
            return False
        self.transform, self.batch, self.output, self.inputs = transform, batch, output, inputs
        self.smallest_side = min(sides, default=0)
        return True


@functools.lru_cache(maxsize=4)
def trial_images(channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Two smooth random images with some noise, of different brightness and contrast, (2, channels, height, width).

    Parameters
    ----------
    channels : int
    size : (int, int)
        Height and width.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((2, channels, 6, 6), generator=generator, dtype=torch.float32)
    noise = torch.rand((2, channels, *size), generator=generator, dtype=torch.float32)
    images = 0.85 * torch.nn.functional.interpolate(coarse, size, mode="bilinear") + 0.15 * noise
    contrast, brightness = torch.tensor([[1.0, 0.5], [0.0, 0.2]]).view(2, 2, 1, 1, 1)  # both bright and dark in each image
    return contrast * images + brightness


def trial_batch(transform: Transform, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The test images as a network with this preprocessing gets them, (2, C, H, W).

    Parameters
    ----------
    transform : Transform
    device : torch.device
    dtype : torch.dtype
    """
    return transform.normalize(trial_images(transform.channels, transform.size).to(device, dtype))  # a new tensor


def failure_text(trial: Trial, name: str, transform: Transform, unstated: Sequence[str]) -> str:
    """Why a module does not run on images, and what to do.

    Parameters
    ----------
    trial : Trial
        That has failed.
    name : str
        Name of the network.
    transform : Transform
        Preprocessing that was tried.
    unstated : sequence of str
        Keywords of `Network` that were not given and can help.
    """
    module, error = trial.module, trial.error
    if isinstance(error, RecursionError):
        return f"{name} nests its modules too deeply; flatten its containers"
    reason = f"; it failed with {_error_text(error)}" if error is not None else ""
    arguments = _other_arguments(module)
    if arguments:
        noun = "another argument" if len(arguments) == 1 else "other arguments"
        return f"{name} takes {noun}, {', '.join(arguments)}; wrap it in a module that takes the image only{reason}"
    first = next((part for part in module.modules() if isinstance(part, _FIRST_LAYERS)), None)
    other = next((text for kinds, text in _OTHER_INPUTS.items() if isinstance(first, kinds)), None)
    if other:
        return f"{name} is a network on {other}, not on images (N, C, height, width){reason}"
    key = _dict_key(module)
    if key is not None:
        return f"{name} takes a dict with {key!r}, not an image; wrap it in a module that takes the image only{reason}"
    size = f"a {format_shape(transform.size)} image" if transform.size[0] else "images of any common size"
    channels = f"{transform.channels} channel{'s' if transform.channels > 1 else ''}"
    values = "" if any(transform.mean) or set(transform.std) != {1} else " and values in [0, 1]"
    advice = f"; state {', '.join(unstated)} if it takes other images, or" if unstated else ";"
    advice += f" wrap it in a module that takes one batch (N, {transform.channels}, height, width) of floats"
    return f"{name} does not run on {size} with {channels}{values}{advice}{reason}"


def _error_text(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 300 else f"{lines[0][:300]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _other_arguments(module: nn.Module) -> list[str]:
    """Names of the required arguments of a module after the first."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [p.name for p in (*positional[1:], *keywords) if p.default is p.empty]


class _Keys(dict[Any, Any]):
    """A dict that remembers what is looked up in it."""

    def __init__(self) -> None:
        self.wanted: list[Any] = []

    def __missing__(self, key: Any) -> Any:
        self.wanted.append(key)
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.wanted.append(key)
        return default


def _dict_key(module: nn.Module) -> str | None:
    """The first key that a module looks up in its input; None if it does not take a dict."""
    keys = _Keys()
    try:
        with torch.no_grad():
            module(keys)
    except Exception:  # noqa: BLE001 (it is not an image)
        return next((key for key in keys.wanted if isinstance(key, str)), None)
    return None
