from __future__ import annotations

import pytest

from .checks import Case
from .networks import torchvision_cases
from .page import check_row


@pytest.mark.parametrize("case", torchvision_cases(), ids=str)
def test_torchvision_classifier_is_as_its_module(case: Case) -> None:
    check_row(case)
