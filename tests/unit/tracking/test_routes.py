"""Which routes of MLflow are served: each one that it has is decided, and no spelling of a path reaches another."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from helpers import REPOSITORY, environment

from hpcexp.tracking.server.web.graphql import FIELDS
from hpcexp.tracking.server.web.routes import access, is_plain, routes

DECIDED = Path(__file__).parents[2] / "mlflow_routes.txt"


@pytest.fixture(scope="module")
def found() -> Any:
    """What the installed MLflow has."""
    done = run(
        [sys.executable, "-W", "ignore", str(REPOSITORY / "tests" / "mlflow_routes.py")],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


def decided() -> dict[tuple[str, str], str]:
    """Method and path → the decision."""
    lines = [line.split() for line in DECIDED.read_text().splitlines() if not line.startswith("#")]
    found = {}
    for decision, methods, path in lines:
        prefixes = ("/ajax-api", "/api") if path.startswith("/{ajax-api,api}") else ("",)
        for method, prefix in product(methods.split(","), prefixes):
            found[method, prefix + path.removeprefix("/{ajax-api,api}")] = decision
    return found


def sample(path: str) -> str:
    """A path of this route."""
    return re.sub(r"<\w+>", "x-1", re.sub(r"<path:\w+>", "a/b.png", path))


def test_every_route_of_mlflow_is_decided(found: Any) -> None:
    """One that a new version adds fails here until somebody has decided of it; meanwhile it is refused."""
    known = {(method, path) for method, path in found["routes"]}
    assert set() == known - decided().keys()
    assert set() == decided().keys() - known


def test_what_is_decided_is_what_is_served() -> None:
    """By method and path; what is refused is refused under every sample of it."""
    wrong = [
        (method, path, decision)
        for (method, path), decision in decided().items()
        if decision != (kind.value if (kind := access(method, sample(path))) else "refused")
    ]
    assert [] == wrong
    served = {(method, re.sub(r":\w+|\w+(?=>)", "", path)) for (method, path), d in decided().items() if d != "refused"}
    assert served == {(m, re.sub(r":\w+|\w+(?=>)", "", route.path)) for route in routes() for m in route.methods}


def test_the_queries_of_the_pages_are_decided(found: Any) -> None:
    """And nothing that is called a mutation is served."""
    assert {"test"} == set(found["queries"]) - FIELDS
    assert set() == FIELDS - set(found["queries"])
    assert ["mlflowSearchDatasets", "mlflowSearchRuns", "testMutation"] == found["mutations"]


ASSISTANT = "/ajax-api/3.0/mlflow/assistant/config"


@pytest.mark.parametrize(
    "path",
    [
        ASSISTANT,
        f"{ASSISTANT}/",
        f"/{ASSISTANT}",
        ASSISTANT.replace("/mlflow", "//mlflow"),
        ASSISTANT.replace("/mlflow", "/./mlflow"),
        f"/health/..{ASSISTANT}",
        f"/static-files/..{ASSISTANT}",
        f"/static-files/%2e%2e{ASSISTANT}",
        f"/static-files/%252e%252e{ASSISTANT}",
        f"/api/2.0/mlflow-artifacts/artifacts/../../..{ASSISTANT}",
        ASSISTANT.upper(),
        ASSISTANT.replace("assistant", "Assistant"),
        ASSISTANT.replace("assistant", "%61ssistant"),
        ASSISTANT.replace("/assistant", "\\assistant"),
        f"{ASSISTANT};x=1",
        f"{ASSISTANT}\n",
        f"{ASSISTANT}\x00",
        f"http://localhost{ASSISTANT}",
        ASSISTANT[1:],
        "",
        "*",
        "/health\n",
        "/health/",
        "//health",
        "/version\r",
        "/mlflow/health",
        "/api/2.0/mlflow/logged-models/a/b",
        "/api/2.0/mlflow/logged-models/",
        "/api/2.0/mlflow/runs/get\n",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "get", "TRACE"])
def test_no_spelling_of_a_path_gets_through(method: str, path: str) -> None:
    """Neither to what is refused, nor to what is served in a way that a router reads otherwise."""
    assert access(method, path) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b c/ü/100%.png", True),
        ("/a/b%20c", True),
        ("/a/", True),
        ("/a/..", False),
        ("/a/%2e%2e/b", False),
        ("/a/%25252e%25252e/b", False),
        ("/a/%5cb", False),
        ("/a/%2fb", False),
        ("/a%0a", False),
        ("/" + "%25" * 20 + "41", True),
        ("/%" + "25" * 20 + "2e", False),
    ],
)
def test_a_path_is_plain_however_often_it_is_decoded(path: str, expected: bool) -> None:
    """Names that have a percent sign of their own are."""
    assert expected == is_plain(path)
