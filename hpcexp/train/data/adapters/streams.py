"""Batches of a user's IterableDataset: each sample once over all ranks and workers, resumable in mid-epoch."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils import worker as torch_worker

from hpcexp.errors import DataError
from hpcexp.train.data.loaders import Shard
from hpcexp.train.runtime.seeds import mixed, seeded

Agree = Callable[[bool], bool]
"""Given whether this rank has a next batch, says whether all have."""


class Mark(NamedTuple):
    """Where a stream stood after a batch."""

    lane: int
    """The part of the stream that the batch is from, where workers divide it themselves; otherwise 0."""
    number: int
    """Batches of the lane so far, all ranks' alike."""
    weight: float
    """Of the batch's gradient in the mean over ranks."""
    state: Any
    """The data set's own, where it has one."""


@dataclass(frozen=True)
class Cut:
    """How a stream is cut into batches and divided."""

    batch_size: int | None
    """Of a rank; None where the stream yields batches."""
    drop_last: bool
    shard: Shard
    by_workers: bool
    """The data set gives each worker its part. Otherwise each reads everything and keeps every so many batches."""
    training: bool

    @property
    def group(self) -> int:
        """Samples in a batch over all ranks."""
        return (self.batch_size or 1) * self.shard.world_size

    def share(self, size: int) -> tuple[bool, float]:
        """Whether a last group of `size` is used, and the weight of this rank's part of it.

        In training not where a rank would have none.
        """
        rank, world = self.shard.rank, self.shard.world_size
        own = len(range(rank, size, world))
        if self.drop_last or not size or (self.training and size < world):
            return False, 1.0
        return own > 0, (own * world / size if self.training else 1.0)

    def num_batches(self, size: int) -> int:
        """Of a stream of `size` samples."""
        whole, rest = divmod(size, self.group)
        return whole + self.share(rest)[0]


class Stream(IterableDataset[Any]):
    """Reads the user's stream in groups of one batch over all ranks, and yields this rank's part of each, collated.

    A group is read with random numbers of seed, epoch and its own number, so that it is the same on every rank, in
    every worker and in every attempt. A resumed stream takes the data set's own state, or reads up to where it was.
    """

    def __init__(self, dataset: Any, cut: Cut, collate: Callable[[Any], Any], *, seed: int, shared: bool) -> None:
        self.dataset, self.cut, self.collate, self.seed = dataset, cut, collate, seed
        self.clock = torch.zeros(3, dtype=torch.int64)
        """Epoch, how often it was begun, and lane of the next batch; `shared` with workers that outlive a pass."""
        if shared:
            self.clock.share_memory_()  # type: ignore[no-untyped-call]
        self.resume: dict[int, Mark] = {}
        """Lane → where it stood, for the pass that `resume_pass` names."""
        self.resume_pass: tuple[int, int] | None = None
        self.has_state = has_exact_state(dataset)
        self._worker: Any = None
        """The worker that this copy is in; what the data set sees of it is another."""

    def __iter__(self) -> Iterator[tuple[Mark, Any]]:
        epoch, cycle, first = self.clock.tolist()
        worker = self._worker = self._worker or get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = (number + first) % count
        lane = turn if self.cut.by_workers else 0
        if worker is not None:
            _show_worker(turn if self.cut.by_workers else None, worker)
        mark = self.resume.get(lane) if self.resume_pass == (epoch, cycle) else None
        stride, offset = (1, 0) if self.cut.by_workers else (count, number)
        groups = _Groups(self, mixed(self.seed, epoch, cycle, lane), epoch, mark)
        start = groups.number
        for group, samples, weight in groups:
            if (group - start) % stride == offset:
                with groups.seeds(group, collating=True):
                    batch = self.collate(samples if self.cut.batch_size is not None else samples[0])
                yield Mark(lane, group + 1, weight, groups.state()), batch

    def length(self) -> int | None:
        """Batches of this rank; None where only reading tells."""
        try:
            size = len(self.dataset)
        except (TypeError, NotImplementedError):
            return None
        return None if self.cut.by_workers else self.cut.num_batches(size)


class _Groups:
    """Groups of a pass from where it begins or resumes: number, this rank's samples and their weight."""

    def __init__(self, stream: Stream, seed: int, epoch: int, mark: Mark | None) -> None:
        self._stream, self._seed = stream, seed
        self._dataset, self._cut = stream.dataset, stream.cut
        self.number = mark.number if mark else 0
        with self.seeds(-1):
            if hasattr(self._dataset, "set_epoch"):
                self._dataset.set_epoch(epoch)
            if mark is not None and stream.has_state:
                self._dataset.load_state_dict(copy.deepcopy(mark.state))
            self._samples = iter(self._dataset)
        if mark is not None and not stream.has_state:
            for skipped in range(mark.number):
                self._read(skipped)

    def seeds(self, group: int, *, collating: bool = False) -> Any:
        """Random numbers of one group."""
        own = (self._cut.shard.rank,) if collating else ()
        return seeded(mixed(self._seed, group + 1, *own))

    def state(self) -> Any:
        return copy.deepcopy(self._dataset.state_dict()) if self._stream.has_state else None

    def __iter__(self) -> Iterator[tuple[int, list[Any], float]]:
        while True:
            size, own = self._read(self.number)
            if size == self._cut.group:
                yield self.number, own, 1.0
                self.number += 1
                continue
            is_used, weight = self._cut.share(size)
            if is_used:
                yield self.number, own, weight
            return

    def _read(self, group: int) -> tuple[int, list[Any]]:
        """Size of the next group, and this rank's samples of it."""
        own: list[Any] = []
        rank, world = self._cut.shard.rank, self._cut.shard.world_size
        with self.seeds(group):
            for size in range(self._cut.group):
                try:
                    sample = next(self._samples)
                except StopIteration:
                    return size, own
                if size % world == rank:
                    own.append(sample)
        return self._cut.group, own


class StreamLoader:
    """A DataLoader of a `Stream`, with position and state."""

    def __init__(
        self, stream: Stream, name: str, *, epoch: int = 0, agree: Agree | None = None, **options: Any
    ) -> None:
        """`epoch`: that of the first pass. `agree`: whether all ranks have a next batch, where each has its own stream.

        `options`: further arguments of torch's DataLoader.
        """
        self.stream, self._name, self._agree = stream, name, agree
        self._workers = options.get("num_workers", 0)
        self._loader: DataLoader[Any] = DataLoader(
            stream, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator().manual_seed(0), **options
        )
        self.epoch, self._cycle, self._next_cycle = epoch, 0, 0
        self._position, self._resume_at = 0, 0
        self._lanes: dict[int, Mark] = {}
        self._last_lane = -1
        self._states: deque[dict[str, Any]] = deque(maxlen=2)
        self.weights: dict[int, float] = {}
        """Batch → weight of its gradient in the mean over ranks, where the ranks' batches are not of one size."""

    @property
    def sampler(self) -> StreamLoader:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    @property
    def batch_sampler(self) -> StreamLoader:
        """Itself: where Lightning looks whether the order is a sequential one."""
        return self

    def __len__(self) -> int:
        if (length := self.stream.length()) is None:
            raise TypeError(f"{self._name} has no length")
        return length

    def __iter__(self) -> Iterator[Any]:
        if self.stream.cut.training:
            self._cycle = self._next_cycle
        self._next_cycle = self._cycle + 1
        resumes = self._resume_at > 0
        self._position, self._resume_at = self._resume_at, 0
        lanes = dict(self._lanes) if resumes else {}
        last = self._last_lane if resumes else -1
        self.stream.resume, self.stream.resume_pass = lanes, (self.epoch, self._cycle) if resumes else None
        first = (last + 1) % max(self._workers, 1) if self.stream.cut.by_workers else 0
        self.stream.clock.copy_(torch.tensor([self.epoch, self._cycle, first]))
        self._lanes, self._last_lane, self.weights = lanes, last, {}
        self._states.clear()
        self._states.append(self._state())
        for mark, batch in self._agreed():
            if mark.weight != 1.0:
                self.weights[self._position] = mark.weight
            self._position += 1
            self._lanes[mark.lane], self._last_lane = mark, mark.lane
            self._states.append(self._state())
            yield batch
        self._check_length()

    def _agreed(self) -> Iterator[tuple[Mark, Any]]:
        """The batches until the first rank has no more."""
        for item in self._loader:
            if self._agree is not None and not self._agree(True):
                return
            yield item
        if self._agree is not None:
            self._agree(False)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose pass the next iteration is; a shorter one of several loaders begins anew within it."""
        if epoch != self.epoch:
            self.epoch, self._cycle, self._next_cycle = epoch, 0, 0

    def state_dict(self, ahead: int = 0) -> dict[str, Any]:
        """Where the stream stood `ahead` batches (0 or 1) before the newest one that was handed out."""
        return self._states[max(-1 - ahead, -len(self._states))] if self._states else self._state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration resume where `state` was taken; DataError where that needs as many workers."""
        if self.stream.cut.by_workers and state["position"] and state["workers"] != self._workers:
            raise DataError(
                f"{self._name} was read by {state['workers']} workers, which divide it themselves, and has "
                f"{self._workers} now: the order of its samples would be another.\n"
                f"Fix: num_workers={state['workers']}."
            )
        self.epoch, self._cycle = state["epoch"], state["cycle"]
        self._next_cycle = self._cycle
        self._resume_at, self._last_lane = state["position"], state["last"]
        self._lanes = {lane: Mark(lane, number, 1.0, own) for lane, number, own in state["lanes"]}

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "cycle": self._cycle,
            "position": self._position,
            "workers": self._workers,
            "last": self._last_lane,
            "lanes": [[mark.lane, mark.number, mark.state] for mark in self._lanes.values()],
        }

    def _check_length(self) -> None:
        promised = self.stream.length()
        if promised is not None and self._position < promised:
            raise DataError(
                f"{self._name} says that it has {len(self.stream.dataset):,} samples, which are {promised} batches on "
                f"each rank, and ended after {self._position}.\n"
                "Fix: let its `__len__` say how many it yields, or leave that out."
            )


def has_exact_state(dataset: Any) -> bool:
    """Whether a data set says by `state_dict` where it is, to the sample."""
    if not (hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")):
        return False
    # The state of a shuffle buffer of Hugging Face's leaves out what is in the buffer.
    inner = getattr(dataset, "_ex_iterable", None)
    while inner is not None:
        if type(inner).__name__ == "BufferShuffledExamplesIterable":
            return False
        inner = getattr(inner, "ex_iterable", None)
    return True


def _show_worker(lane: int | None, info: Any) -> None:
    """Let the data set see itself in the worker of its lane, or in none: then it yields everything."""
    if lane is None:
        torch_worker._worker_info = None
        return
    torch_worker._worker_info = torch_worker.WorkerInfo(
        id=lane, num_workers=info.num_workers, seed=info.seed, dataset=info.dataset
    )


def _as_it_is(item: Any) -> Any:
    return item
