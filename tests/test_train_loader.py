"""Loaders: order, shards, resuming."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hpcexp.train.loader import BatchOrder, MapLoader, ResidentLoader, Shard


def loader(kind: str, order: BatchOrder) -> ResidentLoader | MapLoader:
    numbers = torch.arange(order.size)
    if kind == "resident":
        return ResidentLoader(numbers, numbers, order)
    return MapLoader(TensorDataset(numbers, numbers), order)


def seen(batches: ResidentLoader | MapLoader | BatchOrder) -> list[list[int]]:
    return [(b[0] if isinstance(b[0], Tensor) else torch.tensor(b)).tolist() for b in batches]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(world_size: int, accumulate: int) -> None:
    """32 samples a step, of 150: four steps, the rest dropped."""
    per_rank = 32 // world_size // accumulate
    steps: list[set[int]] = [set() for _ in range(4)]
    for rank in range(world_size):
        order = BatchOrder(150, per_rank, shuffle=True, seed=3, shard=Shard(rank, world_size), accumulate=accumulate)
        assert len(order) == 4 * accumulate
        for i, batch in enumerate(seen(order)):
            steps[i // accumulate] |= set(batch)
    permutation = seen(BatchOrder(150, 32, shuffle=True, seed=3))
    assert [set(batch) for batch in permutation] == steps


@pytest.mark.parametrize("size", [1, 3, 100, 101])
def test_evaluation_sees_every_sample_once(size: int) -> None:
    """Without padding, however few there are."""
    numbers = []
    for rank in range(4):
        order = BatchOrder(size, 8, shuffle=False, shard=Shard(rank, 4))
        batches = seen(loader("resident", order))
        assert len(order) == len(batches)
        numbers += [n for batch in batches for n in batch]
    assert sorted(numbers) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """And the same one every time."""
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1):
            order = BatchOrder(64, 8, shuffle=True, seed=seed)
            order.set_epoch(epoch)
            orders[seed, epoch] = seen(order)
            assert orders[seed, epoch] == seen(order)
    assert len({str(order) for order in orders.values()}) == 4


@pytest.mark.parametrize("kind", ["resident", "map"])
def test_a_loader_goes_on_where_it_was(kind: str) -> None:
    """From the batches that were handed out; the next epoch begins at its beginning."""
    whole = loader(kind, BatchOrder(64, 8, shuffle=True, seed=1))
    whole.set_epoch(5)
    expected = seen(whole)
    half = loader(kind, BatchOrder(64, 8, shuffle=True, seed=1))
    half.set_epoch(5)
    batches = iter(half)
    next(batches)
    next(batches)
    again = loader(kind, BatchOrder(64, 8, shuffle=True, seed=1))
    again.load_state_dict(half.state_dict())
    assert expected[2:] == seen(again)
    assert expected == seen(again)


def test_a_broken_off_epoch_is_begun_anew() -> None:
    """Iteration resets at its start, not at its end."""
    resident = loader("resident", BatchOrder(64, 8, shuffle=True))
    next(iter(resident))
    assert len(seen(resident)) == 8


def test_workers_do_not_change_the_order() -> None:
    """Nor do they lose batches."""
    numbers = torch.arange(32)
    order = BatchOrder(32, 8, shuffle=True, seed=9)
    with_workers = MapLoader(TensorDataset(numbers, numbers), order, num_workers=1)
    assert seen(loader("resident", BatchOrder(32, 8, shuffle=True, seed=9))) == seen(with_workers)
