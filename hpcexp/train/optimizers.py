"""Optimizer and schedule of a run, as `configure_optimizers` returns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hpcexp.build.instantiate import TARGET, fill, instantiate, without
from hpcexp.schema import OWN_KEYS


def optimizers_of(module: pl.LightningModule, config: Mapping[str, Any], total_steps: int | None) -> dict[str, Any]:
    """The optimizer over the parameters that are trained, and the schedule where there is one.

    `total_steps` None: as many as Lightning makes them once it has the loaders.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = instantiate(config["optimizer"], trained, path="optimizer")
    node = config.get("scheduler") or {}
    if TARGET not in node:
        return {"optimizer": optimizer}
    interval = node.get("interval", "step")
    steps = total_steps or int(module.trainer.estimated_stepping_batches)
    length = steps if interval == "step" else int(module.trainer.max_epochs or 1)
    own = fill(without(node, OWN_KEYS["scheduler"]), "scheduler", total_steps=length, mode=config["trainer"]["mode"])
    scheduler = instantiate(own, optimizer, path="scheduler")
    entry: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        entry |= {"monitor": config["trainer"]["monitor"], "interval": "epoch", "reduce_on_plateau": True}
    return {"optimizer": optimizer, "lr_scheduler": entry}
