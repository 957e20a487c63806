"""Network: a model with its own preprocessing, labels and an ordered index of its layers."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from . import zoo
from .errors import nearest
from .graph import Graph, record
from .layers import Layer, Layers
from .trace import first_tensor, instrument
from .transform import Transform


class Network:
    """A convolutional network you can look into.

    The network works on a shadow of your module: the same weights, its own flags and hooks. So your module is never
    switched to evaluation, hooked or moved, and one that is still training can be watched. A half-precision model and
    one that goes to another device are real copies. Hooks of your own do not fire on the shadow.

    Parameters
    ----------
    module : torch.nn.Module
        Takes (N, C, H, W), returns scores (N, classes).
    size : int or (int, int), optional
        Height and width of its input. Guessed otherwise: from torchvision or timm, from the first layers, by trial.
    mean, std : sequence of float, optional
        Per channel, for pixels in [0, 1]. From torchvision or timm; otherwise none, pixels go in as they are.
    labels : sequence of str, optional
        Names of the classes, in the order of the scores.
    channels : int, optional
        1 for gray, 3 for color. Read from the first layer otherwise.
    transform : Transform, optional
        The whole preprocessing at once, instead of size, mean, std and channels.
    name : str, optional
        What to call it on screen.
    device : str or torch.device
        "auto" is where the module is; for networks made here CUDA, then MPS, then CPU.

    Examples
    --------
    >>> net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    >>> net.transform.size, net.transform.channels
    ((28, 28), 1)
    >>> net.layers[0].receptive_field
    (5, 5)
    """

    _by_name: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Network]] = weakref.WeakValueDictionary()

    def __init__(
        self,
        module: nn.Module,
        *,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        labels: Sequence[str] | None = None,
        channels: int | None = None,
        transform: Transform | None = None,
        name: str | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{type(module).__name__} is no torch.nn.Module; Network.ensure(name) gives a network by its name"
            )
        module = zoo.plain_module(module)
        # made there, since "cuda" is not equal to "cuda:0" until something lies on it
        self.device = _device_of(module) if device == "auto" else torch.empty(0, device=device).device
        self.module = _shadow(module, self.device)
        self.name = name or type(module).__name__
        instrument(self.module)
        self.dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        try:
            self.transform = transform or zoo.transform_for(
                module, self._accepts, size=size, mean=mean, std=std, channels=channels
            )
        except zoo.SizeUnknown as error:
            raise ValueError(f"{error}; the last attempt said: {self._refusal}") from self._refusal
        if not self._accepts(self.transform.channels, *self.transform.size):
            height, width = self.transform.size
            raise ValueError(
                f"{self.name} does not run on a {height}x{width} picture with {self.transform.channels} channels; "
                "pass size=(height, width) and channels="
            ) from self._refusal
        classes = self.graph.output.shape[1] if len(self.graph.output.shape) > 1 else 1
        self.labels = _labels(labels if labels is not None else zoo.labels_for(module, classes), classes)

    # -- where networks come from ------------------------------------------------------------------------------

    @classmethod
    def ensure(cls, network: Any = None) -> Network:
        """Whatever a user means by a network, as a Network.

        Parameters
        ----------
        network : Network, str, torch.nn.Module or None
            A torchvision name loads its default weights, through torchvision's own loader, from the hub's cache or the net.
            "demo" and "demo-ordinary" are the bundled networks; None is the demo network.

        Raises
        ------
        ValueError
            No torchvision classifier of that name.
        FileNotFoundError
            The weights are not there and cannot be downloaded; says which file to put where.
        """
        if isinstance(network, Network):
            return network
        if isinstance(network, nn.Module):
            return cls(network)
        if network is None or (isinstance(network, str) and network in ("demo", "demo-ordinary")):
            return cls.demo(robust=network != "demo-ordinary")
        if isinstance(network, str):
            return cls._shared(("torchvision", network), lambda: cls._pretrained(network))
        raise TypeError(
            f"{type(network).__name__} is no network; give a torchvision name such as 'squeezenet1_1', a "
            "torch.nn.Module or a Network"
        )

    @classmethod
    def demo(cls, *, robust: bool = True, checkpoint: int | None = None) -> Network:
        """The bundled network, trained on Toyscape; needs no download.

        Parameters
        ----------
        robust : bool
            The one trained adversarially, whose filters and synthesized pictures are clean, or the ordinary one.
        checkpoint : int, optional
            One of ``convis_widgets.demo.checkpoints(robust=robust)``: the network at that point of its training.
        """

        def make() -> Network:
            from convis_widgets import demo  # the core works without it

            transform = Transform((demo.SIZE, demo.SIZE), 3, demo.MEAN, demo.STD)
            name = "demo network" if robust else "demo network, ordinary"
            name += "" if checkpoint is None else f", step {checkpoint}"
            module = demo.module(robust=robust, checkpoint=checkpoint).to(_best_device())
            return cls(module, transform=transform, labels=demo.LABELS, name=name)

        return cls._shared(("demo", robust, checkpoint), make)

    @classmethod
    def _pretrained(cls, name: str) -> Network:
        module, transform, labels = zoo.load(name)
        return cls(module.to(_best_device()), transform=transform, labels=labels, name=name)

    @classmethod
    def _shared(cls, key: tuple[Any, ...], make: Callable[[], Network]) -> Network:
        network = cls._by_name.get(key)
        if network is None:
            network = make()
            cls._by_name[key] = network
        return network

    # -- what it is --------------------------------------------------------------------------------------------

    @functools.cached_property
    def graph(self) -> Graph:
        """The recorded forward pass of one picture."""
        height, width = self.transform.size
        return record(self.module, self._blank(self.transform.channels, height, width))

    @functools.cached_property
    def layers(self) -> Layers:
        """All layers in the order of the forward pass: name, kind, output shape, receptive field, stride, parameters."""
        return Layers(self.graph, self.transform.size)

    @functools.cached_property
    def final(self) -> str:
        """What the network ends in: "softmax", "log_softmax" or "sigmoid", or "scores" if none of them."""
        producer = {value: op for op in self.graph.ops for value in op.outputs if value is not None}
        op = producer.get(self.graph.output)
        while op is not None and op.name in ("view", "_unsafe_view", "squeeze", "clone", "alias", "_to_copy"):
            op = producer.get(op.args[0])
        names = {"_softmax": "softmax", "_log_softmax": "log_softmax", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
        return names.get(op.name if op else "", "scores")

    def weights(self, layer: str) -> tuple[np.ndarray, np.ndarray | None]:
        """A layer's filters (out, in, height, width) and biases (out,), as numpy copies.

        A fully connected first layer on pixels is given as filters of the size of the picture.
        """
        found = self.layers[layer]
        weight, bias = self._filters(found), getattr(found.module, "bias", None)
        if weight is None:
            raise ValueError(f"{found.name} ({found.kind}) has no filters; choose one of {self.with_filters()[:6]}")
        return _numpy(weight), _numpy(bias).ravel() if isinstance(bias, torch.Tensor) else None

    def with_filters(self) -> list[str]:
        """Names of the layers that `weights` can give."""
        return [layer.name for layer in self.layers if self._filters(layer) is not None]

    def target(self, target: int | str) -> int:
        """The index of a class, given as an index or a label; ValueError with near labels otherwise."""
        if isinstance(target, str):
            folded = [label.lower() for label in self.labels]
            if target.strip().lower() in folded:
                return folded.index(target.strip().lower())
            raise ValueError(f"no class {target!r} in {self.name}; {nearest(target, self.labels)}")
        try:
            index = -1 if isinstance(target, bool) else operator.index(target)
        except TypeError:
            index = -1
        if not 0 <= index < len(self.labels):
            raise ValueError(f"{self.name} has classes 0 to {len(self.labels) - 1}, not {target!r}")
        return index

    def __repr__(self) -> str:
        height, width = self.transform.size
        return f"<Network {self.name}: {self.transform.channels}x{height}x{width} -> {len(self.labels)} on {self.device}>"

    # -- what it does ------------------------------------------------------------------------------------------

    def image(self, source: Any) -> np.ndarray:
        """Any picture as the network sees it: (H, W, C) float32 in [0, 1]. See `Transform.image`."""
        return self.transform.image(source)

    def batch(self, images: Any) -> torch.Tensor:
        """One picture, or several of one size, as (N, C, H, W) in [0, 1] on the network's device.

        Parameters
        ----------
        images : picture, or list of pictures, or (N, C, H, W) tensor, or (N, H, W, C) array
        """
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        arrays = [self.image(source) for source in (images if several else [images])]
        if len({array.shape for array in arrays}) != 1:
            raise ValueError("there is no picture" if not arrays else "the pictures of a batch should all have one size")
        return self.stack(arrays)

    def stack(self, arrays: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures that are as the network sees them, (H, W, C) each, as (N, C, H, W) on its device."""
        batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        # a clone, since .contiguous() keeps the strides of a gray picture, which convolutions take for channels-last
        return batch.clone(memory_format=torch.contiguous_format).to(self.device, self.dtype)

    def single(self, image: Any) -> torch.Tensor:
        """One picture as (1, C, H, W) in [0, 1] on the network's device; ValueError if several are given."""
        batch = self.batch(image)
        if len(batch) > 1:
            raise ValueError(f"{len(batch)} pictures were given; give one")
        return batch

    def whole(self, image: Any, side: int | None = None) -> torch.Tensor:
        """One picture, nothing cropped, as (1, C, H, W) in [0, 1] on the network's device. See `Transform.whole`."""
        if isinstance(image, (list, tuple)) or (getattr(image, "ndim", 0) == 4 and len(image) > 1):
            raise ValueError(f"{len(image)} pictures were given; give one")
        return self.stack([self.transform.whole(image, side)])

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores (N, classes) of pictures (N, C, H, W) in [0, 1]: the module's own output, on normalized pixels."""
        try:
            scores = first_tensor(self.module(self.transform.normalize(batch)))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or tuple(batch.shape[2:]) == self.transform.size:
                raise
            given, size = "x".join(map(str, batch.shape[2:])), "x".join(map(str, self.transform.size))
            raise ValueError(
                f"{self.name} takes {size} pictures and cannot run on {given}, which may be too small or too thin; give a "
                f"picture of {size}, or a larger one"
            ) from error
        return scores if scores.ndim == 2 else scores.reshape(len(batch), len(self.labels), -1).mean(2)

    def probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        """Class probabilities (N, classes) of pictures (N, C, H, W) in [0, 1]."""
        scores = self(batch).float()
        if self.final in ("softmax", "sigmoid"):
            return scores
        return scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)

    def probabilities_of(self, image: Any) -> np.ndarray:
        """Class probabilities (classes,) of one picture; ValueError if the network gives none (NaN)."""
        with torch.no_grad():
            p = self.probabilities(self.single(image))[0]
        if not bool(p.isfinite().all()):
            raise ValueError(f"the scores of {self.name} are not finite; its weights may have diverged")
        return _numpy(p)

    def predict(self, image: Any, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes of a picture, as (label, probability), best first.

        Examples
        --------
        >>> from convis_widgets import demo
        >>> scene = demo.images(1, label="star")[0]
        >>> Network.demo().predict(scene.image, k=1)[0][0]
        'star'
        """
        p = self.probabilities_of(image)
        return [(self.labels[i], float(p[i])) for i in np.argsort(-p, kind="stable")[:k]]

    def as_maps(self, layer: str, output: torch.Tensor) -> torch.Tensor:
        """What `trace` collected from a layer, as (N, C, h, w): vectors as 1x1 maps, tokens as their grid of patches."""
        found = self.layers[layer]
        if found.layout is None:
            shape = "x".join(map(str, found.shape))
            raise ValueError(f"{found.name} ({found.kind}) puts out {shape}, which is no set of maps; choose another layer")
        if len(found.layout.order) == 2 and tuple(output.shape[1:]) != found.shape:
            given, shape = ("x".join(map(str, of)) for of in (output.shape[1:], found.shape))
            raise ValueError(f"{found.name} put out {given} tokens, not {shape}; give pictures of {self.transform.size}")
        return found.layout.apply(output)

    def copy(self) -> Network:
        """The same network with weights of its own: changing them changes neither this network nor your module.

        Examples
        --------
        >>> net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
        >>> other = net.copy()
        >>> _ = other.module[0].weight.zero_()
        >>> bool(net.weights("0")[0].any()), bool(other.weights("0")[0].any())
        (True, False)
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        for recorded in ("graph", "layers"):  # they hold this network's tensors and modules
            vars(other).pop(recorded, None)
        with torch.inference_mode(False):  # tensors that are made in it never have gradients
            other.module = _copied(_shadow(self.module, self.device))
        instrument(other.module)
        return other

    def accepts(self, size: tuple[int, int]) -> bool:
        """Whether it gives scores for pictures of this height and width, as many as for those of its own."""
        return self._accepts(self.transform.channels, *size)

    def with_average_pooling(self) -> Network:
        """The same network, sharing its weights, with average pooling in the place of its max-pooling layers.

        L. Gatys, A. Ecker, M. Bethge, "Image style transfer using convolutional neural networks", 2016, section 2: for
        synthesis it gives smoother pictures.
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self))  # also its graph and layers: shapes and receptive fields are the same
        other.module = _shadow(self.module, self.device)
        for part in list(other.module.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.MaxPool2d) and child.dilation in (1, (1, 1)) and not child.return_indices:
                    window = child.kernel_size, child.stride, child.padding, child.ceil_mode
                    setattr(part, name, nn.AvgPool2d(*window, count_include_pad=False))
        instrument(other.module)
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it takes its weights along, and comes to life where they were, or else where it is fastest."""
        module = _shadow(self.module, torch.device("cpu"))
        return _revived, (module, self.transform, self.labels, self.name, str(self.device))

    # -- private -----------------------------------------------------------------------------------------------

    def _filters(self, layer: Layer) -> torch.Tensor | None:
        """The weight of a layer as (out, in, height, width); None if it cannot be seen so."""
        module, weight = layer.module, getattr(layer.module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            return None
        if isinstance(module, nn.Linear) and weight.shape[1] == np.prod(self._input_shape):
            weight = weight.reshape(-1, *self._input_shape)
        if isinstance(module, nn.modules.conv._ConvTransposeNd):  # (in, out of a group, height, width)
            weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight if weight.ndim == 4 else None

    @property
    def _input_shape(self) -> tuple[int, int, int]:
        return (self.transform.channels, *self.transform.size)

    def _blank(self, channels: int, height: int, width: int) -> torch.Tensor:
        return torch.full((1, channels, height, width), 0.5, dtype=self.dtype, device=self.device)

    def _accepts(self, channels: int, height: int, width: int) -> bool:
        """Whether the module runs on a picture of this shape."""
        self._refusal: Exception | None = None
        try:
            with torch.no_grad():
                return first_tensor(self.module(self._blank(channels, height, width))) is not None
        except Exception as error:  # noqa: BLE001 (a module may fail in any way on a shape it was not made for)
            self._refusal = error
            return False


def _revived(module: nn.Module, transform: Transform, labels: Sequence[str], name: str, device: str) -> Network:
    try:
        module = module.to(device)
    except (RuntimeError, AssertionError):  # there is no such device
        module = module.to(_best_device())
    return Network(module, transform=transform, labels=labels, name=name)


def _shadow(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of the module tree that shares the tensors, in evaluation mode, in at least single precision."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if name.startswith("_") and isinstance(value, dict):  # PyTorch's own: parameters, buffers, parts, hooks
                continue
            for tensor in tree_leaves(value):  # left on a module by old-style weight_norm, by pruning, by its author
                if isinstance(tensor, torch.Tensor):
                    memo[id(tensor)] = tensor.data
    for parameter in module.parameters():
        if isinstance(parameter, nn.parameter.UninitializedTensorMixin) or parameter.is_meta:
            raise ValueError(f"{type(module).__name__} has weights without values; run or load it once first")
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer
    shadow = _copied(module, memo).eval()
    for part in shadow.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch.nn.utils"):  # weight_norm and pruning compute weights there
                    del hooks[key]
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in shadow.parameters()):
        # gradients of scores underflow in half precision
        shadow = _copied(shadow).float()
    if any(t.device != device for t in (*shadow.parameters(), *shadow.buffers())):
        shadow = _copied(shadow).to(device)
    return shadow


def _copied(module: nn.Module, memo: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """A deep copy, with what `memo` gives for an id in place of a copy, and what cannot be copied shared."""
    try:
        return copy.deepcopy(module, dict(memo))
    except TypeError:
        return copy.deepcopy(module, {**memo, **_not_copied(module)})


def _not_copied(module: nn.Module) -> dict[int, Any]:
    """Locks, files, generators and the like that modules hold, by id: they are shared, since they cannot be copied."""
    shared = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if not name.startswith("_"):
                try:
                    copy.deepcopy(value)
                except (TypeError, RuntimeError):
                    shared[id(value)] = value
    return shared


def _device_of(module: nn.Module) -> torch.device:
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    if labels is None:
        return tuple(f"class {i}" for i in range(classes))
    if isinstance(labels, str):
        raise TypeError(f"labels={labels!r} is one text; give a list with one label per class")
    labels = tuple(str(label).strip() for label in labels)
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for a network with {classes} classes; give one label per class")
    return labels


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy().copy()
