"""`trainer.max_duration`: how it is written, and what planning makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_conf, write_module

from hpcexp.checks.durations import Duration, parse_duration
from hpcexp.compose.composer import Composed
from hpcexp.errors import ConfigError
from hpcexp.plan import Plan, Steps
from hpcexp.planner import prepare

Planned = Callable[..., Plan]


@pytest.fixture
def planned(compose: Callable[..., Composed], project: Path) -> Planned:
    """The plan of overrides in the project."""
    sys.path.insert(0, str(project))
    return lambda *overrides: prepare(compose(*overrides), project, ["hpcexp", "train", *overrides])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20ep", Duration(20, "ep")),
        ("5_000ba", Duration(5000, "ba")),
        ("1e9tok", Duration(1e9, "tok")),
        ("1.5e6 sp", Duration(1.5e6, "sp")),
        ("2.5H", Duration(2.5, "h")),
        *((text, None) for text in ("20", "ep", "0ep", "-1ep", "2.5ep", "1x", "1e999tok", "nan h", "")),
    ],
)
def test_durations_are_numbers_with_a_unit(text: str, expected: Duration | None) -> None:
    """What is counted has no fractions; nothing lasts no time, or for ever."""
    assert expected == parse_duration(text)


def test_time_is_in_seconds() -> None:
    """Whatever its unit."""
    assert [7200, 90 * 60, 30, 86400] == [
        duration.seconds for text in ("2h", "90min", "30s", "1d") if (duration := parse_duration(text))
    ]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("20ep", Steps(19, 380, 20)),
        ("100ba", Steps(19, 100, 6)),
        ("6400sp", Steps(19, 100, 6)),
        ("6401sp", Steps(19, 101, 6)),
    ],
)
def test_what_can_be_counted_beforehand_is_planned(planned: Planned, duration: str, steps: Steps) -> None:
    """Schedules have that length, whatever `max_epochs` of the trainer's file; the duration is part of the identity."""
    plan = planned(f"trainer.max_duration={duration}")
    assert steps == plan.steps
    assert plan.signature != planned().signature


@pytest.mark.parametrize("other", ["trainer.max_epochs=3", "trainer.max_steps=3"])
def test_one_length_is_enough(planned: Planned, other: str) -> None:
    """The other one is not silently ignored."""
    with pytest.raises(ConfigError, match=f"{other}: trainer.max_duration=20ep says already"):
        planned("trainer.max_duration=20ep", other)


def test_a_duration_of_the_command_line_replaces_a_length_of_a_file(planned: Planned, project: Path) -> None:
    """In one file, or with a length on the command line, both are too many."""
    text = "# @package _global_\nname: lasts\ntrainer:\n  max_epochs: 3\n"
    write_conf(project, {"experiment/lasts.yaml": text, "experiment/both.yaml": f"{text}  max_duration: 20ep\n"})
    assert 380 == planned("experiment=lasts", "trainer.max_duration=20ep").steps.total  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs=3: trainer.max_duration=20ep says already"):
        planned("experiment=both")
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs=4: trainer.max_duration=5ep says already"):
        planned("experiment=both", "trainer.max_duration=5ep", "trainer.max_epochs=4")


@pytest.mark.parametrize("duration", ["2", "fast", "2.5ep"])
def test_what_is_no_duration_is_told_with_the_units(planned: Planned, duration: str) -> None:
    """As is a number without a unit."""
    with pytest.raises(ConfigError, match=rf"trainer\.max_duration={duration}(.|\n)*(tok|text)"):
        planned(f"trainer.max_duration={duration}")


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_schedules_over_unknown_steps_are_refused(planned: Planned, project: Path, schedule: str) -> None:
    """Of a duration in time or tokens, and of data without a length; with `max_steps` they have one."""
    code = """
        from torch.utils import data
        class Stream(data.IterableDataset):
            def __iter__(self): ...
        class Sized(Stream):
            def __len__(self): ...
        """
    write_module(project, f"durations_{schedule}", code)
    stream = (f"data={{_target_: durations_{schedule}.Stream,global_batch_size: 8}}", "trainer.monitor=train/loss")
    rising = (f"scheduler={schedule}", "scheduler.warmup=0.1")
    for given in (("trainer.max_duration=2h",), ("trainer.max_duration=1e9tok",), stream):
        with pytest.raises(ConfigError, match=r"needs the number of steps(.|\n)*trainer\.max_steps"):
            planned(*given, *rising)
    assert planned(*stream, *rising, "trainer.max_steps=100")
    assert planned(*stream, *rising, "trainer.max_duration=100ba")
    assert planned(*stream, *rising, "scheduler.total_steps=100", "trainer.max_duration=1h")
    assert planned(stream[0].replace("Stream", "Sized"), stream[1], *rising)
    assert planned("trainer.max_duration=2h", "scheduler=constant").steps is None
    assert planned("trainer.max_duration=2h", "scheduler=plateau").steps is None
