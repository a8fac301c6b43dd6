"""`hpcexp drill devices`: the same training on other numbers of devices, its losses compared."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcexp.compare.bitwise import RTOL, relative
from hpcexp.drill.causes import causes
from hpcexp.drill.results import losses
from hpcexp.drill.settings import Devices
from hpcexp.drill.training import DrillDirectory, DrillRequest, Training, drill_directory, given, local_only
from hpcexp.errors import ConfigError
from hpcexp.plan import Plan

Loss = tuple[int, str]
"""Step and metric."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class DrilledTraining:
    """A training on a number of devices, compared with the first one."""

    num_devices: int
    num_losses: int
    apart: float
    """The largest relative difference of two losses; 0 for the first training."""
    at: Loss | None
    """Where that is."""
    parts_at: Loss | None
    """The first loss that is further apart than is tolerated."""
    problem: str
    """Why the losses cannot be compared; empty where they can."""

    @property
    def is_same(self) -> bool:
        """Whether every loss is near enough."""
        return self.parts_at is None and not self.problem


@dataclass(frozen=True)
class DevicesVerdict:
    """What the drill has found."""

    trainings: tuple[DrilledTraining, ...]
    rtol: float
    steps: int
    causes: tuple[str, ...]
    kept: Path | None

    @property
    def is_same(self) -> bool:
        """Whether all trainings have the losses of the first."""
        return all(training.is_same for training in self.trainings)


def devices(request: DrillRequest, settings: Devices, report: Report) -> DevicesVerdict:
    """Train on each number of devices; compare. ConfigError, before anything starts, for one that cannot be had."""
    plans = _plans(request, settings)
    root = Path(plans[0].run_dir).parent.parent
    rtol = settings.rtol or RTOL[plans[0].settings.trainer.precision]
    report(f"{plans[0].experiment} on {' and '.join(map(str, settings.devices))} devices")
    known = causes(plans[0])
    for cause in known:
        report(f"warning: the losses will not be the same.\n{cause}")
    with drill_directory(root) as directory:
        found = _trained(request, settings, directory, report)
        trainings = tuple(
            _compared(number, found[settings.devices[0]], values, rtol, settings.steps)
            for number, values in found.items()
        )
        directory.is_kept = settings.keep or not all(training.is_same for training in trainings)
        return DevicesVerdict(
            trainings, rtol, settings.steps, tuple(known), directory.path if directory.is_kept else None
        )


def _plans(request: DrillRequest, settings: Devices) -> list[Plan]:
    plans: list[Plan] = []
    problems: dict[int, list[str]] = {}
    for number in settings.devices:
        try:
            plans.append(request.plan(_on(number)))
            local_only(plans[-1])
        except ConfigError as e:
            problems[number] = e.problems
    if problems:
        raise ConfigError(_problems_text(problems, settings.devices))
    return plans


def _problems_text(problems: dict[int, list[str]], numbers: tuple[int, ...]) -> list[str]:
    """Each problem once, with the numbers of devices that cause it, unless all do."""
    of_all = [p for p in problems[min(problems)] if all(p in problems.get(number, ()) for number in numbers)]
    of_one = [_of(number, p, numbers) for number, found in problems.items() for p in found if p not in of_all]
    return [*of_all, *of_one]


def _of(number: int, problem: str, numbers: tuple[int, ...]) -> str:
    """A problem in terms of the drill's setting, which is what has asked for so many devices."""
    text = problem.replace(_on(number), f"drill.devices={number}")
    if fix := re.search(r"Fix: hardware\.devices=(\d+)$", text):
        most = int(fix[1])
        fewer = [n for n in numbers if n <= most]
        fits = fewer if len(fewer) > 1 else [1, most]
        remedy = f"drill.devices={','.join(map(str, fits))}" if most > 1 else "a machine that has them."
        text = f"{text[: fix.start()]}Fix: {remedy}"
    return text if text.startswith("drill.") else f"drill.devices={number}: {text}"


def _on(number: int) -> str:
    return f"hardware.devices={number}"


def _trained(
    request: DrillRequest, settings: Devices, directory: DrillDirectory, report: Report
) -> dict[int, dict[Loss, float]]:
    often = () if given(request.overrides, "trainer.log_every_n_steps") else ("trainer.log_every_n_steps=1",)
    found = {}
    for number in settings.devices:
        training = Training(request, directory, f"devices-{number}", _on(number), *often)
        took_s = training.complete()
        found[number] = losses(training.run)
        report(f"{number} device{'s' * (number > 1)}: {took_s:.1f} s")
    return found


def _compared(
    number: int, first: dict[Loss, float], found: dict[Loss, float], rtol: float, steps: int
) -> DrilledTraining:
    expected, got = ({at: v for at, v in values.items() if at[0] <= steps} for values in (first, found))
    if odd := sorted(expected.keys() ^ got.keys()):
        step, name = odd[0]
        return DrilledTraining(
            number, len(got), math.inf, None, odd[0], f"{name} of step {step} is in one of them only"
        )
    if not expected:
        return DrilledTraining(number, 0, math.inf, None, None, "nothing was logged whose name ends in `loss`")
    apart = {at: relative(expected[at], got[at]) for at in sorted(expected)}
    most = max(apart, key=lambda at: apart[at])
    return DrilledTraining(
        number, len(got), apart[most], most, next((at for at, a in apart.items() if a > rtol), None), ""
    )
