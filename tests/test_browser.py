"""Widgets in a real JupyterLab, in headless Chromium."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import lab
import pytest

METHODS = ".jp-OutputArea select:has(option[value='occlusion'])"
VIEW = ".convis-view"
IMAGE = f"{VIEW} > canvas:first-child"
PIXELS = f"i => document.querySelectorAll('{IMAGE}')[i].toDataURL()"
SETUP = "from convis_widgets import ActivationExplorer, FilterGrid, OcclusionViewer, SaliencyViewer, link\nimport threading"


@pytest.fixture
def thread_count() -> str:
    return "sum(t.name == 'convis-run' for t in threading.enumerate())"


def scroll_to_cell(page: lab.LabPage, cell: int) -> None:
    page.page.evaluate("i => document.querySelectorAll('.jp-Notebook .jp-Cell')[i].scrollIntoView()", cell)


def wait_for_layout(page: lab.LabPage, viewer: str, *views: str) -> None:
    """Wait until a widget has been laid out for the width of the page, and these views of it are displayed."""
    page.wait_until(f"{viewer}.page_size.width > 0")
    for view in views:
        page.wait_until(f"{viewer}.{view}.pump._acknowledged == {viewer}.{view}.serial > 0")


def view_named(page: lab.LabPage, name: str | re.Pattern[str]) -> Any:
    """The view with this description, as screen readers find it."""
    return page.page.get_by_role("img", name=name)


def wait_for_images(page: lab.LabPage, least: int = 1) -> None:
    """Wait until at least that many images are displayed."""
    page.page.wait_for_function(
        f"n => [...document.querySelectorAll('{VIEW}')].filter(v => v.style.visibility !== 'hidden').length >= n",
        arg=least,
    )


def test_filter_grid_click_updates_linked_explorer(lab_page: lab.LabPage) -> None:
    lab_page.open(
        [SETUP, "grid = FilterGrid(); grid", "explorer = ActivationExplorer(); link(grid, explorer); explorer"]
    ).run_all()
    wait_for_images(lab_page, 5)
    wait_for_layout(lab_page, "grid", "grid")
    wait_for_layout(lab_page, "explorer", "maps_view")
    tiles = lab_page.pixels(IMAGE)
    assert tiles["width"] == lab_page.evaluate("grid.mosaic.image.shape[1]")
    assert tiles["colors"] > 500
    mean = lab_page.evaluate("[float(v) for v in grid.grid.array[..., :3].mean((0, 1))]")
    assert tiles["mean"] == pytest.approx(mean, abs=2)

    scroll_to_cell(lab_page, 1)
    top, left, _, _ = lab_page.evaluate("tuple(int(v) for v in grid.mosaic.box(21))")
    grid = lab_page.page.locator(VIEW).first
    before = lab_page.page.evaluate(PIXELS, 4)  # the selected map
    grid.click(position={"x": left + 4, "y": top + 4})
    lab_page.page.wait_for_function(f"before => ({PIXELS})(4) !== before", arg=before, timeout=20_000)
    assert lab_page.evaluate("(grid.unit.channel, explorer.unit.channel)") == (21, 21)

    top, left, _, _ = lab_page.evaluate("tuple(int(v) for v in grid.mosaic.box(29))")
    grid.hover(position={"x": left + 4, "y": top + 4})
    lab_page.wait_until("' 29 ' in grid.hover.value")
    assert lab_page.evaluate("grid.unit.channel") == 21
    assert not lab_page.complaints


def test_filter_grid_passes_wheel_and_keys_to_page(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "grid = FilterGrid(); grid", "explorer = ActivationExplorer(); explorer", "reached = 1"])
    lab_page.run_cell(0)
    lab_page.run_cell(1)
    lab_page.run_cell(2)
    wait_for_images(lab_page, 5)
    wait_for_layout(lab_page, "grid", "grid")
    wait_for_layout(lab_page, "explorer", "maps_view")
    scroll_to_cell(lab_page, 1)
    image = lab_page.page.locator(VIEW).first
    top, left, _, _ = lab_page.evaluate("tuple(int(v) for v in grid.mosaic.box(9))")
    image.click(position={"x": left + 4, "y": top + 4})
    lab_page.wait_until("grid.unit.channel == 9")
    image.hover()
    seen = f"() => document.querySelector('{VIEW}').getBoundingClientRect().top"
    before = lab_page.page.evaluate(seen)
    lab_page.page.mouse.wheel(0, 60)
    lab_page.page.wait_for_function(f"before => ({seen})() < before - 20", arg=before)
    lab_page.page.keyboard.press("Shift+Enter")  # runs the cell whose output was clicked
    lab_page.page.keyboard.press("Shift+Enter")
    lab_page.page.keyboard.press("Shift+Enter")
    lab_page.wait_until("'reached' in globals()")


def test_filter_grid_channel_can_be_typed(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "grid = FilterGrid(); grid"]).run_all()
    wait_for_images(lab_page, 2)
    field = lab_page.page.locator("input[type=number]").first
    field.fill("11")
    field.press("Enter")
    lab_page.wait_until("grid.unit.channel == 11")


def test_saliency_viewer_streams_occlusion_with_live_slider_and_stop(lab_page: lab.LabPage, thread_count: str) -> None:
    lab_page.open([SETUP, "viewer = SaliencyViewer(); viewer"]).run_all()
    wait_for_images(lab_page, 3)

    def button(text: str) -> Any:
        return lab_page.page.locator(".jp-OutputArea button", has_text=text)

    # slow down the batches so that the computation is still running
    lab_page.execute(
        "import time\n"
        "from convis_widgets.core.attribution.incremental.patch_runner import PatchRunner\n"
        "run_batch = PatchRunner._run_batch\n"
        "PatchRunner._run_batch = lambda runner, groups: (time.sleep(0.3), run_batch(runner, groups))[1]\n"
        "viewer.update(occlusion_patch_size=6, occlusion_stride=1)"
    )
    count = f"() => [...document.querySelectorAll('{IMAGE}')].map(i => i.toDataURL()).join()"
    scroll_to_cell(lab_page, 1)
    lab_page.page.locator(METHODS).select_option("occlusion")
    lab_page.wait_until("viewer.run.state == 'running' and viewer.run.last and viewer.run.last.step > 0")
    seen = {lab_page.page.evaluate(count)}
    for _ in range(3):
        lab_page.page.wait_for_function(f"old => ({count})() !== old", arg=lab_page.page.evaluate(count))
        seen.add(lab_page.page.evaluate(count))
    assert len(seen) > 3, "the image does not change"

    handle = lab_page.page.locator(".noUi-handle").first
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    lab_page.wait_until("viewer.opacity > 0.7")
    assert lab_page.evaluate("viewer.run.state") == "running"

    button("Pause").click()
    lab_page.wait_until("viewer.run.state == 'paused'")
    step = lab_page.evaluate("viewer.run.last.step")
    button("Step").click()
    lab_page.wait_until(f"viewer.run.last.step > {step} and viewer.run.state == 'paused'")
    button("Start").click()
    lab_page.wait_until("viewer.run.state == 'running'")
    button("Stop").click()
    lab_page.wait_until("viewer.run.state == 'stopped'")
    lab_page.wait_until(f"{thread_count} == 0")
    assert lab_page.evaluate("viewer.run.last.step < viewer.run.last.total")
    text = lab_page.page.get_by_text("stopped")
    assert text.count() == 1
    assert not lab_page.complaints


def test_saliency_viewer_compares_methods_and_shows_hovered_values(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "viewer = SaliencyViewer(target='face'); viewer"]).run_all()
    wait_for_images(lab_page, 3)
    lab_page.page.locator(".jp-OutputArea button", has_text=lab_page.evaluate("viewer.add_method.description")).click()
    lab_page.wait_until("viewer.method == ('gradient', 'guided backprop') and viewer.run.state == 'done'")
    wait_for_images(lab_page, 5)
    lab_page.page.locator(METHODS).nth(1).select_option("grad-cam")
    lab_page.wait_until("viewer.method == ('gradient', 'grad-cam') and viewer.run.state == 'done'")
    lab_page.wait_until("viewer.page_size.width and viewer.panels[1].map_view.size[0] == viewer.side")
    side = lab_page.evaluate("viewer.side")
    scroll_to_cell(lab_page, 1)
    view_named(lab_page, lab_page.evaluate("viewer.panels[1].map_view.alt")).hover(
        position={"x": side * 37.5 / 64, "y": side * 21.5 / 64}
    )
    lab_page.page.get_by_text(re.compile(r"\b21\D{1,20}\b37\D{1,20}gradient")).first.wait_for()
    lab_page.wait_until("'grad-cam' in viewer.hover.value")
    lab_page.wait_until("f'{viewer.frames[\"grad-cam\"].heat[21, 37]:.3g}' in viewer.hover.value")
    lab_page.page.locator(".jp-OutputArea button", has_text=lab_page.evaluate("viewer.sanity_check.description")).click()
    lab_page.page.get_by_text(re.compile(r"random.{1,20}\bconv1\b")).first.wait_for()
    assert not lab_page.complaints


def test_occlusion_viewer_hover_shows_top5_of_occluded_image(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "viewer = OcclusionViewer(target='face', patch_size=16, stride=4); viewer"]).run_all()
    lab_page.wait_until("viewer.run.state == 'done'")
    wait_for_layout(lab_page, "viewer", "input_view")
    lab_page.wait_until("viewer.map_views['probability'].pump._acknowledged == viewer.map_views['probability'].serial")
    side = lab_page.evaluate("viewer.map_views['probability'].size[0]")
    scroll_to_cell(lab_page, 1)
    view_named(lab_page, lab_page.evaluate("viewer.map_views['probability'].alt")).hover(
        position={"x": side * 202 / 256, "y": side * 142 / 256}
    )
    lab_page.page.get_by_text(re.compile(r"\b7, \D{0,8}11\b")).first.wait_for()
    best = lab_page.evaluate("viewer.network.labels[viewer.frame.arrays['top'][7, 11, 0]]")
    p = lab_page.evaluate("float(viewer.frame.arrays['top probability'][7, 11, 0])")
    assert lab_page.page.get_by_text(f"{p:.1%}", exact=True).locator("..").inner_text().split("\n") == [best, f"{p:.1%}"]
    for tab in ("class", "activation", "projection"):
        lab_page.page.get_by_role("tab", name=tab, exact=True).click()
        view_named(lab_page, lab_page.evaluate(f"viewer.map_views[{tab!r}].alt")).wait_for()
    assert not lab_page.complaints


def test_saliency_viewer_finds_class_by_part_of_its_name(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "viewer = SaliencyViewer(); viewer"]).run_all()
    box = lab_page.page.get_by_placeholder(lab_page.evaluate("viewer.controls['target'].box.placeholder"))
    box.fill("butter")
    box.press("Enter")
    lab_page.wait_until("viewer.network.labels[viewer.target or 0] == 'butterfly'")


def test_filter_grid_survives_page_reload(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "grid = FilterGrid(); grid"], "reload.ipynb").run_all()
    wait_for_images(lab_page, 2)
    before = lab_page.pixels(IMAGE)
    lab_page.command("docmanager:save")
    lab_page.page.reload()
    lab_page.wait_for_kernel()
    wait_for_images(lab_page, 2)
    assert lab_page.pixels(IMAGE) == before
    scroll_to_cell(lab_page, 1)
    top, left, _, _ = lab_page.evaluate("tuple(int(v) for v in grid.mosaic.box(9))")
    lab_page.page.locator(VIEW).first.click(position={"x": left + 4, "y": top + 4})
    lab_page.wait_until("grid.unit.channel == 9")
    lab_page.execute("grid.scaling = 'shared'")
    lab_page.page.wait_for_function(
        "() => document.querySelectorAll('.jp-OutputArea select')[1].value === 'all filters alike'"
    )


def test_saliency_viewer_rerun_cell_leaves_one_thread(lab_page: lab.LabPage, thread_count: str) -> None:
    slow = (
        "import time\n"
        "viewer = SaliencyViewer(method='occlusion', occlusion_patch_size=6, occlusion_stride=1)\n"
        "if not hasattr(viewer.network, 'slow'):\n"
        "    viewer.network.slow = viewer.network.module.conv1.register_forward_pre_hook(lambda *_: time.sleep(0.2))\n"
        "viewer"
    )
    lab_page.open([SETUP, slow]).run_all()
    for _ in range(3):
        lab_page.run_cell(1)
    lab_page.wait_until(f"{thread_count} <= 1")
    assert lab_page.evaluate("viewer.run.active")
    lab_page.execute("viewer.close()")
    lab_page.wait_until(f"{thread_count} == 0")


def test_filter_grid_shows_image_in_notebook_without_kernel_state(lab_page: lab.LabPage) -> None:
    """Saved outputs are shown without a kernel, as on a course page or in a repository."""
    import nbclient
    import nbformat

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("from convis_widgets import FilterGrid\nFilterGrid()")]
    )
    nbclient.NotebookClient(notebook, kernel_name="python3", store_widget_state=False).execute()
    nbformat.write(notebook, lab_page.root / "static.ipynb")
    lab_page.page.goto(f"{lab_page.url}lab/tree/static.ipynb?reset")
    lab_page.page.wait_for_selector(".jp-OutputArea img", timeout=60_000)
    assert lab_page.pixels(".jp-OutputArea img")["colors"] > 300
    lab_page.wait_for_kernel()


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory, lab_browser: Any) -> Iterator[lab.LabPage]:
    root = tmp_path_factory.mktemp("dark")
    with lab.server(root, theme="JupyterLab Dark") as url:
        page = lab.LabPage(lab_browser.new_page(), url, root)
        yield page
        page.close()


def test_saliency_viewer_text_contrast_in_dark_theme(dark: lab.LabPage) -> None:
    dark.open([SETUP, "SaliencyViewer(method='occlusion')"]).run_all()
    wait_for_images(dark, 3)
    contrast = dark.page.evaluate(
        """() => {
            const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
                .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
                return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
            const ground = el => { for (let e = el; e; e = e.parentElement) {
                const b = getComputedStyle(e).backgroundColor; if (!b.startsWith('rgba(0, 0, 0, 0')) return b; }
                return 'rgb(255,255,255)'; };
            const words = '.jp-OutputArea .widget-html-content div, .jp-OutputArea .widget-label';
            const ratios = [...document.querySelectorAll(words)]
                .filter(e => e.innerText.trim()).map(e => {
                    const a = lum(getComputedStyle(e).color), b = lum(ground(e));
                    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
            return [document.body.dataset.jpThemeLight, ratios.length, Math.min(...ratios)];
        }"""
    )
    assert contrast[0] == "false"
    assert contrast[1] >= 5
    assert contrast[2] > 4.5  # WCAG 2.1, level AA


def test_frame_view_does_not_leak_memory_in_page(lab_page: lab.LabPage) -> None:
    lab_page.page.add_init_script(
        "window.made = 0; window.closed_bitmaps = 0; window.urls = 0;"
        "const make = createImageBitmap, close = ImageBitmap.prototype.close, url = URL.createObjectURL;"
        "globalThis.createImageBitmap = (...parts) => { window.made++; return make(...parts) };"
        "ImageBitmap.prototype.close = function () { window.closed_bitmaps++; close.call(this) };"
        "URL.createObjectURL = blob => { window.urls++; return url(blob) };"
    )
    lab_page.open(
        [
            SETUP + "\nimport numpy as np\nfrom convis_widgets.core import Frame, Run",
            "from convis_widgets.widgets.controls.frame_view import FrameView",
            "view = FrameView('test'); view.show(np.zeros((64, 64, 3), np.uint8)); view",
        ]
    ).run_all()
    wait_for_images(lab_page)
    urls = lab_page.page.evaluate("window.urls")
    lab_page.execute(
        "sent = []\n"
        "def frames():\n"
        "    while len(sent) < 60:\n"
        "        yield Frame(len(sent), image=np.full((64, 64, 3), (len(sent) % 100) / 100))\n"
        "view.observe(lambda change: sent.append(1), 'value')\n"
        "run = Run(frames())\n"
        "run.subscribe(lambda r: view.stream(lambda: np.uint8(r.last.image * 255)) if r.last else None)\n"
        "run.start()"
    )
    lab_page.wait_until("not run.active and view.pump._acknowledged == view.serial")
    made, closed_bitmaps = lab_page.page.evaluate("[window.made, window.closed_bitmaps]")
    assert made == closed_bitmaps > 20
    assert lab_page.page.evaluate("window.urls") == urls


MARKS = """view => {
    const canvas = view.lastChild, scale = devicePixelRatio, boxes = {};
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] < 250) continue;
        const color = data.slice(i, i + 3).join(), x = i / 4 % canvas.width, y = Math.floor(i / 4 / canvas.width);
        const box = boxes[color] ??= [y, x, y, x];
        boxes[color] = [Math.min(box[0], y), Math.min(box[1], x), Math.max(box[2], y), Math.max(box[3], x)];
    }
    return Object.fromEntries(Object.entries(boxes).map(([color, box]) => [color, box.map(edge => edge / scale)]));
}"""
PINK, WHITE = "255,64,160", "255,255,255"


def frame_of(box: list[float], side: float = 1e9) -> list[float]:
    """First and last pixels of a frame of 2 pixels around a box, as far as it is in a view of this side."""
    top, left, bottom, right = box
    first, last = [max(0, top - 2), max(0, left - 2)], [min(side - 1, bottom + 1), min(side - 1, right + 1)]
    return pytest.approx([*first, *last], abs=1.1)


def test_page_marks_tiles_while_the_kernel_is_busy(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "grid = FilterGrid(); grid", "import time; time.sleep(3)"])
    lab_page.run_cell(0)
    lab_page.run_cell(1)
    wait_for_images(lab_page, 2)
    wait_for_layout(lab_page, "grid", "grid")
    hovered, clicked = (lab_page.evaluate(f"[*grid.mosaic.box({i})]") for i in (21, 10))
    view = lab_page.page.locator(VIEW).first
    lab_page.command("notebook:move-cursor-down")
    lab_page.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell') }")  # without waiting
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    lab_page.page.wait_for_function(f"() => {kernel}.status === 'busy'")
    view.hover(position={"x": hovered[1] + 4, "y": hovered[0] + 4})
    assert view.evaluate(MARKS)[WHITE] == frame_of(hovered)
    view.click(position={"x": clicked[1] + 4, "y": clicked[0] + 4})
    lab_page.page.mouse.move(1, 1)
    marks = view.evaluate(MARKS)
    assert marks[PINK] == frame_of(clicked)
    assert WHITE not in marks
    lab_page.wait_until("grid.selected == 10")
    assert view.evaluate(MARKS)[PINK] == frame_of(clicked)


def test_receptive_field_of_cell_under_the_mouse_is_framed_in_the_image(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "explorer = ActivationExplorer(layer='relu2'); explorer"]).run_all()
    wait_for_images(lab_page, 3)
    wait_for_layout(lab_page, "explorer", "large", "input_view")
    side, pixel = lab_page.evaluate("explorer.large.size[0]"), lab_page.evaluate("explorer.input_view.size[0] / 64")
    scroll_to_cell(lab_page, 1)
    large, image = (view_named(lab_page, lab_page.evaluate(f"explorer.{name}.alt")) for name in ("large", "input_view"))
    h, w = lab_page.evaluate("explorer.map_size")
    assert h < 32
    large.hover(position={"x": (3 + 0.5) * side / w, "y": (2 + 0.5) * side / h})
    assert large.evaluate(MARKS)[WHITE] == frame_of([2 * side / h, 3 * side / w, 3 * side / h, 4 * side / w])
    box = lab_page.evaluate(f"[{pixel} * edge for edge in explorer.network.layers['relu2'].box((2, 3), 0)]")
    assert image.evaluate(MARKS)[WHITE] == frame_of(box, side)
    lab_page.page.mouse.move(1, 1)
    assert WHITE not in image.evaluate(MARKS)


def test_view_is_zoomed_in_the_page(lab_page: lab.LabPage) -> None:
    lab_page.open([SETUP, "grid = FilterGrid(); grid"]).run_all()
    wait_for_images(lab_page, 2)
    wait_for_layout(lab_page, "grid", "grid")
    view = lab_page.page.locator(VIEW).first
    corner, (top, left, *_) = view.bounding_box(), lab_page.evaluate("grid.mosaic.box(9)")
    x, y = corner["x"] + left + 20, corner["y"] + top + 20
    scale = "view => view.firstChild.getBoundingClientRect().width / view.getBoundingClientRect().width"
    lab_page.page.mouse.move(x, y)
    lab_page.page.keyboard.down("Control")
    for _ in range(5):
        lab_page.page.mouse.wheel(0, -200)
    lab_page.page.keyboard.up("Control")
    lab_page.page.wait_for_function(f"view => ({scale})(view) > 3", arg=view.element_handle())
    assert view.bounding_box() == corner
    lab_page.page.mouse.click(x, y)  # the point under the mouse has stayed where it was
    lab_page.wait_until("grid.selected == 9")
    pitch = lab_page.evaluate("grid.mosaic.box(10)[1] - grid.mosaic.box(9)[1]") * view.evaluate(scale)
    lab_page.page.mouse.move(x, y)
    lab_page.page.mouse.down()
    lab_page.page.mouse.move(x - pitch, y, steps=3)
    lab_page.page.mouse.up()  # a drag is not a click
    assert lab_page.evaluate("grid.selected") == 9
    lab_page.page.mouse.click(x, y)
    lab_page.wait_until("grid.selected == 10")
    lab_page.page.mouse.dblclick(x, y)
    lab_page.page.wait_for_function(f"view => ({scale})(view) === 1", arg=view.element_handle())
    assert not lab_page.complaints


def test_damaged_image_does_not_stop_a_view(lab_page: lab.LabPage) -> None:
    code = (
        "import numpy as np\nfrom convis_widgets.widgets.controls.frame_view import FrameView\n"
        "view = FrameView('test'); view.show(np.zeros((64, 64, 3), np.uint8)); view"
    )
    lab_page.open([code]).run_all()
    wait_for_images(lab_page)
    lab_page.execute("view.pump.show(b'not an image')")
    lab_page.wait_until("view.pump._acknowledged == view.serial == 2")
    lab_page.execute("view.show(np.full((64, 64, 3), 200, np.uint8))")
    lab_page.wait_until("view.pump._acknowledged == view.serial == 3")
    assert lab_page.pixels(IMAGE)["mean"] == [200, 200, 200]


def test_view_that_nobody_sees_is_not_drawn(lab_page: lab.LabPage) -> None:
    code = (
        "import numpy as np\nfrom convis_widgets.widgets.controls.frame_view import FrameView\n"
        "view = FrameView('test'); view.show(np.zeros((64, 64, 3), np.uint8)); view"
    )
    lab_page.open([code, "\n" * 120]).run_all()
    wait_for_images(lab_page)
    lab_page.wait_until("view.pump._acknowledged == 1")
    scroll_to_cell(lab_page, 1)
    lab_page.wait_until("not view.pump._is_seen")
    lab_page.execute("view.show(np.full((64, 64, 3), 200, np.uint8))")
    assert lab_page.evaluate("view.pump._acknowledged") == 1
    scroll_to_cell(lab_page, 0)
    lab_page.wait_until("view.pump._acknowledged == 2")
    assert lab_page.pixels(IMAGE)["mean"] == [200, 200, 200]


WIDTHS = (1100, 1400, 1920)


def test_three_methods_stand_in_one_row_at_any_width(lab_page: lab.LabPage) -> None:
    methods = ["gradient", "guided backprop", "grad-cam"]
    lab_page.open([SETUP, f"viewer = SaliencyViewer(method={methods}); viewer"]).run_all()
    lab_page.wait_until("viewer.run.state == 'done' and viewer.page_size.width")
    before = lab_page.evaluate("viewer.page_size.width")
    for width in WIDTHS:
        lab_page.page.set_viewport_size({"width": width, "height": 1000})
        lab_page.wait_until(f"viewer.page_size.width != {before}")
        lab_page.wait_until("viewer.side == viewer.column_width(4, 0) == viewer.input_view.size[0]")
        before = lab_page.evaluate("viewer.page_size.width")
        alts = lab_page.evaluate("[viewer.input_view.alt, *(panel.map_view.alt for panel in viewer.panels)]")
        side = lab_page.evaluate("viewer.side")
        for alt in alts:
            lab_page.page.wait_for_function(
                "([view, side]) => view.getBoundingClientRect().width === side",
                arg=[view_named(lab_page, alt).first.element_handle(), side],
            )
        boxes = [view_named(lab_page, alt).first.bounding_box() for alt in alts]
        assert len({box["y"] for box in boxes}) == 1
        assert all(a["x"] + a["width"] < b["x"] for a, b in itertools.pairwise(boxes))
        assert boxes[-1]["x"] + boxes[-1]["width"] < width - 40
        assert 4 * side > 0.8 * before, "the images fill the page"
    lab_page.page.set_viewport_size({"width": 1400, "height": 1000})
    assert not lab_page.complaints


# -- datasets -------------------------------------------------------------------------------------------------------------

SET = "from convis_widgets import *; from convis_widgets import demo; images = ImageSet(demo.Toyscape(80, seed=3))"


def test_linked_filter_grid_gallery_and_neighbor_viewer(lab_page: lab.LabPage) -> None:
    lab_page.open([SET, "grid = FilterGrid(); grid", "gallery = MaxPatchGallery(images=images); gallery"]).run_all()
    lab_page.wait_until("gallery.scan.complete and gallery.run.state == 'done'")
    lab_page.execute("link(grid, gallery); nearest = NeighborViewer(images=gallery.scan); link(gallery, nearest)")
    before = lab_page.evaluate("bytes(gallery.patches_view.value)[:2000].hex()")
    top, left, *_ = lab_page.evaluate("grid.mosaic.box(3)")
    view_named(lab_page, lab_page.evaluate("grid.grid.alt")).click(position={"x": left + 9, "y": top + 9})
    lab_page.wait_until("gallery.shown == Unit('conv1', 3)")
    assert lab_page.evaluate("bytes(gallery.patches_view.value)[:2000].hex()") != before
    scroll_to_cell(lab_page, 2)
    view_named(lab_page, lab_page.evaluate("gallery.patches_view.alt")).click(position={"x": 100, "y": 30})
    lab_page.wait_until("gallery.image_index == int(gallery.scan.top('conv1').images[3, 1])")
    lab_page.wait_until("nearest.queries[0] == gallery.image_index and nearest.run.state == 'done'")
    assert not lab_page.complaints


def test_embedding_map_steps_stops_zooms_pans_and_selects(lab_page: lab.LabPage) -> None:
    lab_page.open([SET, "there = EmbeddingMap(images=images); there.run.pause(); there"]).run_all()
    lab_page.wait_until("there.run.state == 'paused'")
    step = lab_page.page.get_by_role("button", name="Step")
    for _ in range(4):
        before = lab_page.evaluate("there.run.last.step if there.run.last else -1")
        step.click()
        lab_page.wait_until(f"there.run.last and there.run.last.step > {before} and there.run.state == 'paused'")
    lab_page.page.get_by_role("button", name="Stop").click()
    lab_page.wait_until("there.run.state == 'stopped' and there.frame is not None")
    image = view_named(lab_page, lab_page.evaluate("there.map_view.alt"))
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    x, y = box["x"] + 300, box["y"] + 300
    lab_page.page.mouse.move(x, y)
    lab_page.page.mouse.wheel(0, -100)
    lab_page.wait_until("there.chart.zoom > 1")
    assert image.bounding_box() == box, "the wheel scrolls the page"
    where = lab_page.evaluate("there.chart.x")
    lab_page.page.mouse.down()
    lab_page.page.mouse.move(x - 80, y, steps=4)
    lab_page.page.mouse.up()
    lab_page.wait_until(f"there.chart.x > {where}")
    lab_page.page.get_by_role("button", name=lab_page.evaluate("there.reset_button.description")).click()
    lab_page.wait_until("there.chart.zoom == 1")
    lab_page.page.keyboard.down("Shift")
    lab_page.page.mouse.move(box["x"] + 2, box["y"] + 2)
    lab_page.page.mouse.down()
    lab_page.page.mouse.move(box["x"] + 590, box["y"] + 590, steps=4)
    lab_page.page.mouse.up()
    lab_page.page.keyboard.up("Shift")
    lab_page.wait_until("len(there.selection) > 60")
    selected = lab_page.evaluate("len(there.selection)")
    lab_page.page.get_by_text(re.compile(rf"^\s*{selected}\b")).first.wait_for()
    assert not lab_page.complaints


# -- image synthesis ------------------------------------------------------------------------------------------------------


def step_back_in_history(lab_page: lab.LabPage) -> None:
    """Go back three images in the history of the panel `w`, with the keyboard."""
    lab_page.wait_until("w.scrub.value == w.scrub.max > 3")
    history = (
        lab_page.page.locator(".widget-slider")
        .filter(has_text=lab_page.evaluate("w.scrub.description"))
        .locator(".noUi-handle")
        .first
    )
    history.focus()
    for _ in range(3):
        history.press("ArrowLeft")
    lab_page.wait_until("w.scrub.value == w.scrub.max - 3 and str(w.history.steps[-4]) in w.shown_step.value")


def test_feature_visualizer_live_knob_stop_and_history(lab_page: lab.LabPage) -> None:
    lab_page.open(["from convis_widgets import *; w = FeatureVisualizer(target='star', iterations=5000); w"]).run_all()
    lab_page.wait_until("w.run.last is not None and w.run.last.step > 20")
    image = view_named(lab_page, re.compile(r"\bstar\b.*\bmodern\b"))
    image.wait_for()
    shown = "view => view.firstChild.toDataURL()"
    before = image.evaluate(shown)
    lab_page.page.wait_for_function(f"([view, old]) => ({shown})(view) !== old", arg=[image.element_handle(), before])
    sliders = lab_page.page.locator(".widget-slider")
    lr = sliders.filter(has_text=lab_page.evaluate("w.controls['lr'].description")).locator(".noUi-handle").first
    lr.focus()
    lr.press("ArrowRight")
    lab_page.wait_until("w.lr is not None and w.lr != 0.05")
    assert lab_page.evaluate("w.run.state") == "running", "a live knob does not restart the run"
    lab_page.page.get_by_role("button", name="Stop").click()
    lab_page.wait_until("w.run.state == 'stopped'")
    lab_page.wait_until("w.network.predict(w.frame.image, 1)[0][0] == 'star'")
    step_back_in_history(lab_page)
    assert lab_page.page.locator(".bqplot path.line").count() > 0
    assert not lab_page.complaints


def test_style_transfer_panel_live_weight_stop_and_history(lab_page: lab.LabPage) -> None:
    words = "styles=('swirls', 'bricks'), style_weights=20, size=64, scales=1, iterations=5000"
    lab_page.open([f"from convis_widgets import *; w = StyleTransferPanel({words}); w"]).run_all()
    lab_page.wait_until("w.run.last is not None and w.run.last.step > 10")
    image = view_named(lab_page, re.compile(r"style.*\bswirls\b.*\bbricks\b"))
    image.wait_for()
    shown = "view => view.firstChild.toDataURL()"
    before = image.evaluate(shown)
    lab_page.page.wait_for_function(f"([view, old]) => ({shown})(view) !== old", arg=[image.element_handle(), before])
    run = lab_page.evaluate("id(w.run)")
    painted_so_far = lab_page.evaluate("w.run.last.step")
    sliders = lab_page.page.locator(".widget-slider")
    weight = sliders.filter(has_text="weight").locator(".noUi-handle").first
    weight.scroll_into_view_if_needed()
    weight.focus()
    for _ in range(5):
        weight.press("ArrowRight")
    lab_page.wait_until("w.style_weights[0] > 20.1 and w.style_weights[1] == 20")
    lab_page.wait_until(f"w.run.last.step > {painted_so_far} + 5")
    assert lab_page.evaluate("(id(w.run), w.run.state)") == (run, "running"), "a weight does not restart the run"
    lab_page.page.get_by_role("button", name="Stop").click()
    lab_page.wait_until("w.run.state == 'stopped'")
    step_back_in_history(lab_page)
    side = lab_page.evaluate("w.view.array.shape[0]")
    lab_page.page.wait_for_function("([view, side]) => view.firstChild.width === side", arg=[image.element_handle(), side])
    assert not lab_page.complaints


PANELS = {
    "FoolingPanel": "iterations=3",
    "DeepDreamPanel": "iterations=2, octaves=1, size=64",
    "InversionPanel": "iterations=3, layers=['relu1', 'relu4']",
    "TexturePanel": "iterations=2, scales=1, size=64",
    "StyleTransferPanel": "iterations=2, scales=1, size=64",
}


def test_image_panels_show_image_in_dark_theme(dark: lab.LabPage) -> None:
    dark.complaints.clear()
    code = "from convis_widgets import *; {0} = {1}({2}); {0}_first_run = {0}.run; {0}"
    cells = [code.format(name.lower(), name, words) for name, words in PANELS.items()]
    dark.open(cells, "panels.ipynb").run_all()
    for i, name in enumerate(PANELS):
        dark.wait_until(f"{name.lower()}.run.state == 'done' and not {name.lower()}.status.value")
        scroll_to_cell(dark, i)
        image = view_named(dark, dark.evaluate(f"{name.lower()}.view.alt")).first
        wide = dark.evaluate(f"{name.lower()}.view.array.shape[1]")
        assert image.evaluate("view => view.firstChild.width") == wide > 100
        assert dark.evaluate(f"{name.lower()}.run is {name.lower()}_first_run"), (
            "displaying the panel does not restart the run"
        )
    assert not dark.complaints
