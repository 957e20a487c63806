"""Paths, and writing files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from convis_widgets import FilterGrid
from convis_widgets.core.errors import display_name
from convis_widgets.core.files import check_folder, write_atomic


def test_display_name_is_valid_and_short() -> None:
    assert display_name("caf\udce9 \ud800.png") == "caf\ufffd \ufffd.png"
    assert display_name("größe 猫 😺.png") == "größe 猫 😺.png"
    short = display_name("a" * 500 + "b" * 500, 100)
    assert len(short) == 100
    assert (short[0], short[-1]) == ("a", "b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/x.png", "nosuchuser"),
        ("x" * 300 + ".png", "cannot be written"),
        ("gone/x.png", "gone"),
        (".png/", "end"),
    ],
)
def test_save_to_a_path_that_cannot_be_written_raises_one_sentence(path: str, message: str) -> None:
    with pytest.raises((OSError, ValueError), match=message) as caught:
        FilterGrid().save(path)
    assert "Errno" not in str(caught.value)


def test_error_of_writing_names_the_file(tmp_path: Path) -> None:
    def full(_file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"x\.png.*No space left on device") as caught:
        write_atomic(tmp_path / "x.png", full)
    assert caught.value.errno == errno.ENOSPC
    assert "Errno" not in str(caught.value)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png is a folder"):
        check_folder(tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
