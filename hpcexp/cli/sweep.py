"""`hpcexp sweep`: start or resume the sweep in a file, show its progress, stop it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcexp.cli.plan import jobs_text
from hpcexp.compose.composer import Composer
from hpcexp.errors import ConfigError, RunError, listed
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.status.state import current_state
from hpcexp.sweep.engine.policy import Policy
from hpcexp.sweep.report.ranking import answer, counts_text
from hpcexp.sweep.report.status import results_at, spec_at
from hpcexp.sweep.spec.spec import Spec
from hpcexp.sweep.spec.stages import needed
from hpcexp.sweep.spec.sweep_file import read_sweeps, sweep_files
from hpcexp.sweep.start import planned_stages, run_stages
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.directory import find_stages, find_sweeps, sweeps_dir
from hpcexp.targets.instantiate import on_path
from hpcexp.text.formatting import near, pairs


def sweep(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 a job failed, 2 a mistake, 128 + n stopped by signal n."""
    a = _parser().parse_intermixed_args(list(argv))
    root = a.root.resolve()
    if a.name is None:
        print(_listed(Path.cwd(), root))
        return 0
    if a.status or a.cancel:
        if a.overrides:
            raise ConfigError(f"{a.overrides[0]}: --status and --cancel take no overrides.\nFix: leave them out.")
        sweeps = find_stages(root, a.called or a.name)
        return _cancel(sweeps) if a.cancel else max(map(_status, sweeps))
    if a.called and not re.fullmatch(r"\w[\w.=,+-]*", a.called):
        raise ConfigError(f"--as {a.called}: a name has letters, digits and _ - . = , +, and begins with the former.")
    project = Path.cwd()
    on_path(project)
    composer = Composer(project, a.config_dir)
    stages = read_sweeps(a.name, composer, a.overrides, a.called)
    command = ["hpcexp", "sweep", *argv]
    if a.plan:
        return _plan(composer, stages, command)

    def policy_of(spec: Spec) -> Policy:
        return Policy(a.fresh, a.retry_failed, a.fail_fast or spec.is_fail_fast)

    return run_stages(composer, stages, command, policy_of)


def _plan(composer: Composer, stages: Mapping[str, Spec], command: Sequence[str]) -> int:
    for stage, plans in planned_stages(composer, stages, command).items():
        spec = stages[stage]
        print(f"{spec.name}: {spec.question}")
        print(jobs_text(plans))
        if spec.search is not None:
            trials = f"{spec.budget.trials} trials" if spec.budget.trials else "trials"
            print(f"These jobs are the ends of the space. Each of the {trials} trials is planned when it starts.")
        if others := needed(spec):
            print(f"These jobs lack the best run of {listed(others)}: they are planned when it is known.")
    return 0


def _status(directory: SweepDir) -> int:
    """How the sweep stands; exit status 1 where a job has failed."""
    spec, status = spec_at(directory), read_status(directory)
    results, dropped = results_at(directory, spec)
    drivers = Claims(directory.path).others()
    by = f" by {', '.join(map(str, drivers))}" if drivers else ""
    print(f"{spec.question}\n{current_state(directory, status)}{by}")
    print(answer(directory, spec, results, status.cause or "", len(dropped)))
    return int(any(result.state is RunState.FAILED for result in results))


def _cancel(sweeps: Sequence[SweepDir]) -> int:
    """Ask every driver to stop, and wait for none."""
    running = [(sweep, drivers) for sweep in sweeps if (drivers := Claims(sweep.path).others())]
    if not running:
        names = ", ".join(sweep.path.name for sweep in sweeps)
        raise RunError(f"{names} is not running: there is nothing to cancel.")
    for sweep, drivers in running:
        sweep.cancel.touch()
        print(f"Asked {', '.join(map(str, drivers))} to stop: running jobs write a checkpoint and end.")
        print(f"`hpcexp sweep {sweep.path.name} --status` shows its progress; the same command resumes it.")
    return 0


def _listed(project: Path, root: Path) -> str:
    """The sweeps that can be started, and those that were."""
    files = [(name, _question(file)) for name, file in sweep_files(project).items()]
    begun = [(directory.path.name, _standing(directory)) for directory in find_sweeps(root)]
    lines = ["Files, started by hpcexp sweep NAME:", pairs(files) if files else "  none"]
    if begun:
        lines += ["", f"Begun, in {near(sweeps_dir(root))}:", pairs(begun)]
    return "\n".join(lines)


def _question(file: Path) -> str:
    """The file's question; its first line where it has none."""
    text = file.read_text(encoding="utf-8")
    asked = next((line for line in text.splitlines() if line.startswith("question:")), "")
    return asked.removeprefix("question:").strip().strip("\"'") or text.partition("\n")[0]


def _standing(directory: SweepDir) -> str:
    try:
        results, _ = results_at(directory, spec_at(directory))
        state = current_state(directory)
    except RunError as e:
        return str(e).partition("\n")[0]
    return f"{state}; {counts_text(results)}"


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="hpcexp sweep",
        description="Start or resume the sweep in sweeps/NAME.yaml. Finished jobs do not run again.",
        epilog="Without NAME: list files and started sweeps. Keys of a file: `hpcexp help sweep`.",
    )
    add = p.add_argument
    add("name", nargs="?", metavar="NAME", help="a file in sweeps/; for --status and --cancel also another sweep")
    add("overrides", nargs="*", metavar="OVERRIDE", help="key=value for all jobs, or seeds=3, budget.trials=50, …")
    add("--plan", action="store_true", help="check and list the jobs; start nothing")
    add("--status", action="store_true", help="show its progress")
    add("--cancel", action="store_true", help="stop it, wherever it runs; the same command resumes it")
    add("--retry-failed", action="store_true", help="run failed jobs again")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--fresh", action="store_true", help="run all jobs again, including finished ones")
    add("--as", dest="called", metavar="OTHER", help="store the sweep under this name, apart from NAME")
    add("-cd", "--config-dir", type=Path, help="config files that add to all others, or replace those of equal name")
    add(
        "--root",
        type=Path,
        default=Path("runs"),
        help="directory of the runs for --status and --cancel (default: runs)",
    )
    return p
