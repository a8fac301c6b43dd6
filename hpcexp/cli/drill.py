"""`hpcexp drill`: test, on the user's own experiment, that kills and the number of devices do not change the result."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcexp.compose.composer import Composer
from hpcexp.drill import devices, preempt
from hpcexp.drill.settings import Devices, Preempt, described, split
from hpcexp.drill.training import DrillRequest
from hpcexp.launch.base.polling import ending_on_signals
from hpcexp.targets.instantiate import on_path
from hpcexp.text.formatting import near, pairs, table

SUMMARY = """\
preempt  trains without interruption, then again with kills at random steps, and resumes each time as `hpcexp train`
         does; compares weights, summary, every logged value and MLflow's records, bit for bit.
devices  trains on several numbers of devices with the same global batch; compares the losses step by step.

The drill stores its runs below RUN_ROOT/.drills, with a separate MLflow store, and removes them unless something
differs. Unless overridden, both drills log every step and `preempt` takes more checkpoints; neither changes the result.
Exit status: 0 the same, 1 not the same or a run failed, 2 a mistake."""


def drill(argv: Sequence[str]) -> int:
    """Exit status: 0 the same, 1 not the same or a run failed, 2 a mistake."""
    a = _parser().parse_intermixed_args(list(argv))
    with ending_on_signals():
        same, text = _KINDS[a.kind](a)
    print(text)
    return int(not same)


def _preempt(a: argparse.Namespace) -> tuple[bool, str]:
    settings, overrides = split(Preempt, a.overrides)
    verdict = preempt.preempt(_asked(a, overrides), settings, _tell)
    return verdict.is_same, preempt_text(verdict)


def _devices(a: argparse.Namespace) -> tuple[bool, str]:
    settings, overrides = split(Devices, a.overrides)
    verdict = devices.devices(_asked(a, overrides), settings, _tell)
    return verdict.is_same, devices_text(verdict)


_KINDS: dict[str, Callable[[argparse.Namespace], tuple[bool, str]]] = {"preempt": _preempt, "devices": _devices}


_SETTINGS: dict[str, type] = {"preempt": Preempt, "devices": Devices}


def preempt_text(v: preempt.PreemptVerdict) -> str:
    """The kills, what was compared, and the verdict."""
    rows = [
        (
            str(kill.aim),
            str(kill.landed),
            kill.mode.text,
            "the start" if kill.resumed_at is None else f"step {kill.resumed_at}",
        )
        for kill in v.kills
    ]
    lines = ["", table(("aimed at", "hit at", "kill", "resumed from"), rows), ""]
    lines += [table(("compared", "", ""), [(c.what, _same(c.is_same), c.detail) for c in v.checks]), ""]
    if unheard := [str(kill.landed) for kill in v.kills if kill.is_unheard]:
        lines += [f"SIGTERM at step {', '.join(unheard)} left no checkpoint of that step. {_UNHEARD}", ""]
    if v.is_same:
        lines.append(f"Bit-identical after {len(v.kills)} kills.")
    else:
        lines += [
            f"Not the same after {len(v.kills)} kills. To repeat these kills: drill.seed={v.seed}",
            _LOOK_AT,
        ]
    return "\n".join([*lines, *_kept(v.kept)])


_UNHEARD = """\
That costs steps, not exactness.
Data loaders without state_dict() resume only between epochs; otherwise the rank's log says what ended it."""
_LOOK_AT = """\
What to look at: kernels that do not give the same bits twice (trainer.deterministic=true); your own data that
draws random numbers without a seed; callbacks, models and strategies with state outside state_dict(); metrics that are
times; means of your own LightningModule (self.log(on_epoch=True)), which restart in a resumed epoch."""


def devices_text(v: devices.DevicesVerdict) -> str:
    """The trainings beside the first, and the verdict."""
    rows = [
        (str(t.num_devices), str(t.num_losses), "-" if i == 0 else _apart(t), "" if i == 0 else _same(t.is_same))
        for i, t in enumerate(v.trainings)
    ]
    lines = ["", table(("devices", "losses", "furthest apart", ""), rows), ""]
    first, *others = v.trainings
    odd = [t for t in others if not t.is_same]
    if not odd:
        return "\n".join([*lines, f"The same losses within {v.rtol:g} in the first {v.steps} steps.", *_kept(v.kept)])
    for t in odd:
        step, name = t.parts_at or (0, "")
        why = t.problem or f"{name} of step {step} is the first to be further apart than drill.rtol={v.rtol:g}"
        lines.append(f"Not the same on {t.num_devices} as on {first.num_devices}: {why}.")
    reasons = [f"Expected: {cause.splitlines()[0]}" for cause in v.causes] or [_WHY_APART]
    return "\n".join([*lines, *reasons, *_kept(v.kept)])


_WHY_APART = """\
What to look at: the first steps. Where these are apart already, ranks draw random numbers of their own, a layer
looks at the whole batch, or data and loss depend on the rank. Where they part late, it is rounding: drill.rtol=…,
drill.steps=…"""


def _apart(t: devices.DrilledTraining) -> str:
    return f"{t.apart:.1e}, {t.at[1]} of step {t.at[0]}" if t.at else t.problem


def _same(is_same: bool) -> str:
    return "same" if is_same else "DIFFERS"


def _kept(path: Path | None) -> list[str]:
    return [f"The runs are in {near(path)}"] if path else []


def _asked(a: argparse.Namespace, overrides: Sequence[str]) -> DrillRequest:
    project = Path.cwd()
    on_path(project)
    flags = ["--config-name", a.config_name]
    flags += ["--config-dir", str(a.config_dir)] if a.config_dir else []
    return DrillRequest(Composer(project, a.config_dir, a.config_name), tuple(overrides), tuple(flags))


def _tell(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="hpcexp drill",
        description=SUMMARY,
        epilog="\n\n".join(f"Settings of {k}:\n{pairs(described(s))}" for k, s in _SETTINGS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("kind", choices=tuple(_KINDS), help="which drill")
    add("overrides", nargs="*", metavar="OVERRIDE", help="as for `hpcexp train`, or drill.KEY=VALUE")
    add("-cd", "--config-dir", type=Path, help="config files that add to all others, or replace those of equal name")
    add("-cn", "--config-name", default="config", help="the primary config file (default: config)")
    return p
