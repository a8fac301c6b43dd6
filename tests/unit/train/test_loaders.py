"""Loaders: order, shards, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from hpcexp.data.digits import Digits
from hpcexp.plan import Batch
from hpcexp.schema.settings import Settings
from hpcexp.train.data import datamodule
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.data.loaders import DistributedBatchSampler, MapLoader, ResidentLoader, Shard


def loader(kind: str, order: DistributedBatchSampler) -> ResidentLoader | MapLoader:
    numbers = torch.arange(order.size)
    if kind == "resident":
        return ResidentLoader(numbers, numbers, order)
    return MapLoader(TensorDataset(numbers, numbers), order)


def seen(batches: ResidentLoader | MapLoader | DistributedBatchSampler) -> list[list[int]]:
    return [(b[0] if isinstance(b[0], Tensor) else torch.tensor(b)).tolist() for b in batches]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(world_size: int, accumulate: int) -> None:
    """32 samples a step, of 150: four steps, the rest dropped."""
    per_rank = 32 // world_size // accumulate
    steps: list[set[int]] = [set() for _ in range(4)]
    for rank in range(world_size):
        order = DistributedBatchSampler(
            150, per_rank, shuffle=True, seed=3, shard=Shard(rank, world_size), accumulate=accumulate
        )
        assert len(order) == 4 * accumulate
        for i, batch in enumerate(seen(order)):
            steps[i // accumulate] |= set(batch)
    permutation = seen(DistributedBatchSampler(150, 32, shuffle=True, seed=3))
    assert [set(batch) for batch in permutation] == steps


@pytest.mark.parametrize("size", [1, 3, 100, 101])
def test_evaluation_sees_every_sample_once(size: int) -> None:
    """Without padding, however few there are."""
    numbers = []
    for rank in range(4):
        order = DistributedBatchSampler(size, 8, shuffle=False, shard=Shard(rank, 4))
        batches = seen(loader("resident", order))
        assert len(order) == len(batches)
        numbers += [n for batch in batches for n in batch]
    assert sorted(numbers) == list(range(size))


@pytest.mark.parametrize(("size", "batch"), [(143, 71), (100, 7), (9, 4), (33, 1)])
def test_ranks_evaluate_equally_many_batches(size: int, batch: int) -> None:
    """One that has a sample more has no batch more: the other would not take part in its forward."""
    orders = [DistributedBatchSampler(size, batch, shuffle=False, shard=Shard(rank, 2)) for rank in range(2)]
    batches = [seen(order) for order in orders]
    assert list(range(size)) == [n for of_rank in batches for one in of_rank for n in one]
    assert all(1 <= len(one) <= batch for of_rank in batches for one in of_rank)
    assert len(orders[0]) == len(orders[1]) or batch == 1


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """And the same one every time."""
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1):
            order = DistributedBatchSampler(64, 8, shuffle=True, seed=seed)
            order.set_epoch(epoch)
            orders[seed, epoch] = seen(order)
            assert orders[seed, epoch] == seen(order)
    assert len({str(order) for order in orders.values()}) == 4


@pytest.mark.parametrize("kind", ["resident", "map"])
def test_a_loader_goes_on_where_it_was(kind: str) -> None:
    """From the batches that were handed out; the next epoch begins at its beginning."""
    whole = loader(kind, DistributedBatchSampler(64, 8, shuffle=True, seed=1))
    whole.set_epoch(5)
    expected = seen(whole)
    half = loader(kind, DistributedBatchSampler(64, 8, shuffle=True, seed=1))
    half.set_epoch(5)
    batches = iter(half)
    next(batches)
    next(batches)
    again = loader(kind, DistributedBatchSampler(64, 8, shuffle=True, seed=1))
    again.load_state_dict(half.state_dict())
    assert expected[2:] == seen(again)
    assert expected == seen(again)


def test_a_broken_off_epoch_is_begun_anew() -> None:
    """Iteration resets at its start, not at its end."""
    resident = loader("resident", DistributedBatchSampler(64, 8, shuffle=True))
    next(iter(resident))
    assert len(seen(resident)) == 8


def test_workers_do_not_change_the_order() -> None:
    """Nor do they lose batches."""
    numbers = torch.arange(32)
    order = DistributedBatchSampler(32, 8, shuffle=True, seed=9)
    with_workers = MapLoader(TensorDataset(numbers, numbers), order, num_workers=1)
    assert seen(loader("resident", DistributedBatchSampler(32, 8, shuffle=True, seed=9))) == seen(with_workers)


class Seeds(Dataset[int]):
    """The seed of the process that reads a sample."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return torch.initial_seed() % 2**31


def test_workers_are_seeded_by_seed_epoch_and_rank() -> None:
    """And by nothing else: neither do they take from the stream of dropout."""
    seeds = {}
    for name, seed, epoch, rank in [("a", 1, 0, 0), ("again", 1, 0, 0), ("b", 2, 0, 0), ("c", 1, 1, 0), ("d", 1, 0, 1)]:
        order = DistributedBatchSampler(4, 2, shuffle=True, seed=seed, shard=Shard(rank, 2))
        order.set_epoch(epoch)
        before = torch.get_rng_state()
        seeds[name] = next(iter(MapLoader(Seeds(), order, num_workers=1))).tolist()
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(1)
    assert seeds["a"] == seeds["again"]
    assert len({str(seed) for seed in seeds.values()}) == 4


class Counted(Digits):
    """Digits that count how often they are measured."""

    asked = 0

    def resident_bytes(self) -> int:
        """As many as there are."""
        self.asked += 1
        return super().resident_bytes()


@pytest.mark.parametrize(("ranks", "expected"), [(1, True), (2, False)])
def test_ranks_of_a_node_share_its_memory(monkeypatch: pytest.MonkeyPatch, ranks: int, expected: bool) -> None:
    """What one rank holds as tensors, two do not; it is decided once, whatever is free afterwards."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    source = Counted()
    needed = int(Digits().resident_bytes() / datamodule.RESIDENT_SHARE)
    free = iter([needed, 0, 0])
    monkeypatch.setattr(datamodule, "free_memory", lambda device: next(free))
    settings = Settings({"data": {"loader": "auto"}, "seed": 1, "trainer": {}})
    device = torch.device("cpu")
    data = SourceData(source, Batch(8, 8, 1), settings, shard=Shard(), device=device, ranks_per_node=ranks)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [expected] * 3 == [isinstance(loader, ResidentLoader) for loader in loaders]
    assert source.asked == 1


def test_free_memory_is_what_the_machine_and_the_cgroups_leave(tmp_path: Path) -> None:
    """Caches count as free; the limit of a cgroup above counts too."""
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 50 kB\n")
    assert datamodule._available(tmp_path / "meminfo") == 50 * 1024
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/job/step\n")
    for place, limit, used in (("job", "1000", "300"), ("job/step", "max", "200")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "memory.max").write_text(limit)
        (tmp_path / place / "memory.current").write_text(used)
    assert datamodule._cgroup_rooms(tmp_path / "cgroup", tmp_path) == [700]
    assert datamodule._cgroup_rooms(tmp_path / "none", tmp_path) == []
