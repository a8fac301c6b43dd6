"""Damage to any file of a run or of a sweep leaves every verb working: no traceback, no hang, the rest is shown."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pytest
from damage import DAMAGES, other
from forked import command
from helpers import LEAN, WARM, Said

from hpcexp.rundir import RunDir, SweepDir, find_runs

LIMIT_S = 30
"""Of one verb. Those that load a model take a second or two, on a loaded machine ten."""
SAMPLE = 300
"""Cases of the usual suite; each file and each damage is in it several times."""
JOBS = ["train", "-m", "seed=1,2", "trainer.max_epochs=1", "run.pictures=true", "launch.progress=none"]
TRIED = ("optimizer.lr=0.02", "trainer.max_epochs=1", "seed=5", WARM, *LEAN)
"""A run that no sweep has; `train` and `plan` find it done."""
RUN_FILES = (
    *("plan.yaml", "status.json", "summary.json", "mlflow.json", "confusion.json", "metrics.jsonl", "system.jsonl"),
    *(".tracking", ".secrets", "failed.json", ".sync.lock", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    *(f"lineage/{name}.json" for name in ("code", "job", "environment", "hardware", "data", "origin")),
    *("lineage/manifest.jsonl", "logs/rank-0.log", "logs/sync.log"),
    *("plots/loss.png", "checkpoints", "lineage", "logs", "plots"),
)
SWEEP_FILES = (
    *("sweep.json", "jobs.jsonl", "status.json", "mlflow.json", "table.csv", "table.md", "best.json", "cancel"),
    *("claims/1", "claims/ledger", "drivers/0123456789abcdef.json", "spent/0123456789abcdef.json", ".tracking"),
    *("claims", "drivers", "spent", "plots", "logs"),
)
VERBS: dict[str, tuple[str, ...]] = {
    "runs": ("runs",),
    "runs --json": ("runs", "--json"),
    "show": ("show", "RUN"),
    "show --config": ("show", "RUN", "--config"),
    "show --log": ("show", "RUN", "--log"),
    "show last": ("show", "last"),
    "compare": ("compare",),
    "compare csv": ("compare", "--each", "--format", "csv"),
    "compare --sweep": ("compare", "--sweep", "last"),
    "compare --query": ("compare", "--query", "sweep != ''", "--metric", "val/loss"),
    "compare --plot": ("compare", "--plot", "curves.png"),
    "verify": ("verify", "RUN"),
    "why": ("why", "RUN"),
    "sync": ("sync",),
    "sync RUN": ("sync", "RUN"),
    "sweep": ("sweep",),
    "sweep --status": ("sweep", "last", "--status"),
    "sweep --cancel": ("sweep", "last", "--cancel"),
    "plan": ("plan", *TRIED),
    "plan -m": ("plan", *JOBS[1:]),
    "test": ("test", "RUN"),
    "predict": ("predict", "RUN", "digit.png"),
    "export": ("export", "RUN"),
    "backup": ("backup", "../backups"),
}
SHOWN = ("runs", "runs --json", "compare csv")
"""Verbs that show every run, so that the healthy one must be there."""


_Case = TypeVar("_Case")


@dataclass(frozen=True)
class Place:
    """A project with a sweep of two runs and one run beside it."""

    path: Path

    @property
    def run(self) -> RunDir:
        """The one that damage befalls."""
        [run] = [run for run in find_runs(self.path / "runs") if "s5" in run.path.name]
        return run

    @property
    def sweep(self) -> SweepDir:
        [sweep] = (self.path / "runs" / "sweeps").iterdir()
        return SweepDir(sweep)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The project that each case gets a copy of."""
    from PIL import Image

    project = tmp_path_factory.mktemp("fuzz") / "project"
    project.mkdir()
    for asked in (JOBS, ["train", *TRIED]):
        said = command(*asked, cwd=project)
        assert 0 == said.status, said
    Image.new("L", (8, 8), 128).save(project / "digit.png")
    return Place(project)


@pytest.fixture
def tried(original: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Place]]:
    """Copies of the project, in the same place one after the other: notes name it by its path."""
    kept = tmp_path / "kept"
    shutil.move(original.path, kept)

    def copied() -> Place:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(original.path, ignore_errors=True)
        shutil.copytree(kept, original.path, symlinks=True)
        monkeypatch.chdir(original.path)
        return Place(original.path)

    yield copied
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(original.path, ignore_errors=True)
    shutil.move(kept, original.path)


class Late(BaseException):
    """No OSError, as TimeoutError is: what is tried again after one would not end."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Late where the block has not ended by then, wherever it is."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise Late(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def cases() -> list[tuple[str, str, str]]:
    """File (of the run, or of the sweep below `sweep:`), damage, verb: every combination."""
    files = [*RUN_FILES, *(f"sweep:{name}" for name in SWEEP_FILES)]
    return [(file, damage, verb) for file in files for damage in DAMAGES for verb in VERBS]


def some(every: list[_Case]) -> list[_Case]:
    """As many of the cases as HPCEXP_FUZZ_CASES says, by chance."""
    number = int(os.environ.get("HPCEXP_FUZZ_CASES", len(every)))
    return random.Random(os.environ.get("HPCEXP_FUZZ_SEED", "1")).sample(every, min(number, len(every)))


def ran(hpcexp: Callable[..., Said], argv: Sequence[str]) -> tuple[Said | None, str]:
    """What a verb said, None if it did not return; and what no damage excuses, empty if there is nothing of that."""
    try:
        with within(LIMIT_S):
            said = hpcexp(*argv)
    except BaseException as e:  # noqa: BLE001 - whatever it is
        return None, f"{type(e).__name__}: {str(e)[:300]}"
    if other().read_text() != "not yours\n":
        return said, "a file was changed that a link leads to"
    if said.status not in (0, 1, 2):
        return said, f"status {said.status}: {said.err[-300:]}"
    if "Traceback" in said.err + said.out:
        return said, f"a traceback: {said.err[-300:]}"
    if said.status == 2 and not said.err.strip():
        return said, "status 2 without a word"
    return said, ""


def problem(place: Place, file: str, damage: str, verb: str, hpcexp: Callable[..., Said]) -> str:
    """What is wrong with a verb beside a damaged file; empty where nothing is."""
    base, name = (
        (place.sweep.path, file.removeprefix("sweep:")) if file.startswith("sweep:") else (place.run.path, file)
    )
    run = place.run
    path = base / name
    path.parent.mkdir(parents=True, exist_ok=True)
    DAMAGES[damage](path, random.Random(f"{file} {damage}"))
    argv = [str(run.path) if word == "RUN" else word for word in VERBS[verb]]
    said, wrong = ran(hpcexp, argv)
    if said is None or wrong:
        return wrong
    healthy = [run.path.name for run in find_runs(place.path / "runs") if "s5" not in run.path.name]
    if verb in SHOWN and not file.startswith("sweep:") and not all(name in said.out for name in healthy):
        return f"the others are not shown: {said.out[-300:]} {said.err[-300:]}"
    return ""


def failing(chosen: list[tuple[str, str, str]], copied: Callable[[], Place], hpcexp: Callable[..., Said]) -> list[str]:
    found = []
    for file, damage, verb in chosen:
        if said := problem(copied(), file, damage, verb, hpcexp):
            found.append(f"{file} | {damage} | {verb}: {said}")
            print(found[-1], flush=True)
    return found


@pytest.mark.timeout(1200)
def test_no_damaged_file_spoils_anything_else(tried: Callable[[], Place], hpcexp: Callable[..., Said]) -> None:
    """A sample in which every file and every damage comes."""
    assert [] == failing(random.Random(1).sample(cases(), SAMPLE), tried, hpcexp)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_no_damage_of_any_file_spoils_any_verb(tried: Callable[[], Place], hpcexp: Callable[..., Said]) -> None:
    """All of them, or HPCEXP_FUZZ_CASES of the seed HPCEXP_FUZZ_SEED."""
    assert [] == failing(some(cases()), tried, hpcexp)
