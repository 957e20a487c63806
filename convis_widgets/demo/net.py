"""The demo network, a small AlexNet for the pictures of Toyscape, and the weights that ship with it.

Two networks share the architecture and the pictures they learned from. The *robust* one was trained on pictures that
had been disturbed to fool it, and therefore looks for shapes that people see too; the *ordinary* one was not.
How they were trained is in ``train``.
"""

from collections import OrderedDict
from importlib import resources

import torch
from torch import Tensor, nn

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
SIZE = 64

_WEIGHTS = resources.files(__package__) / "weights"


class DemoNet(nn.Sequential):
    """Five convolutions and three fully connected layers under AlexNet's names, ``conv1`` to ``fc8``.

    Maps a batch (N, 3, 64, 64), normalized with `MEAN` and `STD`, to (N, 10) logits, one for each class of Toyscape.

    Parameters
    ----------
    seed : int
        Seed of the initial weights. The global random state is neither read nor advanced.

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
        layers["conv1"] = _bare(nn.Conv2d, 3, 32, 9, stride=2, padding=4)
        layers["relu1"] = nn.ReLU()
        layers["pool1"] = nn.MaxPool2d(2)
        layers["conv2"] = _bare(nn.Conv2d, 32, 64, 3, padding=1)
        layers["relu2"] = nn.ReLU()
        layers["conv3"] = _bare(nn.Conv2d, 64, 96, 3, padding=1)
        layers["relu3"] = nn.ReLU()
        layers["pool3"] = nn.MaxPool2d(2)
        layers["conv4"] = _bare(nn.Conv2d, 96, 96, 3, padding=1)
        layers["relu4"] = nn.ReLU()
        layers["conv5"] = _bare(nn.Conv2d, 96, 64, 3, padding=1)
        layers["relu5"] = nn.ReLU()
        layers["pool5"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc6"] = _bare(nn.Linear, 64 * 4 * 4, 128)
        layers["relu6"] = nn.ReLU()
        layers["fc7"] = _bare(nn.Linear, 128, 128)
        layers["relu7"] = nn.ReLU()
        layers["fc8"] = _bare(nn.Linear, 128, 10)
        super().__init__(layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            # Small enough that what training writes into a filter drowns the noise it started from.
            self.conv1.weight.mul_(0.1)

    def __getitem__(self, index: int | slice) -> nn.Module:
        """A layer; a slice gives a plain Sequential."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict([*self.named_children()][index]))
        return super().__getitem__(index)


def module(robust: bool = True, checkpoint: int | None = None) -> DemoNet:
    """The trained demo network, in eval mode, on the CPU.

    Parameters
    ----------
    robust : bool
        Whether to take the robust network or the ordinary one.
    checkpoint : int, optional
        The network as it was after this many steps of its training, one of `checkpoints`; None is the final one.

    Raises
    ------
    ValueError
        If no checkpoint was kept at that step.
    """
    known = checkpoints(robust)
    step = known[-1] if checkpoint is None else checkpoint
    if step not in known:
        raise ValueError(f"no checkpoint at step {checkpoint!r}; choose one of {', '.join(map(str, known))}")
    net = DemoNet(seed=0)
    if step:
        with (_WEIGHTS / f"{_name(robust)}-{step:05d}.pt").open("rb") as file:
            net.load_state_dict(unpack(torch.load(file, map_location="cpu", weights_only=True)))
    return net.eval()


def checkpoints(robust: bool = True) -> tuple[int, ...]:
    """The training steps at which the network's weights were kept; the first is 0, before training, the last the end.

    Step 0 has no file: the weights come from the seed.
    """
    prefix = f"{_name(robust)}-"
    names = [file.name for file in _WEIGHTS.iterdir() if file.name.startswith(prefix) and file.name.endswith(".pt")]
    return (0, *sorted(int(name.removeprefix(prefix).removesuffix(".pt")) for name in names))


def pack(net: nn.Module, *, coarse: bool = False) -> dict[str, Tensor]:
    """The weights as a small dict of tensors: half precision or, `coarse`, about half of that.

    A coarse weight tensor W is stored as int8 with one float32 scale for each output channel under the name
    ``<name>.scale``, W[k] = scale[k] * stored[k]; biases stay in half precision.
    """
    packed = {}
    for name, value in ((name, value.contiguous()) for name, value in net.state_dict().items()):
        if coarse and value.dim() > 1:
            scale = value.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
            packed[f"{name}.scale"] = scale
            packed[name] = (value / _along_first(scale, value)).round().to(torch.int8)
        else:
            packed[name] = value.half()
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The float32 state dict from what `pack` made."""
    state = {}
    for name, value in packed.items():
        if not name.endswith(".scale"):
            scale = packed.get(f"{name}.scale")
            state[name] = value.float() if scale is None else value.float() * _along_first(scale, value)
    return state


def _along_first(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.dim() - 1))


def _bare(kind: type[nn.Module], *sizes: int, **options: int) -> nn.Module:
    """A layer whose weights are still to be written."""
    return nn.utils.skip_init(kind, *sizes, **options)


def _name(robust: bool) -> str:
    return "robust" if robust else "ordinary"
