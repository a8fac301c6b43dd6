"""CPU time of what never trains: `hpcexp --help` and `hpcexp plan`, against `import hydra`.

Beside them an app that answers the same from the same conf/, but imports torch, Lightning and MLflow at the top.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Row, cpu_seconds, interleaved

PAIRS = 7
GOAL = 2.0

HYDRA = ["-c", "import hydra"]
STOCK = ["-c", "import mlflow; from benchmarks.stock import main; main()", "hydra/help=default", "hydra/output=default"]


def rows(pairs: int, scratch: Path) -> list[Row]:
    """The table's lines. The heavy app takes fewer rounds: it is twenty times as slow, and nobody doubts it."""

    def cpu(*arguments: str) -> Callable[[], float]:
        return lambda: cpu_seconds(arguments, scratch)

    hydra = cpu(*HYDRA)
    light = interleaved(
        {"hydra": hydra, "help": cpu("-m", "hpcexp", "--help"), "plan": cpu("-m", "hpcexp", "plan")}, pairs
    )
    heavy = interleaved(
        {"hydra": hydra, "help": cpu(*STOCK, "--help"), "plan": cpu(*STOCK, "--cfg", "job")}, max(1, pairs // 3)
    )
    return [
        Row("`hpcexp --help` / `import hydra`", light["help"], light["hydra"], GOAL),
        Row("`hpcexp plan` / `import hydra`", light["plan"], light["hydra"], GOAL),
        Row("app with torch, Lightning, MLflow at the top, `--help` / `import hydra`", heavy["help"], heavy["hydra"]),
        Row("the same app, `--cfg job` / `import hydra`", heavy["plan"], heavy["hydra"]),
    ]
