"""Parameters by pattern: without weight decay, and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcexp.errors import ConfigError
from hpcexp.train.optim.parameter_groups import freeze, matching, without_decay


class Own(nn.Module):
    """A little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["bias"], {"blocks.0.0.bias", "blocks.0.1.bias", "blocks.1.0.bias", "blocks.1.1.bias"}),
        (["norm"], {"blocks.0.1.weight", "blocks.0.1.bias", "blocks.1.1.weight", "blocks.1.1.bias"}),
        (["ndim<1"], {"scale"}),
        (["ndim == 2"], {"embedding.weight", "blocks.0.0.weight", "blocks.1.0.weight"}),
        (["blocks.0"], {"blocks.0.0.weight", "blocks.0.0.bias", "blocks.0.1.weight", "blocks.0.1.bias"}),
        (["blocks.*.0.weight", "scale"], {"blocks.0.0.weight", "blocks.1.0.weight", "scale"}),
    ],
)
def test_patterns_name_parameters(patterns: list[str], names: set[str]) -> None:
    """The same names whether the network is alone or in hpcexp's module, where they begin with the name `model`."""
    assert names == matching(Own(), patterns, "optimizer.no_decay")
    inside = nn.Module()
    inside.model = Own()
    assert {f"model.{name}" for name in names} == matching(inside, patterns, "optimizer.no_decay")


def test_a_pattern_that_matches_nothing_is_named() -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match=r"optimizer.no_decay=biass: no parameter matches.(.|\n)*embedding.weight"):
        without_decay(Own(), ["bias", "biass"])
    with pytest.raises(ConfigError, match=r"model.freeze=\* leaves nothing to train"):
        freeze(Own(), ["*"])


def test_what_is_not_decayed_keeps_its_size_without_a_gradient() -> None:
    """Two groups, of which only one shrinks; every parameter is in one of them, once."""
    model = Own()
    groups: list[Any] = without_decay(model, ["bias", "norm", "ndim<2"])
    assert len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"embedding.weight", "blocks.0.0.weight", "blocks.1.0.weight"} == shrunk


def test_without_patterns_there_are_no_groups() -> None:
    """The optimizer gets what it always got."""
    model = Own()
    assert list(map(id, model.parameters())) == list(map(id, without_decay(model, [])))


def test_frozen_parameters_are_neither_trained_nor_decayed(tmp_path: Path) -> None:
    """In a run: they end as they began."""
    from fitting import trained
    from training_plans import digits_plan

    from hpcexp.rundir import RunDir
    from hpcexp.train.checkpointing.checkpoint_io import read_checkpoint
    from hpcexp.train.engine.builders import make_module
    from hpcexp.train.runtime.seeds import seed_everything

    frozen = {"_target_": "hpcexp.models.mlp.MLP", "hidden": [8], "freeze": ["layers.1"]}
    seed_everything(1)
    before = make_module(digits_plan(tmp_path, model=frozen)).state_dict()
    trained(tmp_path, model=frozen, trainer__max_epochs=1)
    after = read_checkpoint(RunDir(tmp_path).best)["state_dict"]
    assert torch.equal(before["model.layers.1.weight"], after["model.layers.1.weight"])
    assert not torch.equal(before["model.layers.3.weight"], after["model.layers.3.weight"])
