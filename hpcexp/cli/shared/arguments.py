"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcexp.errors import HpcexpError, RunError, listed, suggest
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.records.status import read_status
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.text.formatting import left_out

RUN_HELP = "a run: its directory, name, or the start of its signature or MLflow id; `last` is the latest"


def parser(verb: str, summary: str) -> argparse.ArgumentParser:
    """A verb's parser, with the directory of runs."""
    p = argparse.ArgumentParser(prog=f"hpcexp {verb}", description=summary)
    p.add_argument("--root", type=Path, default=Path("runs"), help="directory of the runs (default: runs)")
    return p


def configured_uri() -> str | None:
    """`tracking.uri` as the project in this directory configures it for all of its runs; None where it does not."""
    project = Path.cwd()
    if not (project / "conf").is_dir():
        return None
    from hpcexp.compose.composer import Composer

    with contextlib.suppress(HpcexpError):  # what is wrong with the configuration is no concern of this verb
        uri = Composer(project).compose([]).settings.tracking.uri
        return uri if isinstance(uri, str) else None
    return None


def find_run(root: Path, word: str) -> RunDir:
    """The run that `word` names; RunError where there is none or more than one."""
    if (Path(word) / "plan.yaml").exists():
        return RunDir(Path(word).resolve())
    runs = list(find_runs(root.resolve()))
    if word == "last" and runs:
        return _latest(runs)
    found = [r for r in runs if word in (r.path.name, f"{r.path.parent.name}/{r.path.name}")]
    found = found or [r for r in runs if r.path.name.rpartition("-")[2].startswith(word)]
    found = found or [r for r in runs if _mlflow_id(r).startswith(word)]
    if len(found) == 1:
        return found[0]
    names = [f"{r.path.parent.name}/{r.path.name}" for r in found]
    if found:
        raise RunError(f"'{word}' names {len(found)} runs: {listed(names)}.\nFix: give more characters.")
    raise RunError(_no_run(root, word, [r.path.name for r in runs]))


_TRACES = ("metrics.jsonl", "checkpoints", "lineage")
"""What a run's directory has that has lost its plan."""


def _no_run(root: Path, word: str, names: Sequence[str]) -> str:
    """Why `word` names none."""
    places = [Path(word), root / word, *(experiment / word for experiment in root.glob("*"))] if word else []
    if bare := next((place for place in places if any((place / name).exists() for name in _TRACES)), None):
        return (
            f"{bare} is no run's directory: it has no plan.yaml.\n"
            "Fix: restore it from a backup, or choose another run: `hpcexp runs` lists them."
        )
    if not names:
        return f"There are no runs in {root.resolve()}.\nFix: hpcexp train, or --root DIR."
    near = suggest(word, names)
    return f"No run is named '{word}'{'; ' + near if near else '.'}\nFix: `hpcexp runs` lists the runs."


def _latest(runs: Sequence[RunDir]) -> RunDir:
    """The run that started last, of those that say when; RunError where none does."""
    started, problems = {}, []
    for run in runs:
        try:
            started[run] = read_status(run).started or 0.0
        except RunError as e:
            problems.append(str(e))
    if not started:
        raise RunError(problems[0])
    print(left_out(problems), end="", file=sys.stderr)
    return max(started, key=lambda run: (started[run], run.path))


def _mlflow_id(run: RunDir) -> str:
    """Empty where it has none."""
    try:
        return read_sync_record(run).run_id or ""
    except RunError:
        return ""  # damaged, which whoever syncs to MLflow tells
