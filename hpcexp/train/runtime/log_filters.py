"""Every message and warning of a library that hpcexp keeps from the user, each with its reason."""

from __future__ import annotations

import logging
import os
import warnings

from hpcexp.rank_protocol import remove_foreign
from hpcexp.train.runtime import lightning_alias
from hpcexp.train.runtime.lazy_imports import lighten

_WARNINGS: tuple[tuple[str, str], ...] = (
    # Our loaders are no DataLoaders with workers, or have as many as `data.num_workers` says.
    (r".*does not have many workers", "pytorch_lightning"),
    # The journal holds every step's values whatever the interval of its writes.
    (r"The number of training batches .* is smaller than the logging interval", "pytorch_lightning"),
    # Best and last are written by our Checkpointing into a directory that may exist: the run's own.
    (r"Checkpoint directory .* exists and is not empty", "pytorch_lightning"),
    # Our job sets the schedule's length and order itself; Lightning steps it after the optimizer.
    (r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`", "torch"),
    # A GPU that stays idle was left out by `hardware.accelerator=cpu`, which the plan shows.
    (r"GPU available but not used", "pytorch_lightning"),
    # Frozen or evaluation-mode parts of a model are the model's own decision.
    (r"Found \d+ module\(s\) in eval mode at the start of training", "pytorch_lightning"),
    # A data set without a validation split is its owner's decision, and the checks know what needs one.
    (r"Total length of `.*` across ranks is zero", "pytorch_lightning"),
    # Checkpoints hold no module twice: hyperparameters that are no plain data are left out.
    (r"Attribute '.*' is an instance of `nn.Module` and is already saved during checkpointing", "pytorch_lightning"),
    # Lightning's own use of an interface that torch is going to drop: nothing a user could change.
    (r".*isinstance\(treespec, LeafSpec\).*", "pytorch_lightning"),
)

_LOGGERS: tuple[str, ...] = (
    # Tips, device tables and seeds: the plan and the run's summary say all that.
    "pytorch_lightning",
    "lightning_fabric",
    "lightning.pytorch",
    # Rendezvous chatter; real failures are raised.
    "torch.distributed",
)


def import_lightning(*, is_rank: bool = True) -> None:
    """Import Lightning cheaply, under both its names, and without chatter.

    It sets the levels of its loggers, so the filters come after it.

    `is_rank`: this process was started as a rank, and its environment says which one.
    """
    if not is_rank:
        remove_foreign(os.environ)
    lighten()
    lightning_alias.install()
    import pytorch_lightning  # noqa: F401

    quiet()


def quiet() -> None:
    """Install the filters above in this process."""
    for message, module in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, module=rf"{module}(\..*)?")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
