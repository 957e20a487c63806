"""A real JupyterLab in a headless Chromium, for tests, benchmarks and screenshots."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
]


def chromium() -> str | None:
    """The path of a Chromium or Chrome on this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def quiet_environment() -> dict[str, str]:
    """Threads that wait must not spin beside a browser and a server."""
    return {**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


@contextlib.contextmanager
def server(root: Path, *, theme: str = "JupyterLab Light") -> Iterator[str]:
    """A JupyterLab server on a free port, with settings of its own; yields its address."""
    home = root / ".jupyter-test"
    settings = home / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))
    environment = quiet_environment() | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "config" / "lab" / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--ServerApp.root_dir={root}",
        "--IdentityProvider.token=",
        "--ServerApp.port=0",
        "--ServerApp.open_browser=False",
    ]
    log = (root / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        yield _address(process, home / "runtime", root / "server.log")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        log.close()


def _address(process: subprocess.Popen[bytes], runtime: Path, log: Path, patience: float = 90) -> str:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        for file in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(OSError, ValueError):
                url = json.loads(file.read_text())["url"]
                urllib.request.urlopen(url + "api", timeout=5).read()
                return url
        if process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended at once:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)  # a server that starts has no event to wait for
    raise TimeoutError(f"JupyterLab did not answer within {patience} s:\n{log.read_text()[-2000:]}")


class LabPage:
    """One notebook, open in a page of JupyterLab."""

    def __init__(self, page: Any, url: str, root: Path) -> None:
        self.page, self.url, self.root = page, url, root
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)

    def open(self, cells: list[str] | Path, name: str = "test.ipynb") -> LabPage:
        """Open a notebook of these cells, or a copy of a notebook file."""
        if isinstance(cells, Path):
            notebook = nbformat.read(cells, 4)
            name = cells.name
        else:
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.root / name)
        self.page.goto(f"{self.url}lab/tree/{name}?reset")
        self.wait_for_kernel()
        return self

    def close(self) -> None:
        """End the kernel and leave the page."""
        self.page.evaluate(
            "async () => { const w = window.jupyterapp?.shell?.currentWidget; await w?.sessionContext?.shutdown() }"
        )
        self.page.close(run_before_unload=False)

    def wait_for_kernel(self) -> None:
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=90_000,
        )

    def command(self, name: str, **arguments: Any) -> None:
        """Execute one of JupyterLab's commands and wait for it."""
        self.page.evaluate("([n, a]) => window.jupyterapp.commands.execute(n, a)", [name, arguments])

    def run_all(self) -> LabPage:
        """Run every cell; raise what a cell raised."""
        self.command("notebook:run-all-cells")
        self._raise_errors()
        return self

    def run_cell(self, index: int) -> None:
        """Run one cell."""
        self.page.evaluate(
            "async i => { const p = window.jupyterapp.shell.currentWidget.content; p.activeCellIndex = i; p.deselectAll();"
            " await window.jupyterapp.commands.execute('notebook:run-cell') }",
            index,
        )
        self._raise_errors()

    def _raise_errors(self) -> None:
        errors = self.page.evaluate(
            """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
                .flatMap(c => c.type === 'code' ? [...c.sharedModel.outputs] : [])
                .filter(o => o.output_type === 'error').map(o => o.traceback.join('\\n'))"""
        )
        assert not errors, errors[0]

    def evaluate(self, expression: str, timeout: float = 60) -> Any:
        """The value of a Python expression in the kernel, as a literal."""
        text = self.page.evaluate(
            """async ([code, ms]) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({code: '', silent: true, user_expressions: {x: code}});
                const late = new Promise((_, no) => setTimeout(() => no(new Error('the kernel is silent')), ms));
                const reply = await Promise.race([future.done, late]);
                const x = reply.content.user_expressions.x;
                if (x.status !== 'ok') throw new Error(x.ename + ': ' + x.evalue);
                return x.data['text/plain'];
            }""",
            [f"repr({expression})", timeout * 1000],
        )
        return ast.literal_eval(ast.literal_eval(text))

    def execute(self, code: str) -> None:
        """Run Python code in the kernel, outside of any cell, and wait for it."""
        self.evaluate(f"exec({code!r}, get_ipython().user_ns)")

    def wait_until(self, expression: str, patience: float = 30) -> None:
        """Wait until a Python expression is true in the kernel."""
        deadline = time.monotonic() + patience
        while not self.evaluate(f"bool({expression})"):
            assert time.monotonic() < deadline, f"{expression} did not come true within {patience} s"
            self.page.wait_for_timeout(50)

    def pixels(self, selector: str, index: int = 0) -> dict[str, Any]:
        """Size and colors of an <img> or <canvas>: {"width", "height", "mean": [r, g, b], "colors": count}."""
        return self.page.evaluate(
            """async ([selector, index]) => {
                const img = document.querySelectorAll(selector)[index];
                await img.decode?.();
                const c = document.createElement('canvas');
                c.width = img.naturalWidth ?? img.width; c.height = img.naturalHeight ?? img.height;
                const g = c.getContext('2d'); g.drawImage(img, 0, 0);
                const d = g.getImageData(0, 0, c.width, c.height).data;
                const sum = [0, 0, 0], seen = new Set();
                for (let i = 0; i < d.length; i += 4) {
                    for (let k = 0; k < 3; k++) sum[k] += d[i + k];
                    seen.add(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]);
                }
                return {width: c.width, height: c.height, mean: sum.map(s => s * 4 / d.length), colors: seen.size};
            }""",
            [selector, index],
        )


@contextlib.contextmanager
def browser(scale: float = 1) -> Iterator[Any]:
    """A headless Chromium context; `scale` is the device's pixels per CSS pixel."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise RuntimeError("no Chromium or Chrome is installed; on Debian: apt-get install chromium")
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=path, args=FLAGS)
        context = running.new_context(viewport={"width": 1400, "height": 1000}, device_scale_factor=scale)
        yield context
        running.close()
