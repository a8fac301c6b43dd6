"""What the server of warm workers has done before it forks the first."""

from __future__ import annotations

from pathlib import Path

from helpers import python

CODE = """
import pkgutil
import sys
import hpcexp.launch.supervisor.preload
from hpcexp import data, models, plan
from hpcexp.train import tasks
rooms = (data, models, tasks)
named = [f"{room.__name__}.{module.name}" for room in rooms for module in pkgutil.iter_modules(room.__path__)]
print(plan._config_type.cache_info().currsize, [name for name in named if name not in sys.modules])
"""


def test_what_every_job_needs_is_there(tmp_path: Path) -> None:
    """The types of a plan, and the modules that a configuration names: otherwise each worker would make them again."""
    assert "1 []\n" == python(CODE, tmp_path).out
