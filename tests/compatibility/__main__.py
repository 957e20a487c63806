"""Print the page, and on stderr the processor time: ``PYTHONPATH=tests python -m compatibility > COMPATIBILITY.md``."""

from __future__ import annotations

import sys

import torch

from .checks import Row
from .page import write_page


def report(row: Row) -> None:
    making, total = row.seconds["Network"], sum(row.seconds.values())
    text = f"{row.case.name}: {total:.1f} s, {making:.2f} s for the Network with {row.forward_passes} forward passes"
    print(
        "; ".join([text, *(f"{check}: {problem}" for check, problem in row.problems.items())]), file=sys.stderr, flush=True
    )


torch.set_num_threads(1)
for part in write_page(report):
    print(part, end="", flush=True)
