"""Train a demo network from nothing: ``python -m convis_widgets.demo.train --robust``.

Draws the pictures, trains, keeps checkpoints on the way, and says how well the rounded weights do on new pictures.
About ten minutes on two cores. Same seed, same machine and same number of threads: same weights.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .net import MEAN, STD, DemoNet, pack, unpack
from .toyscape import Toyscape

KEPT = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # a network changes most in its first steps


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    radius : float
        Length of the disturbance that the network learns to withstand, in L2 over a picture with values in [0, 1];
        0 trains an ordinary network. It grows from 0 over the first half of the training.
    epochs, batch : int
        Passes over the pictures; pictures in a step.
    rate, decay : float
        Highest learning rate; weight decay (of weights, not of biases).
    seed : int
        Seed of the initial weights, the order of the pictures, their variations and the disturbances.
    """

    radius: float = 0.0
    epochs: int = 12
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    seed: int = 0


class Progress(NamedTuple):
    """Where a training stands after a step; `net` goes on changing."""

    step: int
    total: int
    loss: float
    net: DemoNet


def fit(images: Tensor, labels: Tensor, recipe: Recipe) -> Iterator[Progress]:
    """Train a new network on uint8 images (N, 3, 64, 64), one step for each value asked for.

    For a robust network every picture x is first disturbed to x + d by one step of steepest ascent on the loss from a
    random start in the ball of the radius r, ``d <- clip_r(d + r g / |g|)`` with g the gradient at x + d.

    References
    ----------
    Wong, Rice and Kolter (2020), *Fast is better than free: revisiting adversarial training*, arXiv:2001.03994.
    Here the ball is L2, not L-infinity, and its radius grows during the first half of the training.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    net = DemoNet(seed=recipe.seed).train().to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    total = recipe.epochs * (len(images) // recipe.batch)
    groups = [
        {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": recipe.decay},
        {"params": [p for p in net.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=total, pct_start=0.15)
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // recipe.batch * recipe.batch].split(recipe.batch):
            batch, wanted = vary(images[rows].float() / 255, generator), labels[rows]
            radius = recipe.radius * min(1.0, 2 * step / total)
            if radius:
                batch = disturb(net, batch, wanted, radius, generator=generator)
            loss = F.cross_entropy(net(normalize(batch)), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            step += 1
            yield Progress(step, total, loss.item(), net)


def normalize(batch: Tensor) -> Tensor:
    """Pictures in [0, 1] as the network wants them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (batch - mean) / std


def vary(batch: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures (N, 3, S, S) at random mirrored, shifted by up to four pixels, and tinted."""
    n, _, height, width = batch.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(mirrored.view(n, 1, 1, 1), batch.flip(3), batch)
    shifts = torch.randint(0, 9, (n, 2), generator=generator)
    rows = shifts[:, :1] + torch.arange(height)
    columns = shifts[:, 1:] + torch.arange(width)
    padded = F.pad(batch, (4, 4, 4, 4), mode="replicate")
    batch = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    gain = 0.85 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator) + 0.1 * torch.randn(n, 3, 1, 1, generator=generator)
    return (batch * gain).clamp(0, 1)


def disturb(
    net: nn.Module, batch: Tensor, labels: Tensor, radius: float, *, steps: int = 1, generator: torch.Generator
) -> Tensor:
    """The pictures moved by at most `radius` in L2 so that the network finds them hard.

    One step is that of training; more steps, each of 2.5 `radius` / `steps`, make the usual projected gradient attack.
    """
    size = radius if steps == 1 else 2.5 * radius / steps
    noise = torch.randn(batch.shape, generator=generator)
    noise = noise * (radius * torch.rand(len(batch), generator=generator) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    for _ in range(steps):
        seen = (batch + noise).clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net(normalize(seen)), labels, reduction="sum"), seen)
        noise = noise + size * slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        noise = noise * (radius / noise.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1).view(-1, 1, 1, 1)
    return (batch + noise).clamp(0, 1).detach()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the uint8 images that the network classifies right."""
    guesses = [net(normalize(batch.float() / 255)).argmax(dim=1) for batch in images.split(500)]
    return (torch.cat(guesses) == labels).float().mean().item()


def render(scenes: Toyscape, *, workers: int = 1) -> tuple[Tensor, Tensor]:
    """All pictures of the scenes as (N, 3, S, S) uint8 and their labels, drawn by `workers` processes."""
    labels = torch.tensor([scenes.label(i) for i in range(len(scenes))])
    chunks = [range(start, min(start + 100, len(scenes))) for start in range(0, len(scenes), 100)]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(partial(_draw, scenes), chunks))
    else:
        drawn = [_draw(scenes, chunk) for chunk in chunks]
    return torch.from_numpy(np.concatenate(drawn)), labels


def _draw(scenes: Toyscape, chunk: range) -> NDArray[np.uint8]:
    pictures = np.stack([scenes[i].image for i in chunk])
    return (pictures * 255 + 0.5).astype(np.uint8).transpose(0, 3, 1, 2)


def save(net: nn.Module, path: Path, *, coarse: bool = False) -> None:
    """Write the packed weights, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(pack(net, coarse=coarse), part)
    part.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Train one network as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m convis_widgets.demo.train", description="Train a demo network.")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--robust", dest="robust", action="store_true", default=True, help="the robust network (default)")
    kind.add_argument("--ordinary", dest="robust", action="store_false", help="the ordinary network")
    parser.add_argument("--radius", type=float, default=1.5, help="disturbance that the robust network withstands (L2)")
    parser.add_argument("--scenes", type=int, default=20_000, help="number of training pictures")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and disturbances; checkpoint 0 assumes 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw the pictures")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder for the weights")
    options = parser.parse_args(arguments)

    name = "robust" if options.robust else "ordinary"
    print(f"drawing {options.scenes} + 2000 pictures", flush=True)
    images, labels = render(Toyscape(options.scenes, split="train"), workers=options.workers)
    unseen = render(Toyscape(2000, seed=1), workers=options.workers)

    recipe = Recipe(radius=options.radius if options.robust else 0.0, epochs=options.epochs, seed=options.seed)
    started, smooth = time.monotonic(), None
    for step, total, loss, net in fit(images, labels, recipe):
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        if step in {round(share * total) for share in KEPT}:
            save(net, options.out / f"{name}-{step:05d}.pt", coarse=True)
        if step % 10 == 0 or step == total:
            _show(name, step, total, smooth, time.monotonic() - started)
    path = options.out / f"{name}-{total:05d}.pt"
    save(net, path)
    exact = accuracy(net.eval(), *unseen)
    net.load_state_dict(unpack(torch.load(path, weights_only=True)))
    print(f"\n{path}: {exact:.2%} of 2000 new pictures right, {accuracy(net, *unseen):.2%} after rounding")


def _show(name: str, step: int, total: int, loss: float, seconds: float) -> None:
    done = 30 * step // total
    left = seconds * (total - step) / step
    bar = "#" * done + "." * (30 - done)
    sys.stdout.write(f"\r{name} [{bar}] {step}/{total}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left ")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
