"""Benchmarks in a real page: image rate, latency from kernel to screen, delay of Stop, and memory of the page."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import lab

from .compute import print_result

SETUP = """
import threading, time
import ipywidgets
import numpy as np
from convis_widgets.core import Frame, Run
from convis_widgets.widgets.controls.frame_view import FrameView

SIDE, BITS = 256, 24
noise = np.random.default_rng(0).normal(0, 12, (8, SIDE, SIDE, 3))
ramp = np.linspace(0, 200, SIDE)[None, :, None] + np.zeros((SIDE, 1, 3))
photos = np.clip(ramp + noise, 0, 255).astype(np.uint8)
sent = {}

def numbered(n):
    "A photo-like image with its number encoded as a row of black and white blocks."
    image = photos[n % 8].copy()
    for bit in range(BITS):
        image[:8, bit * 8 : bit * 8 + 8] = 255 * ((n >> bit) & 1)
    return image

def stream(view, seconds=None, count=None):
    "A Run that streams numbered images as fast as possible."
    def frames():
        n, start = 0, time.time()
        while (seconds is None or time.time() - start < seconds) and (count is None or n < count):
            n += 1
            yield Frame(n)
    run = Run(frames())
    def compose(n):
        sent[n] = time.time() * 1000
        return numbered(n)
    def follow(r):
        if r.state == 'running' and r.last is not None:
            view.stream(lambda: compose(r.last.step))
        elif not r.active:
            view.pump.flush()
    run.subscribe(follow)
    return run
"""

# Reads the number encoded in the displayed image, once per animation frame.
WATCH = """
() => {
    window.seen = []; window.watching = true;
    const canvas = document.createElement('canvas'); canvas.width = 192; canvas.height = 8;
    const g = canvas.getContext('2d', {willReadFrequently: true});
    let last = -1;
    const look = () => {
        const img = document.querySelector('img.widget-image');
        if (img && img.complete && img.naturalWidth) {
            g.drawImage(img, 0, 0, 192, 8, 0, 0, 192, 8);
            const d = g.getImageData(0, 0, 192, 8).data;
            let n = 0;
            for (let bit = 0; bit < 24; bit++) if (d[(4 * 192 + bit * 8 + 4) * 4] > 127) n += 1 << bit;
            if (n !== last) { last = n; window.seen.push([n, Date.now()]); }
        }
        if (window.watching) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}
"""

COUNT_BLOBS = """
window.made = 0; window.gone = 0;
const make = URL.createObjectURL, drop = URL.revokeObjectURL;
URL.createObjectURL = b => { window.made++; return make(b) };
URL.revokeObjectURL = u => { window.gone++; return drop(u) };
"""

STEP = """
import torch, torchvision
module = torchvision.models.resnet18(weights=None).eval()
batch = torch.rand(1, 3, 224, 224, requires_grad=True)
clicks = []
stop = ipywidgets.Button(description='Stop it')
def frames():
    n = 0
    while True:
        n += 1
        torch.autograd.grad(module(batch)[0, 0], batch)
        yield Frame(n)
run = Run(frames()).start()
stop.on_click(lambda _: (clicks.append(time.time() * 1000), run.stop()))
stop
"""


def main() -> None:
    """Run all benchmarks of this file."""
    with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as url, lab.browser() as context:
        page = lab.LabPage(context.new_page(), url, Path(folder))
        page.page.add_init_script(COUNT_BLOBS)
        page.open([SETUP, "view = FrameView('bench'); view.show(numbered(0)); view", STEP])
        page.run_cell(0)
        page.run_cell(1)
        page.page.wait_for_selector("img.widget-image")
        rates, latencies, lags, shown = [], [], [], []
        for _ in range(7):
            page.execute("sent.clear(); view.show(numbered(0))")
            page.page.evaluate(WATCH)
            page.execute("run = stream(view); run.start(); time.sleep(3)")
            page.execute("run.stop(); run.join(); stopped = time.time() * 1000")
            page.page.wait_for_timeout(1000)
            page.page.evaluate("() => { window.watching = false }")
            seen = page.page.evaluate("window.seen")
            sent = page.evaluate("sent")
            stopped = page.evaluate("stopped")
            span = (seen[-1][1] - seen[1][1]) / 1000
            rates.append((len(seen) - 2) / span)
            latencies += [at - sent[n] for n, at in seen if n in sent]
            lags.append(max(0.0, seen[-1][1] - stopped))
            shown.append(seen[-1][0] == max(sent))
        print_result("images of 256 px displayed per second", f"{statistics.median(rates):.1f}", ">= 15, ideally 25")
        ordered = sorted(latencies)
        print_result("latency from kernel to screen, median", f"{statistics.median(latencies):.0f} ms", "< 100 ms")
        print_result("latency from kernel to screen, 95th percentile", f"{ordered[int(len(ordered) * 0.95)]:.0f} ms")
        delays = f"{statistics.median(lags):.0f} ({max(lags):.0f}) ms"
        print_result("last new image after Stop, median (maximum)", delays, "< 200 ms")
        print_result("runs whose last image is displayed", f"{sum(shown)} of {len(shown)}", "all")

        before = page.page.evaluate("window.made - window.gone")
        page.execute(
            "run = stream(view)\n"
            "count = lambda change: count.__dict__.__setitem__('n', count.__dict__.get('n', 0) + 1)\n"
            "view.observe(count, 'value')\n"
            "run.start()"
        )
        page.wait_until("count.__dict__.get('n', 0) >= 2000", patience=300)
        page.execute("run.stop(); run.join()")
        page.page.wait_for_timeout(500)
        made, live = page.page.evaluate("[window.made, window.made - window.gone]")
        print_result(f"blob URLs alive after {made} images (before: {before})", f"{live}", "constant")

        page.run_cell(2)
        page.page.wait_for_timeout(2000)
        waits = []
        for _ in range(7):
            page.execute("run = Run(frames()).start()")
            page.page.wait_for_timeout(1000)
            clicked = page.page.evaluate(
                "() => { const b = [...document.querySelectorAll('button')].find(b => b.innerText.includes('Stop it'));"
                " const t = Date.now(); b.click(); return t }"
            )
            page.page.wait_for_timeout(1000)
            waits.append(page.evaluate("clicks[-1]") - clicked)
        name = "delay of a click on Stop while ResNet-18 runs"
        print_result(name, f"{statistics.median(waits):.0f} ms", "< 100 ms")
        page.close()
