"""Hydra's words in nodes with a `_target_`: planning knows all of them, in any place, and a job obeys them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import Said, write_conf, write_module

from hpcexp.compose.composer import Composer
from hpcexp.errors import ConfigError
from hpcexp.planner import prepare
from hpcexp.targets.instantiate import instantiate
from hpcexp.targets.signature_check import check_targets

CODE = """
    class Net:
        def __init__(self, in_shape, num_classes, optimizer=None, schedules=(), inner=None, width: int = 1):
            self.__dict__.update(locals())
        @classmethod
        def sized(cls, width: int):
            return cls((1,), 1, width=width)
        @staticmethod
        def built(width: int, depth: int = 2):
            return Net((1,), 1, width=width)
        class Inner:
            def __init__(self, size: int):
                self.size = size

    def positional(first: int, second: int = 2):
        return Net((1,), 1, width=first)
"""
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.1}


@pytest.fixture
def planned(project: Path, request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The frozen configuration with a model of this test's own module, `MODULE` in its names."""
    module = f"words_{abs(hash(request.node.name))}"
    write_module(project, module, CODE)
    sys.path.insert(0, str(project))

    def plan(sections: dict[str, Any]) -> dict[str, Any]:
        text = yaml.safe_dump({"name": "x", **sections}).replace("MODULE", module)
        head = "# @package _global_\ndefaults:\n  - override /model: own\n  - override /scheduler: step\n"
        write_conf(project, {"experiment/x.yaml": head + text, "model/own.yaml": f"_target_: {module}.Net\n"})
        plan = prepare(Composer(project).compose(["experiment=x"]), project, ["hpcexp"])
        assert [] == check_targets(plan.config)
        return plan.config

    return plan


@pytest.mark.parametrize(
    "model",
    [
        {"optimizer": {**ADAM, "_partial_": True}},
        {"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True}},
        {"schedules": [{"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 3}]},
        {"schedules": [[{"a": {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True}}]]},
        {"_recursive_": False, "optimizer": ADAM},
        {"_recursive_": False, "schedules": [{"x": [ADAM]}]},
        {
            "inner": {
                "_recursive_": False,
                "x": {"_target_": "MODULE.Net", "in_shape": [1], "num_classes": 1, "inner": ADAM},
            }
        },
        {"_convert_": "none", "inner": {"a": [1]}},
        {"_convert_": "partial", "inner": {"_target_": "MODULE.Net.Inner", "size": 3, "_convert_": "object"}},
        {"inner": {"_target_": "MODULE.positional", "_args_": [1]}},
        {"inner": {"_target_": "MODULE.positional", "_args_": [1], "second": 3}},
        {"inner": {"_target_": "MODULE.Net.sized", "width": 3}},
        {"inner": {"_target_": "MODULE.Net.built", "width": 3, "_partial_": False}},
        {"inner": {"_target_": "hydra.utils.get_class", "path": "torch.nn.ReLU"}},
        {"inner": {"_target_": "hydra.utils.get_method", "path": "MODULE.positional"}},
        {"inner": {"_target_": "hydra.utils.get_object", "path": "torch.float32"}},
    ],
    ids=str,
)
def test_words_of_hydra_are_planned_and_built(
    planned: Callable[[dict[str, Any]], dict[str, Any]], model: dict[str, Any]
) -> None:
    """The plan keeps them, and the job's builder obeys them."""
    config = planned({"model": model})
    made = instantiate({**config["model"], "in_shape": [1], "num_classes": 1}, path="model")
    weight = [torch.nn.Parameter(torch.ones(1))]
    if isinstance(model.get("optimizer"), dict):
        given = made.optimizer
        assert isinstance(given, dict) if model.get("_recursive_") is False else given(weight).param_groups
    if isinstance(inner := model.get("inner"), dict) and "positional" in str(inner.get("_target_")):
        assert 1 == made.inner.width


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_a_partial_that_hpcexp_completes_is_that_call(
    planned: Callable[[dict[str, Any]], dict[str, Any]], section: str
) -> None:
    """As in the common templates: the optimizer gets the parameters, the schedule the optimizer."""
    nodes: dict[str, Any] = {
        "optimizer": {**ADAM, "_partial_": True},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 3},
    }
    config = planned({section: nodes[section]})
    assert config[section]["_partial_"] is True
    given: Any = [torch.nn.Parameter(torch.ones(1))]
    if section == "scheduler":
        given = torch.optim.SGD(given, lr=0.1)
    made = instantiate(nodes[section], given, path=section)
    assert isinstance(made, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"_partial_": True}}, ["model._partial_=true: hpcexp needs the object itself here"]),
        (
            {"callbacks": {"a": {"_target_": "pytorch_lightning.callbacks.Timer", "_partial_": True}}},
            ["callbacks.a._partial_=true: "],
        ),
        ({"data": {"_partial_": True}}, ["data._partial_=true: "]),
        ({"optimizer": {"_args_": [1]}}, ["optimizer._args_: hpcexp passes the positional arguments"]),
        ({"launch": {"_convert_": "all"}}, ["launch._convert_: "]),
        ({"model": {"_recursive_": "no way"}}, ["model._recursive_=no way: not true or false."]),
        ({"model": {"inner": {**ADAM, "_partial_": 1}}}, ["model.inner._partial_=1: not true or false."]),
        ({"model": {"_convert_": "dict"}}, ["model._convert_=dict: not one of all, none, object, partial."]),
        ({"model": {"inner": {"_target_": "MODULE.positional", "_args_": 3}}}, ["model.inner._args_=3: not a list."]),
        ({"model": {"optimizer": {**ADAM, "_partail_": True}}}, ["model.optimizer._partail_", "'_partial_'"]),
        ({"model": {"inner": ADAM}}, ["model.inner.params: torch.optim.Adam needs a value for 'params'"]),
        ({"model": {"inner": {**ADAM, "_partial_": True, "lrr": 1}}}, ["takes no argument 'lrr'"]),
        ({"model": {"_recursive_": False, "optimizer": {**ADAM, "lrr": 1}}}, ["takes no argument 'lrr'"]),
        ({"model": {"inner": {"_target_": "MODULE.Net.szied"}}}, ["there is no 'szied' in Net; did you mean 'sized'?"]),
        ({"model": {"inner": {"_target_": "MODULE.Net.sized"}}}, ["needs a value for 'width'"]),
        ({"model": {"inner": {"_target_": "MODULE.Net.Inner", "size": "x"}}}, ["size=x: not a whole number."]),
        ({"model": {"schedules": [{"_target_": "torch.optim.Adm"}]}}, ["model.schedules.0._target_", "Adam"]),
        (
            {"model": {"inner": {"_target_": "hydra.utils.get_class", "path": "torch.nn.RelU"}}},
            ["model.inner.path=torch.nn.RelU: there is no 'RelU'"],
        ),
    ],
    ids=str,
)
def test_words_that_cannot_be_obeyed_are_refused_by_the_plan(
    planned: Callable[[dict[str, Any]], dict[str, Any]], sections: dict[str, Any], words: list[str]
) -> None:
    """With the key, and what to do."""
    with pytest.raises(ConfigError) as error:
        planned(sections)
    assert all(word in str(error.value) for word in words), error.value


def test_code_that_is_only_got_by_its_name_is_part_of_the_run(hpcexp: Callable[..., Said], project: Path) -> None:
    """An edit of the function makes another run."""
    write_module(project, "words_loss", "def loss(outputs, targets):\n    return outputs.sum()\n")
    given = ("plan", "task.loss._target_=hydra.utils.get_method", "task.loss.path=words_loss.loss")
    given = (*given, "~task.loss.label_smoothing")
    before = hpcexp(*given)
    (project / "words_loss.py").write_text("def loss(outputs, targets):\n    return outputs.mean()\n")
    after = hpcexp(*given)
    assert 0 == before.status == after.status, before.err
    digests = [[line for line in said.out.splitlines() if "digest" in line] for said in (before, after)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "words",
    [{"_args_": [8]}, {"size": 8, "_convert_": "none"}, {"size": 8, "extra": {"_target_": "collections.OrderedDict"}}],
)
def test_a_data_set_is_asked_as_the_job_makes_it(
    project: Path, request: pytest.FixtureRequest, words: dict[str, Any]
) -> None:
    """With the words of Hydra, and what is nested in its arguments."""
    name = f"words_{abs(hash(request.node.name))}"
    code = """
        from hpcexp.data.source import Source
        from hpcexp.data_spec import Classes, DataSpec, TensorSpec

        class Own(Source):
            def __init__(self, size: int = 1, extra=None):
                assert extra is None or "_target_" not in extra
                self.size = size
            def problems(self):
                return []
            def facts(self):
                inputs = {"x": TensorSpec((4,))}
                return DataSpec(self.size * 100, 10, 10, inputs, Classes(("a", "b")), str(self.size))
            def load(self, split):
                raise NotImplementedError
            def read(self, split, index):
                raise NotImplementedError
            def files(self):
                return []
    """
    write_module(project, name, code)
    sys.path.insert(0, str(project))
    node = yaml.safe_dump({"_target_": f"{name}.Own", "global_batch_size": 4, **words})
    write_conf(project, {"data/own.yaml": node})
    plan = prepare(Composer(project).compose(["data=own"]), project, ["hpcexp"])
    assert plan.data is not None
    assert 800 == plan.data.num_train
