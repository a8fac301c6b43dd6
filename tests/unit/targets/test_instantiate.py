"""From `_target_` to objects, and what is said where that cannot be."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_conf
from omegaconf import OmegaConf
from training_plans import digits_config

from hpcexp.compose.composer import Composer
from hpcexp.errors import ConfigError
from hpcexp.plan import load_plan, save_plan
from hpcexp.planner import prepare
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


class Got:
    """What a target was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


HERE = f"{__name__}.{Got.__name__}"
TEXT = r"c:\${seed}\\${x} ${oc.env:HOME} \'q ${"
INNER = {"_target_": HERE, "text": TEXT}


@pytest.mark.parametrize(
    "node",
    [
        {"text": TEXT},
        {"nested": {"mapping": TEXT, "list": [TEXT, {"x": TEXT}]}},
        {"target": INNER, "list": [INNER, {"inner": INNER}]},
        {"partial": {**INNER, "_partial_": True}},
        {"_recursive_": False, "target": INNER, "list": [TEXT]},
        {"_args_": [TEXT, [TEXT], {"x": TEXT}]},
        {"_convert_": "none", "text": TEXT, "mapping": {"x": TEXT, "list": [[TEXT], {"y": [TEXT], "inner": INNER}]}},
        {"_convert_": "none", "_recursive_": False, "mapping": {"x": TEXT, "list": [[TEXT]]}},
        {"_convert_": "partial", "text": TEXT, "mapping": {"x": TEXT}},
        {"_convert_": "object", "text": TEXT, "mapping": {"x": TEXT}},
        {"inner": {**INNER, "_convert_": "none", "mapping": {"x": [TEXT]}}, "text": TEXT},
    ],
    ids=str,
)
def test_a_text_reaches_its_target_as_it_is(node: dict[str, Any]) -> None:
    """What a frozen plan says is final, wherever it stands and however Hydra converts it."""
    expected = {k: v for k, v in node.items() if k not in ("_convert_", "_recursive_")}
    assert _without_words({"_target_": HERE, **expected}) == _told(instantiate({"_target_": HERE, **node}, path="x"))


def _without_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_words(v) for k, v in value.items() if k != "_convert_"}
    return [_without_words(v) for v in value] if isinstance(value, list) else value


def _told(value: Any) -> Any:
    """Objects as the nodes that they were made of."""
    if OmegaConf.is_config(value):
        return _told(OmegaConf.to_container(value, resolve=True))
    if isinstance(value, Got):
        args = {"_args_": [_told(v) for v in value.args]} if value.args else {}
        return {"_target_": HERE, **args, **{k: _told(v) for k, v in value.kwargs.items()}}
    if hasattr(value, "keywords"):
        return {"_target_": HERE, "_partial_": True, **_told(value.keywords)}
    if isinstance(value, dict):
        return {k: _told(v) for k, v in value.items()}
    return [_told(v) for v in value] if isinstance(value, list | tuple) else value


def test_any_text_with_a_dollar_reaches_its_target() -> None:
    """Ten thousand of the awkward ones."""
    pieces, chance = ["\\", "$", "{", "}", "a", ":", ".", "'", '"', " ", "${", "x.y", "???"], random.Random(1)
    texts = ["".join(chance.choices(pieces, k=chance.randint(1, 9))) for _ in range(10_000)]
    texts = [text for text in texts if text != "???"]
    assert texts == instantiate({"_target_": HERE, "texts": texts}, path="x").kwargs["texts"]


@pytest.mark.parametrize("given", [r"model.text='\${seed}'", r"model.text='c:\\\${seed}'", "file"])
def test_an_escaped_interpolation_is_resolved_once_on_its_way_to_a_job(project: Path, given: str) -> None:
    """From the command line or a file into the plan, and from the plan to the object."""
    own = f"_target_: {HERE}\n" + (r"text: '\${seed}'" if given == "file" else "")
    write_conf(project, {"model/own.yaml": own})
    plan = prepare(Composer(project).compose(["model=own", *([given] if given != "file" else [])]), project, ["hpcexp"])
    expected = r"c:\${seed}" if "c:" in given else "${seed}"
    assert expected == plan.config["model"]["text"]
    save_plan(plan, project / "plan.yaml")
    frozen = load_plan(project / "plan.yaml").config
    assert expected == instantiate(frozen["model"], path="model").kwargs["text"]
