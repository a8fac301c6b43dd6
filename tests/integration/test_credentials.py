"""Credentials go to the servers that their owner names, and to no other that a run or a server names."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers import Said
from record_support import end_sweep, finish, make_run, make_sweep
from requests.utils import get_netrc_auth
from served import ADA, Served, serving

from hpcexp.compare.sources.mlflow_server import MlflowServer
from hpcexp.errors import RunError
from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir
from hpcexp.tracking.mlflow.authentication import refused
from hpcexp.tracking.mlflow.credentials import Named, origin, withheld
from hpcexp.tracking.mlflow.store import Stores
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "ada",
    "MLFLOW_TRACKING_PASSWORD": "s3cr3t-password",
    "MLFLOW_TRACKING_TOKEN": "s3cr3t-token",
}


@dataclass
class Listener:
    """A server that keeps every request, and answers as an MLflow server does as far as it must."""

    port: int
    artifacts: str = "mlflow-artifacts:/1/r/artifacts"
    redirect: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def shown(self) -> list[str]:
        """What it was shown of whom it speaks to."""
        names = ("Authorization", "Cookie", "X-Amz-Date")
        return [headers[name] for _, headers in self.requests for name in names if name in headers]

    def answer(self, path: str) -> dict[str, Any]:
        """That of MLflow to a call, with one experiment and one run."""
        info = {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "artifact_uri": self.artifacts}
        run = {"info": info | {"run_uuid": "r", "lifecycle_stage": "active"}, "data": {}}
        call = urlsplit(path).path.partition("/mlflow/")[2]
        if call.startswith("experiments/"):
            return {
                "experiment_id": "1",
                "experiment": {"experiment_id": "1", "name": "digits_mlp", "lifecycle_stage": "active"},
            }
        return {"run": run, "runs": []} if call.startswith("runs/") else {}


@contextmanager
def listening() -> Iterator[Listener]:
    """Such a server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.requests.append((self.path, dict(self.headers)))
            self.send_response(307 if seen.redirect else 200)
            if seen.redirect:
                self.send_header("Location", seen.redirect + self.path)
            body = json.dumps(seen.answer(self.path)).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - as the base class calls them

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        seen = Listener(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def other() -> Iterator[Listener]:
    """HOST-B, which only a run names."""
    with listening() as server:
        yield server


@pytest.fixture
def mine() -> Iterator[Listener]:
    """HOST-A, which the user names."""
    with listening() as server:
        yield server


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of credentials that MLflow finds by itself; the home directory of their owner."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HPCEXP_CACHE", str(home / "cache"))
    (home / ".netrc").write_text("default login ada password s3cr3t-netrc\n")
    (home / ".netrc").chmod(0o600)
    (home / ".mlflow").mkdir()
    (home / ".mlflow/credentials").write_text(
        "[mlflow]\nmlflow_tracking_username=ada\nmlflow_tracking_password=s3cr3t\n"
    )
    return home


def ended_run(project: Path, uri: str, name: str = "x") -> RunDir:
    """A run that somebody has made, and whose plan names `uri`."""
    run = make_run(project / "runs", uri, name, steps=2)
    finish(run)
    return run


def test_nothing_is_found_where_credentials_are_withheld(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment what has them, of the home directory everything; afterwards all is as it was."""
    others = ("MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_AUTH", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD")
    for name in others:
        monkeypatch.setenv(name, "s3cr3t")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "ca.pem")
    before = dict(os.environ)
    with withheld():
        assert not [name for name, value in os.environ.items() if "s3cr3t" in value]
        assert not [*Path.home().iterdir()]
        assert get_netrc_auth("http://127.0.0.1") is None
        assert "ca.pem" == os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
    assert before == dict(os.environ)
    assert get_netrc_auth("http://127.0.0.1") is not None


@pytest.mark.parametrize("way", ["address", "user in it", "sweep", "note"])
def test_a_server_that_only_a_run_names_gets_no_credentials(
    project: Path,
    other: Listener,
    mine: Listener,
    secrets: Path,
    hpcexp: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Neither from the environment nor from files; it is said which, and metrics are sent all the same."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mine.address)
    uri = other.address.replace("//", "//ada@") if way == "user in it" else other.address
    run = ended_run(project, mine.address if way == "note" else uri)
    if way == "note":
        run.secret_uri.write_text(f"{other.address}\ndigits_mlp\n")
    if way == "sweep":
        sweep = make_sweep(project / "runs")
        sweep.jobs.write_text(json.dumps({"job": 1, "overrides": [], "signature": "a", "run": str(run.path)}) + "\n")
        end_sweep(sweep, best=run)
    said = hpcexp("sync")
    assert other.requests
    shown = [text for text in other.shown if text != "Basic YWRhOg=="]  # the run's own `ada:`
    assert [] == shown
    every = "MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN and ~/.mlflow/credentials and ~/.netrc"
    assert f"{every} are for {mine.address} (MLFLOW_TRACKING_URI), not sent to" in said.err
    assert (
        f"not sent to {other.address}, which only the run names.\nFix: hpcexp sync RUN --uri {other.address}"
        in said.err
    )
    assert [] == mine.requests


def test_a_server_that_the_command_names_gets_them(
    project: Path, other: Listener, secrets: Path, hpcexp: Callable[..., Said]
) -> None:
    """By `--uri`; it is remembered for later commands that name none."""
    run = ended_run(project, "http://127.0.0.1:1")
    hpcexp("sync", str(run.path), "--uri", other.address)
    assert other.shown
    other.requests.clear()
    said = hpcexp("sync")
    assert other.shown
    assert "not sent" not in said.err


def test_a_server_that_the_environment_or_the_project_names_gets_them(
    project: Path, other: Listener, secrets: Path, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the case of its name."""
    ended_run(project, other.address)
    (project / "conf").mkdir()
    (project / "conf" / "tracking").mkdir()
    (project / "conf" / "tracking" / "mlflow.yaml").write_text(f"uri: {other.address}\n")
    hpcexp("sync")
    configured, _ = len(other.shown), other.requests.clear()
    (project / "conf" / "tracking" / "mlflow.yaml").unlink()
    hpcexp("sync")
    assert not other.shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other.address + "/")
    hpcexp("sync")
    assert configured
    assert other.shown


def test_what_a_training_names_is_remembered_until_the_environment_names_another(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it came with credentials, and only for who has the same cache."""
    mine = Named(lambda: ())
    mine.add("http://a:5000")
    assert Named(lambda: ()).has("http://ada@A:5000/")
    assert not Named(lambda: ()).has("https://a:5000")
    assert not Named(lambda: ()).has("http://a:5001")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert not Named(lambda: ()).has("http://a:5000")
    assert Named(lambda: ()).has("http://b:80")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name in SECRETS:
        monkeypatch.delenv(name)
    for file in (secrets / ".netrc", secrets / ".mlflow/credentials"):
        file.unlink()
    mine.add("http://c:5000")
    assert not Named(lambda: ()).has("http://c:5000")
    assert Named(lambda: ()).is_known("http://c:5000")
    assert not Named(lambda: ()).is_known("http://d:5000")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://Ada:x@Host/path", "http://host:80"),
        ("https://host", "https://host:443"),
        ("postgresql+psycopg://u:p@db/x", "postgresql://db:5432"),
        ("sqlite:////a/b.db", None),
        ("http://host:99999", "http://host:99999"),
    ],
)
def test_a_server_is_scheme_host_and_port(uri: str, expected: str | None) -> None:
    """Not its path, nor who asks."""
    assert expected == origin(uri)


def test_a_redirection_to_another_server_carries_nothing(
    project: Path, other: Listener, mine: Listener, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of MLflow's client, of `compare --uri` and of the question whether a user is known."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mine.address)
    mine.redirect = other.address
    assert sync(ended_run(project, mine.address).path) is not None
    with pytest.raises(RunError, match="307"):
        MlflowServer(mine.address).runs()
    assert refused(mine.address, dict(SECRETS) | {"MLFLOW_TRACKING_TOKEN": ""}) is None
    assert mine.shown
    assert [] == other.requests


def test_artifacts_for_another_server_go_without_credentials(
    project: Path, other: Listener, mine: Listener, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the named one answers as the place of a run's artifacts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mine.address)
    for place in (
        f"{other.address}/api/2.0/mlflow-artifacts/artifacts",
        f"mlflow-artifacts://127.0.0.1:{other.port}/1/r",
    ):
        mine.artifacts = place
        other.requests.clear()
        sync(ended_run(project, mine.address, f"to {other.port} {len(place)}").path, Stores(Named(lambda: ())))
        assert mine.shown
        assert other.requests
        assert [] == other.shown


def test_a_server_that_only_a_run_names_writes_no_files_here(
    project: Path, other: Listener, hpcexp: Callable[..., Said]
) -> None:
    """By answering that artifacts lie in a directory of this machine."""
    place = project / "home"
    place.mkdir()
    other.artifacts = place.as_uri()
    ended_run(project, other.address)
    said = hpcexp("sync")
    assert 1 == said.status
    assert "wants artifacts in a directory of this machine" in said.out
    assert [] == [*place.iterdir()]


def test_a_real_server_of_a_group_takes_what_is_meant_for_it(
    tmp_path_factory: pytest.TempPathFactory,
    project: Path,
    hpcexp: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And refuses a run that only names it, until its user does, too."""
    monkeypatch.setenv("HPCEXP_CACHE", str(project / "cache"))
    with serving(tmp_path_factory.mktemp("group") / "data") as server:
        server.add_user(ADA)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADA[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADA[1])
        run = ended_run(project, server.address)
        assert 1 == hpcexp("sync").status
        said = hpcexp("sync", str(run.path), "--uri", server.address)
        assert (0, "") == (said.status, said.err)
        assert read_plain(run.mlflow)["synced"] is True
        assert has_artifacts(server)


def has_artifacts(server: Served) -> bool:
    """Whether files of a run have come to it."""
    return {"plan.yaml", "best.ckpt"} <= {file.name for file in (server.data / "mlartifacts").rglob("*")}
