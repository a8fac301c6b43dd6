"""`model.init_from`: weights of a run, a checkpoint or a state_dict, into another model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_module
from torch import Tensor, nn

from hpcexp.compose.composer import Composed
from hpcexp.errors import ConfigError, RunError
from hpcexp.files.atomic import sha256
from hpcexp.plan import InitialWeights, Plan
from hpcexp.planner import prepare
from hpcexp.schema.settings import Settings
from hpcexp.train.engine.builders import make_module
from hpcexp.train.engine.initial_weights import load_initial


def network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, width))


def saved(path: Path, weights: Mapping[str, Tensor], *, as_checkpoint: bool = False) -> InitialWeights:
    torch.save({"state_dict": dict(weights), "epoch": 3} if as_checkpoint else dict(weights), path)
    return InitialWeights(str(path), sha256(path))


def loaded(model: nn.Module, weights: InitialWeights, **keys: Any) -> str:
    settings = Settings({"model": {"_target_": "x", "init_from": weights.path, **keys}})
    return load_initial(model, weights, settings.model)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_state_dict_or_a_checkpoint_is_loaded_whole(tmp_path: Path, prefix: str) -> None:
    """Names as the model has them, or as hpcexp's checkpoints have them."""
    theirs, mine = network(), network()
    named = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    said = loaded(mine, saved(tmp_path / "w.pt", named, as_checkpoint=bool(prefix)))
    assert "4 of 4 tensors" in said
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), mine.parameters(), strict=True))


def test_a_part_is_loaded_under_another_name(tmp_path: Path) -> None:
    """A prefix of the file's names; what is excluded keeps its initial weights."""
    theirs, mine = network(), network(width=5)
    named = {f"backbone.{name}": value for name, value in theirs.state_dict().items()}
    named |= {"head.weight": torch.zeros(1)}
    before = mine[1].weight.detach().clone()  # type: ignore[index]
    said = loaded(mine, saved(tmp_path / "w.pt", named), init_prefix="backbone.", init_exclude=["1"])
    assert "2 of 4 tensors" in said
    assert torch.equal(theirs[0].weight, mine[0].weight)  # type: ignore[index]
    assert torch.equal(before, mine[1].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "keys", "what"),
    [
        (lambda w: {**w, "2.bias": torch.ones(1)}, {}, "the model lacks 2.bias"),
        (lambda w: {k: v for k, v in w.items() if k != "1.bias"}, {}, "the file lacks 1.bias"),
        (
            lambda w: {**w, "1.weight": torch.ones(5, 3)},
            {},
            r"1.weight has another shape: \(5, 3\) in the file",
        ),
        (lambda w: {f"net.{k}": v for k, v in w.items()}, {}, "no weight of the file is one of the model's"),
        (lambda w: w, {"init_prefix": "x."}, "no weight of the file is one of the model's"),
        (lambda w: {"steps": 3}, {}, "the file has no weights by name"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, keys: dict[str, Any], what: str) -> None:
    """Nothing is loaded in part without a word."""
    weights = saved(tmp_path / "w.pt", change(network().state_dict()))
    with pytest.raises(ConfigError, match=what):
        loaded(network(), weights, **keys)


def test_without_strictness_what_fits_is_loaded_and_the_rest_is_told(tmp_path: Path) -> None:
    """On one line."""
    named = {k: v for k, v in network().state_dict().items() if k != "1.bias"}
    said = loaded(network(), saved(tmp_path / "w.pt", named), init_strict=False)
    assert "3 of 4 tensors" in said
    assert "1.bias as initialised" in said


def test_a_file_that_has_changed_since_planning_is_refused(tmp_path: Path) -> None:
    """The run's identity has its digest."""
    weights = saved(tmp_path / "w.pt", network().state_dict())
    saved(tmp_path / "w.pt", network().state_dict())
    with pytest.raises(RunError, match="is not the file that was planned with"):
        loaded(network(), weights)


def test_planning_takes_the_content_for_what_it_is(compose: Callable[..., Composed], project: Path) -> None:
    """A file under another name is the same run, another content another one; what is not there is named."""
    for name in ("a.pt", "b.pt"):
        (project / name).write_bytes(b"weights")
    (project / "c.pt").write_bytes(b"others")

    def planned(file: str) -> Plan:
        return prepare(compose(f"model.init_from={file}"), project, [])

    assert planned("a.pt").signature == planned("b.pt").signature
    assert 3 == len({planned("a.pt").signature, planned("c.pt").signature, prepare(compose(), project, []).signature})
    assert InitialWeights(str(project / "a.pt"), sha256(project / "a.pt")) == planned("a.pt").initial_weights
    with pytest.raises(ConfigError, match=r"model.init_from=d.pt: there is no such file or run"):
        planned("d.pt")


def test_an_argument_of_the_models_own_stays_its_own(compose: Callable[..., Composed], project: Path) -> None:
    """A user's model may have a `freeze` that is something else."""
    code = """
        import torch
        class Net(torch.nn.Linear):
            def __init__(self, freeze: bool, in_shape, num_classes):
                super().__init__(64, num_classes)
                self.is_frozen = freeze
            def forward(self, x): return super().forward(x.flatten(1))
    """
    write_module(project, "freezing_net", code)
    sys.path.insert(0, str(project))
    plan = prepare(compose("~model", "+model._target_=freezing_net.Net", "+model.freeze=true"), project, [])
    assert make_module(plan).model.is_frozen is True  # type: ignore[union-attr]
