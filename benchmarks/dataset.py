"""Whole sets of pictures: scanning, its memory, galleries, embeddings and the map in the browser, a cluster."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.embedding import embedding
from convis_widgets.techniques.dataset.neighbors import neighbors
from convis_widgets.techniques.dataset.scan import scan
from convis_widgets.widgets.drawing.patch_rows import render_rows

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import lab
from conftest import calibrate

from .compute import line

POINTS, DIMENSIONS = 5000, 512
MEMORY = """
import resource, sys, numpy as np
from convis_widgets.core import Network, Run, Scan

class Pictures:
    def __len__(self): return int(sys.argv[1])
    def __getitem__(self, i):
        if not 0 <= i < len(self): raise IndexError(i)
        return np.random.default_rng(i).random((64, 64, 3)).astype(np.float32)

Run(Scan(Network.demo(), Pictures(), cache=sys.argv[2]).frames()).run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
MAP = """
import numpy as np, torch
from torch import nn
from sklearn.datasets import load_digits
from convis_widgets import EmbeddingMap, ImageSet, Network
torch.manual_seed(0)
net = Network(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
              size=28, channels=1)
digits = load_digits()
images = np.kron(np.resize(digits.images / 16, (5000, 8, 8)), np.ones((1, 4, 4)))[:, 2:30, 2:30].astype(np.float32)
viewer = EmbeddingMap(net, ImageSet(images, labels=np.resize(digits.target, 5000).tolist()), method="pca", space="pixels")
viewer
"""
COUNT = """alt => {
    const map = [...document.querySelectorAll('img')].find(image => image.title === alt || image.alt === alt);
    window.painted = 0;
    map.addEventListener('load', () => window.painted++);
}"""


def squeezenet() -> Network:
    """SqueezeNet 1.1 with real weights where they are at hand, else with random ones."""
    import torchvision

    module = torchvision.models.squeezenet1_1()
    data = os.environ.get("CONVIS_TEST_DATA")
    if data:
        module.load_state_dict(torch.load(Path(data) / "weights" / "squeezenet1_1.pth", weights_only=True))
    else:
        calibrate(module, 224)
    return Network(module, size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), name="squeezenet1_1")


def photographs(folder: Path) -> Path:
    """A folder of photographs: real ones where they are at hand, else 400 of noise."""
    data = os.environ.get("CONVIS_TEST_DATA")
    if data:
        return Path(data) / "imagenet_sample"
    from PIL import Image

    rng = np.random.default_rng(0)
    made = folder / "noise"
    made.mkdir()
    for i in range(400):
        small = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        small.resize((224, 224)).save(made / f"{i:03}.jpg", quality=87)
    return made


def throughput(net: Network, folder: Path, cache: Path) -> None:
    """A scan of all 26 convolutions against the bare forward pass, batches of the same loader in turn."""
    images = ImageSet(folder)
    store = Scan(net, images, cache=cache / "throughput")
    batch = store._collector.batch_size

    def bare(start: int) -> None:
        pictures = [images.load(i, net.transform)[0] for i in range(start, start + batch)]
        with torch.no_grad():
            net(net.stack_images(pictures))

    times: dict[str, list[float]] = {"bare": [], "scan": []}
    while store.num_seen + batch <= min(len(images), 16 * batch):
        start = store.num_seen
        for name, work in (("bare", lambda start=start: bare(start)), ("scan", store.step)):
            began = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - began)
    shares = [a / b for a, b in zip(times["bare"], times["scan"], strict=True)]
    rate = batch / statistics.median(times["scan"])
    line(f"scan of {len(store.layers)} layers of SqueezeNet, pictures a second", f"{rate:.0f}")
    line("... of the speed of the bare forward pass", f"{statistics.median(shares):.2f}", ">= 0.9")


def memory(cache: Path) -> None:
    """The most that a process holds that scans 1,000 and 10,000 pictures of the demo network's size."""
    found = []
    for count in (1000, 10_000):
        command = [sys.executable, "-c", MEMORY, str(count), str(cache / f"memory{count}")]
        found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    line("resident memory, 1,000 | 10,000 pictures", f"{found[0]:.0f} | {found[1]:.0f} MB", "flat")


def gallery(cache: Path) -> None:
    """Rows of patches of 512 channels, 9 each, from pictures that are in memory."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 512, 11, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    net = Network(nn.Sequential(*layers), size=112)
    pictures = np.random.default_rng(0).random((200, 112, 112, 3)).astype(np.float32)
    store = Scan(net, pictures, cache=cache / "gallery")
    Run(store.frames()).run()
    times = []
    for _ in range(8):
        began = time.perf_counter()
        render_rows(store, "0", range(512), k=9, side=32, columns=4)
        times.append(time.perf_counter() - began)
    line("gallery of 512 channels x 9 patches, first", f"{times[0]:.2f} s")
    line("... and again, its pictures in memory", f"{statistics.median(times[1:]):.2f} s", "< 0.5 s")


def maps(cache: Path) -> None:
    """t-SNE of 5,000 vectors of 512 numbers against scikit-learn's, on the same principal components and on the vectors."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    images = np.resize(digits.images / 16, (POINTS, 8, 8)) + 0.05 * rng.standard_normal((POINTS, 8, 8))
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, DIMENSIONS, 8), nn.ReLU(), nn.Flatten(), nn.Linear(DIMENSIONS, 10)), size=8)
    store = Scan(net, np.clip(images, 0, 1).astype(np.float32), cache=cache / "maps")
    Run(store.frames()).run()
    next(embedding(net, store, method="pca"))  # imports
    began, moments, points = time.perf_counter(), [], None
    for frame in embedding(net, store):
        moments.append(time.perf_counter() - began)
        points = frame.arrays["points"]
    vectors = store.features()
    reduced = PCA(50, random_state=0).fit_transform(vectors)
    began = time.perf_counter()
    theirs = TSNE(perplexity=30, init="pca", random_state=0, n_jobs=-1).fit_transform(reduced)
    seconds = time.perf_counter() - began
    line("PCA of 5,000 x 512 on screen after", f"{moments[0]:.2f} s", "< 1 s")
    line("t-SNE moves after", f"{moments[1]:.1f} s", "< 5 s")
    line("t-SNE finished, with its grid | scikit-learn's", f"{moments[-1]:.1f} | {seconds:.1f} s", "<= 1.1 times")
    mine, other = (trustworthiness(vectors, map_, n_neighbors=12) for map_ in (points, theirs))
    line("trustworthiness | scikit-learn's", f"{mine:.4f} | {other:.4f}", "no worse")


def walk() -> None:
    """Frames painted a second while a map of 5,000 thumbnails is dragged, and while the wheel turns."""
    with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as url, lab.browser() as context:
        page = lab.LabPage(context.new_page(), url, Path(folder))
        page.open([MAP]).run_all()
        page.wait_until("viewer.run.state == 'done'", patience=120)
        alt = page.evaluate("viewer.map_view.alt")
        image = page.page.get_by_title(alt)
        image.wait_for()
        page.page.evaluate(COUNT, alt)
        box = image.bounding_box()
        x, y = box["x"] + 300, box["y"] + 300
        rates: dict[str, list[float]] = {"drag": [], "wheel": []}
        for turn in range(8):
            page.page.mouse.move(x, y)
            before, began, n = page.page.evaluate("window.painted"), time.perf_counter(), 0
            if turn % 2 == 0:
                page.page.mouse.down()
            while time.perf_counter() - began < 2.5:
                n += 1
                if turn % 2 == 0:
                    page.page.mouse.move(x + 200 * np.sin(n / 15), y + 150 * np.cos(n / 11))
                else:
                    page.page.mouse.wheel(0, -20 if n // 12 % 2 else 20)
                    page.page.wait_for_timeout(16)
            seconds = time.perf_counter() - began
            page.page.mouse.up()
            rates["wheel" if turn % 2 else "drag"].append((page.page.evaluate("window.painted") - before) / seconds)
        page.close()
    for name, found in rates.items():
        line(f"map of 5,000 thumbnails, frames a second, {name}", f"{statistics.median(found):.1f}", ">= 15")


def cluster(net: Network, folder: Path, cache: Path) -> None:
    """Two Dask workers against one process, on the same pictures, in turn."""
    import dask
    from distributed import Client, LocalCluster

    # not MALLOC_TRIM_THRESHOLD_, with which memory is given back at once, and that of each layer's maps asked for anew
    dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})
    images = ImageSet([folder / name for name in ImageSet(folder).names[:330]])
    times: dict[str, list[float]] = {"one process": [], "two workers": []}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as made,
        Client(made) as client,
    ):
        Run(scan(net, Scan(net, images, cache=cache / "warm"), client=client)).run()
        for turn in range(3):
            for name, words in (("one process", {}), ("two workers", {"client": client})):
                store = Scan(net, images, cache=cache / f"{name} {turn}")
                began = time.perf_counter()
                Run(scan(net, store, **words)).run()
                times[name].append(time.perf_counter() - began)
    one, two = (statistics.median(times[name]) for name in times)
    line("scan of 330 pictures, one process | two Dask workers", f"{one:.1f} | {two:.1f} s", "no slower")


def lecture(net: Network, cache: Path) -> None:
    """What the lecture says of neighbors and maps, on real data."""
    data = os.environ.get("CONVIS_TEST_DATA")
    if not data:
        return
    images = ImageSet(Path(data) / "cifar10_subset.npz", array="x_test")
    store = Scan(net, images, layers=["features.12"], cache=cache / "cifar")
    found: Any = Run(neighbors(net, store, range(len(images)))).run().scalars
    told = f"{found['pixels agreement']:.1%} | {found['features agreement']:.1%}"
    line("CIFAR-10, 5 nearest with the query's label, pixels | features", told, "far more")
    stored = np.load(Path(data) / "mnist_subset.npz")
    small = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    store = Scan(small, ImageSet(stored["x"][:5000]), cache=cache / "mnist")
    points = Run(embedding(small, store, space="pixels")).run().arrays["points"]
    right = cross_val_score(KNeighborsClassifier(5), points, stored["y"][:5000], cv=5).mean()
    line("MNIST raw pixels, t-SNE: right by 5 nearest in the map", f"{right:.1%}", "> 90 %")


def main() -> None:
    """Print them all."""
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        net, folder = squeezenet(), photographs(cache)
        throughput(net, folder, cache)
        memory(cache)
        gallery(cache)
        maps(cache)
        walk()
        cluster(net, folder, cache)
        lecture(net, cache)
