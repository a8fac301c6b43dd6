"""`hpcexp serve`: a real server with accounts, what it refuses to start with, and users who train against it."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked import command
from helpers import LEAN, WARM, Said, only_run
from postgres import server_programs, serving_postgres
from record_support import finish, free_port, make_run
from served import ADA, ADMIN, BOB, Served, serving
from werkzeug.security import generate_password_hash

from hpcexp.errors import RunError
from hpcexp.files.documents import read_plain
from hpcexp.rundir import find_runs
from hpcexp.tracking.server.accounts import Accounts
from hpcexp.tracking.server.group_server import Server, prepare, server_environment, settings, unserved
from hpcexp.tracking.server.web.listen import port_problem
from hpcexp.tracking.server.web.settings import ServerSettings
from hpcexp.tracking.sync.run_process import sync

SMALL = ("trainer.max_epochs=1", "model.hidden=[8]", "tracking.wait_s=120")

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One with the accounts of Ada and Bob; on PostgreSQL, or where that is not installed on SQLite."""
    data = tmp_path_factory.mktemp("server") / "data"
    with ExitStack() as stack:
        store = {}
        if server_programs() is not None:
            store["MLFLOW_BACKEND_STORE_URI"] = stack.enter_context(serving_postgres()).uri
        server = stack.enter_context(serving(data, **store))
        server.add_user(ADA)
        server.add_user(BOB)
        yield server


def served(data: Path, **more: Any) -> Server:
    """What is asked of a server, for its command alone."""
    asked = {"host": "127.0.0.1", "port": 5000, "names": ("localhost",), "certificate": None, "key": None}
    known = {"data": data, "store": f"sqlite:///{data}/mlflow.db", "admin": "admin", "permission": "NO_PERMISSIONS"}
    return Server(**{**asked, **known, **more})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    place = tmp_path_factory.mktemp("tls")
    files = place / "cert.pem", place / "key.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", *options, *names, "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_only_who_has_an_account_is_let_in(server: Served) -> None:
    """Neither without a password nor with MLflow's own of former times."""
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert 200 == server.ask(path, ADMIN)[0]
    for account in (None, ("admin", "password1234"), ("ada", "not-her-password")):
        assert 401 == server.ask(path, account)[0]


def test_only_names_of_this_machine_and_those_allowed_are_answered(server: Served) -> None:
    """A page of another host cannot use the browser of somebody who is logged in."""
    for name, status in ((socket.gethostname(), 200), ("evil.example.org", 403)):
        assert status == server.ask("/api/2.0/mlflow/users/current", ADMIN, Host=name)[0]


def test_a_user_trains_against_it(
    server: Served, project: Path, train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user in the address, the password in MLflow's variable; metrics, artifacts and the model arrive."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADA[1])
    said = train(*SMALL, "tracking.experiment=adas", f"tracking.uri=http://ada@127.0.0.1:{server.port}")
    assert (0, "") == (said.status, said.err)
    note = read_plain(only_run(project).mlflow)
    assert note["synced"] is True
    texts = [
        *only_run(project).path.glob("*.yaml"),
        *only_run(project).path.glob("*.json"),
        *only_run(project).logs.iterdir(),
    ]
    assert ADA[1] not in "".join(file.read_text() for file in texts)
    run = json.loads(server.ask(f"/api/2.0/mlflow/runs/get?run_id={note['run_id']}", ADA)[1])["run"]
    assert {"train/loss", "val/acc", "test/acc"} <= {metric["key"] for metric in run["data"]["metrics"]}
    kept = {f.name for f in (server.data / "mlartifacts").rglob("*") if f.is_file()}
    assert {"plan.yaml", "summary.json", "rank-0.log", "best.ckpt"} <= kept


def test_a_wrong_password_is_told_before_and_after_and_sync_syncs_later(
    server: Served, project: Path, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training itself is not hindered, and does not wait for what cannot come."""
    wrong = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "not-her-password"}
    where = ("tracking.experiment=adas", f"tracking.uri={server.address}", "tracking.wait_s=600")
    # Its sync process may outlive the command, which is why the command is a process of its own.
    said = command("train", *SMALL, *where, WARM, *LEAN, cwd=project, **wrong)
    assert 0 == said.status
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert "does not know the user 'ada' with this password" in said.err
    assert "not uploaded yet: " in said.out
    assert "wrong user or password" in said.out
    assert 1 == hpcexp("sync").status
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADA[1])
    said = hpcexp("sync")
    assert (0, "1 of 1 ended runs are in MLflow or need not be.\n") == (said.status, said.out)
    assert read_plain(only_run(project).mlflow)["synced"] is True


def test_a_run_that_was_refused_goes_elsewhere_without_being_trained_again(
    server: Served, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """A wrong password in the address, and an experiment that is another's, though it has ended."""
    uris = [server.address.replace("//", f"//{user}:{password}@") for user, password in (("bob", "wrong-one"), BOB)]
    make = ("tracking.experiment=owned", f"tracking.uri={server.address.replace('//', '//ada:' + ADA[1] + '@')}")
    assert 0 == command("train", *SMALL, "seed=1", *make, WARM, *LEAN, cwd=project).status
    other = ("seed=2", "tracking.experiment=owned", f"tracking.uri={uris[0]}")
    said = command("train", *SMALL, *other, WARM, *LEAN, cwd=project)
    assert "hpcexp sync RUN --uri URI" in said.out
    [run] = [run for run in find_runs(project / "runs") if "-s2-" in run.path.name]
    name = str(run.path)
    said = hpcexp("sync", name, "--uri", uris[1])
    assert (1, True) == (said.status, "hpcexp sync RUN --experiment NAME" in said.out)
    assert 0 == hpcexp("sync", name, "--experiment", "bobs").status
    note = read_plain(run.mlflow)
    found = json.loads(server.ask(f"/api/2.0/mlflow/experiments/get?experiment_id={note['experiment_id']}", BOB)[1])
    assert "bobs" == found["experiment"]["name"]
    assert 0o600 == run.secret_uri.stat().st_mode & 0o777
    again = hpcexp("sync", name, "--experiment", "others")
    assert (2, True) == (again.status, "is in MLflow already" in again.err)


def test_nobody_writes_into_the_experiment_of_another(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default an experiment is its owner's; Bob is told what to ask for."""
    mine, his = (make_run(tmp_path / who, f"{server.address}", steps=3) for who in ("ada", "bob"))
    problems = []
    for run, (user, password) in ((mine, ADA), (his, BOB)):
        finish(run)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        problems.append(sync(run.path))
    assert problems[0] is None
    assert problems[1] is not None
    assert "ask its owner for EDIT on the experiment" in problems[1]
    # What another process of Bob's asks for directly is refused as well, artifacts too.
    run_id = read_plain(mine.mlflow)["run_id"]
    experiment_id = read_plain(mine.mlflow)["experiment_id"]
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{experiment_id}/{run_id}/artifacts/plan.yaml"
    assert [403, 403] == [server.ask(path, BOB)[0] for path in (f"/api/2.0/mlflow/runs/get?run_id={run_id}", artifact)]
    grant = {"username": "bob", "resource_type": "experiment", "resource_id": experiment_id, "permission": "EDIT"}
    assert 200 == server.ask("/api/3.0/mlflow/users/permissions/grant", ADA, grant)[0]
    assert sync(his.path) is None


def test_a_directory_that_is_served_is_neither_served_twice_nor_restored_to(
    server: Served, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """Who serves it is named; a backup is made all the same, and restored elsewhere."""
    told = f"{server.data} is served by process {server.process.pid} on {socket.gethostname()}.\nFix: stop it"
    said = hpcexp("serve", str(server.data), "--port", str(free_port()))
    assert (2, "") == (said.status, said.out)
    assert told in said.err
    assert 0 == hpcexp("backup", "kept", "--server", str(server.data)).status
    said = hpcexp("restore", "kept", "--server", str(server.data), "--force")
    assert (2, "") == (said.status, said.out)
    assert told in said.err
    assert 200 == server.ask("/api/2.0/mlflow/users/current", ADA)[0]
    said = hpcexp("restore", "kept", "--server", "elsewhere")
    assert (0, "") == (said.status, said.err)
    assert not [*(project / "elsewhere").glob("*.lock")]


def test_a_server_that_is_killed_is_gone(project: Path) -> None:
    """It is one process: the port and the directory are free."""
    with serving(project / "data", end=signal.SIGKILL) as killed:
        assert [] == psutil.Process(killed.process.pid).children()
    assert port_problem("127.0.0.1", killed.port) is None
    with unserved(killed.data):
        pass


def test_everything_wrong_is_told_at_once_before_anything_starts(
    project: Path, hpcexp: Callable[..., Said], certificate: tuple[Path, Path]
) -> None:
    """What, why and how to mend it; nothing was made meanwhile."""
    (project / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ["--port", port, "--tls-cert", "none.pem", "--tls-key", str(certificate[1])]
        said = hpcexp("serve", "file/data", "--store", "postgresql://ada:s3cr3t@127.0.0.1:1/lab", *options)
    assert (2, "") == (said.status, said.out)
    told = [
        "4 problems:",
        f"{project}/file/data cannot be written: Not a directory.",
        "--store postgresql://ada@127.0.0.1:1/lab cannot be used: ",
        f"--tls-cert {project}/none.pem cannot be read: No such file or directory.",
        f"--port {port}: Address already in use (127.0.0.1).\nFix: --port {int(port) + 1}",
    ]
    assert [] == [words for words in told if words not in said.err]
    assert "s3cr3t" not in said.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--store", "http://ada:pw@host:5000"], "--store http://ada@host:5000 is a server, not a database."),
        (["--store", "./mlruns"], "--store ./mlruns names a directory"),
        (["--store", "sqlite:///text"], "cannot be used: file is not a database"),
        (["--store", "postgresql+nodriver://h/db"], "needs the Python package nodriver"),
        (["--tls-cert", "text"], "give both --tls-cert and --tls-key"),
        (["--tls-cert", "text", "--tls-key", "text"], "cannot be used"),
        (["--host", "192.0.2.1"], "Cannot assign requested address (192.0.2.1)"),
    ],
)
def test_a_mistake_is_named_by_the_option_that_mends_it(
    project: Path, hpcexp: Callable[..., Said], options: list[str], words: str
) -> None:
    """Also where only that is wrong."""
    (project / "text").write_text("no database and no certificate, but long enough to be looked at" * 20)
    said = hpcexp("serve", "data", "--port", str(free_port()), *options)
    assert (2, "") == (said.status, said.out)
    assert words in said.err
    assert "Fix: " in said.err


def test_accounts_need_their_package(project: Path, hpcexp: Callable[..., Said], monkeypatch: Any) -> None:
    """Which is named with its extra."""
    monkeypatch.setattr("hpcexp.tracking.server.group_server.find_spec", lambda name: None)
    assert "Fix: pip install 'hpcexp[serve]'" in hpcexp("serve", "data", "--port", str(free_port())).err


def test_no_poor_password_is_taken(project: Path, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither none at all, nor MLflow's, nor a short one, nor one that others may read."""
    readable = project / "readable"
    readable.write_text("long-enough-for-it")
    readable.chmod(0o644)
    cases = [
        ([], None, "has no password yet, and there is no default one"),
        ([], "password1234", "MLflow's default password"),
        ([], "short", "MLflow takes 12 or more"),
        (["--password-file", "readable"], None, "chmod 600"),
        (["--password-file", "nowhere"], None, "cannot be read: No such file"),
    ]
    for options, password, words in cases:
        monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
        if password:
            monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
        said = hpcexp("serve", "data", "--port", str(free_port()), *options)
        assert (2, "") == (said.status, said.out)
        assert words in said.err


def test_an_account_with_mlflows_password_of_former_times_is_refused(tmp_path: Path) -> None:
    """Until it has another one."""
    users, hashed = tmp_path / "users.db", generate_password_hash("password1234")
    accounts = Accounts(users)
    accounts.set_admin("admin", ADMIN[1])
    accounts.refuse_defaults("admin", "nobody")
    with closing(sqlite3.connect(users)) as connection, connection:
        connection.execute("UPDATE users SET password_hash = ?", (hashed,))
    with pytest.raises(RunError, match="default password, which everybody knows"):
        accounts.refuse_defaults("admin")
    accounts.set_admin("admin", ADMIN[1])
    accounts.refuse_defaults("admin")


def test_what_is_asked_for_reaches_the_server(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """And nothing that would name another administrator, or turn off what protects."""
    server = served(tmp_path, store="postgresql://ada:s3cr3t@db/lab", certificate=certificate[0], key=certificate[1])
    prepare(server)
    asked = settings(server, 7, "http://here")
    assert (str(certificate[0]), str(certificate[1]), 7) == (asked.certificate, asked.key, asked.socket)
    assert asked == ServerSettings.of(asked.environment())
    environ = {
        "MLFLOW_AUTH_ADMIN_PASSWORD": "x",
        "MLFLOW_AUTH_ADMIN_USERNAME": "eve",
        "MLFLOW_TRACKING_URI": "http://elsewhere",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "false",
        "_MLFLOW_STATIC_PREFIX": "/x",
        "FORWARDED_ALLOW_IPS": "*",
    }
    given = server_environment(server, environ)
    assert "postgresql+psycopg://ada:s3cr3t@db/lab" == given["_MLFLOW_SERVER_FILE_STORE"]
    assert environ.keys().isdisjoint(given)
    assert (
        "5" == server_environment(server, {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "5"})["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"]
    )


def test_its_names_for_mlflow_are_mlflows(tmp_path: Path) -> None:
    """The variables are of MLflow's inside; each of them is looked up under its name there."""
    from mlflow import environment_variables
    from mlflow.server import constants
    from mlflow.utils.crypto import CRYPTO_KEK_PASSPHRASE_ENV_VAR

    server = served(tmp_path)
    for key in (server.secret, server.passphrase):
        key.write_text("0" * 64)
    names = {
        *(v for name, v in vars(constants).items() if name.endswith("_ENV_VAR")),
        *(
            v.name
            for v in vars(environment_variables).values()
            if isinstance(v, environment_variables._EnvironmentVariable)
        ),
        CRYPTO_KEK_PASSPHRASE_ENV_VAR,
    }
    given = server_environment(server, {})
    assert [] == [name for name in given if "MLFLOW" in name and name not in names]


@pytest.mark.skipif(server_programs() is None, reason="PostgreSQL is not installed")
def test_a_database_of_postgresql_is_used(server: Served) -> None:
    """And its password stands in no command line."""
    assert not (server.data / "mlflow.db").exists()
    pids = [server.process.pid, *(child.pid for child in psutil.Process(server.process.pid).children(recursive=True))]
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
    assert f"serve\0{server.data}" in commands[0]
    assert "s3cr3t" not in "".join(commands)
