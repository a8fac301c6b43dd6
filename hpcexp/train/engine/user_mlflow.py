"""User code that imports MLflow in a job gets one that logs to the job's run; nothing else here imports it."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from hpcexp.media.recorder import Recorder
from hpcexp.plan import Plan


@contextmanager
def logging_to_own_run(recorder: Recorder, plan: Plan, run_id: str) -> Iterator[None]:
    """Meanwhile `mlflow.log_*` of this process go to the run, from the moment that it is imported."""
    started_ms = time.time_ns() // 1_000_000
    with ExitStack() as held:

        def adopt() -> None:
            from hpcexp.tracking.mlflow.job_store import own_run

            held.enter_context(own_run(recorder, plan, run_id, started_ms))

        if "mlflow" in sys.modules:
            adopt()
        else:
            finder = _AfterImport("mlflow", adopt)
            sys.meta_path.insert(0, finder)
            held.callback(finder.remove)
        yield


class _AfterImport(MetaPathFinder):
    """Calls a function once a module has been imported, before whoever imports it has it."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        self.remove()
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._then()

            loader.exec_module = exec_module
        return spec

    def remove(self) -> None:
        """Look no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
