"""The nginx of docs/server.md in front of a real server: what users and attackers reach through it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from helpers import LEAN, REPOSITORY, command
from record_support import free_port, wait_until
from served import ADA, ADMIN, BOB, Served, basic, serving

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

WHO = "/api/2.0/mlflow/users/current"


class Proxy:
    """nginx at a port, and the certificate that it shows."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port, self.certificate = port, certificate
        self._context = ssl.create_default_context(cafile=str(certificate))

    def ask(
        self, method: str, path: str, address: str = "127.0.0.1", body: bytes = b"", **headers: str
    ) -> tuple[int, bytes]:
        """Status and answer of a request from this address of the machine's own network."""
        connection = HTTPSConnection(
            "localhost", self.port, context=self._context, timeout=30, source_address=(address, 0)
        )
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Started as docs/server.md says."""
    with serving(tmp_path_factory.mktemp("behind") / "data", "--forwarded-from", "127.0.0.1") as server:
        server.add_user(ADA)
        server.add_user(BOB)
        yield server


@pytest.fixture(scope="module")
def proxy(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx with the block of docs/server.md, but for its places."""
    place = tmp_path_factory.mktemp("nginx")
    certificate, key = place / "fullchain.pem", place / "privkey.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    making = ["openssl", "req", "-x509", *options, *names, "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(making, check=True, capture_output=True)
    found = re.search(r"```nginx\n(.*?)```", (REPOSITORY / "docs" / "server.md").read_text(), re.DOTALL)
    assert found is not None
    port = free_port()
    block = found[1].replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl").replace("mlflow.lab.org", "localhost")
    block = block.replace("/etc/ssl/mlflow", str(place)).replace("127.0.0.1:5000", f"127.0.0.1:{server.port}")
    paths = "".join(
        f"{kind}_temp_path {place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(
        f"daemon off; pid {place}/pid; error_log {place}/error.log; events {{}}\n"
        f"http {{ access_log off; {paths}\n{block}}}\n"
    )
    with running(place):
        proxy = Proxy(port, certificate)
        wait_until(lambda: answers(port), "nginx answers")
        yield proxy


@contextmanager
def running(place: Path) -> Iterator[None]:
    """nginx, ended afterwards."""
    process = subprocess.Popen(
        [NGINX or "", "-p", str(place), "-c", str(place / "nginx.conf"), "-e", str(place / "error.log")]
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_user_trains_through_it(proxy: Proxy, server: Served, tmp_path: Path) -> None:
    """Metrics, artifacts and a model arrive; pages are shown, and may change what is recorded."""
    there = {"MLFLOW_TRACKING_PASSWORD": ADA[1], "REQUESTS_CA_BUNDLE": str(proxy.certificate)}
    asked = ("trainer.max_epochs=1", "model.hidden=[8]", f"tracking.uri=https://ada@localhost:{proxy.port}")
    said = command("train", *asked, *LEAN, cwd=tmp_path, **there)
    assert (0, "") == (said.status, said.err)
    assert {"best.ckpt", "plan.yaml"} <= {f.name for f in (server.data / "mlartifacts").rglob("*")}
    own = {"Origin": f"https://localhost:{proxy.port}", "Content_Type": "application/json", **basic(ADA)}
    tag = json.dumps({"experiment_id": "1", "key": "a", "value": "b"}).encode()
    assert 200 == proxy.ask("GET", "/", **own)[0]
    assert 200 == proxy.ask("POST", "/ajax-api/2.0/mlflow/experiments/set-experiment-tag", body=tag, **own)[0]
    other = {**own, "Origin": "https://localhost:1"}
    assert 403 == proxy.ask("POST", "/ajax-api/2.0/mlflow/experiments/set-experiment-tag", body=tag, **other)[0]


def test_the_assistant_is_not_reached_through_it(proxy: Proxy) -> None:
    """It trusts whoever comes from this machine, as the proxy does."""
    for path in ("/ajax-api/3.0/mlflow/assistant/config", "//ajax-api/3.0/mlflow/assistant/config"):
        assert [404, 404] == [proxy.ask("GET", path, **basic(account))[0] for account in (ADA, ADMIN)]


def test_who_guesses_is_told_from_others(proxy: Proxy) -> None:
    """By the address that nginx sees, whatever the client says of it."""
    claims = [{"X_Forwarded_For": f"10.0.0.{number}", **basic(("bob", f"guess-{number}"))} for number in range(20)]
    statuses = [proxy.ask("GET", WHO, "127.0.0.9", **claim)[0] for claim in claims]
    assert {401, 429} == set(statuses)
    assert 429 == proxy.ask("GET", WHO, "127.0.0.9", **basic(BOB))[0]
    assert 200 == proxy.ask("GET", WHO, "127.0.0.8", **basic(BOB))[0]
    assert 200 == proxy.ask("GET", WHO, "127.0.0.9", **basic(ADA))[0]
