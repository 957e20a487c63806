"""The page COMPATIBILITY.md: one line per network, and what is expected of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .checks import CHECKS, Case, Row, make_row
from .expected import KNOWN_FAILURES, REFUSALS
from .networks import timm_cases, torchvision_cases
from .odd_modules import odd_cases

PAGE = Path(__file__).parents[2] / "COMPATIBILITY.md"
HEADER = ("Network", "Input", "Layers", *(check.capitalize() for check in CHECKS), "Remarks")
TITLES = {
    "Odd modules": (odd_cases, "Small modules of our own, whose output or forward pass is unusual."),
    "torchvision": (torchvision_cases, "Classifiers of `torchvision.models`."),
    "timm": (timm_cases, "A small member of each family of `timm`, the module of `timm.models` in parentheses."),
}
INTRODUCTION = """\
# What works on which networks

Networks with random weights, compared with their own modules in plain PyTorch, one image at a time:

- **Prediction**: `net.predict_proba(image)` is the softmax of the module's output, or what the remark says, to 1e-6.
- **Occlusion**: the probabilities with a gray patch in each corner are those of the module on such images.
- **Saliency** and **integrated gradients** (4 steps) are those of autograd on the module.
- **Receptive fields** of 5 random units: NaN outside of its box does not change a unit, and where the field is called
  exact, NaN at each edge of the box reaches it. "exact" means that the fields of all layers are exact, "upper bounds" that
  those of some may be larger than necessary, as after attention; the layers column has the number of exact ones.

"yes" means equal, "refused" that the package says in one sentence why not, which is among the remarks, and "wrong" is a
known failure. The page is written by `make table`; the tests in `tests/compatibility` compare each line with what they find.
"""


def write_page(report: Callable[[Row], None]) -> Iterator[str]:
    """The page, in pieces, while the networks are checked; `report` is called with each row."""
    yield INTRODUCTION
    for title, (cases, text) in TITLES.items():
        yield f"\n## {title}\n\n{text}\n\n{_line(HEADER)}{_line('---' for _ in HEADER)}"
        for case in cases():
            row = make_row(case)
            report(row)
            yield _line(cells(row))


def check_row(case: Case) -> None:
    """Check that a network does what is expected of it, and that its line on the page says so."""
    row = make_row(case)
    for check in CHECKS:
        problem = row.problems.get(check)
        refusal, failure = (_expected(table, case, check) for table in (REFUSALS, KNOWN_FAILURES))
        if refusal is not None:
            assert problem == refusal, f"{check} of {case} is not refused with the sentence in REFUSALS, but: {problem}"
        elif failure is not None:
            assert problem is not None, f"{check} of {case} is right now: delete it from KNOWN_FAILURES"
        else:
            assert problem is None, f"{check} of {case}: {problem}"
    line = read_page().get(case.name)
    assert line == _without_layers(cells(row)), f"the line of {case} in {PAGE.name} is out of date; run make table"


def read_page() -> dict[str, list[str]]:
    """The lines of the page by the name of the network, without the number of layers."""
    lines = [
        [cell.strip() for cell in line.strip("|\n").split(" | ")]
        for line in PAGE.read_text().splitlines()
        if line[:1] == "|"
    ]
    return {_name(line[0]): _without_layers(line) for line in lines if line[0] not in (HEADER[0], "---")}


def cells(row: Row) -> list[str]:
    case = row.case
    name = case.name if case.family in ("odd module", "torchvision") else f"{case.name} ({case.family})"
    height, width = case.size
    layers = (
        ""
        if not row.layers
        else str(row.layers)
        if row.exact_layers == row.layers
        else f"{row.layers}, {row.exact_layers} exact"
    )
    verdicts = [
        "yes" if check not in row.problems else "refused" if _expected(REFUSALS, case, check) else "wrong"
        for check in CHECKS
    ]
    if verdicts[-1] == "yes":
        verdicts[-1] = "exact" if row.exact_layers == row.layers else "upper bounds"
    sentences: dict[str, list[str]] = {}
    for check in row.problems:
        sentence = _expected(REFUSALS, case, check) or _expected(KNOWN_FAILURES, case, check)
        if sentence:
            sentences.setdefault(sentence, []).append(check)
    notes = [
        sentence if len(checks) == len(CHECKS) else f"{', '.join(checks)}: {sentence}"
        for sentence, checks in sentences.items()
    ]
    remarks = "; ".join(note for note in (case.remark, *notes) if note).replace("|", "\\|").replace("\n", " ")
    return [name, f"{case.channels}x{height}x{width}", layers, *verdicts, remarks]


def _expected(table: dict[str, dict[str, str]], case: Case, check: str) -> str | None:
    entries = table.get(case.name, {})
    return entries.get(check, entries.get("all"))


def _line(parts: Iterable[str]) -> str:
    return f"| {' | '.join(parts)} |\n"


def _name(cell: str) -> str:
    return re.sub(r" \(\w+\)$", "", cell)


def _without_layers(line: list[str]) -> list[str]:
    return line[:2] + line[3:]
