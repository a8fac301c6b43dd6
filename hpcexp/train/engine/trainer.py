"""Lightning's Trainer as a plan asks for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from hpcexp.errors import ConfigError
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.schema.keys import Trainer
from hpcexp.train.checkpointing.checkpoint_io import AtomicCheckpointIO
from hpcexp.train.parallel.strategies import make_strategy
from hpcexp.train.runtime.exact_means import use_exact_means

_PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def make_trainer(plan: Plan, run: RunDir, *, callbacks: list[pl.Callback], logger: Any) -> pl.Trainer:
    """The Trainer; ConfigError where it refuses what `trainer.extra` has."""
    arguments = {**_arguments(plan, run), "callbacks": callbacks, "logger": logger}
    arguments["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    arguments["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    extra = plan.settings.trainer.extra
    try:
        _detect_no_launcher()
        use_exact_means()
        return pl.Trainer(**arguments, **extra)
    except (MisconfigurationException, TypeError, ValueError) as e:
        if not extra:
            raise
        given = ", ".join(f"trainer.extra.{name}={value}" for name, value in extra.items())
        raise ConfigError(
            f"pytorch_lightning.Trainer refuses {given}: {e}\nFix: change or leave out what it names."
        ) from e


def _detect_no_launcher() -> None:
    """Have Lightning look for no Slurm.

    It does so when it is to fit without a checkpoint, whatever environment it was given: with `srun` installed it tells
    every rank to use it, and inside an allocation it resumes from any `hpc_ckpt_*` that it finds.
    """
    SLURMEnvironment.detect = staticmethod(RankEnvironment.detect)  # type: ignore[method-assign]


class RankEnvironment(ClusterEnvironment):
    """Ranks as the launcher started them: everything is in the environment, Lightning starts no process."""

    @property
    def creates_processes_externally(self) -> bool:
        """Always."""
        return True

    @property
    def main_address(self) -> str:
        """Host of rank 0."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Port of the rendezvous."""
        return int(os.environ.get("MASTER_PORT", "0"))

    @staticmethod
    def detect() -> bool:
        """Never: it is given to the Trainer by name."""
        return False

    def world_size(self) -> int:
        """All ranks of all nodes."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    def set_world_size(self, size: int) -> None:
        """The launcher knows."""

    def global_rank(self) -> int:
        """Rank among all."""
        return int(os.environ.get("RANK", "0"))

    def set_global_rank(self, rank: int) -> None:
        """The launcher knows."""

    def local_rank(self) -> int:
        """Rank on this node."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def node_rank(self) -> int:
        """Number of this node."""
        return int(os.environ.get("NODE_RANK", "0"))


class NoProfiler(Profiler):
    """Lightning wraps some forty calls a step in profiler contexts; these cost nothing."""

    def start(self, action_name: str) -> None:
        """Nothing."""

    def stop(self, action_name: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def profile(self, action_name: str) -> Generator[str, None, None]:
        """Replaced in `__init__` by one context that does nothing."""
        yield action_name

    def __init__(self) -> None:
        super().__init__()
        nothing = contextlib.nullcontext()
        self.profile = lambda action_name: nothing  # type: ignore[method-assign,assignment,return-value]


def _arguments(plan: Plan, run: RunDir) -> dict[str, Any]:
    settings, topology = plan.settings.trainer, plan.topology
    accumulate = plan.batch.accumulate if plan.batch else settings.accumulate_grad_batches
    limit = settings.limit_train_batches
    limits = {
        "limit_train_batches": _limit(limit, plan, accumulate),
        "limit_val_batches": settings.limit_eval_batches,
        "limit_test_batches": settings.limit_eval_batches,
    }
    return {
        **limits,
        "accelerator": "gpu" if topology.accelerator == "cuda" else "cpu",
        "devices": topology.ranks_per_node,
        "num_nodes": topology.num_nodes,
        "strategy": make_strategy(plan),
        "precision": settings.precision,
        "max_epochs": settings.max_epochs or -1,
        "max_steps": settings.max_steps or -1,
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": settings.gradient_clip_val,
        **_validation(settings, accumulate),
        "log_every_n_steps": settings.log_every_n_steps,
        "deterministic": settings.deterministic,
        "profiler": _profiler(settings.profiler, run.path),
        "plugins": [RankEnvironment(), AtomicCheckpointIO(run)],
        "default_root_dir": str(run.path),
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }


def _limit(limit: float | None, plan: Plan, accumulate: int) -> float | None:
    """Batches on each rank: whole steps of them, where their number is known."""
    if isinstance(limit, float) and plan.steps is not None:
        return plan.steps.per_epoch * accumulate
    return limit if limit is None or isinstance(limit, float) else limit * accumulate


def _validation(settings: Trainer, accumulate: int) -> dict[str, Any]:
    if settings.val_every_steps is None:
        return {"check_val_every_n_epoch": settings.val_every_epochs}
    return {"check_val_every_n_epoch": None, "val_check_interval": settings.val_every_steps * accumulate}


def _profiler(name: str | None, directory: Path) -> Profiler:
    if name is None:
        return NoProfiler()
    return _PROFILERS[name](dirpath=str(directory), filename="profile")
