"""The checks, each by itself, on machines that need not be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcexp.checks.batch import batch, steps
from hpcexp.checks.devices import topology
from hpcexp.checks.paths import root_problems
from hpcexp.checks.values import missing_keys, type_problem, value_problems
from hpcexp.compose.composer import Composed
from hpcexp.data_spec import Classes, DataSpec, TensorSpec
from hpcexp.hardware.machine import Machine, num_cores, num_gpus
from hpcexp.plan import Batch, Steps, Topology
from hpcexp.schema.keys import OPEN_SECTIONS, Config
from hpcexp.schema.settings import Settings
from hpcexp.targets.nodes import target_nodes
from hpcexp.targets.static_check import target_problems

CPU = Machine("laptop", num_cores=8, num_gpus=0)
GPUS = Machine("server", num_cores=16, num_gpus=4)


def asked(compose: Callable[..., Composed], machine: Machine, *overrides: str) -> tuple[Topology | None, list[str]]:
    return topology(compose(*overrides).settings, machine)


@pytest.mark.parametrize(
    ("machine", "overrides", "expected"),
    [
        (CPU, [], Topology("cpu", (0,), 1, 8, "single", None)),
        (GPUS, [], Topology("cuda", (0, 1, 2, 3), 1, 4, "ddp", "nccl")),
        (GPUS, ["hardware=cpu"], Topology("cpu", (0,), 1, 16, "single", None)),
        (CPU, ["hardware.devices=2"], Topology("cpu", (0, 1), 1, 4, "ddp", "gloo")),
        (CPU, ["hardware.devices=all"], Topology("cpu", tuple(range(8)), 1, 1, "ddp", "gloo")),
        (GPUS, ["hardware=gpu", "hardware.devices=[3,1]"], Topology("cuda", (3, 1), 1, 4, "ddp", "nccl")),
        (GPUS, ["hardware.devices=1", "strategy=ddp"], Topology("cuda", (0,), 1, 4, "single", None)),
        (CPU, ["hardware.threads_per_rank=2"], Topology("cpu", (0,), 1, 2, "single", None)),
    ],
)
def test_every_rank_gets_a_device(
    compose: Callable[..., Composed], machine: Machine, overrides: list[str], expected: Topology
) -> None:
    """As `hardware` and `strategy` say, of what the machine has."""
    assert (expected, []) == asked(compose, machine, *overrides)


@pytest.mark.parametrize(
    ("machine", "overrides", "words"),
    [
        (CPU, ["hardware=gpu"], ["laptop has no GPU", "hardware=cpu"]),
        (GPUS, ["hardware.devices=5"], ["server has 4 GPUs", "hardware.devices=4"]),
        (CPU, ["hardware.devices=9"], ["laptop has 8 CPU cores", "hardware.devices=8"]),
        (GPUS, ["hardware.devices=[0,4]"], ["[0,4]", "valid are 0 to 3"]),
        (GPUS, ["hardware.devices=[]"], ["hardware.devices=[]", "for example"]),
        (GPUS, ["hardware.devices=some"], ["hardware.devices=some", "all or auto"]),
        (GPUS, ["hardware.devices=true"], ["hardware.devices=True", "not a number"]),
        (GPUS, ["strategy=single"], ["strategy=single", "asks for 4", "strategy=ddp"]),
    ],
)
def test_devices_that_cannot_be_are_named(
    compose: Callable[..., Composed], machine: Machine, overrides: list[str], words: list[str]
) -> None:
    """With the machine's name and what it has."""
    found, problems = asked(compose, machine, *overrides)
    assert found is None
    assert [] == [w for w in words if w not in problems[0]], problems


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 3), ("", 0), ("0,1", 2), ("-1", 0), ("1,-1,2", 1), ("0,1,2,3,4", 3)]
)
def test_gpus_are_those_that_are_visible(tmp_path: Path, visible: str | None, expected: int) -> None:
    """Device nodes, as CUDA_VISIBLE_DEVICES lets them through."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert expected == num_gpus(visible, tmp_path)


def test_cores_are_at_least_one() -> None:
    """Those this process may use."""
    assert num_cores() >= 1


def ranks(number: int) -> Topology:
    return Topology("cpu", tuple(range(number)), 1, 1, "ddp" if number > 1 else "single", None)


@pytest.mark.parametrize(("size", "number", "accumulate", "per_rank"), [(64, 1, 1, 64), (64, 2, 4, 8), (6, 3, 2, 1)])
def test_the_global_batch_is_divided(size: int, number: int, accumulate: int, per_rank: int) -> None:
    """`global_size = per_rank × accumulate × world_size`."""
    config = {"data": {"global_batch_size": size}, "trainer": {"accumulate_grad_batches": accumulate}}
    assert (Batch(size, per_rank, accumulate), []) == batch(Settings(config), ranks(number))


def test_a_batch_that_does_not_divide_names_its_neighbours() -> None:
    """Both of which divide."""
    config = {"data": {"global_batch_size": 64}, "trainer": {"accumulate_grad_batches": 1}}
    found, [problem] = batch(Settings(config), ranks(3))
    assert found is None
    assert problem == (
        "data.global_batch_size=64 does not divide over 3 ranks (hardware.devices=3).\n"
        "Every rank must see the same number of samples in each step.\nFix: data.global_batch_size=63, or 66."
    )


def test_a_data_module_without_a_batch_size_has_no_batch() -> None:
    """It says no batch size, and that is no problem."""
    assert (None, []) == batch(Settings({"data": {}, "trainer": {"accumulate_grad_batches": 1}}), ranks(2))


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, Steps(15, 30, 2)),
        ({"max_steps": 20}, Steps(15, 20, 2)),
        ({"max_steps": 15}, Steps(15, 15, 1)),
        ({"limit_train_batches": 7}, Steps(7, 14, 2)),
        ({"overfit_batches": 2}, Steps(2, 4, 2)),
    ],
)
def test_steps_follow_from_data_batch_and_limits(trainer: dict[str, Any], expected: Steps) -> None:
    """Limits count global batches, each a step; the incomplete one at the end is dropped."""
    facts = DataSpec(159, 0, 0, {"x": TensorSpec((4,))}, Classes(("a", "b")), "f")
    unlimited = {"max_epochs": 2, "max_steps": None, "limit_train_batches": None, "overfit_batches": 0}
    assert (expected, []) == steps(Settings({"trainer": {**unlimited, **trainer}}), Batch(10, 5, 2), facts)


def test_the_default_configuration_has_no_problems(compose: Callable[..., Composed]) -> None:
    """Neither in its values nor in its targets."""
    config = compose().config
    assert [] == [*value_problems(config), *target_problems(config)]


def test_open_values_are_found_at_any_depth() -> None:
    """In mappings and lists."""
    assert ["a", "b.c", "d.1"] == list(missing_keys({"a": "???", "b": {"c": "???", "e": 1}, "d": [0, "???"]}))


@pytest.mark.parametrize(
    ("value", "annotation", "is_right"),
    [
        (1, int, True),
        (1, float, True),
        (True, int, False),
        (1.5, int, False),
        (None, int, False),
        (None, int | None, True),
        ([1], list[int], True),
        ("x", list, False),
        ({}, dict[str, int], True),
        (object(), Any, True),
    ],
)
def test_values_are_held_against_types(value: object, annotation: Any, is_right: bool) -> None:
    """A whole number is a number; true is neither."""
    assert is_right == (type_problem(value, annotation) is None)


def test_targets_are_found_wherever_they_stand() -> None:
    """In sections, mappings in them, and lists."""
    config = {"a": {"_target_": "x.A", "b": {"_target_": "x.B"}}, "c": [{"_target_": "x.C"}], "d": {"_target_": None}}
    assert [("a", "x.A"), ("a.b", "x.B"), ("c.0", "x.C")] == [(p, n["_target_"]) for p, n in target_nodes(config)]


def test_hpcexps_own_keys_are_no_arguments(compose: Callable[..., Composed]) -> None:
    """`data.global_batch_size` and the like stand beside a target that does not take them."""
    assert [] == target_problems(compose("data.loader=map", "data.num_workers=2", "scheduler=step").config)


def test_a_missing_argument_is_named(compose: Callable[..., Composed]) -> None:
    """But those that hpcexp fills in."""
    [problem] = target_problems(compose("scheduler=step", "~scheduler.step_size").config)
    assert "scheduler.step_size: torch.optim.lr_scheduler.StepLR needs a value for 'step_size'." in problem


@pytest.mark.parametrize("place", ["new", "new/deep/er", "."])
def test_a_directory_that_can_be_made_is_no_problem(tmp_path: Path, place: str) -> None:
    """However deep; nothing is made yet."""
    assert [] == root_problems(tmp_path / place)
    assert [] == list(tmp_path.iterdir())


def test_a_file_in_the_way_of_the_runs_is_named(tmp_path: Path) -> None:
    """With the file's own path."""
    (tmp_path / "file").touch()
    [problem] = root_problems(tmp_path / "file" / "runs")
    assert f"{tmp_path / 'file'} is a file" in problem


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc, which nobody can write to")
def test_a_place_nobody_can_write_to_is_named() -> None:
    """Not even root."""
    [problem] = root_problems(Path("/proc/runs"))
    assert "/proc cannot be written to" in problem


def test_every_open_section_is_a_section() -> None:
    """The schema names none that the configuration lacks."""
    assert OPEN_SECTIONS.keys() <= Config.__dataclass_fields__.keys()
