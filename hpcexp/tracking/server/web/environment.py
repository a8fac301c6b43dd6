"""The environment of the process that answers requests."""

from __future__ import annotations

from collections.abc import Mapping

_MLFLOWS = ("MLFLOW_", "_MLFLOW_", "UVICORN_")
_KEPT = ("MLFLOW_SQLALCHEMYSTORE_", "MLFLOW_S3_", "MLFLOW_LOGGING_LEVEL")
"""What may be set of MLflow's hundreds of variables. Others turn off what protects, or name another administrator."""
_DROPPED = ("FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY", "prometheus_multiproc_dir")
_SET = {
    # Without job workers and telemetry the server needs a fifth of the memory and talks to nobody.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its pages have no link to what is not served.
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "_MLFLOW_SGI_NAME": "uvicorn",
    # Of MLflow's libraries about each other.
    "PYTHONWARNINGS": "ignore",
}


def environment(environ: Mapping[str, str], store: str, hosts: str, **more: str) -> dict[str, str]:
    """That of `environ` with MLflow's variables for the database `store`. `hosts`: patterns of names, with commas."""
    mine = {k: v for k, v in environ.items() if not k.startswith(_MLFLOWS) or k.startswith(_KEPT)}
    return {
        **{key: value for key, value in mine.items() if key not in _DROPPED},
        **_SET,
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        # Browsers send the address of the page with what they change. A proxy in front may speak https.
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            f"{s}://{h}" for s in ("http", "https") for h in hosts.split(",")
        ),
        **more,
    }
