"""What ranks, workers and resumed runs read of users' loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.data import _set_sampler_epoch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from hpcexp.errors import ConfigError, DataError
from hpcexp.train.data.adapters.adapt import Terms, adapt
from hpcexp.train.data.loaders import Shard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning's CombinedLoader
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata's use of torch
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes"),  # on two cores
]


class Numbers(Dataset[int]):
    """Its own indices."""

    def __init__(self, size: int = 50) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Noise(Numbers):
    """Random numbers of every library, drawn when a sample is read."""

    def __getitem__(self, index: int) -> Any:
        return torch.rand(2)


class Counting(IterableDataset[int]):
    """0, 1, … in order, whoever reads."""

    def __init__(self, size: int = 50) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        yield from range(self.size)


class Sized(Counting):
    """Says how many there are."""

    def __len__(self) -> int:
        return self.size


class Shuffled(Counting):
    """In an order, and with noise, from torch's own random numbers."""

    def __iter__(self) -> Iterator[Any]:
        for number in torch.randperm(self.size).tolist():
            yield number + torch.rand(())


class Stateful(Counting):
    """Knows where it is."""

    def __init__(self, size: int = 50) -> None:
        super().__init__(size)
        self.at = 0
        self.reads = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < self.size:
            self.at += 1
            self.reads += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class ByWorkers(Counting):
    """Each worker yields its part."""

    hpcexp_shards = "workers"

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        yield from range(info.id, self.size, info.num_workers) if info else range(self.size)


class ReadsItsRank(Counting):
    """Yields what is its rank's, and does not say so."""

    def __iter__(self) -> Iterator[int]:
        yield from range(torch.distributed.get_rank(), self.size, 2)


class Backwards(Sampler[int]):
    """A sampler of a user's own."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(reversed(range(self.size)))


class Endless(Sampler[int]):
    """Without a length."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class Buckets(Sampler[list[int]]):
    """Batches of many sizes."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0], [1, 2], [3, 4, 5], [6, 7, 8, 9], [10])


LOADERS: dict[str, Any] = {
    "in order": lambda size: DataLoader(Numbers(), batch_size=size),
    "shuffled": lambda size: DataLoader(Numbers(), batch_size=size, shuffle=True),
    "own generator": lambda size: DataLoader(
        Numbers(), batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(7)
    ),
    "whole batches": lambda size: DataLoader(Numbers(), batch_size=size, shuffle=True, drop_last=True),
    "weighted": lambda size: DataLoader(
        Numbers(), batch_size=size, sampler=WeightedRandomSampler([1.0] * 25 + [9.0] * 25, 50)
    ),
    "replaced": lambda size: DataLoader(
        Numbers(), batch_size=size, sampler=RandomSampler(Numbers(), replacement=True, num_samples=30)
    ),
    "subset": lambda size: DataLoader(Numbers(), batch_size=size, sampler=SubsetRandomSampler(range(10, 37))),
    "own sampler": lambda size: DataLoader(Numbers(), batch_size=size, sampler=Backwards(50)),
    "own batch sampler": lambda size: DataLoader(
        Numbers(), batch_sampler=BatchSampler(Backwards(50), size, drop_last=False)
    ),
    "distributed already": lambda size: DataLoader(
        Numbers(), batch_size=size, sampler=DistributedSampler(Numbers(), 2, 1, shuffle=True)
    ),
    "two workers": lambda size: DataLoader(Numbers(), batch_size=size, shuffle=True, num_workers=2),
    "stream": lambda size: DataLoader(Counting(), batch_size=size),
    "sized stream": lambda size: DataLoader(Sized(), batch_size=size),
    "shuffled stream": lambda size: DataLoader(Shuffled(), batch_size=size),
    "stream, two workers": lambda size: DataLoader(Counting(), batch_size=size, num_workers=2),
    "shuffled stream, three workers": lambda size: DataLoader(Shuffled(), batch_size=size, num_workers=3),
    "stateful stream": lambda size: DataLoader(Stateful(), batch_size=size),
    "stateful stream, two workers": lambda size: DataLoader(Stateful(), batch_size=size, num_workers=2),
    "persistent workers": lambda size: DataLoader(Shuffled(), batch_size=size, num_workers=2, persistent_workers=True),
    "divided by workers": lambda size: DataLoader(ByWorkers(52), batch_size=size, num_workers=2),
}
"""Each makes a loader of batches of so many samples."""
WITHOUT_STEPS_ALIKE = {"own batch sampler"}
"""Their batches are dealt out whole."""


def terms(rank: int = 0, world_size: int = 1, **others: Any) -> Terms:
    return Terms(3, Shard(rank, world_size), others.pop("per_rank", None), **others)


def of_rank(make: Any, size: int, rank: int = 0, world_size: int = 1, split: str = "train") -> Any:
    return adapt(make(size), split, terms(rank, world_size))


def seen(batches: Any) -> list[list[float]]:
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("name", [name for name in LOADERS if name not in WITHOUT_STEPS_ALIKE])
def test_a_step_has_the_same_samples_on_one_and_two_ranks(name: str) -> None:
    """In every epoch; what one rank reads is what the other does not."""
    make = LOADERS[name]
    alone = of_rank(make, 8)
    pair = [of_rank(make, 4, rank, 2) for rank in range(2)]
    for epoch in range(3):
        for loader in (alone, *pair):
            _set_sampler_epoch(loader, epoch)
        whole, *parts = seen(alone), *map(seen, pair)
        assert len(whole) == len(parts[0]) == len(parts[1])
        assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*parts, strict=True)]


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "own batch sampler"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_epoch_is_the_rest_of_it(name: str, after: int) -> None:
    """And the epoch after it is its own."""
    make = LOADERS[name]

    def begun() -> tuple[Any, Iterator[Any], list[list[float]]]:
        loader = of_rank(make, 4, 1, 2)
        _set_sampler_epoch(loader, 0)
        seen(loader)
        _set_sampler_epoch(loader, 1)
        batches = iter(loader)
        return loader, batches, [next(batches).tolist() for _ in range(after)]

    def rest(loader: Any, batches: Any) -> list[list[float]]:
        following = seen(batches)
        _set_sampler_epoch(loader, 2)
        return following + seen(loader)

    loader, batches, _ = begun()
    state = loader.state_dict()
    expected = rest(loader, batches)
    again = of_rank(make, 4, 1, 2)
    again.load_state_dict(state)
    _set_sampler_epoch(again, 1)
    assert expected == rest(again, again)


def test_a_stream_with_a_state_is_not_read_again() -> None:
    """It resumes where it says that it was."""
    first, again = (adapt(DataLoader(Stateful(), batch_size=8), "train", terms()) for _ in range(2))
    batches = iter(first)
    next(batches), next(batches)
    again.load_state_dict(first.state_dict())
    assert [16, 17] == next(iter(again)).tolist()[:2]
    assert 8 == again.stream.dataset.reads


def test_a_batch_that_was_fetched_ahead_is_read_again() -> None:
    """Lightning reads one ahead where there is no length."""
    first, again = (adapt(DataLoader(Counting(), batch_size=8), "train", terms()) for _ in range(2))
    batches = iter(first)
    next(batches), next(batches)
    again.load_state_dict(first.state_dict(ahead=1))
    assert [8, 9] == next(iter(again)).tolist()[:2]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_reads_every_sample_once(name: str, world_size: int) -> None:
    """None twice, as padding would, and none left out but where the loader drops its last batch."""
    # Of noise the number before the point: it is drawn anew where batches are of another size.
    make = LOADERS[name]
    whole = [int(n) for batch in seen(of_rank(make, 4, split="val")) for n in batch]
    parts = [seen(of_rank(make, 4, rank, world_size, "val")) for rank in range(world_size)]
    read = sorted(int(n) for part in parts for batch in part for n in batch)
    assert read == sorted(whole)[: len(read)]
    assert len(read) == 50 - 50 % (4 * world_size) if name == "whole batches" else len(read) == len(whole)


def test_workers_change_nothing() -> None:
    """Neither the order nor random transforms."""
    few, many = (
        seen(of_rank(lambda n, w=workers: DataLoader(Noise(), n, shuffle=True, num_workers=w), 4)) for workers in (1, 3)
    )
    assert few == many
    streams = [seen(of_rank(lambda n, w=workers: DataLoader(Shuffled(), n, num_workers=w), 4)) for workers in (0, 1, 3)]
    assert streams[0] == streams[1] == streams[2]


def test_reading_does_not_touch_the_random_numbers_of_training() -> None:
    """Dropout draws what it would without the stream."""
    before = torch.get_rng_state()
    seen(of_rank(LOADERS["shuffled stream"], 4))
    seen(of_rank(LOADERS["weighted"], 4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", [Counting, Numbers])
def test_an_uneven_last_batch_is_weighted(kind: Any) -> None:
    """51 samples in steps of 8: the last one has 3, two for one rank and one for the other."""
    sizes, weights = [], []
    for rank in range(2):
        loader = of_rank(lambda size: DataLoader(kind(51), batch_size=size), 4, rank, 2)
        sizes.append(len(seen(loader)[-1]))
        weights.append(loader.weights[6])
    assert [1, 2] == sorted(sizes)
    assert [pytest.approx(2 * size / 3) for size in sizes] == weights


def test_whole_batches_are_dealt_out() -> None:
    """The fifth of five has no partner in training; evaluation has them all."""
    make = DataLoader(Numbers(), batch_sampler=Buckets())
    trained = [seen(adapt(make, "train", terms(rank, 2))) for rank in range(2)]
    assert [[[0], [3, 4, 5]], [[1, 2], [6, 7, 8, 9]]] == trained
    assert [[[0], [1, 2]], [[3, 4, 5], [6, 7, 8, 9], [10]]] == [
        seen(adapt(make, "val", terms(rank, 2))) for rank in range(2)
    ]


def test_several_loaders_keep_their_form() -> None:
    """In mappings, lists and CombinedLoaders with their mode."""
    pair = {"a": DataLoader(Numbers(), batch_size=4), "b": DataLoader(Numbers(10), batch_size=4)}
    adapted = adapt(pair, "val", terms(1, 2))
    assert ["a", "b"] == list(adapted)
    assert [5, 6, 7, 8, 9] == [n for batch in seen(adapted["b"]) for n in batch]
    combined = CombinedLoader([DataLoader(Numbers(), 4), DataLoader(Numbers(10), 4)], "max_size_cycle")
    assert combined is adapt(combined, "train", terms(0, 2))
    orders = [batch[1].tolist() for batch, *_ in combined]
    assert 7 == len(orders)


def test_a_shorter_loader_begins_anew_in_another_order() -> None:
    """Also after it was resumed in its second pass."""
    make = lambda: adapt(DataLoader(Numbers(8), 4, shuffle=True), "train", terms())  # noqa: E731
    loader = make()
    passes = [seen(loader) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    loader = make()
    seen(loader)
    batches = iter(loader)
    next(batches)
    again = make()
    again.load_state_dict(loader.state_dict())
    assert passes[1][1:] == seen(again)
    assert passes[2] == seen(again)


class OwnLoader(DataLoader[Any]):
    """Yields what nobody else knows."""

    def __iter__(self) -> Any:
        return iter([])


class OwnDistributed(DistributedSampler[int]):
    """Pads in a way of its own."""


def test_torchdatas_stateful_loader_is_read_as_any_other() -> None:
    """Sharded, and resumed by hpcexp's own position."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loaders = [adapt(stateful(Numbers(), batch_size=4, shuffle=True), "train", terms(rank, 2)) for rank in range(2)]
    assert list(range(50)) == sorted(n for loader in loaders for batch in seen(loader) for n in batch)
    batches = iter(loaders[0])
    next(batches)
    again = adapt(stateful(Numbers(), batch_size=4, shuffle=True), "train", terms(0, 2))
    again.load_state_dict(loaders[0].state_dict())
    assert seen(batches) == seen(again)


def test_what_hpcexp_does_not_know_is_read_as_it_is_on_one_rank() -> None:
    """There is nothing to divide."""
    loader = OwnLoader(Numbers())
    assert loader is adapt(loader, "train", terms())
    divided = DataLoader(Numbers(), 4, sampler=OwnDistributed(Numbers(), 1, 0, shuffle=False))
    assert 13 == len(seen(adapt(divided, "train", terms())))


REFUSED: list[tuple[Any, Terms, str]] = [
    (DataLoader(Numbers(), 4), terms(per_rank=8), "makes batches of 4"),
    (DataLoader(Numbers(), batch_sampler=Buckets()), terms(per_rank=8), "decides itself"),
    (DataLoader(Numbers(), 4, sampler=Endless()), terms(), "Endless has no length"),
    (DataLoader(Numbers(), 4, num_workers=1, in_order=False), terms(), "in_order=False"),
    (DataLoader(ReadsItsRank(), 4), terms(0, 2), "get_rank"),
    ([iter(range(3))], terms(0, 2), "is no torch DataLoader"),
    (DataLoader(Counting(), 4), terms(overfit=1), "reads a stream"),
    (OwnLoader(Numbers()), terms(0, 2), "overrides __iter__ of DataLoader"),
    (DataLoader(Numbers(), 4, sampler=OwnDistributed(Numbers(), 2, 0)), terms(0, 2), "DistributedSampler of its own"),
]


@pytest.mark.parametrize(("loader", "given", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_what_cannot_be_kept_is_refused(loader: Any, given: Terms, words: str) -> None:
    """With a fix."""
    with pytest.raises(ConfigError, match="Fix: ") as raised:
        adapt(loader, "train", given)
    assert words in str(raised.value)


def test_a_stream_that_is_shorter_than_it_says_is_named() -> None:
    """The epoch's validation would never come."""

    class Liar(Sized):
        def __len__(self) -> int:
            return 99

    with pytest.raises(DataError, match="ended after 13"):
        seen(of_rank(lambda size: DataLoader(Liar(), batch_size=size), 4))


def test_overfitting_reads_the_same_first_batches() -> None:
    """In every epoch."""
    loader = adapt(DataLoader(Numbers(), 4, shuffle=True), "train", terms(1, 2, overfit=2))
    first = seen(loader)
    _set_sampler_epoch(loader, 5)
    assert 2 == len(first)
    assert first == seen(loader)
