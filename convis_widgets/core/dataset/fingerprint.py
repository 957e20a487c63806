"""Fingerprints of a network and of a scan: whether weights have changed, and under which key results are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..network.network import Network


def weights_checksum(net: Network) -> list[int]:
    """Sums that change with the values or the order of the weights; much faster than a forward pass."""
    integer_types = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for tensor in (*net.module.parameters(), *net.module.buffers()):
        flat = tensor.detach().contiguous().view(integer_types.get(tensor.element_size(), torch.uint8)).flatten()
        for width in (61, 67):  # two primes: no common permutation of weights preserves both sets of column sums
            height = len(flat) // width
            sums += [flat[: height * width].view(height, width).sum(0), flat[height * width :].sum()[None]]
    return torch.cat(sums).tolist() if sums else []


def scan_key(net: Network, file_format: int, layers: Sequence[str], parameters: tuple[Any, ...]) -> str:
    """Key of a scan's results: a hash of the network, its weights and the parameters of the scan.

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
    module = net.module
    digest.update(repr((file_format, type(module).__qualname__, str(module), net.transform, layers)).encode())
    digest.update(repr(parameters).encode())
    for op in net.graph.ops:  # the forward pass depends on more than the weights
        constants = [leaf for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, (bool, int, float, str))]
        digest.update(repr((op.name, constants)).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
