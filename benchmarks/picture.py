"""``make picture``: run the tour in JupyterLab and take the screenshot of the README."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import lab

OUT = ROOT / "notebooks" / "tour.png"


def main() -> None:
    """Open and run the tour, select a filter and an image, and save a screenshot."""
    with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as url, lab.browser(1.25) as context:
        shutil.copy(ROOT / "notebooks" / "00_tour.ipynb", folder)
        page = lab.LabPage(context.new_page(), url, Path(folder))
        page.page.set_viewport_size({"width": 1180, "height": 2270})
        page.open(ROOT / "notebooks" / "00_tour.ipynb").run_all()
        page.command("application:toggle-left-area")
        page.execute("filters.unit = (filters.layer, 17); maps.images.menu.value = 'butterfly'")
        page.execute("which.images.menu.value = 'tree'; which.method = 'occlusion'")
        page.wait_until("which.run is None or which.run.state == 'done'")
        page.page.evaluate("document.querySelectorAll('.jp-Notebook .jp-Cell')[2].scrollIntoView()")
        page.page.wait_for_timeout(1500)
        page.page.screenshot(path=str(OUT))
        page.close()
    print(OUT)


if __name__ == "__main__":
    main()
