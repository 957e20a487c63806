"""Benchmarks on datasets: scans and their memory, galleries, embeddings, the map in the browser, and a Dask cluster."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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

from .compute import print_result

POINTS, DIMENSIONS = 5000, 512
MEMORY = """
import resource, sys, numpy as np
from convis_widgets.core import Network, Run, Scan

class Images:
    def __len__(self): return int(sys.argv[1])
    def __getitem__(self, i):
        if not 0 <= i < len(self): raise IndexError(i)
        return np.random.default_rng(i).random((64, 64, 3)).astype(np.float32)

Run(Scan(Network.demo(), Images(), cache=sys.argv[2]).frames()).run()
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


def squeezenet() -> Network:
    """SqueezeNet 1.1 with the weights in CONVIS_TEST_DATA, or random ones if it is not set."""
    import torchvision

    module = torchvision.models.squeezenet1_1()
    data = os.environ.get("CONVIS_TEST_DATA")
    if data:
        module.load_state_dict(torch.load(Path(data) / "weights" / "squeezenet1_1.pth", weights_only=True))
    else:
        calibrate(module, 224)
    return Network(module, size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), name="squeezenet1_1")


def photo_folder(folder: Path) -> Path:
    """The folder of photographs in CONVIS_TEST_DATA, or 400 images of noise if it is not set."""
    data = os.environ.get("CONVIS_TEST_DATA")
    if data:
        return Path(data) / "imagenet_sample"
    from PIL import Image

    rng = np.random.default_rng(0)
    noise_folder = folder / "noise"
    noise_folder.mkdir()
    for i in range(400):
        small = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        small.resize((224, 224)).save(noise_folder / f"{i:03}.jpg", quality=87)
    return noise_folder


def throughput(net: Network, folder: Path, cache: Path) -> None:
    """Speed of a scan of all 26 convolutions relative to forward passes alone; they process the same batches in turn."""
    images = ImageSet(folder)
    store = Scan(net, images, cache=cache / "throughput")
    batch = store._collector.batch_size

    def forward(start: int) -> None:
        arrays = [images.load(i, net.transform)[0] for i in range(start, start + batch)]
        with torch.no_grad():
            net(net.stack_images(arrays))

    times: dict[str, list[float]] = {"forward": [], "scan": []}
    while store.num_seen + batch <= min(len(images), 16 * batch):
        functions: dict[str, Callable[[], object]] = {"forward": partial(forward, store.num_seen), "scan": store.step}
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["forward"], times["scan"], strict=True)]
    rate = batch / statistics.median(times["scan"])
    print_result(f"scan of {len(store.layers)} layers of SqueezeNet, images per second", f"{rate:.0f}")
    print_result("speed relative to forward passes alone", f"{statistics.median(ratios):.2f}", ">= 0.9")


def memory(cache: Path) -> None:
    """Peak memory of processes that scan 1,000 and 10,000 images of the demo network's size."""
    peaks = []
    for count in (1000, 10_000):
        command = [sys.executable, "-c", MEMORY, str(count), str(cache / f"memory{count}")]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print_result("peak memory, 1,000 | 10,000 images", f"{peaks[0]:.0f} | {peaks[1]:.0f} MB", "constant")


def gallery(cache: Path) -> None:
    """Time to draw the nine maximally activating patches of each of 512 channels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 512, 11, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    net = Network(nn.Sequential(*layers), size=112)
    images = np.random.default_rng(0).random((200, 112, 112, 3)).astype(np.float32)
    store = Scan(net, images, cache=cache / "gallery")
    Run(store.frames()).run()
    times = []
    for _ in range(8):
        start = time.perf_counter()
        render_rows(store, "0", range(512), k=9, side=32, columns=4)
        times.append(time.perf_counter() - start)
    print_result("gallery of 512 channels x 9 patches, first time", f"{times[0]:.2f} s")
    print_result("the same again, with images in memory", f"{statistics.median(times[1:]):.2f} s", "< 0.5 s")


def tsne(cache: Path) -> None:
    """Embedding of 5,000 vectors of 512 numbers, compared with scikit-learn's t-SNE on 50 principal components."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    images = np.resize(digits.images / 16, (POINTS, 8, 8)) + 0.05 * rng.standard_normal((POINTS, 8, 8))
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, DIMENSIONS, 8), nn.ReLU(), nn.Flatten(), nn.Linear(DIMENSIONS, 10)), size=8)
    store = Scan(net, np.clip(images, 0, 1).astype(np.float32), cache=cache / "tsne")
    Run(store.frames()).run()
    next(embedding(net, store, method="pca"))  # imports modules
    start, frame_times, points = time.perf_counter(), [], None
    for frame in embedding(net, store):
        frame_times.append(time.perf_counter() - start)
        points = frame.arrays["points"]
    vectors = store.features()
    reduced = PCA(50, random_state=0).fit_transform(vectors)
    start = time.perf_counter()
    reference = TSNE(perplexity=30, init="pca", random_state=0, n_jobs=-1).fit_transform(reduced)
    seconds = time.perf_counter() - start
    print_result("embedding of 5,000 x 512: principal components after", f"{frame_times[0]:.2f} s", "< 1 s")
    print_result("first update of t-SNE after", f"{frame_times[1]:.1f} s", "< 5 s")
    print_result("t-SNE with grid | scikit-learn's t-SNE", f"{frame_times[-1]:.1f} | {seconds:.1f} s", "ratio <= 1.1")
    ours, theirs = (trustworthiness(vectors, embedded, n_neighbors=12) for embedded in (points, reference))
    print_result("trustworthiness | scikit-learn's", f"{ours:.4f} | {theirs:.4f}", "not lower")


def map_rate() -> None:
    """Images per second while a map of 5,000 thumbnails is dragged, and while it is zoomed by the wheel."""
    with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as url, lab.browser() as context:
        page = lab.LabPage(context.new_page(), url, Path(folder))
        page.open([MAP]).run_all()
        page.wait_until("viewer.run.state == 'done'", patience=120)
        image = page.page.get_by_role("img", name=page.evaluate("viewer.map_view.alt"))
        displayed = "viewer.map_view.pump._acknowledged"
        image.wait_for()
        box = image.bounding_box()
        x, y = box["x"] + 300, box["y"] + 300
        rates: dict[str, list[float]] = {"drag": [], "wheel": []}
        for turn in range(8):
            page.page.mouse.move(x, y)
            before, start, n = page.evaluate(displayed), time.perf_counter(), 0
            if turn % 2 == 0:
                page.page.mouse.down()
            while time.perf_counter() - start < 2.5:
                n += 1
                if turn % 2 == 0:
                    page.page.mouse.move(x + 200 * np.sin(n / 15), y + 150 * np.cos(n / 11))
                else:
                    page.page.mouse.wheel(0, -20 if n // 12 % 2 else 20)
                    page.page.wait_for_timeout(16)
            seconds = time.perf_counter() - start
            page.page.mouse.up()
            rates["wheel" if turn % 2 else "drag"].append((page.evaluate(displayed) - before) / seconds)
        page.close()
    for name, values in rates.items():
        print_result(f"map of 5,000 thumbnails, images per second, {name}", f"{statistics.median(values):.1f}", ">= 15")


def cluster(net: Network, folder: Path, cache: Path) -> None:
    """Scans of the same images by two Dask workers and by one process, in turn."""
    import dask
    from distributed import Client, LocalCluster

    # without MALLOC_TRIM_THRESHOLD_: it returns memory to the system at once, so that each layer has to allocate it again
    dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})
    images = ImageSet([folder / name for name in ImageSet(folder).names[:330]])
    times: dict[str, list[float]] = {"one process": [], "two workers": []}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local_cluster,
        Client(local_cluster) as client,
    ):
        Run(scan(net, Scan(net, images, cache=cache / "warm"), client=client)).run()
        for turn in range(3):
            for name, kwargs in (("one process", {}), ("two workers", {"client": client})):
                store = Scan(net, images, cache=cache / f"{name} {turn}")
                start = time.perf_counter()
                Run(scan(net, store, **kwargs)).run()
                times[name].append(time.perf_counter() - start)
    one, two = (statistics.median(times[name]) for name in times)
    print_result("scan of 330 images, one process | two Dask workers", f"{one:.1f} | {two:.1f} s", "not slower")


def lecture_claims(net: Network, cache: Path) -> None:
    """Claims of the CS231n lecture about nearest neighbors and t-SNE, on CIFAR-10 and MNIST."""
    data = os.environ.get("CONVIS_TEST_DATA")
    if not data:
        return
    images = ImageSet(Path(data) / "cifar10_subset.npz", array="x_test")
    store = Scan(net, images, layers=["features.12"], cache=cache / "cifar")
    scalars = Run(neighbors(net, store, range(len(images)))).run().scalars
    agreement = f"{scalars['pixels agreement']:.1%} | {scalars['features agreement']:.1%}"
    print_result("CIFAR-10, 5 neighbors with the same label, pixels | features", agreement, "much higher")
    stored = np.load(Path(data) / "mnist_subset.npz")
    small = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    store = Scan(small, ImageSet(stored["x"][:5000]), cache=cache / "mnist")
    points = Run(embedding(small, store, space="pixels")).run().arrays["points"]
    accuracy = cross_val_score(KNeighborsClassifier(5), points, stored["y"][:5000], cv=5).mean()
    print_result("MNIST pixels, t-SNE: accuracy of 5 nearest neighbors in the map", f"{accuracy:.1%}", "> 90 %")


def main() -> None:
    """Run all benchmarks of this file."""
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        net, folder = squeezenet(), photo_folder(cache)
        throughput(net, folder, cache)
        memory(cache)
        gallery(cache)
        tsne(cache)
        map_rate()
        cluster(net, folder, cache)
        lecture_claims(net, cache)
