"""What the server of warm workers has done before it forks the first."""

from __future__ import annotations

from pathlib import Path

from helpers import python

CODE = """
import hpcexp.launch.supervisor.preload
from hpcexp import plan
print(plan._config_type.cache_info().currsize)
"""


def test_the_types_of_a_plan_are_built(tmp_path: Path) -> None:
    """Otherwise each worker would build them again."""
    assert "1\n" == python(CODE, tmp_path).out
