"""Damage to what a search, a server and a backup keep beside the runs: a word about it, no traceback, no hang."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from damage import DAMAGES
from forked import command
from helpers import LEAN, Said, python
from record_support import free_port
from test_fuzz import ran, some

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

SAMPLE = 40
SEARCH = (
    *("train", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.1)"),
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "launch.isolation=warm", *LEAN),
)
SERVE = ("serve", "server", "--password-file", "password", "--port", "PORT")
PLACES: dict[str, tuple[Sequence[str], dict[str, tuple[str, ...]]]] = {
    "runs/sweeps/*": (
        (
            *("study.jsonl", "sweep.json", "jobs.jsonl", "status.json", "mlflow.json", "best.json", "table.csv"),
            *("claims", "claims/1", "claims/ledger", "drivers", "spent", "plots", "logs", ".sync.lock"),
        ),
        {
            "search": SEARCH,
            "sweep": ("sweep",),
            "sweep --status": ("sweep", "last", "--status"),
            "compare --sweep": ("compare", "--sweep", "last"),
            "sync": ("sync",),
        },
    ),
    "server": (
        ("users.db", "auth.ini", "secret", "passphrase", "mlflow.db", "mlartifacts", ".serve.lock", ".users.db.lock"),
        {
            "serve": SERVE,
            "serve again": ("serve", "server", "--port", "PORT"),
            "backup": ("backup", "backups", "--server", "server"),
        },
    ),
    "backups/2*": (
        ("manifest.json", "runs", "runs/mlflow.db", "../.lock", "server/users.db", "server/secret"),
        {
            "restore": ("restore", "backups", "--root", "restored"),
            "restore a server": ("restore", "backups", "--server", "server", "--root", "runs", "--force"),
            "verify": ("backup", "backups", "--verify"),
            "backup": ("backup", "backups", "--server", "server", "--root", "runs", "--keep", "1"),
        },
    ),
}
FOUND = (
    ("server", "secret", "empty", "serve again"),
    ("server", "passphrase", "no UTF-8", "serve again"),
    ("server", "secret", "a FIFO", "serve again"),
    ("server", "users.db", "random bytes", "serve again"),
    ("server", "users.db", "a FIFO", "serve again"),
    ("server", "mlflow.db", "a FIFO", "backup"),
    ("runs/sweeps/*", "study.jsonl", "a FIFO", "search"),
    ("runs/sweeps/*", "study.jsonl", "all numbers", "search"),
)
"""What crashed or hung once."""
Case = tuple[str, str, str, str]
"""Place, file in it, damage, verb."""


class Served(SystemExit):
    """The command has come to where it becomes the server."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a search, a server's directory, and a backup of both."""
    project = tmp_path_factory.mktemp("places") / "project"
    project.mkdir()
    (project / "password").write_text("correct horse battery\n")
    (project / "password").chmod(0o600)
    said = command(*SEARCH, cwd=project)
    assert 0 == said.status, said
    prepared = [word if word != "PORT" else str(free_port()) for word in SERVE]
    code = f"""
    import hpcexp.cli.serve as serve
    def served(*_):
        raise SystemExit(0)
    serve.become = served
    serve.serve({prepared[1:]})
    """
    said = python(code, project)
    assert 0 == said.status, said
    said = command("backup", "backups", "--server", "server", "--root", "runs", cwd=project)
    assert 0 == said.status, said
    return project


@pytest.fixture
def tried(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """Copies of the project, in the same place one after the other, where `serve` ends before it serves."""

    def served(*_: object) -> None:
        raise Served(0)

    monkeypatch.setattr("hpcexp.cli.serve.become", served)
    kept = tmp_path / "kept"
    shutil.move(original, kept)

    def copied() -> Path:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(original, ignore_errors=True)
        shutil.copytree(kept, original, symlinks=True)
        monkeypatch.chdir(original)
        return original

    yield copied
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(original, ignore_errors=True)
    shutil.move(kept, original)


def cases() -> list[Case]:
    return [
        (place, file, damage, verb)
        for place, (files, verbs) in PLACES.items()
        for file in files
        for damage in DAMAGES
        for verb in verbs
    ]


def problem(project: Path, case: Case, hpcexp: Callable[..., Said]) -> str:
    """What is wrong with a verb beside a damaged file; empty where nothing is."""
    place, file, damage, verb = case
    [base] = project.glob(place)
    path = base / file
    path.parent.mkdir(parents=True, exist_ok=True)
    DAMAGES[damage](path, random.Random(f"{file} {damage}"))
    argv = [word if word != "PORT" else str(free_port()) for word in PLACES[place][1][verb]]
    _, wrong = ran(hpcexp, argv)
    return wrong


def failing(chosen: Sequence[Case], copied: Callable[[], Path], hpcexp: Callable[..., Said]) -> list[str]:
    found = []
    for case in chosen:
        if said := problem(copied(), case, hpcexp):
            found.append(f"{' | '.join(case)}: {said}")
            print(found[-1], flush=True)
    return found


@pytest.mark.timeout(1200)
def test_no_damage_to_a_search_a_server_or_a_backup_is_a_crash(
    tried: Callable[[], Path], hpcexp: Callable[..., Said]
) -> None:
    """What was found before, and a sample; `pytest -m soak` tries all."""
    assert [] == failing([*FOUND, *random.Random(1).sample(cases(), SAMPLE)], tried, hpcexp)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_no_damage_to_any_of_their_files_is_a_crash(tried: Callable[[], Path], hpcexp: Callable[..., Said]) -> None:
    """All of them, or HPCEXP_FUZZ_CASES of the seed HPCEXP_FUZZ_SEED."""
    assert [] == failing(some(cases()), tried, hpcexp)
