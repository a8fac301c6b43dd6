"""A user's LightningDataModule, DataLoaders or data sets as a data module that training reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hpcexp.errors import ConfigError, listed
from hpcexp.plan import Batch
from hpcexp.schema.settings import DataSettings, Settings
from hpcexp.targets.data_module import data_module_problems
from hpcexp.train.data.adapters.adapt import Terms, adapt
from hpcexp.train.data.folds import fold_in
from hpcexp.train.data.loaders import Shard
from hpcexp.train.runtime.seeds import seeded

_LOADERS = {
    "train_dataloader": "train",
    "val_dataloader": "val",
    "test_dataloader": "test",
    "predict_dataloader": "predict",
}
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}
_KINDS = "a LightningDataModule, a DataLoader, a data set, or a mapping of them by split"


def as_data_module(given: Any, settings: Settings, batch: Batch | None, shard: Shard) -> pl.LightningDataModule:
    """`given` as a LightningDataModule whose loaders give this rank its part; ConfigError where it is no data."""
    overfit = settings.trainer.overfit_batches
    fold = fold_in(settings.data)
    terms = Terms(settings.seed, shard, batch.per_rank if batch else None, overfit, fold)
    data: pl.LightningDataModule
    if isinstance(given, pl.LightningDataModule):
        data = given
        if problems := data_module_problems(settings.data, inspect.signature(type(data)).parameters, batch):
            raise ConfigError(problems)
    else:
        data = Splits(_by_split(given, settings.data.target, terms), settings.data, batch)
    _seed_hooks(data, settings.seed)
    own = {name: getattr(data, name) for name in _LOADERS if is_overridden(name, data)}
    if "train_dataloader" in own and (fold is not None or (overfit and "val_dataloader" in own)):
        own["val_dataloader"] = own["train_dataloader"]
    for name, make in own.items():
        setattr(data, name, _sharded(data, make, _LOADERS[name], terms))
    return data


class Splits(pl.LightningDataModule):
    """Loaders of data sets by split; a DataLoader stays as it is."""

    def __init__(self, splits: Mapping[str, Any], settings: DataSettings, batch: Batch | None) -> None:
        super().__init__()
        self.splits, self._settings, self._batch = splits, settings, batch
        for name, split in _LOADERS.items():
            if split in splits:
                setattr(self, name, self._loader_of(split))

    def _loader_of(self, split: str) -> Callable[[], Any]:
        def loader() -> Any:
            given = self.splits[split]
            if isinstance(given, DataLoader):
                return given
            return DataLoader(_in_torch(given), **self._options(given, training=split == "train"))

        return loader

    def _options(self, dataset: Any, *, training: bool) -> dict[str, Any]:
        if self._batch is None:
            raise ConfigError(
                f"data.global_batch_size is not set, and {self._settings.target} gives data sets, which are read in "
                "batches.\nFix: data.global_batch_size=64"
            )
        workers = self._settings.num_workers
        size = self._batch.per_rank if training else self._settings.eval_batch_size or self._batch.per_rank
        return {
            "batch_size": size,
            "shuffle": training if not isinstance(dataset, IterableDataset) else None,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "collate_fn": getattr(dataset, "collate_fn", None),
        }


def _by_split(data: Any, target: str, terms: Terms) -> dict[str, Any]:
    """Data set or DataLoader of each split."""
    if _is_data(data):
        return {"train": data}
    if hasattr(data, "_asdict"):
        data = data._asdict()
    if isinstance(data, Mapping):
        known = {alias: split for split, aliases in _SPLITS.items() for alias in aliases}
        found = {known[name]: value for name, value in data.items() if name in known and value is not None}
        if unknown := [str(name) for name in data if name not in known]:
            terms.say(f"data: of what {target} gives, nothing reads {', '.join(unknown)}: splits are train, val, test.")
    elif isinstance(data, Sequence) and 1 <= len(data) <= len(_SPLITS) and all(map(_is_data, data)):
        found = dict(zip(_SPLITS, data, strict=False))
    else:
        found = {}
    if "train" not in found or not all(map(_is_data, found.values())):
        raise ConfigError(
            f"data._target_={target} gives a {type(data).__name__}, which is neither a hpcexp.data.source.Source nor "
            f"{_KINDS}.\nFix: let it give one of these."
        )
    return found


def _is_data(value: Any) -> bool:
    is_map_style = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    is_plain = isinstance(value, Mapping | list | tuple | str)
    return isinstance(value, DataLoader | Dataset) or (is_map_style and not is_plain)


def _in_torch(dataset: Any) -> Any:
    """A data set of Hugging Face's without a format gives tensors: lists in it would be collated across samples."""
    if type(dataset).__module__.partition(".")[0] != "datasets":
        return dataset
    formatted = getattr(dataset, "format", None) or {"type": getattr(dataset, "_formatting", None)}
    return dataset.with_format("torch") if formatted["type"] is None else dataset


def check_makes_no_loaders(module: pl.LightningModule) -> None:
    """ConfigError where a module has loaders of its own, beside those of `data`."""
    if own := [name for name in _LOADERS if is_overridden(name, module)]:
        raise ConfigError(
            f"model: {type(module).__name__} has its own {own[0]}, and training reads what `data` gives.\n"
            f"Fix: a LightningDataModule with these loaders as data._target_, and no {listed(own)} in the module."
        )


def _sharded(data: Any, make: Callable[[], Any], split: str, terms: Terms) -> Callable[[], Any]:
    """A hook that gives this rank's loaders."""

    @wraps(make)
    def hook() -> Any:
        with seeded(terms.seed):
            made = make()
        trainer = data.trainer
        epoch = trainer.fit_loop.epoch_progress.current.processed if trainer is not None else 0
        return made if made is None else adapt(made, split, terms, data, epoch=epoch)

    return hook


def _seed_hooks(data: pl.LightningDataModule, seed: int) -> None:
    """Let a random split made in `setup` be the same on every rank, in every stage and every attempt."""
    for name in ("prepare_data", "setup"):
        if is_overridden(name, data):
            setattr(data, name, _seeded(getattr(data, name), seed))


def _seeded(hook: Callable[..., Any], seed: int) -> Callable[..., Any]:
    @wraps(hook)
    def run(*args: Any, **kwargs: Any) -> Any:
        with seeded(seed):
            return hook(*args, **kwargs)

    return run
