"""One pass over an evaluation set: exact over batches of any size, over ranks and uneven splits, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcexp.errors import ConfigError, listed
from hpcexp.train.tasks.task import Evaluated, Sum, Table, Update

if TYPE_CHECKING:
    from torchmetrics import Metric


class Evaluation:
    """Adds up what a task says of batches. Every rank must read `values` and `tables`, also one without batches."""

    def __init__(
        self,
        names: Iterable[str],
        device: torch.device,
        *,
        aggregates: Mapping[str, Metric] | None = None,
        tables: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._names, self._aggregates = tuple(names), dict(aggregates or {})
        self._summed = tuple(name for name in self._names if name not in self._aggregates)
        self._totals = torch.zeros(2 * len(self._summed), device=device, dtype=wide(device))
        self._counts = [0.0] * len(self._summed)
        self._tables = {k: torch.zeros(shape, device=device, dtype=torch.int64) for k, shape in (tables or {}).items()}
        for metric in self._aggregates.values():
            metric.reset()

    def update(self, batch: Evaluated) -> None:
        """Add a batch; ConfigError where the task says something else than its metrics."""
        if len(batch) != len(self._names) + len(self._tables) or not all(name in batch for name in self._names):
            raise ConfigError(
                f"task: evaluate() gives {listed(batch)}, and metrics() {listed(self._names)}.\n"
                "Fix: let both have the same names."
            )
        self._add_sums(batch)
        for name, metric in self._aggregates.items():
            part = batch[name]
            if not isinstance(part, Update):
                raise _wrong_kind(name, part, "an Update")
            metric.update(*part.arguments)
        for name, total in self._tables.items():
            part = batch[name]
            if not isinstance(part, Table):
                raise _wrong_kind(name, part, "a Table")
            total.add_(part.counts)

    def _add_sums(self, batch: Evaluated) -> None:
        totals = []
        for index, name in enumerate(self._summed):
            part = batch[name]
            if not isinstance(part, Sum):
                raise _wrong_kind(name, part, "a Sum, or a Metric of this name among the task's modules")
            totals.append(part.total.to(self._totals.dtype))
            if isinstance(part.weight, Tensor):
                self._totals[len(self._summed) + index] += part.weight
            else:
                self._counts[index] += part.weight
        if totals:
            self._totals[: len(totals)] += torch.stack(totals)

    def values(self) -> dict[str, float]:
        """Each metric over all samples that all ranks have seen."""
        counts = torch.tensor(self._counts, device=self._totals.device, dtype=self._totals.dtype)
        self._totals[len(counts) :] += counts
        self._counts = [0.0] * len(counts)
        if _is_distributed():
            torch.distributed.all_reduce(self._totals)
        totals, weights = self._totals.view(2, -1).tolist()
        found = {
            name: total / weight if weight else float("nan")
            for name, total, weight in zip(self._summed, totals, weights, strict=True)
        }
        found |= {name: _computed(name, metric) for name, metric in self._aggregates.items()}
        return {name: found[name] for name in self._names}

    def tables(self) -> dict[str, Tensor]:
        """Counts over all samples that all ranks have seen."""
        if _is_distributed():
            for counts in self._tables.values():
                torch.distributed.all_reduce(counts)
        return self._tables


def _computed(name: str, metric: Metric) -> float:
    """The metric over all ranks. Its own state becomes that of all: the next pass resets it."""
    if _is_distributed():
        states: list[Any] = [None] * torch.distributed.get_world_size()
        own = {key: _on_cpu(getattr(metric, key)) for key in metric._reductions}
        torch.distributed.all_gather_object(states, own if metric.update_called else None)
        # A rank without batches has states of other shapes, which torchmetrics itself does not merge.
        if with_batches := [state for state in states if state is not None]:
            _merge(metric, with_batches)
            metric._update_count = max(metric._update_count, 1)
    if not metric.update_called:
        return float("nan")
    metric.sync_on_compute = metric._to_sync = False
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"task.metrics: {name} gives {shape}, not one number.\nFix: an argument that averages it, "
            "as average=macro, or another metric."
        )
    return float(value)


def _merge(metric: Metric, states: list[dict[str, Any]]) -> None:
    for key, reduction in metric._reductions.items():
        parts = [state[key] for state in states]
        if isinstance(parts[0], list):
            merged: Any = [value.to(metric.device) for part in parts for value in part]
        else:
            stacked = torch.stack(parts).to(metric.device)
            merged = reduction(stacked) if callable(reduction) else stacked
        setattr(metric, key, merged)


def _on_cpu(state: Any) -> Any:
    return [value.cpu() for value in state] if isinstance(state, list) else state.cpu()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _wrong_kind(name: str, part: Any, expected: str) -> ConfigError:
    return ConfigError(f"task: evaluate() gives {type(part).__name__} for {name}.\nFix: {expected}.")


def wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it: a sum over millions of samples stays exact."""
    return torch.float32 if device.type == "mps" else torch.float64
