"""Network: a module with its preprocessing, labels and an ordered index of its layers."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from ..errors import check_finite, format_shape
from ..text import MAX_NAME, one_line
from ..types import ImageLike, NetworkLike
from . import pretrained
from .batch_norm import contiguous_batch_norm
from .graph import Graph, infer_output_activation, record_graph
from .image_size import check_image_size, size_mismatch
from .images import images_to_batch
from .labels import LabelsLike, find_class, read_labels
from .layers import Layers
from .modes import plain_mode
from .module_copy import copy_module, has_ignored_hooks
from .named import NamedNetwork, load_by_name, load_demo
from .output import OutputSelector
from .preprocessing import infer_preprocessing
from .probe import run_probe
from .seed import fixed_seed, preserved_random_state
from .shadow import best_device, device_of, make_shadow, replace_max_pooling, to_available, update_shadow
from .trace import add_hooks
from .transform import Transform, format_guesses
from .trial import Trial, trial_batch


class Network:
    """A convolutional network with its preprocessing, labels and layers.

    The network works on a copy of the module that shares its weights. The module itself is never changed (mode, hooks,
    device), so a module in training can be inspected. Only weights in half precision or on another device are copied.
    Hooks are not called, except methods of modules. Exchanged weights are followed; for other layers, make a new Network.

    Parameters
    ----------
    module : torch.nn.Module
        Takes (N, C, H, W), returns one number per class (N, classes), or a map per class (N, classes, h, w).
    size : int or (int, int), optional
        Height and width of its input. By default as published, for networks of torchvision, timm and transformers, also
        with another head or inside the module; otherwise found by trial. ``transform.guessed`` names what is a guess.
    mean, std : float or sequence of float, optional
        Per channel, for pixels in [0, 1]. As published by default; otherwise pixels are not normalized.
    labels : sequence of str, or dict, optional
        Names of the classes, in the order of the scores; or ``{index: label}`` or ``{label: index}``.
    channels : int, optional
        1 for gray, 3 for color. Read from the first layer by default.
    transform : Transform, optional
        The complete preprocessing, instead of size, mean, std and channels.
    output : int, str or callable, optional
        Which tensor has the scores, if the module returns several: an index, a key, or a function of the module's output.
    output_kind : str, optional
        What the numbers are, one of `OUTPUT_KINDS`: "logits", "probabilities", "log-probabilities", "independent logits",
        "independent probabilities" or "values". Inferred by default; "independent logits" (multi-label) never are, and a
        single number without bounds is taken for a value.
    name : str, optional
        Name on screen and in messages; the class of the module by default.
    device : str or torch.device
        By default the device of the module. Networks by name use CUDA, MPS or the CPU, the first that is available.

    Raises
    ------
    TypeError, ValueError
        Not a module, or a TorchScript module; an invalid size, mean, std or number of labels; weights without values; the
        output has no scores of an image, or several tensors could be meant.

    Attributes
    ----------
    output : Output
        Which tensor of the module's output has the scores, and what its numbers are.
    one_image_at_a_time : bool
        Whether images are computed one by one, since the answer for an image would depend on the others in the batch.
    is_random : bool
        Whether the module draws random numbers in evaluation mode. They are then the same for every image.

    Examples
    --------
    >>> net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    >>> net.transform.size, net.transform.channels
    ((28, 28), 1)
    >>> net.layers[0].receptive_field
    (5, 5)
    """

    _by_name: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Network]] = weakref.WeakValueDictionary()

    @preserved_random_state()
    @plain_mode()
    def __init__(
        self,
        module: nn.Module,
        *,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        labels: LabelsLike | None = None,
        channels: int | None = None,
        transform: Transform | None = None,
        output: OutputSelector | None = None,
        output_kind: str | None = None,
        name: str | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"{type(module).__name__} is not a torch.nn.Module; load networks by name with Network.ensure")
        module = pretrained.unwrap_module(module)
        # the device of a tensor, since torch.device("cuda") is not equal to "cuda:0"
        self.device = device_of(module) if device == "auto" else torch.empty(0, device=device).device
        self.module = make_shadow(module, self.device)
        self.name = one_line(name or type(module).__name__, MAX_NAME)
        add_hooks(self.module)
        self.dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        trial = Trial(self.module, self.device, self.dtype)
        self.transform, known_labels = infer_preprocessing(
            self.module, trial, name=self.name, transform=transform, size=size, mean=mean, std=std, channels=channels
        )
        probe = run_probe(self.name, trial, selector=output, kind=output_kind)
        self.output, self.graph = probe.output, probe.graph
        self.one_image_at_a_time, self.is_random = probe.one_image_at_a_time, probe.is_random
        self._notes = [probe.note] if probe.note else []
        if has_ignored_hooks(module):
            self._notes.append("forward hooks of the module are not called")
        self._arguments = {"output": output, "output_kind": output_kind}
        if labels is None and known_labels is not None and len(known_labels) == self.output.classes:
            labels = known_labels
        self.labels = read_labels(labels, self.output.classes)

    @classmethod
    def ensure(cls, network: NetworkLike = None) -> Network:
        """Convert a module or a name to a Network; a Network is returned unchanged.

        Parameters
        ----------
        network : Network, torch.nn.Module, str or None
            The name of a torchvision classifier loads its default weights from torch.hub's cache or the internet.
            "timm/convnext_tiny" is loaded by timm, other names with a slash, "microsoft/resnet-50", by transformers, if
            they are installed. "demo" and "demo-ordinary" are the bundled networks; None is "demo".

        Raises
        ------
        TypeError, ValueError, FileNotFoundError
            Not a network; there is no classifier of this name; its weights are not cached and cannot be downloaded.
        """
        if isinstance(network, (Network, nn.Module)):
            return network if isinstance(network, Network) else cls(network)
        if network is None or (isinstance(network, str) and network in ("demo", "demo-ordinary")):
            return cls.demo(robust=network != "demo-ordinary")
        if isinstance(network, str):
            return cls._shared((network,), lambda: load_by_name(network))
        raise TypeError(
            f"{type(network).__name__} is not a network; give a torchvision name such as 'squeezenet1_1', a "
            "torch.nn.Module or a Network"
        )

    @classmethod
    def demo(cls, *, robust: bool = True, checkpoint: int | None = None) -> Network:
        """The bundled network, trained on Toyscape; no download is needed.

        Parameters
        ----------
        robust : bool
            Whether it was trained adversarially, for clean filters and synthesized images.
        checkpoint : int, optional
            One of ``convis_widgets.demo.checkpoints(robust=robust)``, a step of its training; the end by default.
        """
        return cls._shared(("demo", robust, checkpoint), lambda: load_demo(robust, checkpoint))

    @classmethod
    def _shared(cls, key: tuple[Any, ...], load: Callable[[], NamedNetwork]) -> Network:
        network = cls._by_name.get(key)
        if network is None:
            module, transform, labels, name = load()
            network = cls(module.to(best_device()), transform=transform, labels=labels, name=name)
            cls._by_name[key] = network
        return network

    @functools.cached_property
    def graph(self) -> Graph:
        """The recorded forward pass of one image."""
        batch = trial_batch(self.transform, self.device, self.dtype)[:1]
        return record_graph(self.module, batch, self.output.select)[0]

    @functools.cached_property
    def layers(self) -> Layers:
        """Layers in the order of the forward pass: name, kind, output shape, receptive field, stride, parameters."""
        return Layers(self.graph, self.transform.size)

    @functools.cached_property
    def output_activation(self) -> str:
        """Activation at the end that gradients bypass: "softmax", "log_softmax", "sigmoid" or "none".

        It is "none" if other operators follow; then gradients of a class are those of what the network returns.
        """
        return infer_output_activation(self.graph) if self.output.kind.endswith("probabilities") else "none"

    def weights(self, layer: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Filters (out, in, height, width) and biases (out,) of a layer, as numpy copies.

        The filters of a linear layer on pixels have the size of the image. ValueError if the layer has no filters.
        """
        info = self.layers[layer]
        weight, bias = info.filters(self.graph.input.shape[1:]), getattr(info.module, "bias", None)
        if weight is None:
            raise ValueError(f"{info.name} ({info.kind}) has no filters; choose one of {self.filter_layers[:6]}")
        return _to_numpy(weight), _to_numpy(bias).ravel() if isinstance(bias, torch.Tensor) else None

    @functools.cached_property
    def filter_layers(self) -> list[str]:
        """Names of the layers with filters, see `weights`."""
        return [layer.name for layer in self.layers if layer.filters(self.graph.input.shape[1:]) is not None]

    def class_index(self, target: int | str) -> int:
        """Index of a class, from an index or a label; ValueError, with similar labels, if there is no such class."""
        return find_class(self.labels, target, self.name)

    def __repr__(self) -> str:
        size = format_shape((self.transform.channels, *self.transform.size))
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"<Network {self.name}: {size} -> {self.output} on {self.device}{notes}>"

    def image(self, source: ImageLike) -> np.ndarray:
        """Convert any image to the network's input, (H, W, C) float32 in [0, 1].

        Parameters
        ----------
        source : path, bytes, PIL image, array or tensor
            Files and PIL images are resized and cropped, see `Transform`, unless a PIL image has the network's size.
            Arrays (H, W, C) or (H, W) and tensors (C, H, W), in [0, 1] or uint8, are not resampled.
        """
        check_image_size(self, source)
        return self.transform.image(source)

    def batch(self, images: ImageLike | Sequence[ImageLike]) -> torch.Tensor:
        """Convert one or several images of equal size to (N, C, H, W) in [0, 1] on the network's device.

        Several images are a list, an (N, C, H, W) tensor or an (N, H, W, C) array; see `image`.
        """
        is_batch = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        arrays = [self.image(source) for source in cast(Sequence[ImageLike], images if is_batch else [images])]
        if len({array.shape for array in arrays}) != 1:
            raise ValueError("all images should have the same size" if arrays else "there is no image in the batch")
        return self.stack_images(arrays)

    def stack_images(self, arrays: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Stack images (H, W, C), uint8 or see `image`, to (N, C, H, W) in [0, 1] on the network's device."""
        return images_to_batch(np.asarray(arrays), self.device, self.dtype)

    def single_batch(self, image: ImageLike) -> torch.Tensor:
        """Convert one image to (1, C, H, W) in [0, 1] on the network's device; ValueError if several are given."""
        batch = self.batch(image)
        if len(batch) > 1:
            raise ValueError(f"{len(batch)} images were given; give one")
        return batch

    def uncropped_batch(self, image: ImageLike, side: int | None = None) -> torch.Tensor:
        """Convert one image to (1, C, H, W) in [0, 1] without cropping; ValueError if several are given.

        Parameters
        ----------
        image : image
        side : int, optional
            Length of the longer side in pixels, see `Transform.uncropped_image`.
        """
        several = cast(Sequence[Any], image) if isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4 else []
        if isinstance(image, (list, tuple)) or len(several) > 1:
            raise ValueError(f"{len(several)} images were given; give one")
        return self.stack_images([self.transform.uncropped_image(image, side)])

    @plain_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores of the network, (N, classes), for images (N, C, H, W) in [0, 1]; they are normalized first."""
        update_shadow(self.module)
        if self.one_image_at_a_time and len(batch) > 1:
            return torch.cat([self(image) for image in batch.split(1)])
        try:
            with fixed_seed(self.is_random), contiguous_batch_norm(self.graph, batch):
                output = self.module(self.transform.normalize(batch))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or tuple(batch.shape[2:]) == self.transform.size:
                raise
            raise size_mismatch(self, batch.shape[2:]) from error
        return self.output.scores(output, len(batch))

    def predictions(self, batch: torch.Tensor) -> torch.Tensor:
        """Class probabilities (N, classes) of images (N, C, H, W) in [0, 1]; if the output is "values", these values."""
        return self.output.predictions(self(batch).float())

    def predict_array(self, image: ImageLike) -> np.ndarray:
        """Class probabilities, or values, (classes,) of one image, see `predictions`; ValueError if they are not finite."""
        with torch.no_grad():
            p = self.predictions(self.single_batch(image))[0]
        check_finite(p, f"the scores of {self.name}")
        return _to_numpy(p)

    def predict_proba(self, image: ImageLike) -> np.ndarray:
        """Class probabilities (classes,) of one image; ValueError if they are not finite, or the output is "values"."""
        if not self.output.has_probabilities:
            raise ValueError(f"{self.name} returns values, not class probabilities; use predict, or state output_kind=")
        return self.predict_array(image)

    def predict(self, image: ImageLike, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes of an image, as (label, probability), in descending order.

        If the output of the network is "values", the first `k` of them, as (label, value).

        Parameters
        ----------
        image : image
        k : int, at least 1

        Examples
        --------
        >>> from convis_widgets import demo
        >>> Network.demo().predict(demo.images(1, label="star")[0], k=1)[0][0]
        'star'
        """
        values, indices = self.output.top(torch.from_numpy(self.predict_array(image))[None], k)
        return [(self.labels[i], value) for i, value in zip(indices[0].tolist(), values[0].tolist(), strict=True)]

    def as_maps(self, layer: str, output: torch.Tensor) -> torch.Tensor:
        """Convert a layer's raw output to activation maps (N, C, h, w); ValueError if it is not a set of maps.

        Parameters
        ----------
        layer : str
        output : (N, ...) tensor
            See `trace`. Vectors become 1x1 maps, tokens the grid of their patches.
        """
        return self.layers[layer].as_maps(output, self.transform.size)

    def copy(self) -> Network:
        """A copy with its own weights. Changing them changes neither this network nor the module.

        Examples
        --------
        >>> net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
        >>> other = net.copy()
        >>> _ = other.module[0].weight.zero_()
        >>> bool(net.weights("0")[0].any()), bool(other.weights("0")[0].any())
        (True, False)
        """
        other = self._shallow_copy()
        for name in ("graph", "layers", "filter_layers"):  # they refer to the tensors and modules of this network
            vars(other).pop(name, None)
        other.module = copy_module(self.module)
        add_hooks(other.module)
        return other

    def accepts(self, size: tuple[int, int]) -> bool:
        """Whether the network runs on images of this (height, width)."""
        return Trial(self.module, self.device, self.dtype).run(replace(self.transform, size=size))

    def with_average_pooling(self) -> Network:
        """The network with average pooling instead of max pooling; it shares the weights.

        Synthesized images are smoother: Gatys et al., "Image style transfer using convolutional neural networks", 2016.
        """
        other = self._shallow_copy()  # also graph and layers: shapes and receptive fields are the same
        other.module = make_shadow(self.module, self.device)
        replace_max_pooling(other.module)
        add_hooks(other.module)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with weights; unpickled on the same device, or the best one that is available."""
        module = make_shadow(self.module, torch.device("cpu"))
        return _unpickle, (module, self.transform, self.labels, self.name, str(self.device), self._arguments)

    def _shallow_copy(self) -> Network:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    @property
    def notes(self) -> list[str]:
        """What a user should know about the network, for its repr and for widgets."""
        guesses = self.transform.guesses and self.transform.guesses | self.output.guesses
        notes = [format_guesses(guesses)] if guesses else []
        return [*notes, *self._notes]


def _unpickle(
    module: nn.Module, transform: Transform, labels: Sequence[str], name: str, device: str, arguments: dict[str, Any]
) -> Network:
    return Network(to_available(module, device), transform=transform, labels=labels, name=name, **arguments)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy().copy()
