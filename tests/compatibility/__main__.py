"""Print the page: ``PYTHONPATH=tests python -m compatibility > COMPATIBILITY.md``."""

from __future__ import annotations

import sys

import torch

from .page import write_page

torch.set_num_threads(1)
for part in write_page():
    sys.stdout.write(part)
    sys.stdout.flush()
