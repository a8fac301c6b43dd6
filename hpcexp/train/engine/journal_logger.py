"""Lightning's logger interface on the journal, for what users log with `self.log`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from hpcexp.runs.journal import Journal


class JournalLogger(Logger):
    """Writes metrics to the journal; parameters stand in `plan.yaml` already.

    `journal` is None on every rank but 0. It stays the caller's, who closes it.
    """

    def __init__(self, journal: Journal | None, experiment: str, name: str, run_dir: Path) -> None:
        super().__init__()
        self._journal = journal
        self._experiment = experiment
        self._name = name
        self._run_dir = run_dir
        self.running_step: Callable[[], int] = int
        """Gives the step of metrics that are logged without one."""

    @property
    def name(self) -> str:
        """The experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """The run's name within its experiment."""
        return self._name

    @property
    def save_dir(self) -> str:
        """The run directory, where Lightning puts what it writes itself."""
        return str(self._run_dir)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One journal line of plain numbers."""
        if self._journal is not None and metrics:
            at = self.running_step() if step is None else step
            self._journal.append([(at, {key: float(value) for key, value in metrics.items()})])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the plan is frozen and synced without the training process."""

    def save(self) -> None:
        """Have everything on the disk: a checkpoint must not be newer than the journal."""
        if self._journal is not None:
            self._journal.sync()

    def finalize(self, status: str) -> None:
        """Have everything on the disk when training ends, however it ended."""
        if self._journal is not None:
            self._journal.sync()
