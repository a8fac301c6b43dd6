"""An MLflow tracking server, asked by its REST interface."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from hpcexp.compare.sources.stored import Stored, series_of
from hpcexp.errors import RunError
from hpcexp.redaction import without_password
from hpcexp.runs.series import Series
from hpcexp.tracking.mlflow.credentials import opener

_TIMEOUT_S = 10.0
_PAGE = 1000


class MlflowServer:
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
        query = {"experiment_ids": list(names), "run_view_type": "ACTIVE_ONLY", "order_by": ["attributes.start_time"]}
        runs = self._pages("runs", lambda page: self._post("runs/search", {**query, **page}))
        return [_stored_run(run["info"], run.get("data", {}), names) for run in runs]

    def curve(self, run_id: str, metric: str) -> Series:
        query = {"run_id": run_id, "metric_key": metric}
        points = self._pages("metrics", lambda page: self._get("metrics/get-history", {**query, **page}))
        rows = sorted((int(p["step"]), int(p["timestamp"]), float(p["value"])) for p in points if _is_number(p))
        return series_of((step, value) for step, _, value in rows)

    def _pages(self, key: str, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"max_results": _PAGE}
        while True:
            answer = ask(page)
            found += answer.get(key, [])
            if not answer.get("next_page_token"):
                return found
            page["page_token"] = answer["next_page_token"]

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer(urllib.request.Request(f"{self._base}/{path}", json.dumps(body).encode(), self._headers))  # noqa: S310 - http or https

    def _get(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return self._answer(urllib.request.Request(f"{self._base}/{path}?{urlencode(query)}", headers=self._headers))  # noqa: S310

    def _answer(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with opener().open(request, timeout=_TIMEOUT_S) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as e:
            e.close()
            if e.code == 429:
                raise RunError(
                    f"--uri {self._shown} has had too many wrong passwords or requests (429).\nFix: wait some seconds."
                ) from e
            raise RunError(self._unknown()) if e.code == 401 else self._refusal(f"{e.code} {e.reason}") from e
        except (OSError, ValueError, HTTPException) as e:
            raise self._refusal(_why(e)) from e
        return answer

    def _unknown(self) -> str:
        """That the server does not let one in."""
        was_shown = "Authorization" in self._headers
        why = "does not know this user and password, or token" if was_shown else "wants a user and a password"
        return (
            f"--uri {self._shown} {why} (401 Unauthorized).\n"
            "Fix: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment. "
            "For `hpcexp ui` it is MLFLOW_TRACKING_TOKEN, with the token in its address."
        )

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


def _stored_run(info: Mapping[str, Any], data: Mapping[str, Any], names: Mapping[str, str]) -> Stored:
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
