"""Cross-validation: the parts of a training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Said
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler
from training_plans import digits_plan

from hpcexp.data.digits import Digits
from hpcexp.data.folds import fold_numbers, fold_size, with_fold
from hpcexp.data.source import Source, Tensors
from hpcexp.errors import ConfigError
from hpcexp.schema.settings import Settings
from hpcexp.train.data.adapters.adapt import Terms, adapt
from hpcexp.train.data.datamodule import SourceData
from hpcexp.train.data.folds import Fold, classes_of
from hpcexp.train.data.loaders import Shard

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning's CombinedLoader


@pytest.mark.parametrize(("size", "folds"), [(10, 5), (103, 5), (7, 7), (1000, 3)])
@pytest.mark.parametrize("is_stratified", [True, False])
def test_parts_are_disjoint_and_of_one_size(size: int, folds: int, is_stratified: bool) -> None:
    """As many as planning says, without looking at a sample."""
    classes = [i % 4 for i in range(size)] if is_stratified else None
    counted = Counter(fold_numbers(classes, size, folds, seed=0))
    assert {fold: fold_size(size, folds, fold) for fold in range(folds)} == counted


def test_each_class_has_equal_shares() -> None:
    """Rare ones too."""
    classes = ["rare"] * 10 + ["common"] * 83
    parts = fold_numbers(classes, len(classes), 5, seed=3)
    shares = Counter(zip(parts, classes, strict=True))
    assert {2} == {shares[fold, "rare"] for fold in range(5)}
    assert {16, 17} == {shares[fold, "common"] for fold in range(5)}


def test_another_seed_draws_other_parts() -> None:
    """And the same one the same."""
    assert fold_numbers(None, 50, 5, 0) == fold_numbers(None, 50, 5, 0) != fold_numbers(None, 50, 5, 1)


def splits_of(source: Source, fold: int, loader: str) -> tuple[Any, Any]:
    plan = digits_plan(Path(), data__folds=4, data__fold=fold, data__loader=loader)
    assert plan.batch is not None
    data = SourceData(source, plan.batch, Settings(plan.config), shard=Shard(), device=torch.device("cpu"))
    return data._loaded("train"), data._loaded("val")


class OneByOne(Digits):
    """Read sample by sample, without telling classes beforehand."""

    def load(self, split: Any) -> Any:
        whole = super().load(split)
        return TensorDataset(whole.inputs, whole.targets)


@pytest.mark.parametrize("kind", [Digits, OneByOne])
def test_each_training_sample_is_held_out_once(kind: Any) -> None:
    """By a Source in memory and by one that is read sample by sample; sizes as planned."""
    source = kind()
    whole: Tensors = Digits().load("train")
    held_out = []
    for fold in range(4):
        train, val = splits_of(source, fold, "auto")
        settings = Settings({"data": {"folds": 4, "fold": fold}})
        facts = with_fold(source.facts(), settings.data)
        assert (facts.num_train, facts.num_val) == (len(train), len(val))
        held_out += [val[i][0].flatten().tolist() for i in range(len(val))]
        shares = Counter(int(val[i][1]) for i in range(len(val)))
        assert max(shares.values()) - min(shares.values()) <= 6
    assert sorted(held_out) == sorted(whole.inputs.flatten(1).tolist())


class Labelled(TensorDataset):
    """As torchvision's data sets tell their classes."""

    @property
    def targets(self) -> torch.Tensor:
        return self.tensors[1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_users_data_set_is_cut(world_size: int) -> None:
    """By its loader for training; the other folds are trained on, shuffled, and none twice."""
    dataset = Labelled(torch.arange(60), torch.arange(60) % 3)
    held_out = []
    for number in range(5):
        read: dict[str, list[int]] = {}
        for split in ("train", "val"):
            read[split] = []
            for rank in range(world_size):
                terms = Terms(1, Shard(rank, world_size), None, 0, Fold(5, number, 0))
                loader = DataLoader(dataset, batch_size=4, shuffle=True, drop_last=True)
                read[split] += [n for batch in adapt(loader, split, terms) for n in batch[0].tolist()]
        assert 48 == len(set(read["train"])) == len(read["train"])
        assert not set(read["train"]) & set(read["val"])
        assert {4} == set(Counter(n % 3 for n in read["val"]).values())
        held_out += read["val"]
    assert list(range(60)) == sorted(held_out)


def test_classes_are_known_through_subsets() -> None:
    """Without reading a sample."""
    dataset = Labelled(torch.arange(6), torch.tensor([5, 4, 3, 2, 1, 0]))
    assert [5, 3] == classes_of(Subset(dataset, [0, 2]))
    assert classes_of(TensorDataset(torch.arange(6))) is None


def test_a_sampler_that_knows_no_folds_is_refused() -> None:
    """It would give samples that are held out."""
    dataset = TensorDataset(torch.arange(60))
    loader = DataLoader(dataset, batch_size=4, sampler=WeightedRandomSampler([1.0] * 60, 60))
    with pytest.raises(ConfigError, match="WeightedRandomSampler"):
        adapt(loader, "train", Terms(1, Shard(), None, 0, Fold(5, 0, 0)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.folds=5",), "which fold is held out?"),
        (("data.fold=1",), "of how many?"),
        (("data.folds=5", "data.fold=5"), "the last is 4"),
        (("data.folds=5000", "data.fold=0"), "only 1,259 training samples"),
    ],
)
def test_folds_that_are_none_are_named(hpcexp: Callable[..., Said], overrides: tuple[str, ...], words: str) -> None:
    """Before anything runs."""
    said = hpcexp("plan", *overrides)
    assert 2 == said.status
    assert words in said.err


def test_the_plan_has_the_sizes_of_the_folds(hpcexp: Callable[..., Said]) -> None:
    """And says what becomes of the data's own validation split."""
    said = hpcexp("plan", "data.folds=5", "data.fold=4")
    assert "1,008 train, 251 val" in said.out
    assert "data.folds=5 cuts the training split" in said.out + said.err
