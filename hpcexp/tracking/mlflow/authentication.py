"""Whether a tracking server takes this user's name and password."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.credentials import opener
from hpcexp.tracking.mlflow.uri import with_password

_WHO_AM_I = "/api/2.0/mlflow/users/current"
_CREDENTIALS = {"MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"}
"""Other ways to be let in than by a password."""


def refused(uri: str, environ: Mapping[str, str], timeout_s: float = 5.0) -> str | None:
    """Why the server of `uri` lets this user do nothing; None where it does, or cannot be asked."""
    if not uri.startswith(("http://", "https://")) or not _CREDENTIALS.isdisjoint(environ):
        return None
    user, password = _credentials(with_password(uri, environ), environ)
    if not user and Path("~/.mlflow/credentials").expanduser().exists():
        return None
    authority = environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or environ.get("REQUESTS_CA_BUNDLE")
    status = _status(uri, user, password, authority, timeout_s)
    if status not in (401, 429):
        return None
    why = f"does not know the user '{user}' with this password" if user else "wants a user and a password"
    if status == 429:
        why = (
            f"takes no password for the user '{user}' from here for some seconds: there were too many wrong ones (429)"
        )
    return (
        f"tracking.uri={without_password(uri)} {why}.\n"
        "The run continues and its directory holds everything; `hpcexp sync` syncs it later.\n"
        "Fix: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment."
    )


def _credentials(uri: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """User and password as MLflow takes them: of the URI, else of the environment."""
    parts = urlsplit(uri)
    if parts.username:
        return unquote(parts.username), unquote(parts.password or "")
    return environ.get("MLFLOW_TRACKING_USERNAME", ""), environ.get("MLFLOW_TRACKING_PASSWORD", "")


def _status(uri: str, user: str, password: str, authority: str | None, timeout_s: float) -> int | None:
    """HTTP status of the cheapest call that takes an account; None where none came.

    `authority`: a file of certificates to trust instead of the system's.
    """
    import ssl
    import urllib.error
    import urllib.request
    from base64 import b64encode

    scheme, _, rest = uri.partition("://")
    request = urllib.request.Request(f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}{_WHO_AM_I}")  # noqa: S310
    if user:
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    try:
        trusted = ssl.create_default_context(cafile=authority) if scheme == "https" else None
        with opener(trusted).open(request, timeout=timeout_s) as response:
            return int(response.status)
    except urllib.error.HTTPError as e:
        e.close()
        return e.code
    except (OSError, ValueError):
        return None
