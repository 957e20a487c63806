"""The rules between the parts of the package."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Protocol

import pytest

import convis_widgets
from convis_widgets.core.knob import get_knobs
from convis_widgets.core.registry import TECHNIQUES

PACKAGE = Path(convis_widgets.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

# The rooms of the core, and which others each one imports.
CORE_ROOMS = {
    "text": set(),
    "errors": {"text"},
    "memory": set(),
    "files": {"text"},
    "threads": set(),
    "types": set(),
    "knob": set(),
    "runs": {"threads"},
    "network": {"errors", "files", "memory", "runs", "text", "types"},
    "registry": {"errors", "knob", "network", "runs", "types"},
    "attribution": {"errors", "knob", "memory", "network", "registry", "runs", "types"},
    "synthesis": {"memory", "network", "types"},
    "dataset": {"errors", "files", "knob", "memory", "network", "runs", "text", "threads", "types"},
}
GROUPS = {"network", "attribution", "synthesis", "dataset"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Modules and names that a file imports, absolute; at run time only those of the module level."""
    names = set()
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts if path.name == "__init__.py" else parts[:-1]
    tree = ast.parse(path.read_text())
    nodes = [n for n in tree.body if not isinstance(n, ast.If)] if at_run_time else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def files_in(room: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(PACKAGE).parts[0] == room]


def importers(module: str) -> set[str]:
    return {
        relative(path) for path in FILES if any(name == module or name.startswith(f"{module}.") for name in imported(path))
    }


def test_core_imports_neither_techniques_nor_widgets() -> None:
    for room in ("techniques", "widgets"):
        assert not [path for path in importers(f"convis_widgets.{room}") if path.startswith("core/")]


def test_core_rooms_import_only_lower_rooms() -> None:
    found = {room: set[str]() for room in CORE_ROOMS}
    for path in files_in("core"):
        room = path.relative_to(PACKAGE / "core").parts[0].removesuffix(".py")
        if room != "__init__":
            inside = (
                name.split(".") for name in imported(path, at_run_time=True) if name.startswith("convis_widgets.core.")
            )
            found[room] |= {parts[2] for parts in inside} - {room}
    assert found == CORE_ROOMS
    order = list(CORE_ROOMS)
    assert all(order.index(lower) < order.index(room) for room, others in CORE_ROOMS.items() for lower in others)


def test_no_import_circle() -> None:
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
    }
    arrows = {
        name: {other for other in imported(path, at_run_time=True) if other in modules} - {name}
        for name, path in modules.items()
    }
    # a package's facade is not imported by its own modules
    for name in arrows:
        arrows[name] -= {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)}
    while free := [name for name, others in arrows.items() if not others]:
        for name in free:
            del arrows[name]
        for others in arrows.values():
            others -= set(free)
    assert not arrows


@pytest.mark.parametrize("room", ["core", "techniques", "widgets"])
def test_rooms_have_the_same_four_groups(room: str) -> None:
    assert {path.name for path in (PACKAGE / room).iterdir() if path.is_dir()} >= GROUPS


def test_techniques_import_the_core_and_never_each_other() -> None:
    for path in files_in("techniques"):
        if path.name != "__init__.py":
            inside = {name for name in imported(path) if name.startswith("convis_widgets")}
            assert all(name.startswith("convis_widgets.core") for name in inside), path


def test_widgets_never_import_torch() -> None:
    assert not {path for path in importers("torch") | importers("torchvision") if path.startswith("widgets/")}


@pytest.mark.parametrize(
    ("module", "home"),
    [
        ("anywidget", {"widgets/controls/frame_view.py", "widgets/controls/page_size.py"}),
        ("torchvision", {"core/network/pretrained.py"}),
        ("bqplot", {"widgets/controls/curve.py"}),
        ("cv2", {"techniques/attribution/segmentation.py"}),
        ("loky", {"core/dataset/image_loader.py"}),
        ("openTSNE", {"techniques/dataset/embedding.py"}),
    ],
)
def test_dependency_is_imported_by_one_file(module: str, home: set[str]) -> None:
    assert importers(module) == home


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"register_forward|register_full_backward|register_module_", {"core/network/trace.py"}),
        (r"threading\.Thread\(|ThreadPoolExecutor\(", {"core/runs/run.py", "core/dataset/image_loader.py"}),
        (r"ProcessPoolExecutor\(|multiprocessing", {"core/dataset/image_loader.py"}),
        (r"\bIMAGENET_(MEAN|STD)\b *[,=(]|0\.485", {"core/network/transform.py", "core/network/pretrained.py"}),
        (r"inference_mode(?!\(False\))|is_autocast_enabled", {"core/network/modes.py"}),
        (r"set_num_threads", {"core/threads.py", "core/dataset/dask_backend.py"}),
        (r"\.replace\(path\)", {"core/files.py"}),
    ],
)
def test_mechanism_lives_in_one_file(pattern: str, home: set[str]) -> None:
    # the demo trains a network of its own and is not part of the machinery
    files = [path for path in FILES if path.relative_to(PACKAGE).parts[0] != "demo"]
    assert {relative(path) for path in files if re.search(pattern, path.read_text())} == home


@pytest.mark.parametrize("room", ["core", "techniques"])
def test_room_works_without_jupyter(room: str) -> None:
    block = "import sys; [sys.modules.__setitem__(m, None) for m in ('ipywidgets', 'anywidget', 'bqplot', 'IPython')]"
    code = f"{block}; import convis_widgets.{room}; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_nothing_prints_or_touches_a_global_seed() -> None:
    for path in files_in("core") + files_in("techniques") + files_in("widgets"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if path.name == "seed.py":  # it restores the state
                    continue
                assert name not in ("print", "torch.manual_seed", "np.random.seed", "random.seed"), f"{path}: {name}"


def test_importing_the_package_changes_no_global_state_of_torch() -> None:
    code = (
        "import torch; torch.set_num_threads(3); before = torch.get_num_threads(), torch.get_rng_state().sum();"
        "import convis_widgets.core, convis_widgets.techniques, convis_widgets.widgets;"
        "assert (torch.get_num_threads(), torch.get_rng_state().sum()) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, convis_widgets; assert not {'torch', 'ipywidgets', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_longer_than_400_lines() -> None:
    assert [relative(path) for path in FILES if len(path.read_text().splitlines()) > MAX_LINES] == []


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages([str(PACKAGE)], "convis_widgets."):
        yield importlib.import_module(info.name)


def test_no_function_shadows_a_module() -> None:
    for module in modules():
        if hasattr(module, "__path__"):
            names = {info.name for info in pkgutil.iter_modules(module.__path__)}
            assert not {name for name in names if inspect.isroutine(getattr(module, name, None))}, module.__name__


def test_everything_public_has_a_docstring() -> None:
    for module in modules():
        for name, value in vars(module).items():
            mine = getattr(value, "__module__", None) == module.__name__
            if not name.startswith("_") and mine and (inspect.isclass(value) or inspect.isfunction(value)):
                assert (value.__doc__ or "").strip(), f"{module.__name__}.{name}"


def public_methods(cls: type, module: ModuleType) -> Iterator[FunctionType]:
    """Public methods that a class defines, without those that a base class or a Protocol of its module describes."""
    protocols = [value for value in vars(module).values() if inspect.isclass(value) and Protocol in value.__bases__]
    bases = [base for base in (*cls.__mro__[1:], *protocols) if base.__module__.startswith("convis_widgets.")]
    for name, value in vars(cls).items():
        method = getattr(value, "__func__", value)  # of a class method or static method
        described = any(name in vars(base) for base in bases if base is not cls)
        if not name.startswith("_") and inspect.isfunction(method) and not described:
            yield method


def public_functions(module: ModuleType) -> Iterator[FunctionType]:
    """Public functions of a module and public methods of its public classes."""
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
            if inspect.isfunction(value):
                yield value
            elif inspect.isclass(value):
                yield from public_methods(value, module)


def test_core_functions_with_several_arguments_document_them() -> None:
    undocumented = {}
    for module in modules():
        if module.__name__.startswith("convis_widgets.core."):
            for function in public_functions(module):
                names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
                section = (inspect.getdoc(function) or "").partition("Parameters\n----------\n")[2]
                missing = [n for n in names if not n.startswith("_") and not re.search(rf"\b{n}\b", section)]
                if len(names) >= 2 and missing:
                    undocumented[f"{module.__name__}.{function.__qualname__}"] = missing
    assert undocumented == {}


def test_public_names_are_in_the_readme() -> None:
    readme = (PACKAGE.parent / "README.md").read_text()
    missing = [
        name for name in dir(convis_widgets) if not name.startswith("__") and not re.search(rf"`[^`]*\b{name}\b", readme)
    ]
    assert missing == []


def test_core_exports_28_names() -> None:
    assert len(convis_widgets._exports("core")) == 28


def test_every_technique_is_named_after_its_file_and_has_keyword_only_knobs() -> None:
    stems = {path.stem for path in files_in("techniques") if path.name != "__init__.py"}
    mine = {name: function for name, function in TECHNIQUES.items() if function.__module__.startswith("convis_widgets.")}
    assert stems == set(mine)
    for name, technique in mine.items():
        parameters = inspect.signature(technique).parameters
        assert all(parameters[knob].kind is inspect.Parameter.KEYWORD_ONLY for knob in get_knobs(technique)), name


def test_type_checkers_see_techniques_and_widgets(tmp_path: Path) -> None:
    path = tmp_path / "user.py"
    path.write_text(
        "import convis_widgets\n"
        "convis_widgets.saliency(None, 'x.png', tagret=1)\n"
        "convis_widgets.Run(convis_widgets.saliency(None, 'x.png')).run().heat.shape\n"
        "convis_widgets.FilterGrid().network.predict(3, k='5')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(path)], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=280
    )
    errors = re.findall(r"user\.py:(\d+): error: (.+)", done.stdout)
    assert [line for line, _ in errors] == ["2", "4", "4"], done.stdout + done.stderr
    assert 'did you mean "target"' in errors[0][1]
