"""Texts and messages: one line, without control characters, with names that are similar."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from torch import nn

from convis_widgets.core.errors import describe_error, did_you_mean
from convis_widgets.core.text import one_line

HOSTILE = [
    "a" * 5000,
    "two\nlines\r\nand\u2028three",
    "\x1b[31mred\x1b[0m\x07\x00\x7f\x9b1m",
    "\u202eevil\u202c \u2066x\u2069",
    "שלום עולם",
    "👩\u200d👩\u200d👧\u200d👦 family 🏳️\u200d🌈",
    "e" + "\u0301" * 300,
    "bad \ud800 surrogate\udfff",
    "日本語" * 400,
    "<script>alert('x')</script> & \"quotes\"",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("length", [3, 20, 500])
def test_one_line_has_no_control_characters_and_is_not_too_long(text: str, length: int) -> None:
    line = one_line(text, length)
    assert len(line) <= length
    assert line.splitlines() in ([], [line])
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not [c for c in line if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "LRI", "RLI", "FSI")]
    line.encode()
    assert one_line(line, length) == line


def test_one_line_keeps_ordinary_text_in_all_scripts() -> None:
    for text in ("tench, Tinca tinca", "שלום עולם", "👩\u200d👩\u200d👧\u200d👦", "naïve e\u0301", "Żółć", "日本語", "a  b"):
        assert one_line(text) == text


def test_one_line_keeps_both_ends_of_a_long_text() -> None:
    assert one_line("folder/" + "x" * 300 + "/name.png (97 %)", 60).startswith("folder/xxx")
    assert one_line("folder/" + "x" * 300 + "/name.png (97 %)", 60).endswith("x/name.png (97 %)")


def test_one_line_limits_combining_marks() -> None:
    assert sum(unicodedata.combining(c) > 0 for c in one_line("e" + "\u0301" * 300 + "f" + "\u0302" * 2)) == 4 + 2


@pytest.mark.parametrize(
    ("name", "known", "similar"),
    [
        ("metod", ["method", "target"], ["method"]),
        ("conv9", ["conv1", "fc"], ["conv1"]),
        ("Butterfy", ["butterfly", "butter", "moth"], ["butterfly", "butter"]),
        ("tiger", ["tiger cat", "lion"], ["tiger cat"]),
        ("DOG", ["dog", "Dog"], ["dog", "Dog"]),
        ("None", ["deconvnet", "gradient"], []),
        ("lr", ["color", "layer"], []),
        ("zzz", ["puzzle"], []),
        ("a", ["cat", "bat"], []),
        ("", ["cat"], []),
    ],
)
def test_did_you_mean_names_what_is_similar_and_nothing_else(name: str, known: list[str], similar: list[str]) -> None:
    expected = f"did you mean: {', '.join(similar)}" if similar else f"available: {', '.join(known)}"
    assert did_you_mean(name, known) == expected


def test_did_you_mean_shortens_and_cleans_names() -> None:
    text = did_you_mean("nothing like it", HOSTILE[:8])
    assert len(text) < 600
    assert text.isprintable() or "\u200d" in text
    assert "\x1b" not in text


# -- errors -----------------------------------------------------------------------------------------------------------------


CUDA = RuntimeError("CUDA error: misaligned address\nCompile with TORCH_USE_CUDA_DSA\n")
LOADING = RuntimeError("Error(s) in loading:\n\tMissing key(s)\n")
MEMORY = RuntimeError(f"CUDA out of memory. Tried to allocate 2.00 GiB. {'GPU 0 has. ' * 40}")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("give a number"), "give a number"),
        (ValueError("Give a number. " * 30), "Give a number. " * 29 + "Give a number."),
        (KeyError("a"), "KeyError: 'a'"),
        (AssertionError(), "AssertionError without a message"),
        (ValueError(), "ValueError without a message"),
        (MemoryError(), "MemoryError: not enough memory"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (OSError(28, "No space left on device", "x.png"), "x.png: no space left on device"),
        (CUDA, "RuntimeError: CUDA error: misaligned address"),
        (LOADING, "RuntimeError: Error(s) in loading: Missing key(s)"),
        (MEMORY, "RuntimeError: CUDA out of memory."),
        (ValueError("\n\x1b[31mred\n"), "\ufffd[31mred"),
    ],
)
def test_error_in_one_line(error: Exception, text: str) -> None:
    assert describe_error(error) == text


def test_error_in_a_forward_pass_names_the_innermost_layer() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of order")

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Identity(), Broken()))
    modules = {id(part): name for name, part in module.named_modules() if name}
    for batch, text in (
        (torch.zeros(1, 3, 5, 5), "in 1.1: RuntimeError: out of order"),
        (torch.zeros(1, 2, 5, 5), "in 0: RuntimeError: Given groups=1, weight of size [4, 3, 3, 3], expected input"),
    ):
        with pytest.raises(RuntimeError) as caught:
            module(batch)
        assert describe_error(caught.value, modules=modules).startswith(text)
        assert describe_error(caught.value).startswith("RuntimeError: ")
