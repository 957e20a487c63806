"""ResultCheck: whether stored results are those of a network, by what it computes for two seeded images.

A network may do what its recorded operators do not show: take another branch for other images, or compute with NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..network.trace import first_tensor, watch_modules
from .batch_collector import BatchCollector

TOLERANCE = 0.01  # of the largest value; TF32 changes scores by about 0.001


@dataclass(frozen=True)
class ResultCheck:
    """Results of a network on two seeded images, a dark and a bright one.

    Attributes
    ----------
    values : (n,) array
        Features, probabilities, and the largest activation of each channel of the scanned layers; empty if the network fails
        on these images.
    tolerances : (n,) array
        Differences up to which values are equal, since processors differ in rounding.
    settings : dict of str to str
        Numbers and texts that are attributes of the author's modules, unless the forward pass changes them.
    """

    values: np.ndarray
    tolerances: np.ndarray
    settings: Mapping[str, str]

    @classmethod
    def take(cls, collector: BatchCollector) -> ResultCheck:
        """Run the network of a collector."""
        net, parts, before = collector.net, list[torch.Tensor](), _settings(collector.net.module)
        noise = np.random.default_rng(0).random((*net.transform.size, net.transform.channels), np.float32)

        def on_exit(name: str, _module: Any, output: Any) -> None:
            tensor = first_tensor(output) if name in collector.top_k else None
            if tensor is not None:
                parts.append(net.as_maps(name, tensor).float().amax((2, 3)))

        try:
            with watch_modules(net.module, on_exit):
                for image in (0.3 * noise, 1 - 0.3 * noise):
                    parts += collector.forward(net.stack_images([image]))
        except Exception:  # noqa: BLE001 (a module may fail in any way; so it will on images like these)
            parts.clear()
        arrays = [np.nan_to_num(part.flatten().cpu().numpy()) for part in parts]
        tolerances = [np.full(array.size, TOLERANCE * np.abs(array).max(initial=0)) for array in arrays]
        after = _settings(net.module)
        settings = {name: value for name, value in before.items() if after.get(name) == value}
        return cls(np.concatenate([[], *arrays]), np.concatenate([[], *tolerances]), settings)

    def state(self) -> dict[str, np.ndarray]:
        """The results as arrays, see `agrees`."""
        return {"check": self.values, "settings": np.array(json.dumps(self.settings))}

    def agrees(self, state: Mapping[str, np.ndarray]) -> bool:
        """Whether the `state` of another check is that of a network that computes the same."""
        values, settings = state["check"], json.loads(str(state["settings"]))
        return (
            values.shape == self.values.shape
            and bool((np.abs(values - self.values) <= self.tolerances).all())
            and all(value == self.settings.get(name, value) for name, value in settings.items())
        )


def _settings(module: nn.Module) -> dict[str, str]:
    """Numbers and texts that are attributes of modules, except of those of PyTorch: these are in the graph."""
    return {
        f"{name}.{attribute}": repr(value)
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if not type(part).__module__.startswith("torch.nn.")
        and all(leaf is None or isinstance(leaf, (bool, int, float, str, np.generic)) for leaf in tree_leaves(value))
    }
