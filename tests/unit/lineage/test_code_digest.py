"""What of hpcexp's own code is part of a run's identity."""

from __future__ import annotations

import pytest
from helpers import REPOSITORY

from hpcexp.lineage.code import RESULT_CODE


@pytest.mark.parametrize("part", RESULT_CODE)
def test_every_part_that_makes_results_is_in_the_package(part: str) -> None:
    """A module that moves takes its name in the list along."""
    assert (REPOSITORY / "hpcexp" / part).exists()
