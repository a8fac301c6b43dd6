"""The configuration with the types of the schema."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from mypy import api
from training_plans import digits_config, digits_plan

from hpcexp.checks.values import field_types
from hpcexp.compose.composer import Composed
from hpcexp.plan import load_plan, save_plan
from hpcexp.schema.keys import OPEN_SECTIONS, Config
from hpcexp.schema.settings import Settings, TargetSection

REPOSITORY = Path(__file__).parents[3]


def checked(tmp_path: Path, *lines: str) -> list[str]:
    """What mypy says of these lines about `settings`."""
    module = tmp_path / "reader.py"
    head = ["from hpcexp.schema.settings import Settings", "def read(settings: Settings) -> None:"]
    module.write_text("\n".join([*head, *(f"    {line}" for line in lines), ""]))
    options = ["--no-error-summary", "--config-file", str(REPOSITORY / "pyproject.toml")]
    out, err, _ = api.run([*options, "--cache-dir", str(tmp_path / "cache"), str(module)])
    assert not err
    return [re.sub(r"(; maybe .*)?  \[[\w-]+\]$", "", line.partition("error: ")[2]) for line in out.splitlines()]


def test_the_type_checker_finds_a_mistyped_key(tmp_path: Path) -> None:
    """In a closed section, in one with a `_target_`, and among the sections; and a value of another type."""
    lines = [
        "print(settings.launch.grace_s, settings.data.num_workers, settings.optimizer.target)",
        "settings.trainer.max_epoch",
        "settings.launch.grace",
        "settings.optimizer.lr",
        "settings.trainr",
        "seed: str = settings.seed",
    ]
    said = checked(tmp_path, *lines)
    assert [
        '"Trainer" has no attribute "max_epoch"',
        '"LaunchSettings" has no attribute "grace"',
        '"OptimizerSettings" has no attribute "lr"',
        '"Settings" has no attribute "trainr"',
        'Incompatible types in assignment (expression has type "int", variable has type "str")',
    ] == said


def test_every_key_of_the_schema_has_its_value(compose: Callable[..., Composed]) -> None:
    """As it is in the mapping, in every section."""
    composed = compose("callbacks={}")
    for name, kind in field_types(Config).items():
        value, given = getattr(composed.settings, name), composed.config[name]
        if isinstance(value, TargetSection):
            assert given == value.given
        section = OPEN_SECTIONS.get(name, kind)
        if not is_dataclass(section) or name == "optimizer":
            assert isinstance(value, TargetSection) or given == value
            continue
        for key in fields(section):
            if key.name in given or name not in OPEN_SECTIONS:
                assert given[key.name] == getattr(value, key.name), (name, key.name)


def test_an_open_section_tells_own_keys_from_arguments() -> None:
    """`node` is what the target is made from, `arguments` what it is called with."""
    node = {"_target_": "torch.optim.lr_scheduler.StepLR", "interval": "epoch", "step_size": 3, "_partial_": True}
    scheduler = Settings(digits_config(scheduler=node)).scheduler
    assert ("epoch", node["_target_"], node) == (scheduler.interval, scheduler.target, scheduler.given)
    assert {"_target_", "step_size", "_partial_"} == scheduler.node.keys()
    assert {"step_size": 3} == scheduler.arguments


@pytest.mark.parametrize("empty", [{}, None])
def test_a_key_that_is_left_out_has_its_default(empty: object) -> None:
    """In a section without keys, and where the configuration has none."""
    scheduler = Settings(digits_config(scheduler=empty)).scheduler
    assert ("step", 0.0, False) == (scheduler.interval, scheduler.warmup, scheduler.has_target)


def test_a_frozen_plan_may_lack_keys_of_targets(tmp_path: Path) -> None:
    """A data module that sets its own batches, and an optimizer with its default rate."""
    plan = digits_plan(tmp_path)
    del plan.config["data"]["global_batch_size"], plan.config["optimizer"]["lr"]
    save_plan(plan, tmp_path / "plan.yaml")
    found = load_plan(tmp_path / "plan.yaml").settings
    assert (None, {"fused": True}) == (found.data.global_batch_size, found.optimizer.arguments)


def test_no_code_looks_keys_up_by_their_text() -> None:
    """`config["trainer"]["max_epochs"]`: what no type checker reads."""
    chain = re.compile(r"""\bconfig\[['"]\w+['"]\](\[['"]\w+['"]\](?! *\|?=[^=])|\.get\()""")
    sources = sorted((REPOSITORY / "hpcexp").rglob("*.py"))
    assert [] == [f"{file}: {found[0]}" for file in sources for found in chain.finditer(file.read_text())]
