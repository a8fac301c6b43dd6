"""Which runs are meant: those that a query holds for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from hpcexp.compare.query import Query, Value
from hpcexp.compare.runs import Run
from hpcexp.errors import ConfigError, listed

OF_THE_RUN = ("experiment", "run", "state", "sweep")
"""Names beside those of the configuration, of facts and of metrics."""
_MOST = 6
"""Names that a message suggests."""


def select(runs: Sequence[Run], query: Query) -> list[Run]:
    """The runs that the query holds for; ConfigError where it asks for what none has."""
    chosen = [run for run in runs if query.matches(lambda name: recorded(run, name))]  # noqa: B023 - called at once
    unknown = [] if chosen else [name for name in query.names if not _is_known(name, runs)]
    if unknown:
        raise ConfigError([_unknown(name, runs) for name in unknown])
    return chosen


def recorded(run: Run, name: str) -> Value:
    """What a run has under a name: of itself, its configuration, its code, data and machine, or a metric."""
    of_it: dict[str, Value] = {"experiment": run.experiment, "run": run.name, "state": run.state, "sweep": run.sweeps}
    if name in of_it:
        return of_it[name]
    for known in (*run.facts.values(), run.choices):
        if name in known:
            return known[name]
    is_metric = name in run.numbers or "/" in name
    return run.value(name, run.mode_of(name)) if is_metric else None


def near(name: str, names: Iterable[str]) -> list[str]:
    """Names like it, among them those that end as it does."""
    ending = name.replace("/", ".").rpartition(".")[2]
    same = [known for known in names if known.replace("/", ".").rpartition(".")[2] == ending]
    return list(dict.fromkeys([*difflib.get_close_matches(name, list(names), n=3), *same]))[:_MOST]


def _is_known(name: str, runs: Iterable[Run]) -> bool:
    return name in OF_THE_RUN or any(recorded(run, name) is not None for run in runs)


def _unknown(name: str, runs: Iterable[Run]) -> str:
    known = dict.fromkeys(OF_THE_RUN)
    for run in runs:
        for names in (*run.facts.values(), run.choices, run.numbers):
            known.update(dict.fromkeys(names))
    alike = near(name, known)
    hint = (
        f"Fix: {' or '.join(alike)}"
        if alike
        else f"Names are as in `hpcexp show RUN --config`, or: {listed(OF_THE_RUN)}."
    )
    return f"--query: no run has '{name}'.\n{hint}"
