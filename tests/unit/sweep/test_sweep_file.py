"""Sweeps in files: what they ask, what is wrong in them, and what comes on top from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import REPOSITORY, Said

from hpcexp.compose.composer import Composer
from hpcexp.errors import ConfigError
from hpcexp.files.documents import decode
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.sweep import SweepRecord
from hpcexp.schema.sweep import Budget, Search
from hpcexp.sweep.spec.spec import Choices, Interval, Objective, Spec, combinations
from hpcexp.sweep.spec.sweep_file import read_sweeps, sweep_files
from hpcexp.sweep.spec.typed import quoted
from hpcexp.sweep.store.directory import ask, changes, spec_of

GRID = """
question: Which rate suits which width?
base: [trainer.max_epochs=2]
axes:
  optimizer.lr: [0.001, 0.01]
  model.hidden: [[32], [64, 32]]
seeds: 2
metric: val/acc
mode: max
"""
SEARCH = """
question: How good can it get?
axes:
  optimizer.lr: {low: 1.0e-4, high: 0.1, log: true}
  model: [mlp, cnn]
search: {sampler: tpe, pruner: asha}
budget: {trials: 20, hours: 0.5}
metric: {val/acc: max}
on_failure: stop
"""


@pytest.fixture
def read(project: Path) -> Callable[..., Spec]:
    """The sweep of a file with this text, and overrides on top."""

    def written(text: str, *overrides: str) -> Spec:
        (project / "sweeps").mkdir(exist_ok=True)
        (project / "sweeps" / "mine.yaml").write_text(text)
        [spec] = read_sweeps("mine", Composer(project), overrides).values()
        return spec

    return written


def test_a_grid_is_every_combination_with_every_seed(read: Callable[..., Spec]) -> None:
    """In the order of the file, seeds fastest."""
    spec = read(GRID)
    assert ("trainer.max_epochs=2",) == spec.base
    assert (Objective("val/acc", "max"),) == spec.objectives
    overrides = combinations(spec)
    assert 8 == len(overrides)
    assert ("optimizer.lr=0.001", "model.hidden=[32]", "seed=1") == overrides[0]
    assert ("optimizer.lr=0.01", "model.hidden=[64,32]", "seed=2") == overrides[-1]


def test_a_search_has_ends_a_sampler_and_a_budget(read: Callable[..., Spec]) -> None:
    """All of it as data."""
    spec = read(SEARCH)
    assert {"optimizer.lr": Interval(1e-4, 0.1, is_log=True), "model": Choices(("mlp", "cnn"))} == spec.axes
    assert Search("tpe", "asha") == spec.search
    assert Budget(trials=20, hours=0.5) == spec.budget
    assert spec.is_fail_fast


def test_points_are_combined_with_axes(read: Callable[..., Spec]) -> None:
    """Each point may set several keys."""
    spec = read(
        "question: Q\npoints: [{strategy: ddp, hardware.devices: 2}, {hardware.devices: 1}]\naxes: {seed: 'range(1,3)'}"
    )
    assert [
        ("strategy=ddp", "hardware.devices=2", "seed=1"),
        ("strategy=ddp", "hardware.devices=2", "seed=2"),
        ("hardware.devices=1", "seed=1"),
        ("hardware.devices=1", "seed=2"),
    ] == combinations(spec)


def test_overrides_come_on_top(read: Callable[..., Spec]) -> None:
    """Of the base, of an axis, which a single value ends, and of the file's own keys."""
    spec = read(
        GRID, "trainer.max_epochs=5", "optimizer.lr=0.1,0.2,0.3", "model.hidden=[8]", "seeds=1", "budget.hours=2"
    )
    assert ("trainer.max_epochs=5", "model.hidden=[8]") == spec.base
    assert {"optimizer.lr": Choices(("0.1", "0.2", "0.3"))} == spec.axes
    assert (1,) == spec.seeds
    assert Budget(hours=2) == spec.budget


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("question: [", [": this is not YAML"]),
        ("axes: {seed: [1, 2]}", ["question: it is needed"]),
        ("question: Q", ["neither axes nor points nor seeds"]),
        ("question: Q\naxis: {seed: [1]}", ["there is no key 'axis'", "'axes'"]),
        ("question: Q\naxes: {seed: []}", ["axes.seed has no values"]),
        ("question: Q\naxes: {optimizer.lr: {low: 1, hi: 2}}", ["axes.optimizer.lr has no 'hi'", "high"]),
        ("question: Q\naxes: {optimizer.lr: {low: 1}}", ["needs two numbers"]),
        ("question: Q\naxes: {optimizer.lr: {low: 1, high: 2}}", ["no end of values", "search: {sampler: tpe}"]),
        ("question: Q\nseeds: 0", ["seeds=0"]),
        ("question: Q\nseeds: 2\nmetric: {val/acc: up}", ["metric.val/acc: neither max nor min"]),
        ("question: Q\nseeds: 2\nbudget: {trails: 5}", ["there is no key 'trails'", "'trials'"]),
        ("question: Q\nseeds: 2\nbudget: {hours: -1}", ["budget.hours=-1 is out of range"]),
        ("question: Q\nseeds: 2\nsearch: {sampler: tpx}", ["search.sampler=tpx", "'tpe'"]),
        ("question: Q\nseeds: 2\nsearch: {pruner: asha}", ["search.sampler: it is needed"]),
        ("question: Q\nseeds: 2\nbase: ['optimizer.lr=1,2']", ["has several values", "axes"]),
        ("question: Q\nseeds: 2\naxes: {seed: [1, 2]}", ["each run would count", "leave one out"]),
        ("question: Q\npoints: [3]", ["points: 3 is no mapping"]),
        ("question: Q\nseeds: 2\non_failure: explode", ["on_failure=explode", "continue, stop"]),
    ],
)
def test_mistakes_in_a_file_are_named(read: Callable[..., Spec], text: str, told: list[str]) -> None:
    """With the file, the key and what would be right."""
    with pytest.raises(ConfigError) as error:
        read(text)
    for part in ["mine.yaml", *told]:
        assert part in str(error.value)


def test_a_sweep_that_is_not_there_is_suggested(hpcexp: Callable[..., Said]) -> None:
    """From those that came with hpcexp, too."""
    said = hpcexp("sweep", "digits_lr_widht")
    assert 2 == said.status
    assert "did you mean 'digits_lr_width'?" in said.err


@pytest.mark.parametrize(
    "value", ["plain", "a b", "it's", "1e3", "null", "true", 0.1, 1, True, None, [1, "x,y"], {"a": 1}]
)
def test_a_value_of_yaml_is_typed_so_that_it_comes_out_the_same(value: object) -> None:
    """By Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"key={quoted(value)}")
    assert value == override.value()
    assert type(value) is type(override.value()) or isinstance(value, str)


def test_no_password_is_in_a_sweeps_directory(read: Callable[..., Spec], project: Path) -> None:
    """Neither of the study's storage nor of the command line; asking again is no edit."""
    spec = read(SEARCH, "search.storage=postgresql://ada:s3cr3t@host/db")
    place = SweepDir(project / "runs" / "sweeps" / "mine")
    for _ in range(2):
        assert [] == ask(place, spec, project, "hpcexp sweep mine search.storage=postgresql://ada:s3cr3t@host/db")
    assert "s3cr3t" not in place.definition.read_text()
    assert 2 == place.definition.read_text().count("postgresql://ada@host/db")


def record(spec: Spec) -> SweepRecord:
    """What `sweep.json` holds of a sweep."""
    return decode(json.dumps(asdict(spec)), SweepRecord)


def test_what_was_asked_comes_back_from_its_directory(read: Callable[..., Spec]) -> None:
    """And edits of it are told."""
    grid, search = read(GRID), read(SEARCH)
    assert [grid, search] == [spec_of(record(grid)), spec_of(record(search))]
    edited = read(GRID, "optimizer.lr=0.001,0.1", "trainer.max_epochs=3")
    assert [
        "base: without trainer.max_epochs=2",
        "base: with trainer.max_epochs=3",
        "axis optimizer.lr: 0.001,0.01 → 0.001,0.1",
    ] == changes(record(grid), record(edited))


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "sweeps").glob("*.yaml")))
def test_every_sweep_that_comes_with_hpcexp_is_planned(hpcexp: Callable[..., Said], name: str) -> None:
    """All of its jobs, or of a search its ends; the head of the file says what for, how, and what it needs."""
    head = (REPOSITORY / "sweeps" / f"{name}.yaml").read_text().split("question:")[0]
    assert "# Use:   hpcexp sweep" in head
    assert "# Needs:" in head
    assert name in sweep_files(Path.cwd())
    said = hpcexp("sweep", name, "--plan")
    assert (0, "") == (said.status, said.err)
