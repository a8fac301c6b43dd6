"""`hpcexp plan`: what would run, checked; nothing is started or written."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hpcexp.checks.values import typed
from hpcexp.cli.shared.composing import opened
from hpcexp.compose.composer import Composer
from hpcexp.data_spec import TensorSpec
from hpcexp.errors import RunError
from hpcexp.hardware.leases import would_lease
from hpcexp.launch.resume.checkpoint_transfer import origin
from hpcexp.launch.resume.interrupted import continuation
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.redaction import without_password
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState
from hpcexp.schema.keys import Strategy
from hpcexp.status.state import current_state, damage, is_done
from hpcexp.text.formatting import metric, near, pairs

SUMMARY = "Check everything and show what would run: devices, batch, steps, size, whether it is done. Start nothing."


def plan(argv: Sequence[str]) -> int:
    """Exit status 0, or 2 where something is wrong."""
    arguments, composer = opened("plan", SUMMARY, argv)
    if composer is None:
        return 0
    overrides = list(arguments.overrides)
    if arguments.multirun:
        from hpcexp.sweep.hydra.multirun import planned

        print(jobs_text(planned(composer, overrides, ["hpcexp", "train", *argv])))
        return 0
    composed = composer.compose(overrides)
    if arguments.blame:
        for key in arguments.blame:
            print(_blamed(composer, overrides, key))
        return 0
    made = prepare(composed, composer.project, ["hpcexp", "train", *argv])
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(plan_text(made))
    return 0


def jobs_text(plans: Sequence[Plan]) -> str:
    """The jobs of a sweep, a line each, and how many of them would run."""
    problems = [damage(plan) for plan in plans]
    states = ["damaged" if problem else _job_state(plan) for plan, problem in zip(plans, problems, strict=True)]
    counts = ", ".join(f"{number} {state}" for state, number in Counter(states).items())
    lines = [f"{state:<5} {plan.experiment}/{plan.name}" for state, plan in zip(states, plans, strict=True)]
    lines += [problem.partition("\n")[0] for problem in problems if problem]
    return "\n".join([*lines, f"{len(plans)} jobs: {counts}"])


def _job_state(plan: Plan) -> str:
    """What the command would do with the job: it runs, or it need not."""
    if is_done(plan):
        return "done"
    return "failed" if current_state(RunDir(Path(plan.run_dir))) is RunState.FAILED else "runs"


def plan_text(plan: Plan) -> str:
    """The plan for people."""
    groups = " ".join(f"{g}={o}" for g, o in sorted(plan.choices.items()) if g != "experiment")
    rows = [
        ("groups", groups),
        ("overrides", " ".join(plan.overrides) or "none"),
        ("devices", devices_text(plan)),
        ("free now", would_lease(plan)),
        ("batch", _batch(plan)),
        ("data", _data(plan)),
        ("steps", _steps(plan)),
        ("parameters", f"{plan.num_params:,}" if plan.num_params is not None else "known once the model is built"),
        ("code", _code(plan)),
        ("signature", plan.signature),
        ("run", near(plan.run_dir)),
        ("MLflow", without_password(plan.tracking_uri) if plan.tracking_uri else "off"),
        ("state", _state(plan)),
    ]
    return f"{plan.experiment}/{plan.name}\n{pairs(rows)}"


def devices_text(plan: Plan) -> str:
    """Devices, ranks and what joins them, in one line."""
    t = plan.topology
    threads = f"{t.threads_per_rank} thread{'s' * (t.threads_per_rank != 1)}"
    if t.accelerator == "cuda":
        what = f"GPU {', '.join(map(str, t.device_ids))}"
    else:
        what = f"{t.ranks_per_node} CPU process{'es' * (t.ranks_per_node != 1)}"
    joined = f", backend {t.backend}" if t.backend else ""
    return f"{what} of {threads}, world size {t.world_size}, strategy {t.strategy}{_options(plan)}{joined}"


def _options(plan: Plan) -> str:
    """Options of the strategy that differ from their defaults, as ` (compression=fp16)`."""
    if plan.topology.strategy == "single":
        return ""
    fields = Strategy.__dataclass_fields__
    said = {
        k: v for k, v in plan.settings.strategy.given.items() if k in fields and k != "name" and v != fields[k].default
    }
    return f" ({' '.join(f'{key}={typed(value)}' for key, value in sorted(said.items()))})" if said else ""


def _batch(plan: Plan) -> str:
    b = plan.batch
    if b is None:
        return "up to the data module"
    ranks = plan.topology.world_size
    parts = [f"{b.per_rank} per rank"]
    parts += [f"{b.accumulate} accumulated"] if b.accumulate > 1 else []
    parts += [f"{ranks} ranks"] if ranks > 1 else []
    return f"{b.global_size}" + (f" = {' × '.join(parts)}" if len(parts) > 1 else f" ({parts[0]})")


def _data(plan: Plan) -> str:
    d = plan.data
    if d is None:
        return "known once it is loaded"
    classes = f", {len(d.class_names)} classes" if d.class_names else ""
    shapes = {name: _shape_text(spec) for name, spec in d.inputs.items()}
    shape = ", ".join(f"{name} {text}" if len(shapes) > 1 else text for name, text in shapes.items())
    train = "a stream" if d.num_train is None else f"{d.num_train:,}"
    samples = f"{train} train, {d.num_val:,} val, {d.num_test:,} test"
    described = f"{samples}; inputs {shape}{classes}; fingerprint {d.fingerprint[:12]}"
    if not d.trusted:
        return described
    return f"{described}\nof {d.trusted}, not of their content: data.fingerprint=content reads all of it once"


def _shape_text(spec: TensorSpec) -> str:
    sides = " × ".join("?" if side is None else str(side) for side in spec.shape) or "1"
    return sides if spec.dtype == "float32" else f"{sides} {spec.dtype}"


def _steps(plan: Plan) -> str:
    s = plan.steps
    return f"{s.total:,} ({s.per_epoch:,} in each of {s.epochs:,} epochs)" if s else "known once the data is loaded"


def _code(plan: Plan) -> str:
    commit = plan.lineage.get("git.commit")
    digest = f"digest {plan.lineage['code.digest'][:12]}"
    if not commit:
        return f"not in a git commit; {digest}"
    dirty = " with uncommitted changes" if plan.lineage["git.dirty"] else ""
    return f"commit {commit[:12]}{dirty}; {digest}"


def _state(plan: Plan) -> str:
    run = RunDir(Path(plan.run_dir))
    if is_done(plan):
        best = read_summary(run).best
        result = f" ({best.monitor} {metric(best.value)})" if best else ""
        return f"done{result}: `hpcexp train` would skip it, `hpcexp train --fresh` would run it again"
    state = current_state(run)
    if state is RunState.RUNNING:
        return "running now"
    try:
        found = continuation(plan, verify=True)
        begun = origin(plan) if found is None else None
    except RunError as e:
        return str(e)
    if found is None:
        before = "not run yet" if state is RunState.PLANNED else f"tried before ({state}, without a checkpoint)"
        would = (
            f"would resume from {begun.text(plan)}"
            if begun
            else "would begin again"
            if state is not RunState.PLANNED
            else ""
        )
        return f"{before}: {would}".rstrip(": ")
    return f"interrupted: `hpcexp train` would resume from {found.text(plan)}, `hpcexp train --fresh` start over"


def _blamed(composer: Composer, overrides: list[str], key: str) -> str:
    from hpcexp.compose.blame import blame

    *earlier, last = blame(composer, overrides, key)
    rows = [(o.source, o.value) for o in earlier] + [(last.source, f"{last.value}   ← counts")]
    return f"{key}\n{pairs(rows)}"
