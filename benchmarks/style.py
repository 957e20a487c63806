"""Style, texture, inversion and dreams on real pictures: how far they come, how soon, and beside a textbook's loop."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import get_activations
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.default_layers import default_style_layers
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
from convis_widgets.core.synthesis.style_loss import style_loss, style_statistics
from convis_widgets.techniques.synthesis.deep_dream import deep_dream
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion
from convis_widgets.techniques.synthesis.style_transfer import style_transfer
from convis_widgets.techniques.synthesis.texture import texture

from .compute import line
from .sets import squeezenet
from .synthesis import in_turn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PAIRS = (
    ("content_tubingen", "starry_night"),
    ("content_golden_gate", "the_scream"),
    ("cat_chelsea", "great_wave"),
    ("content_amber", "woman_with_hat"),
)
WEIGHTS = {"content": 1.0, "style": 5.0, "tv": 1.0}  # those of `style_transfer`


class Textbook:
    """Style transfer as tutorials have it: the network's parts one after the other, losses at some, torch's L-BFGS.

    The losses are those of `style_transfer`, so that they can be compared.
    """

    def __init__(self, net: Network, content: torch.Tensor, painting: torch.Tensor, start: torch.Tensor) -> None:
        chosen = default_style_layers(net)
        self.style = [int(name.split(".")[1]) for name in chosen.style]
        self.content = int(chosen.content.split(".")[1])
        self.weights, self.net = chosen.weights, net
        self.parts = net.with_average_pooling().module.features
        with torch.no_grad():
            self.wanted = [self.gram(maps) for maps in self.maps(painting, self.style)]
            (self.there,) = self.maps(content, [self.content])
        self.x = start.clone().requires_grad_()

    @staticmethod
    def gram(maps: torch.Tensor) -> torch.Tensor:
        rows = maps.flatten(2)[0]
        return rows @ rows.T / rows.shape[1]

    def maps(self, x: torch.Tensor, at: list[int]) -> list[torch.Tensor]:
        y, found = self.net.transform.normalize(x), []
        for i, part in enumerate(self.parts[: max(at) + 1]):
            y = part(y)
            if i in at:
                found.append(y.clone())  # the next part may work in place
        return found

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        *painted, seen = self.both(x)
        total = WEIGHTS["content"] * (seen - self.there).square().sum() / self.there.square().sum()
        for maps, goal, weight in zip(painted, self.wanted, self.weights, strict=True):
            total = total + WEIGHTS["style"] * weight * (self.gram(maps) - goal).square().sum() / goal.square().sum()
        rough = (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]).square() + (x[:, :, :-1, 1:] - x[:, :, :-1, :-1]).square()
        return total + WEIGHTS["tv"] * rough.sum() / (x.shape[2] * x.shape[3])

    def both(self, x: torch.Tensor) -> list[torch.Tensor]:
        order = sorted({*self.style, self.content})
        found = dict(zip(order, self.maps(x, order), strict=True))
        return [*(found[i] for i in self.style), found[self.content]]

    def paint(self, seconds: float) -> torch.Tensor:
        optimizer, until = torch.optim.LBFGS([self.x]), time.perf_counter() + seconds

        def closure() -> torch.Tensor:
            if time.perf_counter() > until:
                raise TimeoutError
            with torch.no_grad():
                self.x.clamp_(0, 1)
            optimizer.zero_grad()
            total = self.loss(self.x)
            total.backward()
            return total

        try:
            while True:
                optimizer.step(closure)
        except TimeoutError:
            return self.x.detach().clamp(0, 1)


def transfers(net: Network, data: Path) -> None:
    """Four pairs from a random start, and the textbook's loop for as long."""
    for name, painting in PAIRS:
        photo, other = data / "photos" / f"{name}.jpg", data / "styles" / f"{painting}.jpg"
        content, sample = net.uncropped_batch(photo, 224), net.uncropped_batch(other, 224)
        start = noise(net, 0.25, 0, size=(content.shape[2], content.shape[3]))
        for kind in ("fourier", "pixels"):
            began = time.perf_counter()
            frames = list(style_transfer(net, photo, other, size=224, init="random", parameterization=kind))
            seconds = time.perf_counter() - began
            first, last = frames[0].scalars, frames[-1].scalars
            fell = f"{first['content'] / last['content']:.1f}, {first['style'] / last['style']:.0f}"
            line(f"{name}, {painting}, {kind}: content, style fall (times)", fell, ">= 5, 100")
            book = Textbook(net, content, sample, start)
            with torch.no_grad():
                ours = float(book.loss(net.uncropped_batch(frames[-1].image)))
            theirs = float(book.loss(book.paint(seconds)).detach())
            line(f"... loss after {seconds:.0f} s, ours and a textbook's L-BFGS", f"{ours:.3f} | {theirs:.3f}", "lower")


def style_steps(net: Network, data: Path) -> None:
    """A step of style transfer and one of the textbook's loop: the same losses, Adam."""
    content = net.uncropped_batch(data / "photos" / "content_tubingen.jpg", 224)
    sample = net.uncropped_batch(data / "styles" / "starry_night.jpg", 224)
    chosen, smooth = default_style_layers(net), net.with_average_pooling()
    objective = -WEIGHTS["content"] * objectives.features(
        chosen.content, *get_activations(smooth, content, [chosen.content])
    )
    objective = objective - WEIGHTS["style"] * style_loss(
        chosen.style, style_statistics(smooth, sample, chosen.style), chosen.weights
    )
    objective = objective - WEIGHTS["tv"] / (content.shape[2] * content.shape[3]) * objectives.total_variation()
    opt = ImageOptimizer(smooth, content)
    book = Textbook(net, content, sample, content)
    adam = torch.optim.Adam([book.x], lr=0.01)

    def textbook() -> None:
        adam.zero_grad()
        book.loss(book.x).backward()
        adam.step()
        with torch.no_grad():
            book.x.clamp_(0, 1)

    ours, theirs = in_turn([lambda: opt.step(objective, lr=0.01), textbook])
    line(
        "a step of style transfer, ours and a textbook's",
        f"{1e3 * ours:.1f} | {1e3 * theirs:.1f} ms",
        f"<= 1 ({ours / theirs:.2f})",
    )


def textures(net: Network, data: Path) -> None:
    """How many times nearer the Gram matrices of the texture are than those of the noise."""
    chosen, smooth = default_style_layers(net), net.with_average_pooling()
    for path in sorted((data / "textures").glob("*.jpg")):
        objective = style_loss(
            chosen.style, style_statistics(smooth, net.uncropped_batch(path), chosen.style), chosen.weights
        )
        falls = []
        for kind in ("fourier", "pixels"):
            painted = net.uncropped_batch(Run(texture(net, path, parameterization=kind)).run().image)
            with torch.no_grad():
                before, after = (float(objectives.evaluate(smooth, objective, x)[0]) for x in (noise(net, 0.25, 0), painted))
            falls.append(f"{before / after:.0f}")
        line(f"texture {path.stem}: Gram distance falls (times), Fourier, pixels", ", ".join(falls), ">= 1000")


def inversions(net: Network, data: Path) -> None:
    """The lecture's claim as a table."""
    layers = ["features.1", "features.4", "features.7", "features.9", "features.12"]
    errors = Run(feature_inversion(net, data / "photos" / "cat_chelsea.jpg", layers=layers)).run().arrays["errors"]
    for name, (of_features, of_pixels) in zip(layers, errors, strict=True):
        line(
            f"inversion of {name}: error of features, of pixels", f"{of_features:.3f}, {of_pixels:.3f}", "< 0.1 early, grows"
        )


def dreams(net: Network, data: Path) -> None:
    """Every kind of objective rises."""
    path = data / "photos" / "sea_turtle.jpg"
    cases: dict[str, dict[str, Any]] = {
        "a layer": {"of": "features.11"},
        "a channel": {"of": ("features.9", 3)},
        "a class": {"target": "golden retriever"},
        "guided": {"of": "features.7", "guide": data / "photos" / "kitten.jpg"},
    }
    for name, words in cases.items():
        began = time.perf_counter()
        values = [frame.scalars["objective"] for frame in deep_dream(net, path, octaves=1, iterations=20, **words)]
        seconds = time.perf_counter() - began
        line(f"dream of {name}: objective before and after, {seconds:.1f} s", f"{values[0]:.3g}, {values[-1]:.3g}", "rises")


def watched() -> None:
    """CPU time of the kernel for a step with a panel in a page, and with nobody looking."""
    import lab

    code = (
        "import statistics, threading, time\n"
        "from convis_widgets import FeatureVisualizer, Network, Run, gradient_ascent\n"
        "net = Network.ensure('squeezenet1_1')\n"
        "panel = FeatureVisualizer(net, target=3, iterations=60); panel"
    )
    timing = (
        "def spent(work):\n"
        "    began = time.process_time(); work(); return (time.process_time() - began) / 60\n"
        "def shown():\n"
        "    panel.bar.on_start(); panel.run.join()\n"
        "def bare():\n"
        "    Run(gradient_ascent(net, target=3, iterations=60)).start().join()\n"
        "ratio = []\n"
        "def all_of_it():\n"
        "    panel.run.join()\n"
        "    both = [(spent(shown), spent(bare)) for _ in range(7)]\n"
        "    ratio.extend(statistics.median(one) for one in zip(*both))\n"
        "threading.Thread(target=all_of_it).start()"
    )
    with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as url, lab.browser() as context:
        page = lab.LabPage(context.new_page(), url, Path(folder))
        page.open([code]).run_all()
        page.execute(timing)
        page.wait_until("ratio", patience=600)
        seen, unseen = page.evaluate("ratio")
        page.close()
    line(
        "CPU time of a step, watched and not", f"{1e3 * seen:.1f} | {1e3 * unseen:.1f} ms", f"<= 1.05 ({seen / unseen:.3f})"
    )


def main() -> None:
    """Print them all."""
    data = os.environ.get("CONVIS_TEST_DATA")
    if not data:
        print("skipped, CONVIS_TEST_DATA is not set")
        return
    net = squeezenet()
    style_steps(net, Path(data))
    watched()
    transfers(net, Path(data))
    textures(net, Path(data))
    inversions(net, Path(data))
    dreams(net, Path(data))
