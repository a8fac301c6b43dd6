"""`self.log` without what a value of one step has no use for: a metric object that is made, compared and moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.connectors.data_connector import _DataHookSelector
from pytorch_lightning.trainer.connectors.logger_connector.fx_validator import _FxValidator
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultMetric
from torch import Tensor
from torchmetrics import Metric

from hpcexp.train.engine.journal_logger import JournalLogger
from hpcexp.train.engine.recording import AfterBatch, Recording
from hpcexp.train.engine.step_recorder import StepRecorder
from hpcexp.train.runtime.fast_hooks import set_attribute

_lightnings = pl.LightningModule.log
_move = _ResultMetric.to
_find_owner = _DataHookSelector.get_instance


@contextmanager
def recording_steps(trainer: pl.Trainer, steps: StepRecorder, after_batch: list[AfterBatch]) -> Iterator[None]:
    """Have the Trainer record every step; meanwhile modules of this process log quickly."""
    trainer._logger_connector = recording = Recording(trainer, steps, after_batch)
    for logger in trainer.loggers:
        if isinstance(logger, JournalLogger):
            logger.running_step = lambda: recording.step
    with _quick_modules():
        yield


@contextmanager
def _quick_modules() -> Iterator[None]:
    pl.LightningModule.log = _log  # type: ignore[method-assign]
    pl.LightningModule.__setattr__ = set_attribute  # type: ignore[method-assign,assignment]
    _DataHookSelector.get_instance = _hook_owner  # type: ignore[method-assign,assignment]
    _ResultMetric.to = _to  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        pl.LightningModule.log = _lightnings  # type: ignore[method-assign]
        del pl.LightningModule.__setattr__
        _DataHookSelector.get_instance = _find_owner  # type: ignore[method-assign]
        _ResultMetric.to = _move  # type: ignore[method-assign]


def _log(self: pl.LightningModule, name: str, value: Any, *args: Any, **options: Any) -> None:
    """As Lightning's `log`, with every step's value kept."""
    trainer = self._trainer
    recording = None if trainer is None or self._fabric is not None else trainer._logger_connector
    if not isinstance(recording, Recording) or not recording.is_in_step:
        _lightnings(self, name, value, *args, **options)
        return
    if args or not _is_of_step(self, name, value, options):
        _lightnings(self, name, value, *args, **options)
        recording.keep_result(f"{self._current_fx_name}.{name}")
        return
    value = value.detach().clone().reshape(()) if isinstance(value, Tensor) else float(value)
    recording.keep(
        name,
        value,
        is_journalled=options.get("logger") is not False,
        prog_bar=options.get("prog_bar", False),
    )


def _is_of_step(module: pl.LightningModule, name: str, value: Any, options: dict[str, Any]) -> bool:
    """Whether a value is logged for its step alone, is a plain number, and needs nothing of other ranks."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return False
    elif type(value) not in (float, int, bool):
        return False
    if options.get("enable_graph") or "/dataloader_idx_" in name:
        return False
    if options.get("sync_dist") and module.trainer.world_size > 1:
        return False
    hook = module._current_fx_name
    return hook is not None and _levels(hook, options.get("on_step"), options.get("on_epoch")) == (True, False)


@cache
def _levels(hook: str, on_step: bool | None, on_epoch: bool | None) -> tuple[bool, bool]:
    """Whether what is logged in a hook is logged for the step and for the epoch."""
    return _FxValidator.check_logging_and_get_default_levels(hook, on_step=on_step, on_epoch=on_epoch)


def _hook_owner(selector: _DataHookSelector, hook: str) -> Any:
    """Whose hook changes batches, looked up once and not three times a step."""
    found: dict[str, Any] = selector.__dict__.setdefault("found", {})
    if hook not in found:
        found[hook] = _find_owner(selector, hook)
    return found[hook]


def _to(metric: _ResultMetric, *args: Any, **options: Any) -> _ResultMetric:
    """Moves nothing that is there already: to look for it takes most of the time of a logged value."""
    value = getattr(metric, "value", None)
    is_there = len(args) == 1 and isinstance(value, Tensor | Metric) and value.device == args[0]
    return metric if is_there else _move(metric, *args, **options)
