"""From `_target_` to objects, and what is said where that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_plans import digits_config

from hpcexp.errors import ConfigError
from hpcexp.targets.instantiate import fill, instantiate
from hpcexp.targets.signature_check import check_targets, matches


def test_a_sound_configuration_has_no_problems() -> None:
    """Hpcexp's own keys and what it fills in are no mistakes."""
    assert check_targets(digits_config()) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimizer___target_": "torch.optim.SDG"}, ["optimizer._target_", "no 'SDG' in torch.optim", "'SGD'"]),
        ({"model___target_": "nowhere.Net"}, ["there is no module 'nowhere'"]),
        ({"model__hiden": [3]}, ["model.hiden: hpcexp.models.mlp.MLP takes no argument", "'hidden'", "Valid are:"]),
        ({"optimizer__lr": "fast"}, ["optimizer.lr=fast", "float"]),
        ({"model__dropout": [0.1]}, ["model.dropout=[0.1]", "float"]),
        ({"task__loss": {"_target_": "torch.nn.HuberLoss", "dleta": 1.0}}, ["task.loss.dleta", "'delta'"]),
        (
            {"callbacks": {"stop": {"_target_": "pytorch_lightning.callbacks.EarlyStopping"}}},
            ["callbacks.stop.monitor"],
        ),
    ],
)
def test_mistakes_are_named_by_their_path(overrides: dict[str, Any], words: list[str]) -> None:
    """What is wrong, where, and what is near."""
    [problem] = check_targets(digits_config(**overrides))
    assert all(word in problem for word in words), problem


def test_all_mistakes_come_at_once() -> None:
    """One for each."""
    assert len(check_targets(digits_config(model__hiden=[3], optimizer__lr="fast"))) == 2


def test_known_arguments_are_filled_in_where_they_are_taken() -> None:
    """And only where the configuration does not say them."""
    node = {"_target_": "hpcexp.models.mlp.MLP", "num_classes": 3}
    expected = {**node, "in_shape": (4,)}
    assert expected == fill(node, "model", in_shape=(4,), num_classes=10, depth=2)


def test_objects_are_built_with_what_is_given() -> None:
    """Positional arguments go as they are."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = instantiate(
        {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.8, 0.9]}, [weight], path="optimizer"
    )
    assert optimizer.param_groups[0]["params"][0] is weight
    assert optimizer.defaults["lr"] == 0.1


def test_what_a_constructor_raises_is_told_with_its_path() -> None:
    """Not Hydra's wrapping of it."""
    node = {"_target_": "torch.optim.AdamW", "lr": -1.0}
    with pytest.raises(
        ConfigError, match=r"optimizer\._target_=torch\.optim\.AdamW could not be built: ValueError: Invalid"
    ):
        instantiate(node, [torch.nn.Parameter(torch.ones(1))], path="optimizer")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, int, False),
        ("1", int, False),
        (None, int | None, True),
        ([0.9, 0.99], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ("x", Any, True),
        (0.1, float | torch.Tensor, True),
    ],
)
def test_types_are_held_against_annotations(value: Any, hint: Any, expected: bool) -> None:
    """As a configuration writes them."""
    assert expected == matches(value, hint)
