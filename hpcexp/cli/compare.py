"""`hpcexp compare`: what runs differ in, beside their results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.compare.comparison import Comparison, Metric, default_metrics
from hpcexp.compare.comparison import compare as compared
from hpcexp.compare.query import EXAMPLE, Query, parse
from hpcexp.compare.report import answer, as_csv, as_markdown
from hpcexp.compare.runs import Found
from hpcexp.compare.selection import select, selected_metrics
from hpcexp.compare.sources import directories, mlflow_store
from hpcexp.errors import ConfigError, RunError
from hpcexp.rundir import RunDir, find_sweeps
from hpcexp.sweep.report.ranking import values_of
from hpcexp.sweep.report.status import jobs_at, spec_at
from hpcexp.sweep.store.directory import find_sweep
from hpcexp.text.formatting import left_out, near
from hpcexp.tracking.sync.sweep_upload import members

_TOP = 20
_MOST_PROBLEMS = 3


def compare(argv: Sequence[str]) -> int:
    """The runs compared, as a table, Markdown or CSV."""
    a = _parser().parse_args(argv)
    if a.top is not None and (a.top < 0 or a.format != "table"):
        raise ConfigError(f"--top {a.top}: a table has so many rows; markdown and csv have all.\nFix: leave it out.")
    query = parse(a.query) if a.query is not None else None
    found, objectives = _found_in_store(a) if a.uri else _found_in_directories(a, query)
    runs = select(found.runs, query) if query else found.runs
    metrics = selected_metrics(a.metric, runs) or _each_once([*objectives, *default_metrics(runs)])
    whole = compared(runs, metrics, is_grouped=not a.each, over=a.over)
    picture = _drawn(whole, a.plot) if a.plot else None
    print(left_out(found.problems), end="", file=sys.stderr)
    print(_written(whole, a.format, _TOP if a.top is None else a.top), end="")
    if picture:
        print(f"curves: {near(picture)}", file=sys.stderr)
    return 0


def _found_in_directories(a: argparse.Namespace, query: Query | None) -> tuple[Found, list[Metric]]:
    """The runs that are meant, before a query, and what their sweep is ranked by."""
    root = a.root.resolve()
    named = [find_run(a.root, word) for word in a.runs]
    sweeps = [(sweep, spec_at(sweep)) for sweep in (find_sweep(root, name) for name in a.sweep)]
    jobs = {Path(e.run): values_of(e.overrides) for sweep, spec in sweeps for e in jobs_at(sweep, spec)[0] if e.run}
    chosen = list(dict.fromkeys([*named, *map(RunDir, jobs)])) if named or sweeps else directories.find(root)
    in_sweeps = _sweeps(root) if query and "sweep" in query.names else None
    found = directories.read_runs(chosen, in_sweeps, jobs if not named else None)
    if {str(run.path) for run in named} - {run.location for run in found.runs}:
        raise ConfigError(found.problems)
    if not found.runs:
        raise RunError(_nothing(a, root, found))
    return found, [Metric(o.metric, o.mode) for _, spec in sweeps for o in spec.objectives]


def _found_in_store(a: argparse.Namespace) -> tuple[Found, list[Metric]]:
    return mlflow_store.read_runs(a.uri, a.runs, a.sweep), []


def _nothing(a: argparse.Namespace, root: Path, found: Found) -> str:
    if found.problems:
        return "\n\n".join(found.problems[:_MOST_PROBLEMS])
    if a.sweep:
        return f"No job of {', '.join(a.sweep)} has started.\nFix: `hpcexp sweep NAME` runs its jobs."
    return f"There are no runs in {root}.\nFix: hpcexp train, or --root DIR, or --uri URI for an MLflow store."


def _sweeps(root: Path) -> dict[Path, tuple[str, ...]]:
    """Directory of a run → the sweeps that it belongs to."""
    found: dict[Path, tuple[str, ...]] = {}
    for sweep in find_sweeps(root):
        for run, _ in members(sweep):
            found[run.path] = (*found.get(run.path, ()), sweep.path.name)
    return found


def _each_once(metrics: Sequence[Metric]) -> list[Metric]:
    """The first place that a metric has, with what was said of it last."""
    return list({metric.name: metric for metric in metrics}.values())


def _drawn(whole: Comparison, file: Path) -> Path:
    from hpcexp.compare.plot import draw

    return draw(whole, file)


def _written(whole: Comparison, form: str, top: int) -> str:
    if form == "csv":
        return as_csv(whole)
    return as_markdown(whole) if form == "markdown" else answer(whole, top) + "\n"


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "compare",
        "Show how runs differ (configuration, code, data, environment), beside their metrics; means over seeds. "
        "Without RUN and --sweep: all runs.",
    )
    add = p.add_argument
    add("runs", nargs="*", metavar="RUN", help=RUN_HELP)
    add("--sweep", action="append", default=[], metavar="NAME", help="compare this sweep's runs; `last` is the latest")
    add("--query", metavar="EXPR", help=f'only runs that match: "{EXAMPLE}"')
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME[=min|max]",
        help="rank by this metric and show it; repeatable (default: the monitored metric, and test metrics)",
    )
    add(
        "--over",
        action="append",
        default=[],
        metavar="KEY",
        help="means also over this key of the configuration, as over seed and data.fold; repeatable",
    )
    add("--each", action="store_true", help="show every run separately, not grouped over seeds")
    add("--format", choices=("table", "markdown", "csv"), default="table", help="csv: one line per run")
    add("--top", type=int, metavar="N", help=f"show the best N rows of the table; 0: all (default: {_TOP})")
    add("--plot", type=Path, metavar="FILE.png", help="also draw the curves of the metrics")
    add("--uri", help="read this MLflow store instead of run directories: sqlite:///FILE, http://HOST:PORT")
    return p
