"""Where a value comes from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Said, write_conf

from hpcexp.compose.blame import ValueOrigin, blame
from hpcexp.compose.composer import Composer
from hpcexp.compose.sources import packaged_conf
from hpcexp.errors import ConfigError
from hpcexp.schema import keys


def line_of(file: Path, start: str) -> int:
    """Number of the first line that begins so."""
    return next(i for i, line in enumerate(file.read_text().splitlines(), 1) if line.strip().startswith(start))


def test_a_default_of_the_schema_has_its_line(project: Path) -> None:
    """The line of the field itself."""
    line = line_of(Path(keys.__file__), "patience: ")
    expected = [ValueOrigin(f"hpcexp/schema/keys.py:{line} (default)", "null")]
    assert expected == blame(Composer(project), [], "trainer.patience")


def test_the_whole_chain_is_told_in_its_order(project: Path) -> None:
    """Group's file, experiment, command line: the last counts."""
    write_conf(project, {"experiment/x.yaml": "# @package _global_\nname: x\noptimizer:\n  lr: 0.5\n"})
    expected = [
        ValueOrigin(
            f"hpcexp/conf/optimizer/adamw.yaml:{line_of(packaged_conf() / 'optimizer/adamw.yaml', 'lr:')}", "0.003"
        ),
        ValueOrigin("conf/experiment/x.yaml:4 (chosen by experiment=x on the command line)", "0.5"),
        ValueOrigin("command line", "optimizer.lr=0.1"),
    ]
    assert expected == blame(Composer(project), ["experiment=x", "optimizer.lr=0.1"], "optimizer.lr")


def test_a_file_that_shadows_is_the_one_that_is_named(project: Path) -> None:
    """The shadowed one sets nothing, and is named with it."""
    write_conf(project, {"trainer/default.yaml": "max_epochs: 2\nmonitor: val/loss\nmode: min\n"})
    expected = [ValueOrigin("conf/trainer/default.yaml:1 (shadows hpcexp/conf/trainer/default.yaml)", "2")]
    assert expected == blame(Composer(project), [], "trainer.max_epochs")


def test_a_section_lists_everything_that_is_set_in_it(project: Path) -> None:
    """With the name of each."""
    told = {o.value.partition(":")[0] for o in blame(Composer(project), [], "model")}
    assert {"model._target_", "model.hidden", "model.dropout", "model.activation"} == told


def test_an_argument_given_only_on_the_command_line_is_found(project: Path) -> None:
    """With or without its plus."""
    for override in ("model.in_shape=[64]", "+model.in_shape=[64]"):
        assert [ValueOrigin("command line", override)] == blame(Composer(project), [override], "model.in_shape")


def test_a_key_that_nothing_sets_is_an_error(project: Path) -> None:
    """With the nearest key that something sets."""
    with pytest.raises(ConfigError, match=r"nothing sets optimizer\.lrr; did you mean 'optimizer\.lr'"):
        blame(Composer(project), [], "optimizer.lrr")


def test_the_command_marks_what_counts(hpcexp: Callable[..., Said]) -> None:
    """For every key that is asked."""
    said = hpcexp("plan", "--blame", "optimizer.lr", "optimizer.lr=0.1", "--blame", "seed")
    assert (0, "") == (said.status, said.err)
    counts = re.findall(r"(\S.*?)  +(\S+)   ← counts", said.out)
    assert [("command line", "optimizer.lr=0.1"), (f"hpcexp/schema/keys.py:{_seed_line()} (default)", "1")] == counts


def _seed_line() -> int:
    return line_of(Path(keys.__file__), "seed: int")
