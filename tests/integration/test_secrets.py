"""What is secret in a configuration is in no file that is kept or shown, and yet reaches the job."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import FAST, Said, command, only_run, write_module
from record_support import free_port

from hpcexp.compose.composer import Composed
from hpcexp.plan import load_plan, load_whole
from hpcexp.planner import prepare
from hpcexp.redaction import (
    filled,
    has_secret,
    is_secret,
    masked,
    masked_config,
    masked_override,
    masked_text,
    without_password,
    without_passwords,
)
from hpcexp.rundir import RunDir, SweepDir
from hpcexp.tracking.mlflow.description import note, params, tags

SECRET = "sesame-opens"
SOURCE = f"""
    from hpcexp.data.digits import Digits

    class Guarded(Digits):
        def __init__(self, api_token: str, val_fraction: float = 0.1) -> None:
            super().__init__(val_fraction)
            assert api_token == "{SECRET}", api_token
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("data.password", "db_passwd", "API_KEY", "apikey", "data.auth.secret", "HF_TOKEN")),
        *((name, True) for name in ("token", "access_key_id", "data.credentials", "S3_SECRET_ACCESS_KEY")),
        *((name, False) for name in ("model.pad_token", "tokenizer", "num_tokens", "cls_token", "optimizer.lr", "key")),
    ],
)
def test_a_name_tells_whether_a_value_is_secret(name: str, expected: bool) -> None:
    """By its last part; the tokens of a language model are none."""
    assert expected == is_secret(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("postgresql://ada:pw@host/db", "postgresql://ada@host/db"),
        ("https://host/x?sig=abc&size=3", "https://host/x?sig=***&size=3"),
        ("ghp_" + "a" * 36, "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "***"),
        ("hpcexp.models.mlp.MLP", "hpcexp.models.mlp.MLP"),
    ],
)
def test_a_value_of_a_known_form_is_masked_under_any_name(value: str, expected: str) -> None:
    """Passwords of URIs, signed addresses, keys of well-known services."""
    assert expected == masked("data.where", value)
    assert f"saw {expected}." == masked_text(f"saw {value}.")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://h:5000/?token=abc", "http://h:5000/?token=***"),
        ("/?token=abc", "/?token=***"),
        ("http://h/?a=1&Access_Token=abc&b=2", "http://h/?a=1&Access_Token=***&b=2"),
        ("http://h/?tok%65n=abc", "http://h/?tok%65n=***"),
        ("http://h/?token=a%26b=c", "http://h/?token=***"),
        ("http://h/?auth[token]=abc&key[]=d", "http://h/?auth[token]=***&key[]=***"),
        ("http://h/?next=http%3A%2F%2Fk%2F%3Ftoken%3Dabc", "http://h/?next=***"),
        ("http://h/?next=http%253A%252F%252Fk%252F%253Fsecret%253Dabc&a=1", "http://h/?next=***&a=1"),
        ("http://h/#/runs?jwt=abc", "http://h/#/runs?jwt=***"),
        ("http://h/#access_token=abc", "http://h/#access_token=***"),
        ("postgresql://ada:pw@h/db?sslpassword=abc;pwd=d", "postgresql://ada@h/db?sslpassword=***;pwd=***"),
        (
            "https://b/x?X-Amz-Credential=A%2Fq&X-Amz-Signature=f&size=3",
            "https://b/x?X-Amz-Credential=***&X-Amz-Signature=***&size=3",
        ),
        ("https://b/x?sv=2024&sig=abc%2B&apikey=d", "https://b/x?sv=2024&sig=***&apikey=***"),
        ("https://b/x?tokenizer=bert&sigma=3&author=ada", "https://b/x?tokenizer=bert&sigma=3&author=ada"),
        ("http://h/?next=%2Fa%3Fpage%3D2", "http://h/?next=%2Fa%3Fpage%3D2"),
    ],
)
def test_the_secrets_in_an_address_are_masked(address: str, expected: str) -> None:
    """However they are spelled, wherever an address stands; what only looks alike stays."""
    assert expected == without_password(address) == without_passwords(address)
    assert f'GET "{expected}" 200' == masked_text(f'GET "{address}" 200')
    assert f"tracking.uri={expected}" == masked_override(f"tracking.uri={address}")
    assert {"data": {"place": expected}} == masked_config({"data": {"place": address}})[0]


def test_an_address_keeps_its_secrets_to_itself(project: Path, hpcexp: Callable[..., Said]) -> None:
    """Of a server that does not answer: what is printed and stored has them not, but for the owner's file."""
    uri = f"http://127.0.0.1:{free_port()}/?token={SECRET}&page=1"
    said = command("train", *FAST, "tracking.enabled=true", "tracking.wait_s=0", f"tracking.uri='{uri}'", cwd=project)
    assert 0 == said.status
    assert "?token=***&page=1 does not answer" in said.err
    run = only_run(project)
    assert [run.secret_uri] == holding(SECRET, run.path)
    assert 0o600 == stat.S_IMODE(run.secret_uri.stat().st_mode)
    shown = [
        hpcexp("plan", f"tracking.uri='{uri}'"),
        hpcexp("plan", f"tracking.uri={uri}"),
        hpcexp("show", "last"),
        hpcexp("sync"),
        hpcexp("compare", "--uri", uri),
    ]
    bad = f"postgresql+nodriver://h/db?password={SECRET}"
    shown += [hpcexp("plan", f"tracking.uri='{bad}'"), hpcexp("ui", "--uri", uri), hpcexp("serve", "d", "--store", bad)]
    assert SECRET not in "".join(s.out + s.err for s in [said, *shown])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('password = "hunter2secretpw"', True),
        ("db:\n  db_password: 's3cr3tpass'", True),
        ('{"api_key": "abcd1234efgh"}', True),
        ('token = "hf_' + "a" * 34 + '"', True),
        ('password: str = "hunter2222"', True),
        ('os.environ["DB_PASSWORD"] = "abc12345"', True),
        ('private_key_path = "keys/id1.pem"', False),
        ('password_hash_algo = "argon2id-v19"', False),
        ('secretary = "Anna1234567"', False),
        ('password = os.environ["DB_PASSWORD_1"]', False),
        ('PASSWORD_FROM = "MLFLOW_TRACKING_PASSWORD"', False),
        ('secret = "{from_vault_2}"', False),
        ('password = "***"', False),
    ],
)
def test_a_file_tells_whether_it_assigns_a_secret(text: str, expected: bool) -> None:
    """Such a file stays out of the patch of a checkout."""
    assert expected == has_secret(text)


def test_a_configuration_comes_back_from_its_masked_form() -> None:
    """Whatever type a secret has, and in lists as well."""
    config: dict[str, Any] = {
        "a": {"password": 12345, "api_keys": ["x", "y"], "token": "t", "lr": 0.1},
        "n": [1, {"pwd": "z"}],
    }
    shown, secrets = masked_config(config)
    assert {
        "a": {"password": "***", "api_keys": ["***", "***"], "token": "***", "lr": 0.1},
        "n": [1, {"pwd": "***"}],
    } == shown
    assert config == filled(shown, secrets)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+data.token=abc", "+data.token=***"),
        ("data.login={user: ada, password: 'a b'}", "data.login={user: ada, password: ***}"),
        ("data.token=${oc.env:HF_TOKEN}", "data.token=${oc.env:HF_TOKEN}"),
        ("tracking.uri=http://ada:pw@host", "tracking.uri=http://ada@host"),
        ("optimizer.lr=0.1", "optimizer.lr=0.1"),
    ],
)
def test_an_override_is_shown_without_its_secret(override: str, expected: str) -> None:
    """A reference to a variable is none."""
    assert expected == masked_override(override)


def test_another_secret_is_no_other_run(compose: Callable[..., Composed], project: Path) -> None:
    """A token that is renewed changes no result, and its digest would tell of it."""
    plans = [prepare(compose(f"+tracking.tags.api_key={key}"), project, []) for key in ("a", "b")]
    assert plans[0] == plans[1]
    assert ["a", "b"] == [plan.secrets["tracking.tags.api_key"] for plan in plans]


def test_a_job_gets_its_secret_and_nothing_else_has_it(
    project: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """Neither the run's files nor what MLflow and people are told; the one file that has it is its owner's alone."""
    write_module(project, "guarded", SOURCE)
    asked = ["data._target_=guarded.Guarded", f"data.api_token={SECRET}"]
    said = train(*FAST, *asked)
    assert (0, "") == (said.status, said.err)
    run = only_run(project)
    assert [run.secrets] == holding(SECRET, run.path)
    assert 0o600 == stat.S_IMODE(run.secrets.stat().st_mode)
    plan = load_plan(run.plan)
    assert "***" == plan.config["data"]["api_token"]
    assert SECRET == load_whole(run).config["data"]["api_token"]
    shown = [plan.name, params(plan), tags(plan), note(plan, {}), said.out, hpcexp("show", "last", "--config").out]
    assert SECRET not in json.dumps([*shown, hpcexp("plan", *FAST, *asked).out])
    assert 0 == hpcexp("test", "last").status


def test_a_sweep_keeps_no_secret(project: Path, hpcexp: Callable[..., Said]) -> None:
    """In what it remembers of its base and its command."""
    write_module(project, "guarded_too", SOURCE)
    asked = ["data._target_=guarded_too.Guarded", f"data.api_token={SECRET}", "seed=1,2"]
    said = hpcexp("train", "-m", *FAST, "launch=dry", *asked)
    assert (0, "") == (said.status, said.err)
    [sweep] = (project / "runs" / "sweeps").iterdir()
    assert [] == holding(SECRET, sweep)
    assert SweepDir(sweep).definition.exists()
    assert all(RunDir(path.parent).secrets == path for path in holding(SECRET, project / "runs"))


def holding(text: str, directory: Path) -> list[Path]:
    """The files below a directory that have this text."""
    return [f for f in sorted(directory.rglob("*")) if f.is_file() and text.encode() in f.read_bytes()]
