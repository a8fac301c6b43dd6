"""What an interrupted epoch has accumulated: means of `self.log(on_epoch=True)`, and the states of torchmetrics."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultMetric
from torch import Tensor
from torchmetrics import Metric


def epoch_values(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Plain data of this rank; empty between epochs, when nothing is accumulated."""
    logged = {
        key: {"value": metric.value, "size": getattr(metric, "cumulated_batch_size", None)}
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
    }
    metrics = {
        name: {"updates": metric._update_count, "states": {state: getattr(metric, state) for state in metric._defaults}}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric._update_count
    }
    return {"logged": logged, "metrics": metrics}


def restore_metrics(module: pl.LightningModule, saved: dict[str, Any]) -> None:
    """Put the states of the module's metrics back."""
    known = dict(module.named_modules())
    for name, found in saved.items():
        metric = known.get(name)
        if isinstance(metric, Metric):
            for state, value in found["states"].items():
                on_device = [v.to(module.device) for v in value] if isinstance(value, list) else value.to(module.device)
                setattr(metric, state, on_device)
            metric._update_count, metric._computed = found["updates"], None


def add_saved(metric: _ResultMetric, saved: dict[str, Any]) -> None:
    """Add what was accumulated before the interruption to a value that has been logged once since."""
    before = saved["value"].to(metric.value.device)
    if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
        metric.value = metric.meta.reduce_fx(before, metric.value)
        return
    metric.value = before + metric.value
    if isinstance(saved["size"], Tensor):
        metric.cumulated_batch_size = saved["size"].to(metric.value.device) + metric.cumulated_batch_size
