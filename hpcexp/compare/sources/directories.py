"""Runs, read from their directories.

Everything is read each time. 10,000 directories take a second or two, and the answer is always current: an index would
have to be looked over for what has changed since, and MLflow lacks what was not tracked or not synced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from hpcexp.compare.metrics import numbers
from hpcexp.compare.runs import ComparedRun, Found
from hpcexp.compare.sources.plans import Plans
from hpcexp.errors import RunError
from hpcexp.rundir import RunDir
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import read_status
from hpcexp.runs.series import read_curve, read_series
from hpcexp.status.state import current_state
from hpcexp.text.formatting import near

_SET_ASIDE = re.compile(r"~\d+$")
"""The end of a directory's name that holds an earlier try of the run beside it."""


def find(root: Path, experiment: str | None = None) -> Iterator[RunDir]:
    """The runs below `root`, of one experiment or of all, without tries that were set aside."""
    for parent in _directories(root):
        if experiment in (None, parent.name):
            yield from (RunDir(Path(run)) for run in _directories(parent.path) if not _SET_ASIDE.search(run.name))


def read_runs(
    runs: Iterable[RunDir],
    sweeps: Mapping[Path, tuple[str, ...]] | None = None,
    axes: Mapping[Path, Mapping[str, str]] | None = None,
) -> Found:
    """The runs in the directories; and separately the damaged ones, with what is wrong with each.

    `sweeps`: the names of those that each run belongs to. `axes`: the values of each as a job of one.
    """
    plans, found, problems = Plans(), [], []
    for run in runs:
        try:
            found.append(_read(run, plans, (sweeps or {}).get(run.path, ()), (axes or {}).get(run.path, {})))
        except FileNotFoundError:
            continue  # no run, or one that was removed meanwhile
        except RunError as e:
            problems.append(str(e))
        except OSError as e:
            problems.append(f"{near(e.filename or run.path)} cannot be read: {e.strerror}.")
    return Found(tuple(found), tuple(problems))


def _read(run: RunDir, plans: Plans, sweeps: tuple[str, ...], axes: Mapping[str, str]) -> ComparedRun:
    read, status = plans.read(run.plan), read_status(run)
    return ComparedRun(
        experiment=run.path.parent.name,
        name=run.path.name,
        id=run.path.name.rpartition("-")[2],
        location=str(run.path),
        state=current_state(run, status),
        started=status.started or 0.0,
        facts=read.facts,
        choices=read.choices,
        numbers=numbers(read_summary(run)),
        curve_of=partial(read_curve, run.journal),
        curve_names=partial(read_series, run.journal),
        sweeps=sweeps,
        axes=axes,
    )


def _directories(parent: Path | str) -> list[os.DirEntry[str]]:
    """Directories in `parent` that are not hidden, in order; none where it is not there."""
    try:
        with os.scandir(parent) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda entry: entry.name)
