from __future__ import annotations

import pytest

from .checks import Case
from .expected import KNOWN_FAILURES, REFUSALS
from .networks import timm_cases, torchvision_cases
from .odd_modules import odd_cases
from .page import check_row, read_page


@pytest.mark.parametrize("case", odd_cases(), ids=str)
def test_odd_module_is_as_its_own_output(case: Case) -> None:
    check_row(case)


def test_page_has_one_line_for_each_network() -> None:
    names = [case.name for case in (*odd_cases(), *torchvision_cases(), *timm_cases())]
    assert list(read_page()) == names
    assert not {*KNOWN_FAILURES, *REFUSALS} - {*names}
