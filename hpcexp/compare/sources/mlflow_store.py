"""Runs, read from an MLflow store: a file or a server.

Neither imports MLflow, which takes two seconds. Runs that hpcexp did not make are found too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from hpcexp.compare.runs import ComparedRun, Found
from hpcexp.compare.sources.mlflow_file import MlflowFile
from hpcexp.compare.sources.mlflow_server import MlflowServer
from hpcexp.compare.sources.stored import RunReader, Stored
from hpcexp.errors import ConfigError, RunError, listed, suggest
from hpcexp.redaction import without_password
from hpcexp.runs.naming import SIGNATURE_LENGTH
from hpcexp.runs.records.status import RunState
from hpcexp.tracking.mlflow import tags
from hpcexp.tracking.mlflow.renamed import read_renamed
from hpcexp.tracking.mlflow.uri import sqlite_path, uri_problem

_STATES: dict[str, str] = {
    "SCHEDULED": RunState.PLANNED,
    "RUNNING": RunState.RUNNING,
    "FINISHED": RunState.FINISHED,
    "FAILED": RunState.FAILED,
    "KILLED": RunState.KILLED,
}
_ENVIRONMENT = ("accelerator", "strategy", "world_size", "host", "user", "platform")
_MOST_NAMED = 6
"""Runs that a message lists."""


def read_runs(uri: str, words: Sequence[str] = (), sweeps: Sequence[str] = ()) -> Found:
    """The runs of the store that `words` and `sweeps` name, without either all of them.

    RunError where it cannot be read, or has none of that name.
    """
    store = open_store(uri)
    stored = [run for run in store.runs() if tags.SWEEP_DIR not in run.tags]
    if not stored:
        raise RunError(f"There are no runs in {without_password(uri)}.\nFix: hpcexp train, or --uri of another store.")
    chosen = [_named(word, stored) for word in words]
    chosen += [run for name in sweeps for run in _of_sweep(name, stored)]
    meant = {run.id: run for run in chosen or stored}.values()
    return Found(tuple(_run(run, store, is_of_sweep=bool(sweeps) and not words) for run in meant))


def open_store(uri: str) -> RunReader:
    """The store at `uri`; ConfigError where that is none that can be read."""
    problem = uri_problem(uri)
    if problem:
        raise ConfigError(problem.replace("tracking.uri=", "--uri "))
    path = sqlite_path(uri)
    if path is not None:
        return MlflowFile(path)
    if uri.startswith(("http://", "https://")):
        return MlflowServer(uri)
    raise ConfigError(
        f"--uri {without_password(uri)} is a database that is not read directly.\n"
        "Fix: without --uri the run directories are read; or `hpcexp ui --uri …`, and --uri http://127.0.0.1:5000 with "
        "the token in its address as MLFLOW_TRACKING_TOKEN."
    )


def _run(stored: Stored, store: RunReader, *, is_of_sweep: bool) -> ComparedRun:
    sections = _tag_sections(stored.tags)
    ours = sections["ours"]
    names = read_renamed(ours.get(tags.RENAMED, ""))
    metric_names, param_names = names.get("metrics", {}), names.get("params", {})
    keys = {name: key for key, name in metric_names.items()}
    metrics = {metric_names.get(key, key): value for key, value in stored.metrics.items()}
    params = {param_names.get(key, key): value for key, value in stored.params.items()}
    return ComparedRun(
        experiment=stored.experiment,
        name=stored.name,
        id=ours.get(tags.SIGNATURE, stored.id)[:SIGNATURE_LENGTH],
        location=stored.id,
        state=ours.get(tags.STATE) or _STATES.get(stored.status, stored.status.lower()),
        started=stored.started_ms / 1000,
        facts={"config": params, **{section: sections[section] for section in ("code", "data", "environment")}},
        choices=sections["choices"],
        numbers=_numbers(metrics, ours),
        curve_of=lambda metric: store.curve(stored.id, keys.get(metric, metric)),
        curve_names=lambda: metrics,
        sweeps=(ours[tags.SWEEP],) if tags.SWEEP in ours else (),
        axes=sections["axes"] if is_of_sweep else {},
    )


def _tag_sections(given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The tags by section."""
    sections: dict[str, dict[str, str]] = {
        name: {} for name in ("code", "data", "environment", "choices", "axes", "ours")
    }
    for tag, value in given.items():
        section, name = _place_of(tag)
        if section:
            sections[section][name] = value
    return sections


@lru_cache(maxsize=10_000)
def _place_of(tag: str) -> tuple[str, str]:
    """The section that a tag belongs to and its name there; an empty section for one that is not hpcexp's."""
    if tag.startswith(tags.AXIS):
        return "axes", tag.removeprefix(tags.AXIS)
    if tag.startswith(tags.CHOICES):
        return "choices", tag.removeprefix(tags.CHOICES)
    if not tag.startswith(tags.PREFIX):
        return "", tag
    name = tag.removeprefix(tags.PREFIX)
    head = name.partition(".")[0]
    if head in ("git", "code"):
        return "code", name
    if head == "data":
        return "data", name
    return ("environment", name) if head == "version" or name in _ENVIRONMENT else ("ours", tag)


def _numbers(metrics: Mapping[str, float], ours: Mapping[str, str]) -> dict[str, float]:
    """Last values but of a validation, of which the best counts."""
    found = {key: value for key, value in metrics.items() if not key.startswith("val")}
    if tags.BEST_MONITOR in ours and tags.BEST_VALUE in ours:
        found[ours[tags.BEST_MONITOR]] = float(ours[tags.BEST_VALUE])
    if tags.NUM_PARAMS in ours:
        found["num_params"] = float(ours[tags.NUM_PARAMS])
    return found


def _named(word: str, stored: Sequence[Stored]) -> Stored:
    if word == "last":
        return max(stored, key=lambda run: run.started_ms)
    found = [run for run in stored if word in (run.id, run.name, f"{run.experiment}/{run.name}")]
    found = found or [r for r in stored if r.id.startswith(word) or r.tags.get(tags.SIGNATURE, "").startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = [f"{run.name} ({run.id})" for run in found[:_MOST_NAMED]] + ["…"] * (len(found) > _MOST_NAMED)
        raise RunError(f"'{word}' names {len(found)} runs: {', '.join(shown)}.\nFix: give the id of one.")
    near = suggest(word, [run.name for run in stored])
    raise RunError(
        f"No run in the store is named '{word}'{'; ' + near if near else '.'}\n"
        "Fix: `hpcexp compare --uri URI --format csv` lists them."
    )


def _of_sweep(name: str, stored: Sequence[Stored]) -> list[Stored]:
    names = list(dict.fromkeys(run.tags[tags.SWEEP] for run in stored if tags.SWEEP in run.tags))
    meant = [n for n in names if n == name] or [n for n in names if n.endswith(name)]
    meant = names[-1:] if name == "last" else meant
    if len(meant) == 1:
        return [run for run in stored if run.tags.get(tags.SWEEP) == meant[0]]
    near = suggest(name, names)
    raise RunError(f"No sweep in the store is named '{name}'{'; ' + near if near else '.'}\nSweeps: {listed(names)}.")
