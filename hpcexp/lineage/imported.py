"""The code that a job has really imported, and what it ran on: facts by its first rank when it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hpcexp
from hpcexp.files.atomic import write_json
from hpcexp.lineage.code import installed_places, module_file
from hpcexp.lineage.environment import variables
from hpcexp.rundir import RunDir


def note_job(run: RunDir, started: float) -> None:
    """Write `job.json`. A file that was edited since `started` (unix seconds) may be another than was imported."""
    files = sorted(set(_own_files(list(sys.modules.values()))))
    facts: dict[str, Any] = {
        "imported": {module_file(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "edited_meanwhile": [module_file(file) for file in files if file.stat().st_mtime > started],
        "variables": variables(os.environ),
        "torch": _torch(sys.modules.get("torch")),
    }
    try:
        write_json(run.lineage / "job.json", facts)
    except OSError as e:  # it is worth no run
        with contextlib.suppress(OSError):  # the log may lie on the same disk
            print(f"{run.lineage / 'job.json'} cannot be written: {e.strerror}.", file=sys.stderr)


def _own_files(modules: list[ModuleType]) -> Iterator[Path]:
    """Sources of hpcexp and of modules that are not installed."""
    ours, installed = str(Path(hpcexp.__file__).parent), installed_places()
    for module in modules:
        file = getattr(module, "__file__", None) or ""
        if file.endswith(".py") and (file.startswith(ours) or not file.startswith(installed)) and Path(file).is_file():
            yield Path(file)


def _torch(torch: Any) -> dict[str, Any]:
    """Versions and devices, of what is initialised already."""
    if torch is None:
        return {}
    facts = {"version": str(torch.__version__), "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        facts["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
