"""A sweep as its directory describes it, whoever works on it."""

from __future__ import annotations

from dataclasses import replace

from hpcexp.files.documents import read_json
from hpcexp.rundir import SweepDir
from hpcexp.runs.records.status import RunState
from hpcexp.runs.records.sweep import SweepRecord
from hpcexp.sweep.spec.spec import Spec, combinations, is_open
from hpcexp.sweep.store.claims import Claims
from hpcexp.sweep.store.directory import spec_of
from hpcexp.sweep.store.ledger import Ledger, LedgerEntry
from hpcexp.sweep.store.results import Result, read_result


def spec_at(directory: SweepDir) -> Spec:
    """What was asked last."""
    return spec_of(read_json(directory.definition, SweepRecord))


def results_at(directory: SweepDir, spec: Spec) -> tuple[list[Result], list[LedgerEntry]]:
    """The jobs that are asked for, and those that were before."""
    claims = Claims(directory.path)
    active, dropped = jobs_at(directory, spec)
    results = []
    for entry in active:
        result = read_result(entry, spec.objectives)
        if result.state in (RunState.WAITING, RunState.KILLED) and claims.holder(str(entry.job)) is not None:
            result = replace(result, state=RunState.RUNNING)
        results.append(result)
    return results, dropped


def jobs_at(directory: SweepDir, spec: Spec) -> tuple[list[LedgerEntry], list[LedgerEntry]]:
    """The jobs of the ledger that are asked for, and those that were before, without a look at their runs."""
    entries = sorted(Ledger(directory.path, Claims(directory.path)).entries().values(), key=lambda entry: entry.job)
    overrides = set() if is_open(spec) else set(combinations(spec))
    active = [entry for entry in entries if is_open(spec) or entry.overrides in overrides]
    return active, [entry for entry in entries if entry not in active]
