"""Attacks on a real `hpcexp serve`: routes that are not served, places that requests name, files open to others."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import Said
from record_support import free_port
from served import (
    ADA,
    ADMIN,
    BOB,
    OTHER_USER,
    Answer,
    Served,
    as_another_user,
    basic,
    needs_root,
    open_place,
    send,
    serving,
)

__all__ = ["open_place"]  # a fixture

API = "/api/2.0/mlflow"
JSON = "application/json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One on SQLite with the accounts of Ada and Bob."""
    with serving(tmp_path_factory.mktemp("doors") / "data") as server:
        server.add_user(ADA)
        server.add_user(BOB)
        yield server


@pytest.fixture
def ask(server: Served) -> Callable[..., Answer]:
    """A request of Ada's, or of another account; a body that is no text is sent as JSON."""

    def call(
        method: str, target: str, body: Any = b"", account: tuple[str, str] | None = ADA, **headers: str
    ) -> Answer:
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        known = {"Content-Type": JSON, **(basic(account) if account else {})}
        return send(server.port, method, target, content, **{**known, **headers})

    return call


@pytest.fixture(scope="module")
def run(server: Served) -> dict[str, Any]:
    """A run of Ada's with an artifact."""
    experiment = json.loads(server.ask(f"{API}/experiments/create", ADA, {"name": "adas"})[1])["experiment_id"]
    made = json.loads(server.ask(f"{API}/runs/create", ADA, {"experiment_id": experiment})[1])["run"]["info"]
    place = made["artifact_uri"].removeprefix("mlflow-artifacts:/")
    sent = send(server.port, "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{place}/a.txt", b"mine", **basic(ADA))
    assert 200 == sent.status
    return {**made, "place": place}


REFUSED = (
    ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
    ("PUT", "/ajax-api/3.0/mlflow/assistant/config"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
    ("GET", "/ajax-api/3.0/mlflow/assistant/sessions/x/stream"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/skills/install"),
    ("POST", "/gateway/mlflow/v1/chat/completions"),
    ("POST", "/gateway/proxy/x/y"),
    ("GET", "/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=api/2.0/endpoints/"),
    ("POST", "/api/3.0/mlflow/gateway/secrets/create"),
    ("POST", "/ajax-api/3.0/jobs/"),
    ("GET", "/ajax-api/3.0/mlflow/jobs/x"),
    ("POST", "/api/2.0/mlflow/webhooks"),
    ("POST", "/api/3.0/mlflow/scorers/register"),
    ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
    ("POST", "/api/3.0/mlflow/prompt-optimization/jobs"),
    ("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke"),
    ("POST", "/ajax-api/3.0/mlflow/issues/invoke"),
    ("POST", "/ajax-api/3.0/mlflow/demo/generate"),
    ("POST", "/v1/traces"),
    ("POST", "/api/3.0/mlflow/traces/search"),
    ("GET", "/api/3.0/mlflow/mcp-servers"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=x&path=y"),
    ("POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/build/index.html"),
    ("GET", "/metrics"),
)
SPELLINGS = (
    "/{path}",
    "{path}/",
    "{path}%0a",
    "/health/..{path}",
    "/static-files/%2e%2e{path}",
    "/static-files/..%2f..{path}",
    "http://127.0.0.1{path}",
)


@pytest.mark.parametrize(("method", "path"), REFUSED)
def test_what_is_not_served_is_not_there(ask: Callable[..., Answer], method: str, path: str) -> None:
    """For nobody, not for the administrator, under no spelling, and before a password is looked at."""
    accounts = (ADMIN, ADA, None, ("ada", "wrong"))
    spelled = [form.format(path=path) for form in SPELLINGS]
    asked = [*((path, account) for account in accounts), *((form, ADMIN) for form in spelled)]
    # The server itself answers 400 to what is no path at all.
    answers = {target: ask(method, target, {}, account).status for target, account in asked}
    assert {404} == set(answers.values()) - {400}
    assert 404 == answers[path]


def test_no_method_and_no_websocket_gets_around_the_list(server: Served, ask: Callable[..., Answer]) -> None:
    """Neither an unknown method, nor the routes of a websocket."""
    path = f"{API}/experiments/get?experiment_id=0"
    assert [404] * 5 == [ask(method, path).status for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW")]
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13", **basic(ADMIN)}
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    targets = ("/", path, "/ajax-api/3.0/mlflow/assistant/message")
    assert not {101} & {send(server.port, "GET", target, **upgrade, **key).status for target in targets}


def test_only_health_is_open_to_everybody(ask: Callable[..., Answer]) -> None:
    """Files of the pages included; a probe with a wrong name for the server is answered as well."""
    assert (200, "OK") == ((answer := ask("GET", "/health", account=None)).status, answer.text)
    assert 200 == ask("GET", "/health", account=None, Host="10.0.0.1").status
    targets = ("/", "/version", "/signup", "/api/3.0/mlflow/server-info", "/static-files/favicon.ico")
    assert {401} == {ask("GET", target, account=None).status for target in targets}
    assert {200} == {ask("GET", target, account=ADMIN).status for target in targets}


def test_pages_of_other_sites_may_not_ask(server: Served, ask: Callable[..., Answer]) -> None:
    """Not of another port of this machine either, and not by a name that only looks like one of the machine's."""
    path = f"{API}/experiments/search?max_results=1"
    hosts = (
        "evil.example.org",
        "localhost.evil.org",
        "127.0.0.1.evil.org",
        "127.0.0.1:80@evil.org",
        "",
        "[::1]evil.org",
    )
    assert {403} == {ask("GET", path, Host=host).status for host in hosts}
    names = ("localhost", "localhost:1", f"127.0.0.1:{server.port}")
    assert {200} == {ask("GET", path, Host=name).status for name in names}
    origins = ("http://evil.example.org", "http://127.0.0.1:6666", "http://localhost", "null", "file://", "")
    assert {403} == {ask("GET", path, Origin=origin).status for origin in origins}
    assert 200 == ask("GET", path, Origin=f"http://127.0.0.1:{server.port}").status
    assert 200 == ask("GET", path, Host="localhost", Origin="https://localhost").status


PLACES = (
    "file:///etc",
    "/etc",
    "s3://bucket/x",
    "http://127.0.0.1:1/x",
    "ftp://host/x",
    "mlflow-artifacts://host:1/x",
    "mlflow-artifacts:/../x",
    "mlflow-artifacts:/a/%2e%2e/x",
    "mlflow-artifacts:/a/%252e%252e/x",
    "mlflow-artifacts:/a\\..\\x",
    "mlflow-artifacts:/1",
    "mlflow-artifacts:/1/x",
    "MLFLOW-ARTIFACTS:/x",
    "mlflow-artifacts:x",
    " file:///etc",
    "dbfs:/x",
    ".",
)
ALIASES = ("/api/2.0", "/ajax-api/2.0")


@pytest.mark.parametrize("place", PLACES)
def test_no_experiment_is_made_elsewhere(server: Served, ask: Callable[..., Answer], place: str) -> None:
    """Whatever its maker calls the place, and however he writes the request."""
    value = json.dumps(place)
    bodies = [
        f'{{"name": "N", "artifact_location": {value}}}',
        f'{{"name": "N", "artifactLocation": {value}}}',
        f'{{"name": "N", "artifact_location": "mlflow-artifacts:/ok", "artifact_location": {value}}}',
        json.dumps(f'{{"name": "N", "artifact_location": {value}}}'),  # MLflow takes JSON in JSON
        f'{{"name": "N", "artifact_location": {value}}}'.encode("utf-16"),
        f'{{"name": "N", "artifact_location": {value}, "tags": []}}',
    ]
    for number, body in enumerate(bodies):
        named = body.replace("N", f"x{number}") if isinstance(body, str) else body
        for alias in ALIASES:
            for account in (ADA, ADMIN):
                answer = ask("POST", f"{alias}/mlflow/experiments/create", named, account)
                assert answer.status in (400, 404), (place, body, answer.body)
    found = rows(server, "SELECT artifact_location FROM experiments")
    assert [] == [location for (location,) in found if not location.startswith(("mlflow-artifacts:/", "file:///SEEN"))]
    assert [] == [location for (location,) in found if place.strip() in location]


def test_a_place_of_the_servers_own_is_taken(ask: Callable[..., Answer], server: Served) -> None:
    """Or none, which is what clients do."""
    for body in (
        {"name": "one"},
        {"name": "two", "artifact_location": "mlflow-artifacts:/ours"},
        {"name": "three", "artifact_location": ""},
    ):
        assert 200 == ask("POST", f"{API}/experiments/create", body).status
    known = dict(rows(server, "SELECT name, artifact_location FROM experiments"))
    assert "mlflow-artifacts:/ours" == known["two"]
    assert {True} == {known[name].startswith("mlflow-artifacts:/") for name in ("one", "three")}


def test_no_version_of_a_model_is_elsewhere(server: Served, ask: Callable[..., Answer], run: dict[str, Any]) -> None:
    """A source is an artifact of this server's, or refers to one."""
    assert 200 == ask("POST", f"{API}/registered-models/create", {"name": "m"}).status
    own = {"run_id": run["run_id"], "name": "m"}
    sources = (
        *(p for p in PLACES if not p.endswith(("/1", "/1/x"))),
        "dummy-source",
        "models://host/m",
        "runs://x/y",
        "models:/a/../b",
        f"file://{run['place']}",
    )
    for source in sources:
        for alias in ALIASES:
            for key in ("source", "Source"):
                answer = ask("POST", f"{alias}/mlflow/model-versions/create", {**own, key: source})
                assert answer.status >= 400, source
    assert [] == rows(server, "SELECT source FROM model_versions")
    made = ask("POST", f"{API}/model-versions/create", {**own, "source": f"{run['artifact_uri']}/a.txt"})
    assert 200 == made.status, made.text
    assert 200 == ask("POST", f"{API}/model-versions/create", {**own, "source": f"runs:/{run['run_id']}/a.txt"}).status


def test_what_was_accepted_in_former_times_is_not_opened(
    server: Served, ask: Callable[..., Answer], tmp_path: Path
) -> None:
    """A database may have experiments elsewhere: their files are neither listed nor read."""
    secret = tmp_path / "secret.txt"
    secret.write_text("of somebody else's")
    experiment = json.loads(ask("POST", f"{API}/experiments/create", {"name": "old"}).body)["experiment_id"]
    for place in (tmp_path.as_uri(), str(tmp_path), "s3://bucket", "dbfs:/x"):
        change(server, "UPDATE experiments SET artifact_location = ? WHERE name = 'old'", place)
        made = json.loads(ask("POST", f"{API}/runs/create", {"experiment_id": experiment}).body)["run"]["info"]
        change(server, "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", place, made["run_id"])
        listed = ask("GET", f"{API}/artifacts/list?run_id={made['run_id']}")
        read = ask("GET", f"/get-artifact?run_uuid={made['run_id']}&path=secret.txt")
        assert [400, 400] == [listed.status, read.status], (listed.text, read.text)
        assert "opens only files of its own" in listed.text
        query = '{ mlflowListArtifacts(input: {runId: "ID"}) { files { path } } }'
        graph = {"query": query.replace("ID", made["run_id"])}
        assert "secret.txt" not in ask("POST", "/graphql", graph).text
    change(server, "UPDATE experiments SET artifact_location = 'mlflow-artifacts:/old' WHERE name = 'old'")


PATHS = (
    "../users.db",
    "..%2fusers.db",
    "..%252fusers.db",
    "%2e%2e/users.db",
    "%252e%252e/users.db",
    "..\\users.db",
    "..%5cusers.db",
    "/etc/passwd",
    "%2fetc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "file:%2f%2f%2fetc/passwd",
    "a/../../../../../users.db",
    "x%00/../../users.db",
)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_artifacts(
    server: Served, ask: Callable[..., Answer], run: dict[str, Any], path: str
) -> None:
    """Neither to read, nor to list, nor to write, nor to delete; for the administrator neither."""
    before = (server.data / "users.db").stat().st_ino
    up = path.replace("../", "../" * 5)  # from the artifacts of a run
    answers = []
    for alias in ALIASES:
        proxy = f"{alias}/mlflow-artifacts/artifacts"
        for place in (proxy, f"{proxy}/{run['place']}"):
            for target in (f"{place}/{path}", f"{place}/{up}"):
                answers += [ask("GET", target, account=ADMIN), ask("PUT", target, b"overwritten", ADMIN)]
                answers += [ask("DELETE", target, account=ADMIN)]
        for given in (path, up):
            answers += [
                ask("GET", f"{proxy}?path={given}", account=ADMIN),
                ask("GET", f"{alias}/mlflow/artifacts/list?run_id={run['run_id']}&path={given}", account=ADMIN),
                ask("GET", f"/get-artifact?run_uuid={run['run_id']}&path={given}", account=ADMIN),
                ask("POST", f"{alias}/mlflow-artifacts/mpu/create/{given}", {"path": given, "num_parts": 1}, ADMIN),
            ]
    leaked = [a for a in answers if b"SQLite format" in a.body or b"root:" in a.body or b"password_hash" in a.body]
    assert [] == leaked
    assert before == (server.data / "users.db").stat().st_ino
    assert b"SQLite format" in (server.data / "users.db").read_bytes()[:20]
    files = {
        f.relative_to(server.data / "mlartifacts") for f in (server.data / "mlartifacts").rglob("*") if f.is_file()
    }
    assert b"overwritten" not in b"".join(
        (server.data / "mlartifacts" / f).read_bytes() for f in files if ".." in str(f)
    )
    assert {"auth.ini", "mlartifacts", "mlflow.db", "passphrase", "secret", "users.db"} == {
        f.name for f in server.data.iterdir() if not f.name.startswith((".", "mlflow.db-", "users.db-"))
    }


@needs_root
def test_what_was_open_is_closed_to_others(open_place: Path) -> None:
    """A directory of former times, and all that comes into it; another user of the machine sees nothing of it."""
    data = open_place / "data"
    (data / "mlartifacts" / "1").mkdir(parents=True)
    for name in ("users.db", "mlflow.db-backup", "mlartifacts/1/old.txt"):
        (data / name).write_text("" if name == "users.db" else "old")
    (data / "users.db").unlink()
    for path in (data, *data.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    with serving(data, umask=0) as server:
        made = json.loads(server.ask(f"{API}/runs/create", ADMIN, {"experiment_id": "0"})[1])["run"]["info"]
        place = made["artifact_uri"].removeprefix("mlflow-artifacts:/")
        path = f"/api/2.0/mlflow-artifacts/artifacts/{place}/deep/er/new.txt"
        assert 200 == send(server.port, "PUT", path, b"new", **basic(ADMIN)).status
        files = [data, *data.rglob("*")]
        assert {"new.txt", "old.txt", "users.db", "secret", "passphrase", "mlflow.db"} <= {f.name for f in files}
        assert [] == [f for f in files if f.lstat().st_mode & 0o077]
        read = "import os, sys; [print(open(f).read()) for f in sys.argv[1:] if os.access(f, os.R_OK)]"
        environ = Path(f"/proc/{server.process.pid}/environ")
        said = as_another_user(read, *(f for f in files if f.is_file()), environ)
        assert ("", "") == (said.stdout, said.stderr)
        assert "Permission denied" in as_another_user("import os, sys; os.listdir(sys.argv[1])", data).stderr
        environment = dict(entry.split("=", 1) for entry in environ.read_text().split("\0") if "=" in entry)
        passphrase = (data / "passphrase").read_text()
        assert passphrase == environment["MLFLOW_CRYPTO_KEK_PASSPHRASE"]
        assert 64 == len(passphrase)
    again = open_place / "another"
    with serving(again):
        assert passphrase != (again / "passphrase").read_text()


@needs_root
@pytest.mark.parametrize("foreign", [".", "mlartifacts", "users.db", "mlartifacts/1/x.txt", "link"])
def test_what_belongs_to_another_user_is_not_served(
    open_place: Path, project: Path, hpcexp: Callable[..., Said], foreign: str
) -> None:
    """He could change it at any time."""
    data = open_place / "data"
    (data / "mlartifacts" / "1").mkdir(parents=True)
    for name in ("users.db", "mlartifacts/1/x.txt"):
        (data / name).write_text("")
    (data / "link").symlink_to("users.db")
    os.chown(data / foreign, OTHER_USER, OTHER_USER, follow_symlinks=False)
    said = hpcexp("serve", str(data), "--port", str(free_port()))
    assert (2, "") == (said.status, said.out)
    assert f"{data / foreign} belongs to nobody, and root is to keep it from all others." in said.err
    assert "Fix: run this as nobody, or chown -R root" in said.err


def test_a_place_that_everybody_may_rename_is_not_served(
    open_place: Path, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """Unless only owners may, as in /tmp."""
    (open_place / "a").mkdir()
    (open_place / "a").chmod(0o777)
    said = hpcexp("serve", str(open_place / "a" / "data"), "--port", str(free_port()))
    assert 2 == said.status
    assert f"everybody may rename what is in {open_place}/a.\nFix: chmod o-w {open_place}/a" in said.err
    (open_place / "a").chmod(0o1777)
    assert "rename" not in hpcexp("serve", str(open_place / "a" / "data"), "--port", str(free_port())).err


def rows(server: Served, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Of the server's database."""
    with closing(sqlite3.connect(server.data / "mlflow.db", timeout=20)) as connection:
        return connection.execute(sql, values).fetchall()


def change(server: Served, sql: str, *values: Any) -> None:
    """Change the server's database behind its back."""
    with closing(sqlite3.connect(server.data / "mlflow.db", timeout=20)) as connection, connection:
        connection.execute(sql, values)
