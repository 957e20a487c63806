"""What is found in a result folder: nothing that was changed, exchanged or damaged becomes a result, and nothing blocks."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.dataset import batch_collector as collector_file
from convis_widgets.core.dataset.result_store import ResultStore
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run

FUZZ_ROUNDS = int(os.environ.get("CONVIS_FUZZ_ROUNDS", "90"))
FILES = ("features", "state.npz", "thumbnails")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_file, "auto_batch_size", lambda *_: 4)


@pytest.fixture(scope="module")
def net() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    return Network(nn.Sequential(*layers), size=12)


def pixels(count: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)


def scanned(net: Network, cache: Path, **kwargs: Any) -> Scan:
    scan = Scan(net, kwargs.pop("images", pixels()), cache=cache, **kwargs)
    Run(scan.frames()).run()
    return scan


def results(scan: Scan) -> dict[str, bytes]:
    """All results of a Scan, as bytes."""
    arrays = {name: getattr(scan, name) for name in ("labels", "predictions", "probabilities", "valid")}
    arrays |= {"features": scan.features(), "thumbnails": scan.thumbnails()}
    for layer in scan.layers:
        arrays |= {f"{layer} {part}": getattr(scan.top(layer), part) for part in ("values", "images", "rows", "cols")}
    return {name: array.tobytes() for name, array in arrays.items()}


# -- damaged, exchanged and foreign files -------------------------------------------------------------------------------


def rewrite_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the arrays of a state, as somebody could who reads and writes it with NumPy."""
    with np.load(folder / "state.npz") as stored:
        state = {name: stored[name] for name in stored.files}
    change(state)
    np.savez(folder / "state.npz", **state)


def about(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state["about"] = np.array(json.dumps({**json.loads(str(state["about"])), **changes}))

    return change


TAMPERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "about is not JSON": lambda state: state.update(about=np.array("nonsense")),
    "about is a list": lambda state: state.update(about=np.array("[1, 2]")),
    "about without seen": lambda state: state.update(about=np.array('{"format": 2, "width": 5}')),
    "seen is negative": about(seen=-5),
    "seen is larger than the set": about(seen=99),
    "seen is a text": about(seen="ten"),
    "seen is smaller": about(seen=4),
    "another width": about(width=4),
    "skipped of another shape": lambda state: state.update(skipped=np.zeros((3, 3), "U3")),
    "skipped without numbers": lambda state: state.update(skipped=np.array([["x", "why"]])),
    "an image more is skipped": lambda state: state.update(skipped=np.array([["3", "why"]])),
    "labels of another length": lambda state: state.update(labels=state["labels"][:4]),
    "other predictions": lambda state: state.update(predictions=state["predictions"] + 1),
    "probabilities of text": lambda state: state.update(probabilities=state["probabilities"].astype(str)),
    "values of text": lambda state: state.update({"values 0": state["values 0"].astype(str)}),
    "other values": lambda state: state.update({"values 0": state["values 0"] + 1}),
    "images out of range": lambda state: state.update({"images 0": state["images 0"] + 1000}),
    "positions out of range": lambda state: state.update({"positions 0": state["positions 0"] + 1000}),
    "layers exchanged": lambda state: state.update({"values 0": state["values 2"], "values 2": state["values 0"]}),
    "no check": lambda state: state.pop("check"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_scan_with_changed_state_begins_anew(name: str, net: Network, tmp_path: Path) -> None:
    scan = scanned(net, tmp_path)
    expected = results(scan)
    rewrite_state(scan.folder, TAMPERED[name])
    again = Scan(net, pixels(), cache=tmp_path)
    assert (again.num_seen, again.skipped) == (0, {})
    assert results(scanned(net, tmp_path)) == expected
    assert Scan(net, pixels(), cache=tmp_path).complete


@pytest.mark.parametrize("name", FILES)
def test_scan_with_files_of_another_scan_begins_anew(name: str, net: Network, tmp_path: Path) -> None:
    scan, other = scanned(net, tmp_path), scanned(net, tmp_path, images=pixels(seed=1))
    expected = results(scan)
    shutil.copy(other.folder / name, scan.folder / name)
    assert Scan(net, pixels(), cache=tmp_path).num_seen == 0
    assert results(scanned(net, tmp_path)) == expected


def test_scan_copied_to_the_folder_of_another_key_begins_anew(net: Network, tmp_path: Path) -> None:
    scan, other = scanned(net, tmp_path), scanned(net, tmp_path, images=pixels(seed=1))
    expected = results(scan)
    shutil.rmtree(scan.folder)
    shutil.copytree(other.folder, scan.folder)
    assert Scan(net, pixels(), cache=tmp_path).num_seen == 0
    assert results(scanned(net, tmp_path)) == expected


@pytest.mark.parametrize("name", ["features", "thumbnails"])
def test_scan_that_is_open_does_not_return_changed_rows(name: str, net: Network, tmp_path: Path) -> None:
    scan = scanned(net, tmp_path)
    expected = results(scan)
    content = (scan.folder / name).read_bytes()
    (scan.folder / name).write_bytes(bytes(len(content)))
    with pytest.raises(FileNotFoundError, match=f"{scan.folder}.*scan again"):
        results(scan)
    Run(scan.frames()).run()
    assert results(scan) == expected


def test_scan_larger_than_what_is_checked_at_once_does_not_return_changed_rows(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.core.dataset.row_files.MAX_CHECKED", 60)  # 3 rows of features
    folder = scanned(net, tmp_path).folder
    with (folder / "features").open("r+b") as file:
        file.seek(8 * 5 * 4)
        file.write(b"\0\0\0\1")
    scan = Scan(net, pixels(), cache=tmp_path)
    scan.features(np.arange(8))
    with pytest.raises(FileNotFoundError, match="scan again"):
        scan.features(np.array([9, 8]))
    expected = results(scanned(net, tmp_path / "other"))
    Run(scan.frames()).run()
    assert results(scan) == expected


def mutate(folder: Path, other: Path, rng: random.Random) -> str:
    """Damage one file in one of several ways; returns which."""
    path = folder / rng.choice(FILES)
    content = bytearray(path.read_bytes())
    way = rng.choice(["flip", "bits", "truncate", "zero", "append", "swap", "foreign", "rows", "members", "delete"])
    if way in ("flip", "bits"):
        for _ in range(rng.choice([1, 1, 1, 4, 30])):
            content[rng.randrange(len(content))] ^= rng.randrange(1, 256) if way == "flip" else 1 << rng.randrange(8)
    elif way == "truncate":
        del content[rng.randrange(len(content)) :]
    elif way == "zero":
        start = rng.randrange(len(content))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif way == "append":
        content += rng.randbytes(rng.randrange(1, 200))
    elif way == "swap":
        content = bytearray((folder / rng.choice(FILES)).read_bytes())
    elif way == "foreign":
        content = bytearray((other / path.name).read_bytes())
    elif way == "rows":
        half = len(content) // 2
        content = content[half:] + content[:half]
    elif way == "members":
        path = folder / "state.npz"
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        a, b = rng.sample(sorted(members), 2)
        members[a], members[b] = members[b], members[a]
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return f"{way} {a} {b}"
    if way == "delete":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{way} {path.name}"


@pytest.mark.parametrize("seen", [10, 8])
def test_scan_of_damaged_results_equals_fresh_scan(seen: int, net: Network, tmp_path: Path) -> None:
    expected = results(scanned(net, tmp_path / "fresh"))
    scan = Scan(net, pixels(), cache=tmp_path / "cache")
    while scan.num_seen < seen:
        scan.step()
    scan.save()
    shutil.copytree(scan.folder, tmp_path / "copy")
    other = scanned(net, tmp_path, images=pixels(seed=1)).folder
    rng = random.Random(seen)
    for i in range(FUZZ_ROUNDS):
        shutil.rmtree(scan.folder)
        shutil.copytree(tmp_path / "copy", scan.folder)
        way = mutate(scan.folder, other, rng)
        again = Scan(net, pixels(), cache=tmp_path / "cache")
        for _ in again.frames():
            pass
        assert results(again) == expected, f"round {i}: {way}"
        assert sorted(path.name for path in scan.folder.iterdir()) == sorted(FILES)


# -- links, pipes and other files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["pipe", "link", "dangling link", "hard link", "link to a device"])
def test_scan_neither_waits_for_a_pipe_nor_writes_through_a_link(name: str, what: str, net: Network, tmp_path: Path) -> None:
    scan = scanned(net, tmp_path / "cache")
    expected, path, target = results(scan), scan.folder / name, tmp_path / "precious"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        if what != "dangling link":
            target.write_bytes(b"precious")
        (os.link if what == "hard link" else os.symlink)(target, path)
    again = scanned(net, tmp_path / "cache")
    assert results(again) == expected
    assert path.is_file()
    assert not path.is_symlink()
    assert Scan(net, pixels(), cache=tmp_path / "cache").complete
    assert (
        not target.exists()
        if what == "dangling link"
        else what == "pipe" or not target.exists() or (target.read_bytes() == b"precious")
    )


def test_scan_with_link_in_place_of_its_folder_does_not_write_there(net: Network, tmp_path: Path) -> None:
    folder = scanned(net, tmp_path / "cache").folder
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert not scanned(net, tmp_path / "cache").persistent
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", FILES)
def test_scan_names_a_folder_in_place_of_a_file(name: str, net: Network, tmp_path: Path) -> None:
    scan = Scan(net, pixels(), cache=tmp_path)
    (scan.folder / name).mkdir()
    with pytest.raises(OSError, match=rf"{scan.folder / name} cannot be written \(.*\); .*CONVIS_CACHE") as caught:
        Run(scan.frames()).run()
    assert "\n" not in str(caught.value)
    (scan.folder / name).rmdir()
    Run(scan.frames()).run()
    assert results(scan) == results(scanned(net, tmp_path / "other"))


def test_scan_removes_unfinished_files_of_killed_processes_only(net: Network, tmp_path: Path) -> None:
    folder = scanned(net, tmp_path).folder
    old, new = folder / "old.part", folder / "new.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    Scan(net, pixels(), cache=tmp_path)
    assert not old.exists()
    assert new.exists(), "another process may be writing it"


# -- full disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "name", "seen"),
    [(50, "features", 0), (1000, "thumbnails", 0), (2500, "state.npz", 4), (5000, "state.npz", 10)],
)
def test_scan_on_full_disk_names_the_file_and_resumes(
    limit: int, name: str, seen: int, net: Network, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    scan = Scan(net, pixels(), cache=tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # no file becomes larger
    try:
        with pytest.raises(OSError, match=rf"{scan.folder / name} cannot be written \(File too large\); free disk space"):
            Run(scan.frames()).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert scan.num_seen == seen, "the results so far are kept"
    Run(scan.frames()).run()
    assert results(scan) == results(scanned(net, tmp_path / "other")) == results(Scan(net, pixels(), cache=tmp_path))
    assert sorted(path.name for path in scan.folder.iterdir()) == sorted(FILES)


# -- where results are ----------------------------------------------------------------------------------------------------


def test_scan_without_home_uses_a_temporary_folder(net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONVIS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    scan = scanned(net, None)
    folder = scan.folder
    assert not scan.persistent
    assert (folder / "features").exists()
    del scan
    assert not folder.exists()


@pytest.mark.parametrize("where", ["a file", "a/deep/folder", "with spaces and ünïcode", "relative", "~nosuchuser/cache"])
def test_scan_in_unusual_cache_folder(where: str, net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.chdir(tmp_path)
    is_path = where in ("a file", "a/deep/folder", "with spaces and ünïcode")
    monkeypatch.setenv("CONVIS_CACHE", str(tmp_path / where) if is_path else where)
    scan = Scan(net, pixels())
    scan.step()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Run(scan.frames()).run()
    assert results(scan) == results(scanned(net, tmp_path / "other"))
    assert scan.persistent == (where not in ("a file", "~nosuchuser/cache"))
    assert scan.folder.is_absolute()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_result_store_accepts_only_states_of_its_key(tmp_path: Path) -> None:
    store, other = ResultStore(tmp_path, "a"), ResultStore(tmp_path, "b")
    store.save({"x": np.arange(3)})
    assert np.array_equal(store.load()["x"], np.arange(3))
    shutil.copy(tmp_path / "scans" / "a" / "state.npz", tmp_path / "scans" / "b" / "state.npz")
    assert other.load() == {}
