"""`hpcexp why`: what differs between a run and what would run now, by its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import FAST, Said, only_run, write_module

from hpcexp.compare import provenance_diff
from hpcexp.files.atomic import write_json
from hpcexp.rundir import RunDir, find_runs

NET = """
    from hpcexp.models.mlp import MLP

    class Net(MLP):
        scale = {scale}
"""
SOURCE = """
    from pathlib import Path
    from hpcexp.data.digits import Digits
    from hpcexp.data.source import DataFile

    class Sharded(Digits):
        def __init__(self, password: str, val_fraction: float = 0.1) -> None:
            assert password == "open sesame", password
            super().__init__(val_fraction)

        def files(self):
            return [DataFile(path, 1) for path in sorted(Path("shards").glob("*"))]
"""
DRY = (*FAST, "launch=dry")


@pytest.fixture
def run(project: Path, hpcexp: Callable[..., Said]) -> RunDir:
    """A run that is planned: its lineage is as that of one that was trained."""
    assert 0 == hpcexp("train", *DRY, "optimizer.lr=0.02").status
    return only_run(project)


def test_nothing_differs_from_the_runs_own_overrides(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """Each part says so; and a run that has not finished would be gone on with."""
    said = hpcexp("why", "last")
    assert (0, "") == (said.status, said.err)
    assert f"digits_mlp/{run.path.name} equals a run started now: `hpcexp train` would resume it" in said.out
    for part in ("config ", "devices", "code", "packages"):
        assert any(line.startswith(part) and " the same (" in line for line in said.out.splitlines()), part


def test_a_finished_run_would_be_skipped(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """It is the answer to why a command did nothing."""
    write_json(run.status, {"state": "finished"})
    assert "`hpcexp train` would skip it" in hpcexp("why", "last").out


@pytest.mark.parametrize(
    ("overrides", "part", "expected"),
    [
        (["optimizer.lr=0.03"], "config", "optimizer.lr  0.02 → 0.03"),
        (["optimizer.lr=0.02", "model.hidden=[8]"], "config", "model.hidden  [256, 256] → [8]"),
        (["optimizer.lr=0.02", "hardware.devices=2"], "devices", "ranks           1 → 2"),
        (["optimizer.lr=0.02", "data.global_batch_size=32"], "devices", "batch           64 → 32"),
        (["optimizer.lr=0.02", "data.val_fraction=0.2"], "data", "fingerprint"),
        (["optimizer.lr=0.02", "~model.dropout"], "config", "model.dropout  0.0 → nothing"),
    ],
)
def test_what_is_asked_otherwise_is_named_with_both_values(
    run: RunDir, hpcexp: Callable[..., Said], overrides: list[str], part: str, expected: str
) -> None:
    """And nothing else is said to differ."""
    said = hpcexp("why", "last", *DRY, "hardware=cpu", *overrides)
    assert (1, "") == (said.status, said.err)
    assert expected in said.out
    assert "differs from a run started now: digits_mlp/" in said.out
    assert part in {line.split()[0] for line in said.out.splitlines() if " differ" in line}


def test_what_changes_no_result_is_shown_and_does_not_count(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """Where it runs, what is kept."""
    said = hpcexp("why", "last", *DRY, "optimizer.lr=0.02", "run.label=mine")
    assert 0 == said.status
    assert "run.label  '' → mine" in said.out
    assert "1 of " in said.out
    assert "which changes no result" in said.out


def test_code_that_was_edited_is_named(project: Path, hpcexp: Callable[..., Said]) -> None:
    """By its file."""
    write_module(project, "net_w", NET.format(scale=1))
    assert 0 == hpcexp("train", *DRY, "model._target_=net_w.Net").status
    write_module(project, "net_w", NET.format(scale=2))
    said = hpcexp("why", "last")
    assert 1 == said.status
    assert "net_w.py  " in said.out
    assert "config     the same" in said.out


def test_what_was_imported_beyond_the_plan_is_compared_as_well(
    run: RunDir, project: Path, hpcexp: Callable[..., Said]
) -> None:
    """Such as what a function imports."""
    (project / "late.py").write_text("x = 1\n")
    write_json(run.lineage / "job.json", {"imported": {"late.py": "0" * 64}})
    said = hpcexp("why", "last")
    assert 1 == said.status
    assert "late.py  000000000000 → " in said.out
    (project / "late.py").unlink()
    assert "late.py  000000000000 → nothing" in hpcexp("why", "last").out


def test_another_version_of_a_package_is_named(
    run: RunDir, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it makes no other identity."""
    versions = {**provenance_diff.installed(), "numpy": "99.0"}
    del versions["pillow"]
    monkeypatch.setattr(provenance_diff, "installed", lambda: versions)
    said = hpcexp("why", "last")
    assert 1 == said.status
    assert "equals a run started now" in said.out
    assert " → 99.0" in said.out
    assert "pillow" in said.out


def test_data_files_are_compared_by_content(
    project: Path, hpcexp: Callable[..., Said], train: Callable[..., Said]
) -> None:
    """Changed, added, removed; wherever the data lies. A secret of the run is used, and not shown."""
    write_module(project, "sharded_w", SOURCE)
    (project / "shards").mkdir()
    for name in ("a", "b", "c"):
        (project / "shards" / name).write_text(name)
    asked = (*FAST, "data._target_=sharded_w.Sharded", "data.password='open sesame'")
    assert 0 == train(*asked).status
    assert 0 == hpcexp("why", "last").status
    (project / "shards" / "b").write_text("x")
    (project / "shards" / "c").rename(project / "shards" / "d")
    said = hpcexp("why", "last")
    assert 1 == said.status
    assert "4 of 5 digests differ" in said.out  # the fingerprint, too
    told = {line.split()[0]: line.split("  ", 2)[-1] for line in said.out.splitlines() if line.startswith("  ")}
    assert told["c"].endswith("→ nothing")
    assert told["d"].strip().startswith("nothing →")
    assert "sesame" not in said.out


def test_a_run_of_before_lineage_is_compared_by_what_it_has(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """And it says what it lacks."""
    shutil.rmtree(run.lineage)
    said = hpcexp("why", "last")
    assert (0, "") == (said.status, said.err)
    assert "the run kept no digests of single files" in said.out
    assert "the run kept the versions of" in said.out
    run.plan.write_text(run.plan.read_text().replace("code.digest: ", "code.digest: 0"))
    assert "all files  0" in hpcexp("why", "last").out


def test_a_run_is_named_by_its_mlflow_id_too(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """Or by the beginning of it."""
    write_json(run.mlflow, {"run_id": "f00dfeed" * 4})
    assert hpcexp("why", "last") == hpcexp("why", "f00dfeed" * 4) == hpcexp("why", "f00d")


def test_mistakes_are_told_as_by_other_verbs(run: RunDir, hpcexp: Callable[..., Said]) -> None:
    """Exit status 2."""
    assert 2 == hpcexp("why", "nowhere").status
    said = hpcexp("why", "last", "optimizer.lrr=1")
    assert 2 == said.status
    assert "optimizer.lrr" in said.err


def test_nothing_is_written(run: RunDir, project: Path, hpcexp: Callable[..., Said]) -> None:
    """It only looks."""
    before = {f: f.stat().st_mtime_ns for f in project.rglob("*")}
    hpcexp("why", "last", "seed=9")
    assert before == {f: f.stat().st_mtime_ns for f in project.rglob("*")}
    assert [run] == list(find_runs(project / "runs"))
