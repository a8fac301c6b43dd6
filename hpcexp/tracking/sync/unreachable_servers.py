"""Which servers do not answer, and are left alone for a while, so that they hold up nothing else."""

from __future__ import annotations

import sqlite3
import sys
import time

_POLL_S = 0.5
_MAX_BACKOFF_S = 30.0
_REFUSED_S = 300.0
"""A server counts wrong passwords. Tried more often, they would keep it from taking the right one of the same user."""
_SHARE = 5.0
"""Waiting for one that is down may take a sixth of the time."""
_DOWN = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""What MLflow says where not the request but the server was at fault."""


class UnreachableServers:
    """What is known of the servers that runs go to; None stands for none."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._errors: dict[str, BaseException] = {}

    def is_resting(self, uri: str | None) -> bool:
        """Whether it is too early to try that server again."""
        return uri is not None and time.monotonic() < self._not_before.get(uri, 0.0)

    def error(self, uri: str | None) -> BaseException | None:
        """What it failed of last, if it is down."""
        return None if uri is None else self._errors.get(uri)

    def answered(self, uri: str | None) -> None:
        """It is well."""
        if uri is not None:
            self._failures.pop(uri, None)
            self._errors.pop(uri, None)

    def failed(self, uri: str | None, error: BaseException, spent_s: float) -> None:
        """Leave it alone if it is down: from the second time on, as the first may be one run's own trouble."""
        if uri is None or not is_down(error):
            return
        self._errors[uri] = error
        failures = self._failures[uri] = self._failures.get(uri, 0) + 1
        if failures > 1:
            self._not_before[uri] = time.monotonic() + max(backoff(failures), _SHARE * spent_s)


def is_down(error: BaseException) -> bool:
    """Whether the error says that a server or database does not work, rather than that it refuses this request."""
    mlflow = sys.modules.get("mlflow.exceptions")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | TimeoutError | sqlite3.OperationalError):
            return True
        if mlflow is not None and isinstance(cause, mlflow.MlflowException) and cause.error_code in _DOWN:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def backoff(failures: int, *, is_refused: bool = False) -> float:
    """Seconds until the next try after so many in vain; `is_refused`: for a password that the server does not take."""
    if is_refused:
        return _REFUSED_S
    return min(_POLL_S * 2.0 ** min(failures, 30), _MAX_BACKOFF_S)
