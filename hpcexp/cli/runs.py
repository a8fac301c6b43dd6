"""`hpcexp runs` and `hpcexp show`: what the run directories tell."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import yaml

from hpcexp.cli.plan import devices_text
from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.cli.shared.results import summary_text
from hpcexp.plan import Plan, load_plan
from hpcexp.rundir import RunDir
from hpcexp.status.listing import STATES, RunRow, list_runs, read_row
from hpcexp.text.formatting import duration, left_out, metric, pairs, table
from hpcexp.tracking.sync.destination import destined


def runs(argv: Sequence[str]) -> int:
    """A table of runs, the latest last."""
    p = parser("runs", "List runs, the latest last.")
    p.add_argument("experiment", nargs="?", help="only runs of this experiment")
    p.add_argument("--state", choices=STATES, help="only runs in this state")
    p.add_argument("--json", action="store_true", help="print one JSON object per line")
    a = p.parse_args(argv)
    found, problems = list_runs(a.root.resolve())
    rows = [r for r in found if a.experiment in (None, r.experiment) and a.state in (None, r.state)]
    print(left_out(problems), end="", file=sys.stderr)
    if a.json:
        for row in rows:
            print(json.dumps({**asdict(row), "path": str(row.path)}))
    elif rows:
        print(table(("state", "started", "took", "run", "result"), [_cells(r) for r in rows]))
    elif found or not problems:
        asked = " of that kind" if a.experiment or a.state else ""
        print(f"No runs{asked} in {a.root.resolve()}. `hpcexp train` makes one; --root DIR looks elsewhere.")
    return 0


def show(argv: Sequence[str]) -> int:
    """One run, for people."""
    p = parser("show", "Show one run: state, results, size, overrides and files.")
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--config", action="store_true", help="print its whole configuration as YAML instead")
    p.add_argument("--log", action="store_true", help="print the log of rank 0 instead")
    a = p.parse_args(argv)
    run = find_run(a.root, a.run)
    plan = load_plan(run.plan)
    if a.config:
        print(yaml.safe_dump(plan.config, sort_keys=False), end="")
    elif a.log:
        print(run.rank_log(0).read_text(errors="replace") if run.rank_log(0).exists() else "", end="")
    else:
        print(_shown(destined(run), run))
    return 0


def _cells(row: RunRow) -> tuple[str, ...]:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.started)) if row.started else "-"
    first = (row.cause or "").partition("\n")[0]
    results = "  ".join(f"{k} {metric(v)}" for k, v in row.metrics.items()) or first
    return row.state, started, duration(row.duration_s), f"{row.experiment}/{row.path.name}", results


def _shown(plan: Plan, run: RunDir) -> str:
    row = read_row(run)
    rows = [
        ("state", row.state + (f": {row.cause}" if row.cause else "")),
        ("notes", plan.settings.notes),
        ("overrides", " ".join(plan.overrides) or "none"),
        ("command", plan.lineage["command"]),
        ("devices", devices_text(plan)),
        (
            "code",
            plan.lineage.get("git.commit", "not in a git commit") + " (changed)" * bool(plan.lineage.get("git.dirty")),
        ),
        ("host", plan.lineage["host"]),
        ("signature", plan.signature),
        ("files", " ".join(sorted(f.name + "/" * f.is_dir() for f in run.path.iterdir()))),
    ]
    details = pairs([r for r in rows if r[1]])
    return f"{plan.experiment}/{run.path.name}\n{details}\n{summary_text(plan, run)}"
