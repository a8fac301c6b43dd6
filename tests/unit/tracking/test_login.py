"""Passwords that are guessed: how often, from where, and what that does to those who know theirs."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from served import ADMIN, Answer, Served, basic, send, serving
from werkzeug.security import generate_password_hash

from hpcexp.compare.sources.mlflow_server import MlflowServer
from hpcexp.errors import RunError
from hpcexp.tracking.mlflow.authentication import refused
from hpcexp.tracking.server.web import login as login_module
from hpcexp.tracking.server.web.limits import Attempts, Buckets
from hpcexp.tracking.server.web.login import Login, Refusal

WHO = "/api/2.0/mlflow/users/current"
PASSWORD = "a-password-of-hers"


class Clock:
    """Goes as it is told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_again() -> None:
    """One token after the other, up to its size; a debt is bounded."""
    clock = Clock()
    buckets = Buckets(3, 10.0, clock)
    for _ in range(3):
        assert 0 == buckets.wait_s("a")
        buckets.take("a")
    assert 10 == buckets.wait_s("a")
    assert 0 == buckets.wait_s("b")
    clock.now += 10
    assert 0 == buckets.wait_s("a")
    assert not buckets.is_full("a")
    for _ in range(100):
        buckets.take("a")
    assert 40 == buckets.wait_s("a")
    clock.now += 60
    assert buckets.is_full("a")


def test_nobody_makes_the_counts_grow() -> None:
    """Names are of the attacker's choice: what was not used for long is forgotten, what is full needs no place."""
    buckets = Buckets(3, 10.0, Clock(), most=100)
    for number in range(1000):
        buckets.take(number)
    assert 100 == len(buckets)
    for number in range(900, 1000):
        buckets.give_back(number)
    assert 0 == len(buckets)


def test_one_attacker_does_not_lock_everybody_out() -> None:
    """Neither at an address that they share, nor from everywhere."""
    clock = Clock()
    attempts = Attempts(clock)
    assert 0 == attempts.begin("ada", "10.0.0.1")
    attempts.succeeded("ada", "10.0.0.1")
    # From one address, at hundred names that he has heard of.
    for number in range(100):
        attempts.begin(f"user{number}", "10.0.0.9")
    assert 0 == attempts.begin("user1", "10.0.0.8")
    assert 0 < attempts.begin("user1", "10.0.0.9"), "the second time from there"
    assert 0 == attempts.begin("bob", "10.0.0.9"), "the first time from there"
    # From hundred addresses, at one name.
    allowed = [attempts.begin("ada", f"10.0.1.{number}") for number in range(100)].count(0)
    assert 20 == allowed
    assert 0 < attempts.begin("ada", "10.0.0.2")
    assert 0 == attempts.begin("ada", "10.0.0.1"), "where she was before"
    clock.now += 61
    assert 0 == attempts.begin("ada", "10.0.0.2")


def test_networks_of_ipv6_are_counted_as_a_whole() -> None:
    """Who has one address of them has all."""
    attempts = Attempts(Clock())
    allowed = [attempts.begin("ada", f"2001:db8::{number:x}") for number in range(20)].count(0)
    assert 5 == allowed
    assert 0 < attempts.begin("ada", "2001:db8::ffff:1")
    assert 0 == attempts.begin("ada", "2001:db8:0:1::1")
    assert 0 == attempts.begin("bob", "::ffff:10.0.0.1")
    assert [0, 0, 0, 0] == [attempts.begin("bob", "10.0.0.1") for _ in range(4)]
    assert 0 < attempts.begin("bob", "::ffff:10.0.0.1"), "the same as 10.0.0.1"


def test_somebody_who_does_not_exist_is_as_much_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison, with a hash of the same kind: the time tells nothing."""
    users = tmp_path / "users.db"
    with closing(sqlite3.connect(users)) as connection, connection:
        connection.execute("CREATE TABLE users (username TEXT, password_hash TEXT)")
        connection.execute("INSERT INTO users VALUES ('ada', ?)", (generate_password_hash(PASSWORD),))
    compared = []
    real = login_module.check_password_hash

    def counted(stored: str, password: str) -> bool:
        compared.append(stored.partition("$")[0])
        return real(stored, password)

    monkeypatch.setattr(login_module, "check_password_hash", counted)
    login = Login(users)
    answers = [identify(login, name, "wrong") for name in ("ada", "nobody")]
    assert answers[0] == answers[1] == Refusal(401, "There is no such user with this password.")
    assert compared[0] == compared[1]
    assert "ada" == identify(login, "ada", PASSWORD) == identify(login, "ada", PASSWORD)
    assert 3 == len(compared), "what was right is not hashed again"


def identify(login: Login, user: str, password: str) -> str | Refusal:
    return anyio.run(login.identify, basic((user, password))["Authorization"], "10.0.0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that takes these tests for its proxy, so that they choose addresses."""
    with serving(tmp_path_factory.mktemp("login") / "data", "--forwarded-from", "127.0.0.1") as server:
        yield server


@pytest.fixture
def user(server: Served, request: pytest.FixtureRequest) -> str:
    """An account of the test's own."""
    name = request.node.name
    server.add_user((name, PASSWORD))
    return str(name)


@pytest.fixture
def ask(server: Served) -> Callable[..., Answer]:
    """A request with a name and a password from an address."""

    def call(user: str, password: str, address: str, method: str = "GET", path: str = WHO, body: Any = "") -> Answer:
        content = json.dumps(body) if body else ""
        headers = {"X_Forwarded_For": address, "Content_Type": "application/json", **basic((user, password))}
        return send(server.port, method, path, content, **headers)

    return call


def assert_limited(statuses: list[int]) -> None:
    """Five guesses were checked, or some more where the machine was so slow that tokens came back."""
    assert {401, 429} == set(statuses)
    assert 5 <= statuses.count(401) < 12


def test_guesses_are_limited(server: Served, ask: Callable[..., Answer], user: str) -> None:
    """For a user and an address; the answer says when to try again, and no route gets around it."""
    for name in (user, "who-does-not-exist"):
        answers = [ask(name, f"guess-{number}", "10.1.0.1") for number in range(30)]
        assert_limited([a.status for a in answers])
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20
    routes = [
        ("GET", "/signup"),
        ("POST", "/api/2.0/mlflow/users/create"),
        ("POST", "/api/2.0/mlflow/users/create-ui"),
        ("POST", "/api/3.0/mlflow/users/permissions/grant"),
        ("PATCH", "/api/2.0/mlflow/users/update-password"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/x/artifacts/y"),
        ("GET", "/ajax-api/2.0/mlflow-artifacts/artifacts/1/x/artifacts/y"),
        ("POST", "/graphql"),
        ("GET", "/api/3.0/mlflow/server-info"),
        ("GET", "/static-files/favicon.ico"),
    ]
    assert {429} == {ask(user, PASSWORD, "10.1.0.1", *route).status for route in routes}
    assert 200 == ask(user, PASSWORD, "10.1.0.2").status


def test_who_is_logged_in_is_not_disturbed(ask: Callable[..., Answer], user: str) -> None:
    """By guesses from everywhere, at the own address too."""
    assert 200 == ask(user, PASSWORD, "10.2.0.1").status
    for number in range(30):
        ask(user, f"guess-{number}", "10.2.0.1")
        ask(user, f"guess-{number}", f"10.2.1.{number}")
    assert 429 == ask(user, "guess", "10.2.0.1").status
    assert {200} == {ask(user, PASSWORD, address).status for address in ("10.2.0.1", "10.2.0.2")}


def test_a_proxys_users_are_not_locked_out_by_one_of_them(ask: Callable[..., Answer], user: str) -> None:
    """Whoever types the right password at first gets in at an address from which everybody's are guessed."""
    statuses = [ask(f"user-{number}", "guess", "10.3.0.1").status for number in range(40)]
    assert {401} == set(statuses)
    assert 429 == ask("user-1", "guess", "10.3.0.1").status
    assert 200 == ask(user, PASSWORD, "10.3.0.1").status


def test_a_hundred_jobs_may_start_at_once(ask: Callable[..., Answer], user: str) -> None:
    """With a password that nobody has used since the server started."""
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: ask(user, PASSWORD, "10.4.0.1").status, range(100)))
    assert {200} == set(answers)


def test_guesses_at_once_are_counted_before_they_are_checked(ask: Callable[..., Answer], user: str) -> None:
    """Sending them side by side wins nothing."""
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: ask(user, f"guess-{n}", "10.5.0.1").status, range(40)))
    assert_limited(answers)


def test_a_password_that_was_changed_is_wrong_at_once(ask: Callable[..., Answer], user: str) -> None:
    """And the new one right; nothing is remembered of an account that is gone."""
    change = ("PATCH", "/api/2.0/mlflow/users/update-password")
    assert 200 == ask(user, PASSWORD, "10.6.0.1").status
    assert 200 == ask(*ADMIN, "10.6.0.9", *change, {"username": user, "password": "another-password"}).status
    assert 401 == ask(user, PASSWORD, "10.6.0.1").status
    assert 200 == (told := ask(user, "another-password", "10.6.0.1")).status
    assert json.loads(told.body)["is_basic_auth"], "the pages offer to change it"
    assert 200 == ask(*ADMIN, "10.6.0.9", "DELETE", "/api/2.0/mlflow/users/delete", {"username": user}).status
    assert 401 == ask(user, "another-password", "10.6.0.1").status


def test_a_password_that_everybody_knows_lets_nobody_in(ask: Callable[..., Answer], user: str) -> None:
    """MLflow takes its own of former times for a new one."""
    body = {"username": user, "password": "password1234"}
    assert 200 == ask(*ADMIN, "10.10.0.9", "PATCH", "/api/2.0/mlflow/users/update-password", body).status
    assert 401 == ask(user, "password1234", "10.10.0.1").status


def test_the_current_password_is_not_guessed_by_changing_it(ask: Callable[..., Answer], user: str) -> None:
    """By somebody who has come by a browser that is logged in."""

    def change(current: str) -> int:
        body = {"username": user, "password": "another-password", "current_password": current}
        return ask(user, PASSWORD, "10.7.0.1", "PATCH", "/ajax-api/2.0/mlflow/users/update-password", body).status

    statuses = [change(f"guess-{number}") for number in range(20)]
    assert_limited([401 if status == 400 else status for status in statuses])
    assert 429 == change(PASSWORD)
    assert 200 == ask(user, PASSWORD, "10.7.0.1").status


def test_names_and_passwords_of_all_kinds_are_read(ask: Callable[..., Answer], server: Served) -> None:
    """As curl writes them and as Python's requests does; what is no header of this kind is refused."""
    password = "pässwörd:with-colon"
    assert (
        200
        == ask(
            *ADMIN, "10.8.0.1", "POST", "/api/2.0/mlflow/users/create", {"username": "ü", "password": password}
        ).status
    )
    for encoding in ("utf-8", "latin-1"):
        header = "Basic " + base64.b64encode(f"ü:{password}".encode(encoding)).decode()
        assert 200 == send(server.port, "GET", WHO, Authorization=header).status, encoding
    for header in ("", "Basic", "Basic !!!", "Basic " + base64.b64encode(b"admin").decode(), "Bearer x", "Basic Og=="):
        assert 401 == send(server.port, "GET", WHO, Authorization=header).status, header


def test_an_address_that_is_only_claimed_counts_for_nothing(tmp_path: Path) -> None:
    """Without `--forwarded-from` everybody could say to come from elsewhere."""
    with serving(tmp_path / "data") as server:
        claims = [{"X_Forwarded_For": f"10.9.0.{number}", **basic(("ada", f"guess-{number}"))} for number in range(30)]
        statuses = [send(server.port, "GET", WHO, **claim).status for claim in claims]
        assert_limited(statuses)
        uri, hers = f"http://ada@127.0.0.1:{server.port}", {"MLFLOW_TRACKING_PASSWORD": "guess"}
        told = refused(uri, hers) or ""
        assert "takes no password for the user 'ada' from here for some seconds" in told
        with pytest.raises(RunError, match="too many wrong passwords"):
            MlflowServer(uri.replace("ada@", "ada:guess@")).runs()
