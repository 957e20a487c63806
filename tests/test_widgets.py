"""The contract of all widgets: settings and controls, snapshots, errors, accessibility, closing."""

from __future__ import annotations

import base64
import gc
import inspect
import io
import itertools
import re
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from torch import nn
from widget_helpers import PATIENCE, finished

import convis_widgets
from convis_widgets import Network
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.runs.frame import Frame
from convis_widgets.widgets.base.image_viewer import ImageViewer
from convis_widgets.widgets.base.params import Choice, ClassParam, KnobParam
from convis_widgets.widgets.base.settings import Field
from convis_widgets.widgets.base.viewer import Viewer
from convis_widgets.widgets.controls.frame_view import FrameView
from convis_widgets.widgets.controls.sliders import equal_after_rounding
from convis_widgets.widgets.dataset.dataset_viewer import DatasetViewer

WIDGETS = {
    name: kind
    for name, kind in convis_widgets._exports("widgets").items()
    if inspect.isclass(kind) and issubclass(kind, Viewer) and kind is not Viewer
}
# Settings with which a widget is quick.
QUICK: dict[str, dict[str, Any]] = {
    "SaliencyViewer": {"method": ["gradient", "smooth grad"], "smooth_grad_samples": 4},
    "OcclusionViewer": {"patch_size": 8, "stride": 4},
    "EmbeddingMap": {"method": "pca"},
    "TemplatePanel": {"iterations": 3},
    "FeatureVisualizer": {"iterations": 3},
    "FoolingPanel": {"iterations": 3},
    "DeepDreamPanel": {"iterations": 2, "octaves": 1},
    "InversionPanel": {"iterations": 2},
    "TexturePanel": {"iterations": 2, "scales": 1, "size": 24},
    "StyleTransferPanel": {"iterations": 2, "scales": 1, "size": 24},
}


@pytest.fixture(params=WIDGETS)
def name(request: pytest.FixtureRequest, own_cache: None) -> str:
    return request.param


@pytest.fixture
def image_set() -> ImageSet:
    images = np.random.default_rng(4).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return ImageSet(images, labels=[f"kind {i % 3}" for i in range(12)])


def construct(name: str, network: Any, image_set: ImageSet, **kwargs: Any) -> Viewer:
    """The widget on a small network, with small images or a small image set."""
    kind = WIDGETS[name]
    image = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
    inputs: list[Any] = (
        [image_set] if issubclass(kind, DatasetViewer) else [{"noise": image}] if issubclass(kind, ImageViewer) else []
    )
    return kind(network, *inputs, **{**QUICK.get(name, {}), **kwargs})


@pytest.fixture
def viewer(name: str, tiny: Network, image_set: ImageSet) -> Iterator[Viewer]:
    made = finished(construct(name, tiny, image_set))
    yield made
    made.close()


def descendants(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from descendants(child)


def visible(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    if widget.layout.display != "none" and widget.layout.visibility != "hidden":
        yield widget
        for child in getattr(widget, "children", ()):
            yield from visible(child)


# -- first image -------------------------------------------------------------------------------------------------------


def test_widget_shows_an_image_and_no_error(viewer: Viewer) -> None:
    assert viewer.status.value == ""
    assert any(len(view.value) > 100 for view in visible(viewer) if isinstance(view, FrameView))
    assert viewer.snapshot().std() > 5


def test_widget_works_without_arguments(name: str) -> None:
    made = finished(WIDGETS[name](**QUICK.get(name, {})))
    assert made.network is Network.demo()
    assert made.status.value == ""
    assert made.snapshot().std() > 10
    made.close()


def test_widget_works_with_gray_images_of_28_pixels(name: str) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))
    made = finished(WIDGETS[name](net, **QUICK.get(name, {})))
    assert made.status.value == ""
    assert made.snapshot().std() > 5
    made.close()


# -- settings ----------------------------------------------------------------------------------------------------------


def test_signature_and_docstring_list_all_params(name: str) -> None:
    kind = WIDGETS[name]
    parameters = inspect.signature(kind).parameters
    assert {*kind.params} <= {*parameters}
    for param_name, param in kind.params.items():
        assert re.search(rf"\n    (\w+, )*{param_name}(, \w+)* : .+\n        \S", kind.__doc__ or ""), param_name
        assert param.help, param_name


def test_unknown_keyword_error_suggests_similar_names(name: str) -> None:
    for param in WIDGETS[name].params:
        if len(param) > 3:
            misspelled = param[:-1] + "qq"
            with pytest.raises(TypeError, match=rf"{name}.*{misspelled}.*\b{param}\b"):
                WIDGETS[name](**{misspelled: 1})


def test_network_cannot_be_replaced(viewer: Viewer) -> None:
    before = viewer.network
    with pytest.raises(AttributeError, match="network"):
        viewer.network = 3  # type: ignore[misc]
    assert viewer.network is before


def test_every_control_has_a_place(viewer: Viewer) -> None:
    placed = set(map(id, descendants(viewer)))
    assert [param_name for param_name, control in viewer.controls.items() if id(control) not in placed] == []


def test_every_control_has_label_and_tooltip(viewer: Viewer) -> None:
    for param_name, control in viewer.controls.items():
        assert any(part.tooltip for part in descendants(control)), param_name
        labels = [getattr(part, "description", "") for part in descendants(control)]
        assert any(labels) or isinstance(control, ipywidgets.ToggleButtons), param_name


def test_only_widgets_with_description_have_tooltips(viewer: Viewer) -> None:
    for part in descendants(viewer):  # the page shows a JavaScript error for others
        assert part.has_trait("description") or not getattr(part, "tooltip", None), part


def other_value(viewer: Viewer, param_name: str) -> Any:
    """A valid value of a Param that is not the present one; None if none is known."""
    param, shown = type(viewer).params[param_name], type(viewer).params[param_name].shown(viewer)
    if isinstance(param, Choice):
        return next((value for value in param.options.values() if value != shown), None)
    if isinstance(param, ClassParam):
        return 1 if shown != 1 else 2
    if isinstance(param, KnobParam):
        knob = param.knob
        if knob.choices:
            return next((choice for choice in knob.choices if choice != shown), None)
        if bool in knob.types:
            return not shown
        if knob.low is None or knob.high is None:
            return None
        nearer = (
            [shown + 1, shown - 1]
            if isinstance(shown, int)
            else [shown + (knob.high - shown) / 4, shown - (shown - knob.low) / 4]
        )
        high = knob.high if param.limit is None else min(knob.high, param.limit(viewer))
        return next((value for value in nearer if knob.low <= value <= high and value != shown), None)
    return None


def test_trait_moves_control_and_control_moves_trait(viewer: Viewer) -> None:
    for param_name in type(viewer).params:
        control, value = viewer.controls.get(param_name), None
        if control is None or (value := other_value(viewer, param_name)) is None:
            continue
        before = control.value
        setattr(viewer, param_name, value)
        assert equal_after_rounding(control, control.value, value), param_name
        control.value = before
        shown = type(viewer).params[param_name].shown(viewer)
        assert equal_after_rounding(control, before, shown), param_name
        viewer.stop_run()


def test_invalid_value_is_rejected_and_nothing_changes(viewer: Viewer) -> None:
    for param_name, param in type(viewer).params.items():
        if isinstance(param, (Choice, ClassParam, KnobParam)):
            before = getattr(viewer, param_name)
            with pytest.raises((ValueError, traitlets.TraitError), match=rf"{param_name}|no such|nonsense"):
                setattr(viewer, param_name, "nonsense 17")
            assert getattr(viewer, param_name) == before
    assert viewer.status.value == ""


RAW = r"object|iterable|subscript|unhashable|truth value|not supported|has no attribute|out of (bounds|range)|convert|unpack"
STRANGE = [None, "nonsense 17", "", 3.5, -1, 10**9, True, (1, 2, 3), [], {}, {"conv1": 1}, float("nan"), float("inf")]
STRANGE += [np.arange(3), np.float64(3), object(), b"x", ("conv1",), [[1]], (None, None), {1, 2}]


def test_strange_values_are_accepted_or_refused_in_words(viewer: Viewer) -> None:
    for param_name in type(viewer).params:
        for value in STRANGE:
            before = getattr(viewer, param_name)
            with viewer.handlers_muted():
                try:
                    setattr(viewer, param_name, value)
                except (ValueError, TypeError, traitlets.TraitError) as error:
                    text = str(error).replace(repr(value), "")
                    assert len(text) > 12, (param_name, value)
                    assert not re.search(RAW, text), (param_name, value, text)
                    assert getattr(viewer, param_name) is before or np.array_equal(getattr(viewer, param_name), before)
                else:
                    setattr(viewer, param_name, before)


def test_misspelled_attribute_is_refused(viewer: Viewer) -> None:
    for param_name in type(viewer).params:
        misspelled = f"{param_name[:2]}{param_name[3:]}"
        if len(param_name) > 4 and misspelled not in type(viewer).params:
            with pytest.raises(
                AttributeError, match=rf"{type(viewer).__name__} has no setting '{misspelled}'; .*\b{param_name}\b"
            ):
                setattr(viewer, misspelled, 1)
            assert not hasattr(viewer, misspelled)
    with pytest.raises(AttributeError, match="'something_else'; available: unit"):
        viewer.something_else = 3
    viewer.layout.border = "1px solid"
    viewer._mine = 3


@pytest.mark.parametrize("kind", [kind for kind in WIDGETS.values() if "image" in inspect.signature(kind).parameters])
@pytest.mark.parametrize("image", ["missing.png", np.zeros((4, 4, 7)), np.full((16, 16, 3), -2.0), 3, {"a": 3}, [b"junk"]])
def test_bad_image_is_refused_by_the_constructor(kind: type[Viewer], image: Any, tiny: Network) -> None:
    with pytest.raises(
        (ValueError, TypeError, FileNotFoundError), match=r"missing\.png|shape|values|not an image|junk|bytes"
    ):
        kind(tiny, image)


def test_rounding_of_the_page_changes_no_trait(viewer: Viewer) -> None:
    for param_name, control in viewer.controls.items():
        if isinstance(control, (ipywidgets.FloatSlider, ipywidgets.FloatLogSlider)):
            before = getattr(viewer, param_name)
            if isinstance(control, ipywidgets.FloatLogSlider):
                control.value *= control.base ** (0.4 * control.step)
            else:
                control.value += 0.4 * control.step if control.value < control.max else -0.4 * control.step
            assert getattr(viewer, param_name) == before, param_name


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_save_writes_png_atomically(viewer: Viewer, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    path = folder / "x.png"
    path.write_bytes(b"old")
    assert viewer.save(path) == path
    with Image.open(path) as image:
        assert (image.height, image.width) == viewer.snapshot().shape[:2]
    assert [file.name for file in folder.iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match=r"x\.bmp"):
        viewer.save(tmp_path / "x.bmp")
    with pytest.raises(FileNotFoundError, match="missing"):
        viewer.save(tmp_path / "missing" / "x.png")


def test_mimebundle_contains_static_png(viewer: Viewer) -> None:
    data, _ = viewer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
        assert (image.height, image.width) == viewer.snapshot().shape[:2]
    assert len(data["text/plain"]) < 400


# -- errors ------------------------------------------------------------------------------------------------------------


def test_error_of_a_run_is_shown_and_the_widget_stays_usable(viewer: Viewer) -> None:
    def frames() -> Iterator[Frame]:
        raise ValueError("the number 4711 is <b>wrong</b>")
        yield

    viewer.start_run(frames(), lambda _run: None).join(PATIENCE)
    assert "4711" in viewer.status.value
    assert "<b>" not in viewer.status.value
    viewer.snapshot()
    viewer.clear_error()
    assert viewer.status.value == ""
    if viewer.frame is not None:
        viewer.redraw()


# -- accessibility -----------------------------------------------------------------------------------------------------


def test_images_have_alt_text(viewer: Viewer) -> None:
    views = [view for view in visible(viewer) if isinstance(view, FrameView) and view.value]
    assert views
    assert all(view.alt for view in views)


def test_clicks_have_an_equivalent_for_the_keyboard(viewer: Viewer) -> None:
    clickable = [view for view in descendants(viewer) if isinstance(view, FrameView) and view._on_click is not None]
    fields = (ipywidgets.BoundedIntText, ipywidgets.Text, ipywidgets.Dropdown, ipywidgets.Button)
    focusable = [control for control in descendants(viewer) if isinstance(control, fields)]
    assert focusable or not clickable
    if clickable:
        settings = type(viewer).settings
        selects = [setting for setting in settings.values() if isinstance(setting, Field)]
        others = [param for param in ("position", "image_index", "selection", "queries") if param in settings]
        assert selects or others


def test_text_has_no_fixed_color(viewer: Viewer) -> None:
    for part in descendants(viewer):
        if isinstance(part, ipywidgets.HTML):
            assert not re.search(r"(?<![-\w])color:", part.value), part.value


def test_names_are_escaped_and_cut(name: str, tiny_module: nn.Module) -> None:
    """In texts, menus, descriptions and saved images there is neither markup nor a control character, and all is short."""
    labels = ["<script>0</script>", "x" * 5000, "two\nlines \x1b[31mred\x07", "\u202eevil \ud800 e" + "\u0301" * 99]
    net = Network(tiny_module, size=16, labels=labels, name="<script>net</script>\x1b[31m")
    images = np.random.default_rng(4).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    kind = WIDGETS[name]
    inputs: list[Any] = []
    if issubclass(kind, DatasetViewer):
        inputs = [ImageSet(images, labels=[labels[i % 4] for i in range(12)])]
    elif issubclass(kind, ImageViewer):
        inputs = [{f"{label} image": image for label, image in zip(labels, images, strict=False)}]
    made = finished(kind(net, *inputs, **QUICK.get(name, {})))
    for part in descendants(made):
        for text in texts_of(part):
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]|" + "\u0301" * 5, text), (part, text)
            assert "x" * 1000 not in text
            assert not isinstance(part, ipywidgets.HTML) or "<script>" not in text
    height, width, _ = made.snapshot().shape
    assert width <= 1300
    assert height <= 3000
    assert repr(made).isprintable()
    made.close()


def texts_of(part: ipywidgets.Widget) -> Iterator[str]:
    """What a page shows of a widget: its texts, description and options."""
    for trait in ("value", "description", "tooltip", "placeholder", "_options_labels", "options"):
        value = getattr(part, trait, None)
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, str))


# -- closing -----------------------------------------------------------------------------------------------------------


def test_close_ends_threads(name: str, tiny: Network, image_set: ImageSet) -> None:
    before = {*threading.enumerate()}
    made = construct(name, tiny, image_set)
    made.close()
    deadline = time.monotonic() + PATIENCE
    while left := [t for t in threading.enumerate() if t not in before and t.name == "convis-run"]:
        assert time.monotonic() < deadline
        left[0].join(1)
    made.close()  # once more does nothing


def test_close_releases_all_widgets(name: str, tiny: Network, image_set: ImageSet) -> None:
    finished(construct(name, tiny, image_set)).close()  # what is made once for all widgets is there now
    gc.collect()
    before = {*_instances}
    made = finished(construct(name, tiny, image_set))
    reference = weakref.ref(made)
    made.close()
    del made
    gc.collect()
    left = [_instances[key] for key in _instances if key not in before]
    assert left == []
    assert reference() is None


def test_network_and_all_tensors_are_freed_after_close(name: str, image_set: ImageSet) -> None:
    """They would stay in the memory of a GPU."""

    def tensors() -> dict[int, torch.Tensor]:
        gc.collect()
        # not isinstance(), for which objects of other packages import something
        return {id(part): part for part in gc.get_objects() if issubclass(type(part), torch.Tensor)}

    def use() -> weakref.ref[Network]:
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(200, 4),
        )
        net = Network(nn.Sequential(*layers), size=16)
        finished(construct(name, net, image_set)).close()
        return weakref.ref(net)

    use()  # what is made once for all widgets is there now
    before = {*tensors()}
    network = use()
    left = [part.shape for key, part in tensors().items() if key not in before]
    assert network() is None
    assert left == []


def test_widget_that_fails_to_construct_leaves_nothing(name: str, tiny: Network, image_set: ImageSet) -> None:
    finished(construct(name, tiny, image_set)).close()
    before = {*_instances}
    with pytest.raises((ValueError, traitlets.TraitError)):
        construct(name, tiny, image_set, unit=("conv9", 0))
    assert {*_instances} <= before


@pytest.mark.parametrize(
    ("first", "second"), [*itertools.combinations(["FilterGrid", "ActivationExplorer", "FeatureVisualizer"], 2)]
)
def test_linked_widgets_share_the_unit(first: str, second: str, tiny: Network, image_set: ImageSet) -> None:
    one, other = (finished(construct(name, tiny, image_set)) for name in (first, second))
    convis_widgets.link(one, other)
    one.unit = ("conv2", 3)
    assert other.unit == one.unit
    for made in (finished(one), finished(other)):
        assert made.status.value == ""
        made.close()
