"""Files that a user asks for: what cannot be written is said in one sentence, and leaves nothing."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from convis_widgets.core import files
from convis_widgets.core.files import check_output, write_atomic

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def test_check_output_returns_the_path_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert check_output("~/x.PNG", [".png"]) == tmp_path / "x.PNG"
    assert check_output(tmp_path / "y.gif", [".png", ".gif"]) == tmp_path / "y.gif"


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("x.bmp", r"'x\.bmp'.*\.png or \.gif"),
        ("x", r"'x'.*\.png or \.gif"),
        (".png", r"'\.png'.*\.png or \.gif"),
        ("", r"''.*\.png or \.gif"),
        (None, r"None.*\.png or \.gif"),
        (3, r"3.*\.png or \.gif"),
        (b"x.png", r"x\.png.*\.png or \.gif"),
        ("x\0.png", r"x.*\.png or \.gif"),
        ("missing/x.png", r"folder missing does not exist; create it"),
        ("~no such user/x.png", r"home folder in ~no such user"),
        ("n" * 300 + ".png", r"n{20}.*too long; give a shorter name"),
        ("folder.png", r"folder\.png is a folder; give the name of a file"),
        ("file.png/x.png", r"folder file\.png does not exist"),
        ("\x1b[31m.bmp", r"^[^\x1b]*$"),
    ],
)
def test_check_output_refuses_in_one_sentence(
    path: Any, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.png").touch()
    with pytest.raises((ValueError, OSError)) as caught:
        check_output(path, [".png", ".gif"])
    assert re.search(pattern, str(caught.value))
    assert "Errno" not in str(caught.value)


@posix
def test_check_output_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileExistsError, match=r"pipe\.png is not a regular file"):
        check_output(tmp_path / "pipe.png", [".png"])


@pytest.mark.parametrize(
    ("protected", "pattern"), [("folder", "folder .*saved is write-protected"), ("x.png", r"x\.png is write-protected")]
)
def test_check_output_refuses_protected_files_and_folders(
    protected: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "x.png").touch()
    denied = folder if protected == "folder" else folder / protected
    monkeypatch.setattr(files.os, "access", lambda path, _mode: Path(path) != denied)  # root may write everywhere
    with pytest.raises(PermissionError, match=pattern):
        check_output(folder / "x.png", [".png"])


def failing(code: int) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    return write


@pytest.mark.parametrize(
    ("code", "pattern"),
    [
        (errno.ENOSPC, r"x\.png cannot be written, no space left on device; free disk space"),
        (errno.EACCES, r"x\.png cannot be written, permission denied; save in another folder"),
        (errno.EROFS, r"x\.png cannot be written, read-only file system; save in another folder"),
        (errno.EIO, r"x\.png cannot be written, input/output error; save in another folder"),
    ],
)
@posix
def test_save_that_fails_says_why_and_leaves_the_old_file(code: int, pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=pattern) as caught:
        write_atomic(path, failing(code))
    assert caught.value.errno == code
    assert "Errno" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    assert path.read_bytes() == b"old"


def test_write_atomic_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    assert write_atomic(path, b"new") == path
    assert path.read_bytes() == b"new"
