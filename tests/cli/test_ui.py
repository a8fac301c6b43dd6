"""A real `hpcexp ui`: its user's alone, which only reads. Attacked by other users of the machine and by other pages."""

from __future__ import annotations

import html
import json
import re
import shutil
import signal
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import Said, TrainedRun, command, ended, start, wait_until
from postgres import server_programs, serving_postgres
from record_support import free_port
from served import IS_ROOT, Shown, as_another_user, needs_root, open_place, send, showing

from hpcexp.tracking.server.web.routes import Access, routes

__all__ = ["open_place"]  # a fixture

API = "/api/2.0/mlflow"
SEARCH = {"experiment_ids": ["1"], "max_results": 5}


@pytest.fixture(scope="module")
def shown(trained: TrainedRun) -> Iterator[Shown]:
    """One on a trained run."""
    with showing(trained.project) as shown:
        yield shown


@pytest.fixture
def copy(trained: TrainedRun, tmp_path: Path) -> Path:
    """The project again, to write in."""
    return Path(shutil.copytree(trained.project, tmp_path / "copy"))


def test_its_address_is_printed_once_it_answers(shown: Shown) -> None:
    """And what it waits for before; nothing else comes to the terminal."""
    results = r"#/experiments/\d+/runs\?workflowType=machine_learning&viewStateShareKey=hpcexp"
    address = rf"http://127.0.0.1:{shown.port}/\?token=[\w-]{{32}}{results}"
    assert re.fullmatch(rf"{address}   \(Ctrl-C ends it\)\n.*--write.*\n", shown.out)
    assert re.fullmatch(r"Starting MLflow on .*/runs, which takes some seconds …\n", shown.err)


def test_it_opens_the_browser_and_shows_nobody_the_token(trained: TrainedRun, tmp_path: Path) -> None:
    """By a page that only its user may read: everybody may read a browser's command line."""
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$@" > "$0.asked"; cp -p "${1#file://}" "$0.page"; touch "$0.done"\n')
    browser.chmod(0o755)
    with showing(trained.project, "--open", BROWSER=f"{browser} %s") as shown:
        wait_until((tmp_path / "browser.done").exists, "a browser is started")
        page, asked = tmp_path / "browser.page", (tmp_path / "browser.asked").read_text()
        assert (0o600, False) == (page.stat().st_mode & 0o777, shown.token in asked)
        assert f'content="0;url={html.escape(shown.address)}"' in page.read_text()
        assert Path(asked.strip().removeprefix("file://")).exists()
    assert not Path(asked.strip().removeprefix("file://")).exists()


def test_the_token_lets_a_browser_in_once_and_for_all(shown: Shown) -> None:
    """It becomes a cookie that scripts cannot read and other sites' pages do not send, and leaves the address."""
    answer = send(shown.port, "GET", f"/?token={shown.token}&a=b")
    assert (303, "/?a=b") == (answer.status, answer.headers["Location"])
    cookie, *flags = answer.headers["Set-Cookie"].split("; ")
    assert f"hpcexp-{shown.port}" == cookie.partition("=")[0]
    assert {"httponly", "path=/", "samesite=strict"} == {flag.lower() for flag in flags}
    assert shown.token not in cookie
    assert "no-store" == answer.headers["Cache-Control"]
    for cookies in (cookie, f"x={{}}; {cookie}; y", f"hpcexp-{shown.port}=old; {cookie}"):
        assert 200 == send(shown.port, "GET", "/", Cookie=cookies).status
    linked = send(shown.port, "GET", f"/?token={shown.token}", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert (200, True) == (linked.status, 'location.replace("/" + location.hash)' in linked.text.replace("'", '"'))
    assert shown.token not in linked.text


def test_nobody_else_is_let_in(shown: Shown) -> None:
    """At no route, by no token that is nearly right, and not by a cookie of another interface on this host."""
    wrong = [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {shown.token[:-1]}"},
        {"Authorization": f"Basic {shown.token}"},
        {"Authorization": shown.token},
        {"Cookie": f"hpcexp-{shown.port}={shown.token}"},
        {"Cookie": f"hpcexp-{shown.port}="},
        {"Cookie": f"hpcexp-{shown.port + 1}=x; {'y' * 5000}"},
    ]
    for headers in wrong:
        for path in (
            "/",
            "/health",
            f"{API}/experiments/search?max_results=1",
            "/version",
            "/static-files/favicon.ico",
            "/graphql",
        ):
            method = "POST" if path == "/graphql" else "GET"
            answer = send(shown.port, method, path, **headers)
            assert (401, True) == (answer.status, "the token that `hpcexp ui` prints" in answer.text)
    queries = (
        "?token=",
        "?token=x",
        f"?token={shown.token}x",
        f"?token={shown.token}&token=x",
        f"?Token={shown.token}",
    )
    assert {401} == {send(shown.port, "GET", f"/{query}").status for query in queries}
    # The token belongs to the address of the pages alone: it is in no other that is logged or passed on.
    assert 401 == send(shown.port, "GET", f"{API}/experiments/search?max_results=1&token={shown.token}").status


@needs_root
def test_another_user_of_the_machine_gets_nothing(shown: Shown, trained: TrainedRun, open_place: Path) -> None:
    """Neither an answer, nor the token from where processes and logs are seen."""
    ask = (
        "import sys, urllib.request, urllib.error\n"
        "for path in sys.argv[2:]:\n"
        "    try: print(urllib.request.urlopen(sys.argv[1] + path, timeout=20).status)\n"
        "    except urllib.error.HTTPError as e: print(e.code)\n"
    )
    paths = ["/", f"{API}/experiments/get?experiment_id=1", "/ajax-api/3.0/mlflow/assistant/config", "/get-artifact"]
    said = as_another_user(ask, f"http://127.0.0.1:{shown.port}", *paths)
    assert (["401", "401", "404", "401"], "") == (said.stdout.split(), said.stderr)
    look = (
        "import glob, pathlib\n"
        "for f in glob.glob('/proc/[0-9]*/cmdline') + glob.glob('/proc/[0-9]*/environ'):\n"
        "    try: print(pathlib.Path(f).read_bytes())\n"
        "    except OSError: pass\n"
    )
    seen = as_another_user(look).stdout
    assert "hpcexp.tracking.server.web" in seen
    assert shown.token not in seen
    assert shown.token not in str(psutil.Process(shown.process.pid).cmdline())
    log = trained.project / "runs" / ".ui.log"
    assert 0o600 == stat.S_IMODE(log.stat().st_mode)
    send(shown.port, "GET", f"/?token={shown.token}")
    assert "GET /?token=*** HTTP/1.1" in log.read_text()
    assert shown.token not in log.read_text()


def test_what_is_not_served_is_not_there(shown: Shown) -> None:
    """For whoever has the token as well; the assistant would run commands for who is on this machine."""
    paths = ("assistant/config", "assistant/message", "gateway/secrets/list", "demo/generate", "jobs/x")
    for path in (*(f"/ajax-api/3.0/mlflow/{path}" for path in paths), "/v1/traces", "/docs", "/build/index.html"):
        for method in ("GET", "POST", "PUT"):
            assert 404 == send(shown.port, method, path, "{}", **shown.bearer).status


def test_pages_of_other_sites_may_not_ask(shown: Shown) -> None:
    """The cookie goes with what other ports of this host load; names that are rebound to it are refused."""
    path = f"{API}/experiments/get?experiment_id=1"
    hosts = ("evil.example.org", "10.evil.example.org", "192.168.0.1.evil.org", "10.0.0.1", "localhost.evil.org")
    assert {403} == {send(shown.port, "GET", path, **shown.bearer, Host=host).status for host in hosts}
    own = ("localhost", "localhost:8888", "127.0.0.1", "[::1]:5000", socket.gethostname())
    assert {200} == {send(shown.port, "GET", path, **shown.bearer, Host=host).status for host in own} - {403}
    for elsewhere in (
        {"Origin": "http://127.0.0.1:6666"},
        {"Origin": "http://localhost:6666"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"},
    ):
        assert 403 == send(shown.port, "GET", path, **shown.bearer, **elsewhere).status
        assert (
            403
            == send(shown.port, "POST", f"{API}/runs/search", json.dumps(SEARCH), **shown.bearer, **elsewhere).status
        )
    here = {"Origin": f"http://127.0.0.1:{shown.port}", "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}
    assert 200 == send(shown.port, "GET", path, **shown.bearer, **here).status


def test_it_only_reads(shown: Shown, trained: TrainedRun) -> None:
    """Every route that changes something is refused with the way out; those that search by POST are answered."""
    before = dump(trained.project)
    content = {"Content_Type": "application/json", **shown.bearer}
    for route in routes():
        if route.access in (Access.WRITE, Access.PASSWORD):
            path = (
                re.sub(r"<(path:)?\w+>", "1/x", route.path)
                if "<path:" in route.path
                else re.sub(r"<\w+>", "1", route.path)
            )
            for method in route.methods:
                answer = send(shown.port, method, path, '{"name": "x", "experiment_id": "1"}', **content)
                assert (403, True) == (answer.status, "Fix: hpcexp ui --write" in json.loads(answer.body)["message"])
    assert before == dump(trained.project)
    found = send(shown.port, "POST", f"{API}/runs/search", json.dumps(SEARCH), **content)
    assert (200, True) == (found.status, "val/acc" in found.text)
    mutation = {"query": 'mutation { testMutation(inputString: "x") { output } }'}
    assert (
        "not configured to execute mutation"
        in send(shown.port, "POST", "/graphql", json.dumps(mutation), **content).text
    )


def test_with_write_it_changes_what_is_recorded(copy: Path) -> None:
    """But not where files are."""
    with showing(copy, "--write") as shown:
        assert "--write" not in shown.out
        content = {"Content_Type": "application/json", **shown.bearer}

        def post(path: str, **body: Any) -> int:
            return send(shown.port, "POST", f"{API}/{path}", json.dumps(body), **content).status

        run_id = sqlite(copy, "SELECT run_uuid FROM runs")[0][0]
        assert 200 == post("runs/set-tag", run_id=run_id, key="mlflow.note.content", value="looked at")
        assert 200 == post("experiments/create", name="new")
        assert 400 == post("experiments/create", name="elsewhere", artifact_location="file:///etc")
        assert 400 == post("experiments/create", name="proxied", artifact_location="mlflow-artifacts:/x")
        assert 200 == post("registered-models/create", name="m")
        assert 400 == post("model-versions/create", name="m", source="file:///etc", run_id=run_id)
        assert 400 == post("model-versions/create", name="m", source="s3://bucket/x", run_id=run_id)
        own = model(copy)
        assert 200 == post("model-versions/create", name="m", source=f"models:/{own}", model_id=own)
    assert {"Default", "digits_mlp", "new"} == {name for (name,) in sqlite(copy, "SELECT name FROM experiments")}
    assert [(f"file://{copy}/runs/mlartifacts/2",)] == sqlite(
        copy, "SELECT artifact_location FROM experiments WHERE name = 'new'"
    )


def test_a_socket_is_its_owners(trained: TrainedRun, open_place: Path) -> None:
    """Who may open it is let in without a token; it goes with the server, and one that was left is replaced."""
    path = open_place / "ui.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with showing(trained.project, "--socket", str(path)) as shown:
        assert shown.out.startswith("http://localhost/#/experiments/")
        assert f"ssh -L 5000:{path} HOST" in shown.out
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        assert 200 == by_socket(path, f"{API}/experiments/get?experiment_id=1")
        assert 403 == by_socket(path, f"{API}/experiments/get?experiment_id=1", host="evil.example.org")
        assert 404 == by_socket(path, "/ajax-api/3.0/mlflow/assistant/config")
        connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        if IS_ROOT:
            assert "Permission denied" in as_another_user(connect, path).stderr
        second = command("ui", "--socket", str(path), cwd=trained.project)
        assert (2, True) == (second.status, f"--socket {path}: Address already in use." in second.err)
        assert 200 == by_socket(path, f"{API}/experiments/get?experiment_id=1")
    assert not path.exists()
    (open_place / "file").write_text("mine")
    said = command("ui", "--socket", str(open_place / "file"), cwd=trained.project)
    assert (2, True, "mine") == (said.status, "Fix: " in said.err, (open_place / "file").read_text())


def test_scripts_use_the_token(
    shown: Shown, trained: TrainedRun, hpcexp: Callable[..., Said], monkeypatch: Any
) -> None:
    """As MLflow's variable has it."""
    uri = f"http://127.0.0.1:{shown.port}"
    said = hpcexp("compare", "--uri", uri)
    assert (2, True) == (said.status, "MLFLOW_TRACKING_TOKEN" in said.err)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", shown.token)
    said = hpcexp("compare", "--uri", uri)
    assert (0, True) == (said.status, "val/acc" in said.out)


def test_modules_of_the_project_are_not_imported(copy: Path) -> None:
    """Somebody's project may have some of the names that MLflow imports."""
    for name in ("mlflow", "uvicorn", "flask", "json", "hpcexp_plugin"):
        (copy / f"{name}.py").write_text(f"open({str(copy / 'imported')!r}, 'a').write('{name}')\n")
    with showing(copy) as shown:
        assert 200 == send(shown.port, "GET", "/", **shown.bearer).status
    assert not (copy / "imported").exists()


def test_what_keeps_it_from_starting_is_said(copy: Path) -> None:
    """In a sentence; the rest is in the log."""
    (copy / "runs" / "mlflow.db").write_text("no database, but long enough to be looked at\n" * 100)
    said = command("ui", "--port", str(free_port()), cwd=copy)
    assert (1, "") == (said.status, said.out)
    assert "MLflow does not start: " in said.err
    assert f"The whole of it is in {copy}/runs/.ui.log." in said.err
    assert "Traceback" not in said.err
    assert "Traceback" in (copy / "runs" / ".ui.log").read_text()


def test_a_log_that_cannot_be_written_stops_nothing(copy: Path, tmp_path: Path) -> None:
    """A link in its place is not followed."""
    (tmp_path / "other").write_text("of somebody else's")
    (copy / "runs" / ".ui.log").unlink(missing_ok=True)
    (copy / "runs" / ".ui.log").symlink_to(tmp_path / "other")
    with showing(copy) as shown:
        assert f"{copy}/runs/.ui.log cannot be written: " in shown.err
    assert "of somebody else's" == (tmp_path / "other").read_text()


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_any_moment(trained: TrainedRun, open_place: Path, signalled: int) -> None:
    """Also while it starts, without a word of where Python was."""
    process = start("ui", "--socket", str(open_place / "ui.sock"), cwd=trained.project)
    assert process.stderr is not None
    assert "Starting MLflow" in process.stderr.readline()
    program = Path(f"/proc/{process.pid}/cmdline")
    wait_until(lambda: "hpcexp.tracking.server.web" in program.read_text(), "Python starts anew")
    process.send_signal(signalled)
    assert Said(0, "", "") == ended(process)
    assert not (open_place / "ui.sock").exists()


def test_a_free_port_is_taken(trained: TrainedRun) -> None:
    """And printed."""
    with showing(trained.project, "--port", "0") as shown:
        port = int(re.search(r"127\.0\.0\.1:(\d+)/", shown.address)[1])
        assert port not in (0, shown.port)
        assert 200 == send(port, "GET", "/", **shown.bearer).status


@pytest.mark.skipif(server_programs() is None, reason="PostgreSQL is not installed")
def test_a_databases_password_is_in_no_command_line(tmp_path: Path) -> None:
    """Nor is anything of it printed."""
    with serving_postgres() as database, showing(tmp_path, "--write", "--uri", database.uri) as shown:
        body = json.dumps({"name": "new"})
        content = {"Content_Type": "application/json", **shown.bearer}
        assert 200 == send(shown.port, "POST", f"{API}/experiments/create", body, **content).status
        assert "s3cr3t" not in shown.out + shown.err
        # `--uri` is the user's own doing; MLFLOW_TRACKING_URI leaves no trace at all.
        assert "s3cr3t" not in str(psutil.Process(shown.process.pid).cmdline())


def test_a_place_that_is_taken_is_named(shown: Shown, trained: TrainedRun, hpcexp: Callable[..., Said]) -> None:
    """Before anything is imported."""
    root = ("--root", str(trained.project / "runs"))
    said = hpcexp("ui", *root, "--port", str(shown.port))
    assert (2, "") == (said.status, said.out)
    assert f"--port {shown.port}: Address already in use (127.0.0.1).\nFix: --port {shown.port + 1}" in said.err
    assert "cannot assign requested address" in hpcexp("ui", *root, "--host", "192.0.2.1").err.lower()


def by_socket(path: Path, target: str, host: str = "localhost") -> int:
    """Status of a request at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        with HTTPResponse(connection) as response:
            response.begin()
            return response.status


def sqlite(project: Path, sql: str) -> list[Any]:
    """Rows of a project's MLflow database."""
    with closing(sqlite3.connect(project / "runs" / "mlflow.db", timeout=20)) as connection:
        return connection.execute(sql).fetchall()


def model(project: Path) -> str:
    """Id of the run's model."""
    return str(sqlite(project, "SELECT model_id FROM logged_models")[0][0])


def dump(project: Path) -> list[str]:
    """All that the database has."""
    with closing(sqlite3.connect(project / "runs" / "mlflow.db", timeout=20)) as connection:
        return list(connection.iterdump())
