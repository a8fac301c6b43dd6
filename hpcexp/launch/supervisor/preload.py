"""What the server of warm workers imports before it forks the first: all that every job imports.

Importing is all that multiprocessing lets a server do, so here something happens at import. CUDA must not be
initialised in a process that is forked, and no OpenMP thread started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil

# A terminal's signals are for the supervisor: the server outlives its ranks, or nobody could say how they ended.
with contextlib.suppress(PermissionError):  # it leads a group already
    os.setsid()
# Lightning reads its rank when it is imported.
importlib.import_module("hpcexp.rank_protocol").remove_foreign(os.environ)
# torch then counts GPUs without the CUDA runtime.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

_FIRST_NEEDED_LATE = ("hydra.utils", "torch.utils.serialization", "hpcexp.train.optim.schedules")
"""What a job imports only on its way."""


def _import_all() -> None:
    importlib.import_module("hpcexp.train.runtime.log_filters").import_lightning()
    named = (module for package in ("data", "models", "train.tasks") for module in _modules(package))
    for name in ("hpcexp.job", "hpcexp.train.engine.fit", *_FIRST_NEEDED_LATE, *named):
        importlib.import_module(name)
    importlib.import_module("pydantic").TypeAdapter(int)  # it imports its parts when it makes the first
    importlib.import_module("hpcexp.plan").build_types()


def _modules(package: str) -> list[str]:
    path = importlib.import_module(f"hpcexp.{package}").__path__
    return [f"hpcexp.{package}.{module.name}" for module in pkgutil.iter_modules(path)]


_import_all()
if importlib.import_module("torch.cuda").is_initialized():
    raise RuntimeError("CUDA was initialised in the server of warm workers: no rank could use it.")
# A collection would write to the pages of all these objects, and every worker would get its own copy of them.
gc.collect()
gc.freeze()
