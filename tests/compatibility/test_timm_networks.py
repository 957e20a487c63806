from __future__ import annotations

import pytest

from .checks import Case
from .networks import timm_cases
from .page import check_row


@pytest.mark.parametrize("case", timm_cases(), ids=str)
def test_timm_network_is_as_its_module(case: Case) -> None:
    check_row(case)
