"""What a run's job would find in this process's directory, as JSON; the argument is the run's directory.

A process of its own, as it runs the user's data source with the job's import path.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from hpcexp.compare.provenance_diff import facts_now, facts_of_run
from hpcexp.data.facts import data_facts
from hpcexp.data.folds import with_fold
from hpcexp.files.atomic import sha256
from hpcexp.plan import load_whole
from hpcexp.rundir import RunDir


def main() -> None:
    """Print it; what the user's code prints goes elsewhere."""
    with contextlib.redirect_stdout(sys.stderr):
        findings = found(RunDir(Path(sys.argv[1])), Path.cwd())
    print(json.dumps(findings))


def found(run: RunDir, project: Path) -> dict[str, Any]:
    """`code`: source file → SHA-256; `packages`; `data`: file → digest; `facts` of the data, or its `problems`."""
    then, plan = facts_of_run(run), load_whole(run)
    data = plan.settings.data
    facts, problems = data_facts(data.target, data.node, data.fingerprint)
    facts = facts and with_fold(facts, data)
    files = {str(file): sha256(file) for file in _files(then.code or {}, [project, *map(Path, sys.path)])}
    here = replace(plan, sources=files, data=facts, lineage={**plan.lineage, "project": str(project)})
    now = facts_now(here, then)
    findings = {"code": now.code, "packages": now.packages, "data": now.data, "notes": now.notes}
    return {**findings, "facts": to_builtins(facts), "problems": problems}


def _files(names: Iterable[str], places: list[Path]) -> Iterable[Path]:
    """The files as Python finds them."""
    for name in names:
        if found := next((place / name for place in places if (place / name).is_file()), None):
            yield found
