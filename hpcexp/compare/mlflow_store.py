"""Runs as an MLflow store tells of them: its SQLite file, read and never written, or a server's REST interface.

Neither imports MLflow, which takes two seconds. Whoever lets MLflow record something else finds those runs here too.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlencode, urlsplit

from hpcexp.compare.runs import Found, Run
from hpcexp.errors import ConfigError, RunError, listed, suggest
from hpcexp.naming import SIGNATURE_LENGTH
from hpcexp.record.series import Series
from hpcexp.record.uri import sqlite_path, uri_problem, without_password

_STATES = {"SCHEDULED": "planned", "RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
_OURS = "hpcexp."
_AXIS = "axis."
_ENVIRONMENT = ("accelerator", "strategy", "world_size", "host", "user", "platform")
_TIMEOUT_S = 10.0
_PAGE = 1000
_MOST_NAMED = 6
"""Runs that a message lists."""


class Stored(NamedTuple):
    """A run as the store has it."""

    id: str
    name: str
    experiment: str
    status: str
    started_ms: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""


class Store(Protocol):
    """Where runs are read from."""

    def runs(self) -> list[Stored]:
        """All that are not deleted, of all experiments."""

    def curve(self, run_id: str, metric: str) -> Series:
        """A metric's values over the steps."""


def read_runs(uri: str, words: Sequence[str] = (), sweeps: Sequence[str] = ()) -> Found:
    """The runs of the store that `words` and `sweeps` name, without either all of them.

    RunError where it cannot be read, or has none of that name.
    """
    store = open_store(uri)
    stored = [run for run in store.runs() if f"{_OURS}sweep_dir" not in run.tags]
    if not stored:
        raise RunError(f"There are no runs in {without_password(uri)}.\nFix: hpcexp train, or --uri of another store.")
    chosen = [_named(word, stored) for word in words]
    chosen += [run for name in sweeps for run in _of_sweep(name, stored)]
    meant = {run.id: run for run in chosen or stored}.values()
    return Found(tuple(_run(run, store, is_of_sweep=bool(sweeps) and not words) for run in meant))


def open_store(uri: str) -> Store:
    """The store at `uri`; ConfigError where that is none that can be read."""
    problem = uri_problem(uri)
    if problem:
        raise ConfigError(problem.replace("tracking.uri=", "--uri "))
    path = sqlite_path(uri)
    if path is not None:
        return _Sqlite(path)
    if uri.startswith(("http://", "https://")):
        return _Server(uri)
    raise ConfigError(
        f"--uri {without_password(uri)} is a database that is not read directly.\n"
        "Fix: without --uri the run directories are read; or `hpcexp ui --uri …`, and --uri http://127.0.0.1:5000."
    )


class _Sqlite:
    """The file of a store. A run's many short rows come as one JSON text: that halves the time."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RunError(f"There is no {path}: no run has been recorded there.\nFix: hpcexp train, or another --uri.")
        self._path = path
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    def runs(self) -> list[Stored]:
        with self._told():
            texts = {name: self._by_run(name) for name in ("params", "tags")}
            metrics = self._by_run("latest_metrics", "WHERE NOT is_nan")
            rows = self._connection.execute(
                "SELECT run_uuid, runs.name, experiments.name, status, start_time FROM runs"
                " JOIN experiments USING (experiment_id) WHERE runs.lifecycle_stage = 'active' ORDER BY start_time"
            ).fetchall()
        return [
            Stored(
                id=run_id,
                name=name or run_id,
                experiment=experiment,
                status=status,
                started_ms=started or 0,
                params=texts["params"].get(run_id, {}),
                tags=texts["tags"].get(run_id, {}),
                metrics=metrics.get(run_id, {}),
            )
            for run_id, name, experiment, status, started in rows
        ]

    def curve(self, run_id: str, metric: str) -> Series:
        with self._told():
            rows = self._connection.execute(
                "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? AND NOT is_nan"
                " ORDER BY step, timestamp",
                (run_id, metric),
            )
            return _series(rows)

    def _by_run(self, table: str, condition: str = "") -> dict[str, dict[str, Any]]:
        columns = "SELECT run_uuid, json_group_object(key, value)"
        rows = self._connection.execute(f"{columns} FROM {table} {condition} GROUP BY run_uuid")
        return {run_id: json.loads(text) for run_id, text in rows}

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise RunError(
                f"{self._path} cannot be read as an MLflow store: {e}.\n"
                "Fix: --uri of another store, or without --uri for the run directories."
            ) from e


class _Server:
    """A tracking server. Name and password are in the URI, or where MLflow looks for them."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        self._shown = without_password(uri)
        self._base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/api/2.0/mlflow"
        self._headers = {"Content-Type": "application/json", **_authorization(parts.username, parts.password)}

    def runs(self) -> list[Stored]:
        found = self._pages("experiments", lambda page: self._post("experiments/search", page))
        names = {experiment["experiment_id"]: experiment["name"] for experiment in found}
        if not names:
            return []
        asked = {"experiment_ids": list(names), "run_view_type": "ACTIVE_ONLY", "order_by": ["attributes.start_time"]}
        runs = self._pages("runs", lambda page: self._post("runs/search", {**asked, **page}))
        return [_told_by_server(run["info"], run.get("data", {}), names) for run in runs]

    def curve(self, run_id: str, metric: str) -> Series:
        asked = {"run_id": run_id, "metric_key": metric}
        points = self._pages("metrics", lambda page: self._get("metrics/get-history", {**asked, **page}))
        rows = sorted((int(p["step"]), int(p["timestamp"]), float(p["value"])) for p in points if _is_number(p))
        return _series((step, value) for step, _, value in rows)

    def _pages(self, key: str, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"max_results": _PAGE}
        for _ in itertools.count():
            answer = ask(page)
            found += answer.get(key, [])
            if not answer.get("next_page_token"):
                break
            page["page_token"] = answer["next_page_token"]
        return found

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer(urllib.request.Request(f"{self._base}/{path}", json.dumps(body).encode(), self._headers))  # noqa: S310 - http or https

    def _get(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer(urllib.request.Request(f"{self._base}/{path}?{urlencode(query)}", headers=self._headers))  # noqa: S310

    def _answer(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as e:
            e.close()
            raise self._refusal(f"{e.code} {e.reason}") from e
        except (OSError, ValueError) as e:
            raise self._refusal(_why(e)) from e
        return answer

    def _refusal(self, why: str) -> RunError:
        return RunError(
            f"--uri {self._shown} does not answer as an MLflow server: {why}.\n"
            "Fix: start it, or without --uri for the run directories."
        )


def _authorization(user: str | None, password: str | None) -> dict[str, str]:
    user = unquote(user or "") or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__


def _told_by_server(info: Mapping[str, Any], data: Mapping[str, Any], names: Mapping[str, str]) -> Stored:
    return Stored(
        id=info["run_id"],
        name=info.get("run_name") or info["run_id"],
        experiment=names[info["experiment_id"]],
        status=info["status"],
        started_ms=int(info.get("start_time") or 0),
        params={param["key"]: param.get("value", "") for param in data.get("params", [])},
        tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", [])},
        metrics={m["key"]: float(m["value"]) for m in data.get("metrics", []) if _is_number(m)},
    )


def _is_number(metric: Mapping[str, Any]) -> bool:
    return metric.get("value") is not None and str(metric["value"]).lower() != "nan"


def _series(rows: Iterable[tuple[int, float]]) -> Series:
    curve = Series(limit=None)
    for step, value in rows:
        curve.add(step, value)
    return curve


def _run(stored: Stored, store: Store, *, is_of_sweep: bool) -> Run:
    told = _told(stored.tags)
    ours = told["ours"]
    return Run(
        experiment=stored.experiment,
        name=stored.name,
        id=ours.get("signature", stored.id)[:SIGNATURE_LENGTH],
        place=stored.id,
        state=ours.get("state") or _STATES.get(stored.status, stored.status.lower()),
        started=stored.started_ms / 1000,
        facts={"config": stored.params, **{section: told[section] for section in ("code", "data", "environment")}},
        choices=told["choices"],
        numbers=_numbers(stored.metrics, ours),
        curve_of=partial(store.curve, stored.id),
        curve_names=lambda: stored.metrics,
        sweeps=(ours["sweep"],) if "sweep" in ours else (),
        axes=told["axes"] if is_of_sweep else {},
    )


def _told(tags: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What the tags say, by what it is about."""
    told: dict[str, dict[str, str]] = {name: {} for name in ("code", "data", "environment", "choices", "axes", "ours")}
    for tag, value in tags.items():
        section, name = _place_of(tag)
        if section:
            told[section][name] = value
    return told


@lru_cache(maxsize=10_000)
def _place_of(tag: str) -> tuple[str, str]:
    """Section and name of what a tag says; an empty section for one that is not ours."""
    if tag.startswith(_AXIS):
        return "axes", tag.removeprefix(_AXIS)
    if not tag.startswith(_OURS):
        return "", tag
    name = tag.removeprefix(_OURS)
    head = name.partition(".")[0]
    if head == "choices":
        return "choices", name.removeprefix("choices.")
    if head in ("git", "code"):
        return "code", name
    if head == "data":
        return "data", name
    return "environment" if head == "version" or name in _ENVIRONMENT else "ours", name


def _numbers(metrics: Mapping[str, float], ours: Mapping[str, str]) -> dict[str, float]:
    """Last values but of a validation, of which the best counts."""
    found = {key: value for key, value in metrics.items() if not key.startswith("val")}
    if "best.monitor" in ours and "best.value" in ours:
        found[ours["best.monitor"]] = float(ours["best.value"])
    if "num_params" in ours:
        found["num_params"] = float(ours["num_params"])
    return found


def _named(word: str, stored: Sequence[Stored]) -> Stored:
    if word == "last":
        return max(stored, key=lambda run: run.started_ms)
    found = [run for run in stored if word in (run.id, run.name, f"{run.experiment}/{run.name}")]
    found = found or [
        r for r in stored if r.id.startswith(word) or r.tags.get(f"{_OURS}signature", "").startswith(word)
    ]
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
    tag = f"{_OURS}sweep"
    names = list(dict.fromkeys(run.tags[tag] for run in stored if tag in run.tags))
    meant = [n for n in names if n == name] or [n for n in names if n.endswith(name)]
    meant = names[-1:] if name == "last" else meant
    if len(meant) == 1:
        return [run for run in stored if run.tags.get(tag) == meant[0]]
    near = suggest(name, names)
    raise RunError(f"No sweep in the store is named '{name}'{'; ' + near if near else '.'}\nSweeps: {listed(names)}.")
