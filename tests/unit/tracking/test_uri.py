"""Where runs are recorded: what is taken, refused, and warned of."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from record_support import REPOSITORY, free_port

from hpcexp.errors import ConfigError
from hpcexp.redaction import without_passwords
from hpcexp.tracking.mlflow.links import ui_link
from hpcexp.tracking.mlflow.uri import resolve_uri, unreachable, uri_problem
from hpcexp.tracking.server.interface import database_only


def test_the_configuration_wins_over_the_environment(tmp_path: Path) -> None:
    """Then comes MLflow's own variable, then SQLite beside the runs."""
    environ = {"MLFLOW_TRACKING_URI": "http://there:5000"}
    assert resolve_uri("http://here:5000", tmp_path, environ) == "http://here:5000"
    assert resolve_uri(None, tmp_path, environ) == "http://there:5000"
    assert resolve_uri(None, tmp_path, {}) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_relative_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen plan means the same file wherever its ranks and its sync process run."""
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///mine.db", Path("runs"), {}) == f"sqlite:///{tmp_path}/mine.db"
    assert resolve_uri(None, Path("runs"), {}) == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize("uri", ["sqlite:////data/mlflow.db", "http://host:5000", "https://mlflow.example.org/path"])
def test_stores_that_mlflow_takes_have_no_problem(uri: str) -> None:
    """Databases and servers."""
    assert uri_problem(uri) is None


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("./mlruns", ["tracking.uri=./mlruns", "directory", "Fix: "]),
        ("file:///data/mlruns", ["directory", "Fix: "]),
        ("htp://host:5000", ["unknown scheme 'htp'", "did you mean 'http'?", "sqlite"]),
        ("http://", ["no host", "Fix: tracking.uri=http://host:5000"]),
        ("http://host:port", ["port"]),
        ("sqlite://", ["no database file"]),
        ("sqlite:////tmp", ["is a directory", "Fix: tracking.uri=sqlite:////tmp/mlflow.db"]),
        ("postgresql+nodriver://u:secret@host/db", ["needs the Python package nodriver", "pip install nodriver"]),
    ],
)
def test_what_mlflow_would_refuse_is_named_with_a_way_out(uri: str, words: list[str]) -> None:
    """Before anything starts, in words of the configuration."""
    problem = uri_problem(uri) or ""
    assert [word for word in words if word not in problem] == []
    assert "secret" not in problem


def test_a_server_that_answers_is_reachable() -> None:
    """Only that something listens is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert unreachable(f"http://127.0.0.1:{server.getsockname()[1]}") is None


def test_a_server_that_is_down_gives_a_warning() -> None:
    """It names the setting and says that nothing is lost."""
    uri = f"http://ada:secret@127.0.0.1:{free_port()}"
    warning = unreachable(uri) or ""
    assert "tracking.uri=http://ada@127.0.0.1" in warning
    assert "hpcexp sync" in warning
    assert "secret" not in warning


def test_a_database_file_is_not_asked_over_the_network() -> None:
    """There is nobody to ask."""
    assert unreachable("sqlite:////none/mlflow.db") is None


def test_no_password_is_left_in_a_text() -> None:
    """Whatever it holds; hosts, ports and users stay."""
    text = "-m a=postgresql://ada:s3:cr@t@host:5432/db b=http://host:5000 c=sqlite:////data/x.db d=http://ada@h e=a:b@c"
    shown = "-m a=postgresql://ada@host:5432/db b=http://host:5000 c=sqlite:////data/x.db d=http://ada@h e=a:b@c"
    assert shown == without_passwords(text)


def test_links_open_the_page_of_experiments_and_runs() -> None:
    """With the query that keeps MLflow from its GenAI mode."""
    query = "?workflowType=machine_learning"
    assert ui_link("http://host:5000/") == f"http://host:5000/#/experiments{query}"
    assert ui_link("http://host:5000", "3") == f"http://host:5000/#/experiments/3{query}"
    assert ui_link("http://host:5000", "3", "abc") == f"http://host:5000/#/experiments/3/runs/abc{query}"


def test_a_server_needs_no_second_one() -> None:
    """`hpcexp ui` on a tracking server says where to look."""
    with pytest.raises(ConfigError, match=r"has the UI already"):
        database_only("http://host:5000")


def test_the_light_modules_import_nothing_heavy() -> None:
    """They are on the planning side and in rank 0."""
    packages = {
        "runs": "journal, series",
        "status": "state, listing",
        "tracking.mlflow": "credentials, description, links, store, uri",
        "tracking.plots": "run_plots",
        "tracking.server": "interface",
        "tracking.sync": "run, run_process, sweep_upload, upload",
    }
    imports = "\n".join(f"from hpcexp.{package} import {modules}" for package, modules in packages.items())
    code = (
        f"import sys\n{imports}\n"
        "print([m for m in ('mlflow', 'torch', 'numpy', 'matplotlib', 'pytorch_lightning') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"
