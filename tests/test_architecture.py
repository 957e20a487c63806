"""The rules between the rooms, each one a line."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convis_widgets
from convis_widgets.core import TECHNIQUES, knobs_of

PACKAGE = Path(convis_widgets.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports, relative ones written out from the package's root."""
    found = set()
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found |= {".".join([*base, *filter(None, [node.module])])}
            found |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return found


def in_room(room: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(PACKAGE).parts[0] == room]


def who_imports(module: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    }


def test_core_knows_neither_techniques_nor_widgets() -> None:
    for room in ("techniques", "widgets"):
        assert not [name for name in who_imports(f"convis_widgets.{room}") if name.startswith("core")]


def test_techniques_use_core_and_never_each_other() -> None:
    for path in in_room("techniques"):
        if path.name != "__init__.py":
            inside = {name for name in imports(path) if name.startswith("convis_widgets")}
            assert all(name.startswith("convis_widgets.core") for name in inside), path


def test_widgets_never_import_torch() -> None:
    assert not {name for name in who_imports("torch") | who_imports("torchvision") if name.startswith("widgets")}


@pytest.mark.parametrize(
    ("module", "home"),
    [
        ("ipyevents", {"widgets/frame_view.py"}),
        ("torchvision", {"core/zoo.py"}),
        ("bqplot", {"widgets/plots.py"}),
        ("cv2", {"techniques/segmentation.py"}),
        ("openTSNE", {"techniques/embedding.py"}),
    ],
)
def test_a_dependency_is_known_to_one_file(module: str, home: set[str]) -> None:
    assert who_imports(module) == home


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"register_forward|register_full_backward|register_module_", {"core/trace.py"}),
        (r"threading\.Thread\(|Executor\(", {"core/run.py"}),
        (r"\bIMAGENET_(MEAN|STD)\b *[,=(]|0\.485", {"core/transform.py", "core/zoo.py"}),
        (r"inference_mode(?!\(False\))", set()),
    ],
)
def test_a_mechanism_lives_in_one_file(pattern: str, home: set[str]) -> None:
    # the demo room trains a network of its own and is not part of the machinery
    files = [path for path in FILES if path.relative_to(PACKAGE).parts[0] != "demo"]
    found = {str(path.relative_to(PACKAGE)) for path in files if re.search(pattern, path.read_text())}
    assert found <= home


@pytest.mark.parametrize("room", ["core", "techniques"])
def test_computing_rooms_work_without_jupyter(room: str) -> None:
    block = "import sys; [sys.modules.__setitem__(m, None) for m in ('ipywidgets', 'ipyevents', 'bqplot', 'IPython')]"
    code = f"{block}; import convis_widgets.{room}; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_nothing_prints_or_touches_a_global_seed() -> None:
    for path in in_room("core") + in_room("techniques") + in_room("widgets"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("print", "torch.manual_seed", "np.random.seed", "random.seed"), f"{path}: {name}"


def test_files_stay_small_enough_to_hold_in_the_head() -> None:
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert max(sizes.values()) <= 480, max(sizes, key=sizes.get)


def public_objects() -> list[tuple[str, object]]:
    found = []
    for info in pkgutil.walk_packages([str(PACKAGE)], "convis_widgets."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            mine = getattr(value, "__module__", None) == info.name
            if not name.startswith("_") and mine and (inspect.isclass(value) or inspect.isfunction(value)):
                found.append((f"{info.name}.{name}", value))
    return found


def test_everything_public_has_a_docstring() -> None:
    assert not [name for name, value in public_objects() if not (value.__doc__ or "").strip()]


def test_exported_names_exist_and_stand_in_the_readme() -> None:
    readme = (PACKAGE.parent / "README.md").read_text()
    for name in convis_widgets.__all__:
        assert getattr(convis_widgets, name) is not None
        assert name.startswith("__") or f"`{name}" in readme, name


def test_every_technique_is_named_after_its_file_and_keeps_its_knobs_keyword_only() -> None:
    for path in in_room("techniques"):
        if path.name != "__init__.py":
            assert path.stem in TECHNIQUES
    for name, technique in TECHNIQUES.items():
        signature = inspect.signature(technique)
        assert all(signature.parameters[knob].kind is inspect.Parameter.KEYWORD_ONLY for knob in knobs_of(technique)), name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, convis_widgets; assert not {'torch', 'ipywidgets', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
