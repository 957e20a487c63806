"""Training of the demo networks: ``python -m convis_widgets.demo.train --robust``.

Draws the images, trains, saves checkpoints, and reports the accuracy on new images before and after the weights are rounded.
Takes about ten minutes on two cores. The same seed gives the same weights on the same machine with as many threads.
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

CHECKPOINTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # fractions of the training; most changes happen early


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the training.

    Attributes
    ----------
    radius : float
        L2 norm of the adversarial perturbations, for images in [0, 1]; 0 trains an ordinary network. It grows linearly over
        the first half of the training.
    epochs : int
    batch : int
        Images per step.
    lr : float
        Maximum of the learning rate.
    weight_decay : float
        Not applied to biases.
    seed : int
        Seed of the initial weights, the order of the images, their augmentation and the perturbations.
    """

    radius: float = 0.0
    epochs: int = 12
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0


class Progress(NamedTuple):
    """State of the training after a step; `net` is the network in training, not a copy."""

    step: int
    total: int
    loss: float
    net: DemoNet


def fit(images: Tensor, labels: Tensor, recipe: Recipe) -> Iterator[Progress]:
    """Train a new network. A robust network is trained on adversarial images.

    The perturbation d of an image x starts at a random point of the ball of radius r and takes one step of steepest ascent
    on the loss, ``d <- clip_r(d + r g / |g|)``, where g is the gradient at x + d.

    Parameters
    ----------
    images : (N, 3, 64, 64) uint8 tensor
    labels : (N,) int64 tensor
    recipe : Recipe

    Yields
    ------
    Progress
        After every step.

    References
    ----------
    Wong, Rice and Kolter (2020), *Fast is better than free: revisiting adversarial training*, arXiv:2001.03994.
    We use the L2 instead of the L-infinity ball, and a radius that grows during the first half of the training.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    net = DemoNet(seed=recipe.seed).train().to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    total = recipe.epochs * (len(images) // recipe.batch)
    groups = [
        {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in net.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=0.15)
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // recipe.batch * recipe.batch].split(recipe.batch):
            batch, targets = augment(images[rows].float() / 255, generator), labels[rows]
            radius = recipe.radius * min(1.0, 2 * step / total)
            if radius:
                batch = disturb(net, batch, targets, radius, generator=generator)
            loss = F.cross_entropy(net(normalize(batch)), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            step += 1
            yield Progress(step, total, loss.item(), net)


def normalize(batch: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], normalized for the network."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (batch - mean) / std


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 3, S, S) randomly mirrored, shifted by up to four pixels, and tinted."""
    n, _, height, width = batch.shape
    is_mirrored = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(is_mirrored.view(n, 1, 1, 1), batch.flip(3), batch)
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
    """Adversarial images, by projected gradient ascent on the loss.

    Parameters
    ----------
    net : Module
    batch : (N, 3, H, W) tensor in [0, 1]
    labels : (N,) int64 tensor
    radius : float
        Largest L2 norm of a perturbation.
    steps : int
        1, as in the training, with a step of `radius`; otherwise the usual attack with steps of 2.5 `radius` / `steps`.
    generator : torch.Generator
        For the random start.
    """
    size = radius if steps == 1 else 2.5 * radius / steps
    noise = torch.randn(batch.shape, generator=generator)
    noise = noise * (radius * torch.rand(len(batch), generator=generator) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    for _ in range(steps):
        perturbed = (batch + noise).clamp(0, 1).requires_grad_()
        loss = F.cross_entropy(net(normalize(perturbed)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        noise = noise + size * gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        noise = noise * (radius / noise.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1).view(-1, 1, 1, 1)
    return (batch + noise).clamp(0, 1).detach()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy of a network on uint8 images (N, 3, H, W), in [0, 1]."""
    predictions = [net(normalize(batch.float() / 255)).argmax(dim=1) for batch in images.split(500)]
    return (torch.cat(predictions) == labels).float().mean().item()


def render(scenes: Toyscape, *, workers: int = 1) -> tuple[Tensor, Tensor]:
    """Draw the images of all scenes, (N, 3, S, S) uint8, and their labels, (N,), in `workers` processes."""
    labels = torch.tensor([scenes.label(i) for i in range(len(scenes))])
    chunks = [range(start, min(start + 100, len(scenes))) for start in range(0, len(scenes), 100)]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            images = list(pool.map(partial(_render_chunk, scenes), chunks))
    else:
        images = [_render_chunk(scenes, chunk) for chunk in chunks]
    return torch.from_numpy(np.concatenate(images)), labels


def _render_chunk(scenes: Toyscape, chunk: range) -> NDArray[np.uint8]:
    images = np.stack([scenes[i].image for i in chunk])
    return (images * 255 + 0.5).astype(np.uint8).transpose(0, 3, 1, 2)


def save(net: nn.Module, path: Path, *, coarse: bool = False) -> None:
    """Save packed weights, see `pack`. An interruption leaves no incomplete file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(pack(net, coarse=coarse), part)
    part.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Command-line interface: train and save one network."""
    parser = argparse.ArgumentParser(prog="python -m convis_widgets.demo.train", description="Train a demo network.")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--robust", dest="robust", action="store_true", default=True, help="the robust network (default)")
    kind.add_argument("--ordinary", dest="robust", action="store_false", help="the ordinary network")
    parser.add_argument("--radius", type=float, default=1.5, help="L2 norm of the perturbations, robust only")
    parser.add_argument("--scenes", type=int, default=20_000, help="number of training images")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="random seed; checkpoint 0 assumes 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw images")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder for the weights")
    options = parser.parse_args(arguments)

    name = "robust" if options.robust else "ordinary"
    print(f"drawing {options.scenes} + 2000 images", flush=True)
    images, labels = render(Toyscape(options.scenes, split="train"), workers=options.workers)
    test_set = render(Toyscape(2000, seed=1), workers=options.workers)

    recipe = Recipe(radius=options.radius if options.robust else 0.0, epochs=options.epochs, seed=options.seed)
    start_time, smooth_loss = time.monotonic(), None
    for step, total, loss, net in fit(images, labels, recipe):
        smooth_loss = loss if smooth_loss is None else 0.98 * smooth_loss + 0.02 * loss
        if step in {round(fraction * total) for fraction in CHECKPOINTS}:
            save(net, options.out / f"{name}-{step:05d}.pt", coarse=True)
        if step % 10 == 0 or step == total:
            _print_progress(name, step, total, smooth_loss, time.monotonic() - start_time)
    path = options.out / f"{name}-{total:05d}.pt"
    save(net, path)
    exact = accuracy(net.eval(), *test_set)
    net.load_state_dict(unpack(torch.load(path, weights_only=True)))
    print(f"\n{path}: accuracy {exact:.2%} on 2000 new images, {accuracy(net, *test_set):.2%} after rounding")


def _print_progress(name: str, step: int, total: int, loss: float, seconds: float) -> None:
    done = 30 * step // total
    left = seconds * (total - step) / step
    bar = "#" * done + "." * (30 - done)
    sys.stdout.write(f"\r{name} [{bar}] {step}/{total}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left ")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
