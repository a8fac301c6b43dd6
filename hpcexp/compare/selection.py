"""Selecting runs by a query, and the metrics to compare them by."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence

from hpcexp.compare.comparison import Metric, mode_of
from hpcexp.compare.query import Query, Value
from hpcexp.compare.runs import SECTIONS, ComparedRun
from hpcexp.errors import ConfigError, listed

_OF_THE_RUN = ("experiment", "run", "state", "sweep")
"""Names beside those of the configuration, of facts and of metrics."""
_MOST = 6
"""Names that a message suggests."""
_ASKED = 20
"""Runs whose curves are looked at for what a message suggests."""


def select(runs: Sequence[ComparedRun], query: Query) -> list[ComparedRun]:
    """The runs that the query holds for; ConfigError where there is none, with what none of them has."""
    chosen = [run for run in runs if query.matches(lambda name: recorded(run, name))]  # noqa: B023 - called at once
    if chosen:
        return chosen
    unknown = [name for name in query.names if not _is_known(name, runs)]
    if unknown:
        raise ConfigError([_unknown(name, runs) for name in unknown])
    named = "; ".join(_values_text(name, runs) for name in query.names)
    raise ConfigError(
        f"--query: it holds for none of {len(runs)} run{'s' * (len(runs) != 1)}: {query.text}\n"
        f"They have {named or 'no name in it'}.\nFix: ask for less."
    )


def recorded(run: ComparedRun, name: str) -> Value:
    """What a run has under a name: of itself, its configuration, its code, data and machine, or a metric.

    The section may stand before the name: `config.optimizer.lr`, `metrics.test/acc`.
    """
    of_it: dict[str, Value] = {"experiment": run.experiment, "run": run.name, "state": run.state, "sweep": run.sweeps}
    if name in of_it:
        return of_it[name]
    for known in (*run.facts.values(), run.choices):
        if name in known:
            return known[name]
    section, _, rest = name.partition(".")
    if section == "metrics":
        return run.value(rest, run.mode_of(rest))
    if section in SECTIONS and rest in run.facts[section]:
        return run.facts[section][rest]
    if section == "config" and rest in run.choices:
        return run.choices[rest]
    return run.value(name, run.mode_of(name)) if name in run.numbers or "/" in name else None


def selected_metrics(names: Sequence[str], runs: Sequence[ComparedRun]) -> list[Metric]:
    """The metrics `NAME` or `NAME=min`, each once; ConfigError for those that no run has."""
    found = list({m.name: m for m in (_metric(text, runs) for text in names)}.values())
    unknown = [m.name for m in found if all(run.value(m.name, m.mode) is None for run in runs)]
    if unknown:
        raise ConfigError([_no_metric(name, runs) for name in unknown])
    return found


def _near(name: str, names: Iterable[str]) -> list[str]:
    """Names like it, and those that end like it."""
    endings = {known: _ending(known) for known in names}
    whole = difflib.get_close_matches(name, endings, n=3)
    alike = difflib.get_close_matches(_ending(name), set(endings.values()), n=3)
    return list(dict.fromkeys([*whole, *(known for known, ending in endings.items() if ending in alike)]))[:_MOST]


def _ending(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _metric(text: str, runs: Sequence[ComparedRun]) -> Metric:
    name, equals, mode = text.rpartition("=")
    if not equals:
        return Metric(text, mode_of(text, runs))
    if mode not in ("min", "max"):
        raise ConfigError(f"--metric {text}: better is either min or max.\nFix: --metric {name}=min")
    return Metric(name, mode)


def _is_known(name: str, runs: Iterable[ComparedRun]) -> bool:
    return name in _OF_THE_RUN or any(recorded(run, name) is not None for run in runs)


def _values_text(name: str, runs: Iterable[ComparedRun]) -> str:
    """`optimizer.lr 0.01, 0.003`: the values of a name, if they are few."""
    found = dict.fromkeys(recorded(run, name) for run in runs)
    values: dict[str, None] = {}
    for value in found:
        many = value if isinstance(value, tuple) else () if value is None else (value,)
        values.update(dict.fromkeys(f"{one:.4g}" if isinstance(one, float) else str(one) for one in many))
    if len(values) > _MOST:
        return f"{len(values)} values of {name}"
    return f"{name} {', '.join(values) or 'none'}"


def _names(runs: Sequence[ComparedRun]) -> dict[str, None]:
    known = dict.fromkeys(_OF_THE_RUN)
    for run in runs:
        for names in (*run.facts.values(), run.choices):
            known.update(dict.fromkeys(names))
    return known | _metrics(runs)


def _metrics(runs: Sequence[ComparedRun]) -> dict[str, None]:
    curves = [run.curve_names() for run in itertools.islice(runs, _ASKED)]
    return dict.fromkeys(name for names in (*(run.numbers for run in runs), *curves) for name in names)


def _unknown(name: str, runs: Sequence[ComparedRun]) -> str:
    alike = _near(name.removeprefix("config.").removeprefix("metrics."), _names(runs))
    names = f"names as in `hpcexp show RUN --config`, or {listed(_OF_THE_RUN)}, or metrics"
    return f"--query: no run has '{name}'.\nFix: {' or '.join(alike) or names}; text is quoted: \"{name}\"."


def _no_metric(name: str, runs: Sequence[ComparedRun]) -> str:
    known = _metrics(runs)
    alike = _near(name, known)
    hint = f"Fix: {' or '.join(f'--metric {other}' for other in alike)}\n" if alike else ""
    return f"--metric {name}: no run has a value of it.\n{hint}There are: {listed(known)}."
