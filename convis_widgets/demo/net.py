"""The demo networks: a small AlexNet for Toyscape, with two sets of trained weights.

The *robust* network was trained on adversarial images and therefore relies on shapes that people see too. The *ordinary*
network was trained on the same images without perturbations. See ``train``.
"""

from collections import OrderedDict
from importlib import resources
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

__all__ = ["MEAN", "SIZE", "STD", "DemoNet", "checkpoints", "module"]

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
SIZE = 64

M = TypeVar("M", bound=nn.Module)

_WEIGHTS = resources.files(__package__) / "weights"


class DemoNet(nn.Sequential):
    """Five convolutions and three fully connected layers, named as in AlexNet, ``conv1`` to ``fc8``.

    Maps a batch (N, 3, 64, 64), normalized with `MEAN` and `STD`, to logits (N, 10) for the classes of Toyscape.

    Parameters
    ----------
    seed : int
        Seed of the initial weights. The global random state is not used.

    Examples
    --------
    >>> import torch
    >>> net = DemoNet().eval()
    >>> net(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    >>> net.conv1
    Conv2d(3, 32, kernel_size=(9, 9), stride=(2, 2), padding=(4, 4))
    """

    def __init__(self, *, seed: int = 0) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = conv1 = _uninitialized(nn.Conv2d, 3, 32, 9, stride=2, padding=4)
        layers["relu1"] = nn.ReLU()
        layers["pool1"] = nn.MaxPool2d(2)
        layers["conv2"] = _uninitialized(nn.Conv2d, 32, 64, 3, padding=1)
        layers["relu2"] = nn.ReLU()
        layers["conv3"] = _uninitialized(nn.Conv2d, 64, 96, 3, padding=1)
        layers["relu3"] = nn.ReLU()
        layers["pool3"] = nn.MaxPool2d(2)
        layers["conv4"] = _uninitialized(nn.Conv2d, 96, 96, 3, padding=1)
        layers["relu4"] = nn.ReLU()
        layers["conv5"] = _uninitialized(nn.Conv2d, 96, 64, 3, padding=1)
        layers["relu5"] = nn.ReLU()
        layers["pool5"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc6"] = _uninitialized(nn.Linear, 64 * 4 * 4, 128)
        layers["relu6"] = nn.ReLU()
        layers["fc7"] = _uninitialized(nn.Linear, 128, 128)
        layers["relu7"] = nn.ReLU()
        layers["fc8"] = _uninitialized(nn.Linear, 128, 10)
        super().__init__(layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            conv1.weight.mul_(0.1)  # so that the initial noise is invisible in the trained filters

    @overload
    def __getitem__(self, index: slice, /) -> nn.Sequential: ...
    @overload
    def __getitem__(self, index: int, /) -> nn.Module: ...
    def __getitem__(self, index: int | slice, /) -> nn.Module:
        """A layer, or an `nn.Sequential` of the layers in a slice."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict([*self.named_children()][index]))
        return super().__getitem__(index)


def module(robust: bool = True, checkpoint: int | None = None) -> DemoNet:
    """A trained demo network, in eval mode, on the CPU.

    Parameters
    ----------
    robust : bool
        Whether it is the robust or the ordinary network.
    checkpoint : int, optional
        Training step, one of `checkpoints`; the last one by default.

    Raises
    ------
    ValueError
        There is no checkpoint at that step.
    """
    steps = checkpoints(robust)
    step = steps[-1] if checkpoint is None else checkpoint
    if step not in steps:
        raise ValueError(f"no checkpoint at step {checkpoint!r}; choose one of {', '.join(map(str, steps))}")
    net = DemoNet(seed=0)
    if step:
        with (_WEIGHTS / f"{_name(robust)}-{step:05d}.pt").open("rb") as file:
            net.load_state_dict(unpack(torch.load(file, map_location="cpu", weights_only=True)))
    return net.eval()


def checkpoints(robust: bool = True) -> tuple[int, ...]:
    """Training steps at which the weights of a network were saved, from 0, before training, to the end.

    The weights of step 0 are not in a file but follow from the seed.
    """
    prefix = f"{_name(robust)}-"
    names = [file.name for file in _WEIGHTS.iterdir() if file.name.startswith(prefix) and file.name.endswith(".pt")]
    return (0, *sorted(int(name.removeprefix(prefix).removesuffix(".pt")) for name in names))


def pack(net: nn.Module, *, coarse: bool = False) -> dict[str, Tensor]:
    """Compress the weights of a network to half precision, or to 8 bits if `coarse`.

    A weight tensor W of 8 bits is stored as int8 with a float32 scale per output channel, named ``<name>.scale``:
    W[k] = scale[k] * stored[k]. Biases are always stored in half precision.
    """
    packed = {}
    for name, value in ((name, value.contiguous()) for name, value in net.state_dict().items()):
        if coarse and value.dim() > 1:
            scale = value.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
            packed[f"{name}.scale"] = scale
            packed[name] = (value / _broadcast_scale(scale, value)).round().to(torch.int8)
        else:
            packed[name] = value.half()
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restore a float32 state dict from the result of `pack`."""
    state = {}
    for name, value in packed.items():
        if not name.endswith(".scale"):
            scale = packed.get(f"{name}.scale")
            state[name] = value.float() if scale is None else value.float() * _broadcast_scale(scale, value)
    return state


def _broadcast_scale(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.dim() - 1))


def _uninitialized(layer_type: type[M], *sizes: int, **options: int) -> M:
    """A layer with uninitialized weights."""
    layer: M = nn.utils.skip_init(layer_type, *sizes, **options)
    return layer


def _name(robust: bool) -> str:
    return "robust" if robust else "ordinary"
