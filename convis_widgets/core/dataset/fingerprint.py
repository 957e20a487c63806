"""Fingerprints of a network and of a scan: whether weights have changed, and under which key results are stored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..network.graph import Graph, Op, Value
from ..network.network import Network


def weights_checksum(net: Network) -> list[int]:
    """Sums that change with the values or the order of the weights; much faster than a forward pass."""
    integer_types = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for tensor in _constants(net).values():
        flat = _plain(tensor).view(integer_types.get(tensor.element_size(), torch.uint8)).flatten()
        for width in (61, 67):  # two primes: no common permutation of weights preserves both sets of column sums
            height = len(flat) // width
            sums += [flat[: height * width].view(height, width).sum(0), flat[height * width :].sum()[None]]
    return torch.cat([part.to(net.device) for part in sums]).tolist() if sums else []  # plain tensors may be on the CPU


def scan_key(net: Network, file_format: int, layers: Sequence[str], parameters: tuple[Any, ...]) -> str:
    """Key of a scan's results: a hash of what the network computes and of the parameters of the scan.

    The network enters with the values of its constants, see `_constants`, with its operators and what they work on, with the
    outputs of its layers, and with what the numbers of its output are. Its text, which may contain memory addresses, does
    not.

    Parameters
    ----------
    net : Network
    file_format : int
        Version of the format of the stored results.
    layers : sequence of str
        Scanned layers.
    parameters : tuple
        Everything else that the results depend on; hashed by its repr.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    output = net.output.kind, net.output.shape, net.output.channels_last
    digest.update(repr((file_format, net.transform, output, layers, parameters)).encode())
    constants = _constants(net)
    for name, tensor in constants.items():
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(_plain(tensor).cpu().flatten().view(torch.uint8).numpy().data)
    names = {id(tensor): name for name, tensor in constants.items()}
    for op in net.graph.ops:
        digest.update(f"{op.name}{_describe((op.args, op.kwargs), names)}{_describe(op.outputs, names)}\n".encode())
    for call in net.graph.calls:  # which values are the outputs of layers
        digest.update(f"{call.name}{type(call.module).__name__}{_describe(call.output, names)}\n".encode())
    digest.update(_describe(net.graph.output, names).encode())
    return digest.hexdigest()


def _describe(argument: Any, names: dict[int, str]) -> str:
    """An argument of an operator as text: values by number, tensors by name, and what has no values by its type.

    Parameters
    ----------
    argument : Any
    names : dict of int to str
        Names of constants, by id.
    """
    if isinstance(argument, Value):
        return f"%{argument.index}{argument.shape}"
    if isinstance(argument, torch.Tensor):
        return names.get(id(argument), f"memory{tuple(argument.shape)}")
    if isinstance(argument, (list, tuple)):
        return f"({','.join(_describe(item, names) for item in argument)})"
    if isinstance(argument, dict):
        return f"({','.join(f'{key}={_describe(item, names)}' for key, item in argument.items())})"
    if argument is None or isinstance(argument, (bool, int, float, complex, str, torch.dtype)):
        return repr(argument)
    return type(argument).__name__  # devices, generators, objects of extensions


def _constants(net: Network) -> dict[str, torch.Tensor]:
    """Tensors that the output is computed from: parameters, buffers, and other tensors that operators read.

    The latter are plain attributes of modules (a mean, a mask, a temperature) and numbers that the forward pass makes
    tensors of. Buffers and attributes that the forward pass itself writes to, such as a counter of calls, are left out.
    """
    constants: dict[str, torch.Tensor] = dict(net.module.named_parameters())
    known = _written_constants(net.graph) - {id(tensor) for tensor in constants.values()}
    constants |= {name: tensor for name, tensor in net.module.named_buffers() if id(tensor) not in known}
    known |= {id(tensor) for tensor in constants.values()}
    for i, op in enumerate(net.graph.ops):
        for j, tensor in enumerate(_tensors(op)):
            if id(tensor) not in known:
                known.add(id(tensor))
                constants[f"{op.name} {i} {j}"] = tensor
    return constants


def _tensors(op: Op) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, torch.Tensor))


def _written_constants(graph: Graph) -> set[int]:
    """Ids of the constants that the forward pass writes to, itself or through views."""
    written, viewed = set[int](), dict[int, int]()  # by index of the view
    for op in graph.ops:
        target = op.args[0] if op.args else None
        source = id(target) if isinstance(target, torch.Tensor) else viewed.get(getattr(target, "index", -1))
        if source is not None and op.name.endswith("_"):
            written.add(source)
        if source is not None and (op.name.endswith("_") or _returns_view(op.name)):
            viewed |= {output.index: source for output in op.outputs if output is not None}
    return written


@functools.cache
def _returns_view(name: str) -> bool:
    """Whether an aten operator returns a view of its argument."""
    packet = getattr(torch.ops.aten, name, None)
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()] if packet is not None else []
    aliases = [result.alias_info for schema in schemas for result in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor, contiguous and strided."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.resolve_conj().resolve_neg().contiguous()
