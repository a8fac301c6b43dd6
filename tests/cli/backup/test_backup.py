"""`hpcexp backup` and `restore`: what is kept while it is in use is whole, and comes back anywhere."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from forked import command
from helpers import LEAN, Said, environment
from record_support import journalled, make_run, query, stored, wait_until, write_steps

from hpcexp.backup.snapshots import SnapshotDirectory, snapshots, write_snapshot
from hpcexp.files.atomic import write_atomic
from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir, find_runs, find_sweeps
from hpcexp.runs.journal import read_points
from hpcexp.tracking.sync.run_process import sync

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
"""Of SQLAlchemy about MLflow."""


def test_runs_that_were_moved_are_whole_and_mlflow_shows_them(recorded: Path, moved: Path) -> None:
    """Metrics, artifacts where they are now, and nothing left to sync; the same MLflow run goes on."""
    from mlflow import MlflowClient

    [run], [before] = find_runs(moved), find_runs(recorded)
    assert journalled(before) == journalled(run)
    note = read_plain(run.mlflow)
    assert f"sqlite:///{moved}/mlflow.db" == note["tracking_uri"]
    assert read_plain(before.mlflow)["run_id"] == note["run_id"]
    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    assert {"plan.yaml", "summary.json"} <= {file.path for file in client.list_artifacts(note["run_id"])}
    assert (moved / "mlartifacts").as_uri() in client.get_run(note["run_id"]).info.artifact_uri
    assert journalled(run) == stored(moved / "mlflow.db", note["run_id"])
    assert sync(run.path) is None
    assert [str(run.path)] == [
        json.loads(line)["run"] for line in next(find_sweeps(moved)).jobs.read_text().splitlines()
    ]
    assert [("wal",)] == query(moved / "mlflow.db", "PRAGMA journal_mode")


def test_a_run_that_was_restored_elsewhere_is_untouched(
    project: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """Its seal holds there, and MLflow has its model there."""
    assert 0 == train("trainer.max_epochs=1", "trainer.limit_train_batches=5", *LEAN).status
    assert 0 == hpcexp("backup", "kept").status
    assert 0 == hpcexp("restore", "kept", "--root", "back").status
    said = hpcexp("verify", "last", "--root", "back")
    assert (0, True) == (said.status, "unchanged since" in said.out), said
    shutil.move(project / "runs", project / "gone")
    assert 0 == command("promote", "last", "--to", "digits", "--root", "back", cwd=project).status


def test_a_place_below_the_old_one_is_named_and_damaged_files_come_as_they_were(
    project: Path, hpcexp: Callable[..., Said]
) -> None:
    """Once: the new place's name begins with the old one's."""
    good, bad = (make_run(project / "runs", f"sqlite:///{project}/runs/mlflow.db", name=n) for n in ("good", "bad"))
    good.secret_uri.write_text(f"sqlite:///{project}/runs/mlflow.db\nmine\n")
    bad.mlflow.write_bytes(b"\xff\xfe")
    bad.secret_uri.write_bytes(b"\xff")
    assert 0 == hpcexp("backup", "kept").status
    shutil.rmtree(project / "runs")
    (project / "runs").mkdir()
    said = hpcexp("restore", "kept", "--root", "runs/old")
    assert (0, "") == (said.status, said.err)
    there = project / "runs" / "old" / "digits_mlp"
    assert f"sqlite:///{project}/runs/old/mlflow.db\nmine\n" == (there / "good" / ".tracking").read_text()
    assert b"\xff\xfe" == (there / "bad" / "mlflow.json").read_bytes()


def test_a_moved_run_is_gone_on_with_in_its_mlflow_run(moved: Path) -> None:
    """What is journalled after it was restored goes to the store that was restored with it."""
    [run] = find_runs(moved)
    write_steps(run, 5, first=701)
    assert sync(run.path) is None
    assert journalled(run) == stored(moved / "mlflow.db", read_plain(run.mlflow)["run_id"])


def test_a_second_backup_shares_what_has_not_changed(runs: Path, hpcexp: Callable[..., Said]) -> None:
    """By hard links; `--keep` removes the older one, and the newer is whole all the same."""
    project = runs.parent
    assert 0 == hpcexp("backup", "kept").status
    [run] = find_runs(runs)
    write_steps(run, 1, first=900)
    assert 0 == hpcexp("backup", "kept").status
    first, second = snapshots(project / "kept")
    places = [s / "runs/digits_mlp/synced" for s in (first, second)]
    inodes = [{f.name: (place / f.name).stat().st_ino for f in run.path.glob("*.*")} for place in places]
    shared = {name for name in inodes[0] if inodes[0][name] == inodes[1][name]}
    assert {"plan.yaml", "summary.json", "status.json"} <= shared
    assert "metrics.jsonl" not in shared
    said = hpcexp("backup", "kept", "--keep", "1")
    assert "2 older snapshots removed" in said.out
    assert 1 == len(snapshots(project / "kept"))
    assert 0 == hpcexp("backup", "kept", "--verify").status


def test_runs_and_a_server_in_one_place_do_not_count_for_each_other(
    runs: Path, server: Path, hpcexp: Callable[..., Said]
) -> None:
    """`--keep` removes snapshots of the same, which share files with each other; both come back without `--at`."""
    kept = runs.parent / "kept"
    for options in (["--server", "server"], [], ["--server", "server", "--root", "runs"]):
        assert 0 == hpcexp("backup", "kept", *options).status
    of_server, of_runs, of_both = snapshots(kept)
    assert "1 older snapshots removed" in hpcexp("backup", "kept", "--keep", "1").out
    assert {of_server, of_both} < {*snapshots(kept)}
    assert not of_runs.exists()
    shutil.rmtree(of_both)
    assert 0 == hpcexp("backup", "kept", "--server", "server").status
    older, of_runs, newer = snapshots(kept)
    for name in ("secret", "mlartifacts/1/r/artifacts/plan.yaml"):
        assert (older / "server" / name).samefile(newer / "server" / name)
    for options in (["--root", "back/runs"], ["--server", "server", "--force"]):
        said = hpcexp("restore", "kept", *options)
        assert (0, "") == (said.status, said.err)
    assert "key" == (server / "secret").read_text()
    said = hpcexp("restore", "kept", "--root", "b/runs", "--server", "b/server")
    assert 2 == said.status
    assert (
        f"{kept} has no snapshot of `hpcexp backup` with runs and server. There are: "
        f"{older.name} (server), {of_runs.name} (runs), {newer.name} (server).\nFix: --root DIR for runs"
    ) in said.err
    said = hpcexp("restore", "kept", "--root", "b/runs", "--at", newer.name)
    assert f"no snapshot '{newer.name}' of `hpcexp backup` with runs" in said.err


def test_verify_looks_at_the_latest_of_runs_and_of_a_server(
    runs: Path, server: Path, hpcexp: Callable[..., Said]
) -> None:
    """A damaged manifest of the one does not keep the other from being read."""
    kept = runs.parent / "kept"
    assert 0 == hpcexp("backup", "kept").status
    assert 0 == hpcexp("backup", "kept", "--server", "server").status
    of_runs, of_server = snapshots(kept)
    (of_runs / "runs/digits_mlp/synced/plan.yaml").unlink()
    said = hpcexp("backup", "kept", "--verify")
    assert 1 == said.status
    assert "synced/plan.yaml: No such file" in said.out
    assert f"{of_server}: 0 of " in said.out
    assert "synced/plan.yaml. Nothing was changed." in hpcexp("restore", "kept", "--root", "new").err
    assert 0 == hpcexp("backup", "kept", "--verify", "--at", of_server.name).status
    (of_server / "manifest.json").write_text("{}")
    said = hpcexp("backup", "kept", "--verify")
    assert 2 == said.status
    assert "synced/plan.yaml: No such file" in said.out
    assert "manifest.json is damaged" in said.err


def test_what_is_written_meanwhile_is_kept_as_of_one_moment(runs: Path, project: Path) -> None:
    """A journal that is a valid prefix and not behind what is said to be synced, checkpoints that fit each other."""
    run = make_run(runs, f"sqlite:///{runs}/mlflow.db", "going")
    stop = threading.Event()

    def work() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            write_steps(run, 1, first=step)
            for name in ("a", "b"):
                write_atomic(run.checkpoints / f"{name}.ckpt", f"{step}\n" * 20_000)
            write_atomic(run.mlflow, json.dumps({"offset": run.journal.stat().st_size}))
            with closing(sqlite3.connect(runs / "mlflow.db", timeout=20)) as connection, connection:
                connection.execute("UPDATE experiments SET last_update_time = ?", (step,))

    with closing(sqlite3.connect(runs / "mlflow.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until((run.checkpoints / "b.ckpt").exists, "the run is going")
        for i in range(5):
            write_snapshot(
                project / f"s{i}", {"runs": SnapshotDirectory(runs, f"sqlite:///{runs}/mlflow.db")}, links=i % 2 == 1
            )
    finally:
        stop.set()
        worker.join()
    for i in range(5):
        copy = RunDir(project / f"s{i}/runs/digits_mlp/going")
        points, end = read_points(copy.journal)
        assert [point.step for point in points] == list(range(1, len(points) + 1))
        assert read_plain(copy.mlflow)["offset"] <= end == copy.journal.stat().st_size
        a, b = ((copy.checkpoints / f"{name}.ckpt").read_text().splitlines() for name in "ab")
        assert [1, 1] == [len(set(a)), len(set(b))]
        assert int(a[0]) - int(b[0]) in (0, 1)
        assert [("ok",)] == query(project / f"s{i}/runs/mlflow.db", "PRAGMA integrity_check")


def test_a_place_that_is_not_empty_is_left_alone_unless_forced(runs: Path, hpcexp: Callable[..., Said]) -> None:
    """And then put aside, not removed."""
    assert 0 == hpcexp("backup", "kept").status
    (runs / "later").write_text("made since")
    said = hpcexp("restore", "kept")
    assert (2, "") == (said.status, said.out)
    assert f"{runs} is not empty.\nFix: another directory, or --force" in said.err
    said = hpcexp("restore", "kept", "--force")
    assert 0 == said.status, said.err
    assert not (runs / "later").exists()
    [aside] = runs.parent.glob("runs.before-*")
    assert str(aside) in said.out
    assert "made since" == (aside / "later").read_text()


def test_damage_is_noticed_and_nothing_of_it_restored(runs: Path, hpcexp: Callable[..., Said]) -> None:
    """In a file as in the manifest; an older snapshot does."""
    assert 0 == hpcexp("backup", "kept").status
    assert 0 == hpcexp("backup", "kept").status
    older, latest = snapshots(runs.parent / "kept")
    plan = latest / "runs/digits_mlp/synced/plan.yaml"
    content = plan.read_bytes()
    plan.unlink()  # the older snapshot has the same file
    plan.write_bytes(content.replace(b"0.01", b"0.02", 1))
    said = hpcexp("backup", "kept", "--verify")
    assert 1 == said.status
    assert "runs/digits_mlp/synced/plan.yaml: its content is another" in said.out
    said = hpcexp("restore", "kept", "--root", "new")
    assert 2 == said.status
    assert "synced/plan.yaml. Nothing was changed." in said.err
    assert not (runs.parent / "new").exists()
    (latest / "manifest.json").write_text("{}")
    assert "manifest.json is damaged" in hpcexp("backup", "kept", "--verify").err
    assert 0 == hpcexp("restore", "kept", "--root", "new", "--at", older.name).status
    assert 0 == hpcexp("backup", "kept").status
    assert 0 == hpcexp("backup", "kept", "--verify").status


def test_what_was_found_damaged_is_copied_anew(runs: Path, hpcexp: Callable[..., Said]) -> None:
    """Snapshots with a link to it are not advised instead, but those with another copy."""
    kept = runs.parent / "kept"
    for _ in range(2):
        assert 0 == hpcexp("backup", "kept").status
    older, latest = snapshots(kept)
    plan = latest / "runs/digits_mlp/synced/plan.yaml"
    times = plan.stat()
    plan.write_bytes(plan.read_bytes().replace(b"0.01", b"0.02", 1))
    os.utime(plan, ns=(times.st_atime_ns, times.st_mtime_ns))
    said = hpcexp("restore", "kept", "--root", "new")
    assert 2 == said.status
    assert (
        "synced/plan.yaml. Nothing was changed.\nNo other snapshot has these whole.\nFix: `hpcexp backup … --verify`"
        in said.err
    )
    said = hpcexp("backup", "kept", "--verify")
    assert 1 == said.status
    assert "The next backup copies these again" in said.out
    assert 0 == hpcexp("backup", "kept").status
    assert 0 == hpcexp("backup", "kept", "--verify").status
    renewed = snapshots(kept)[-1]
    assert (runs / "digits_mlp/synced/plan.yaml").read_bytes() == (
        renewed / "runs/digits_mlp/synced/plan.yaml"
    ).read_bytes()
    summary = "runs/digits_mlp/synced/summary.json"
    assert (latest / summary).samefile(renewed / summary)
    said = hpcexp("restore", "kept", "--root", "new", "--at", older.name)
    assert f"Fix: --at NAME, where these are whole: {renewed.name}.\n" in said.err
    assert 0 == hpcexp("restore", "kept", "--root", "new").status


def test_snapshots_are_kept_apart_from_what_they_are_of(runs: Path, server: Path, hpcexp: Callable[..., Said]) -> None:
    """Neither in runs nor in a server's directory, nor these among them, also as a repository of restic."""
    project = runs.parent
    cases = [
        (["runs/kept"], f"{runs}/kept is in {runs}: each backup would keep those before it again."),
        (["runs"], f"{runs} is in {runs}: "),
        (["server/kept", "--server", "server"], f"{server}/kept is in {server}: "),
        (["kept", "--server", "server", "--root", "kept/runs"], f"{project}/kept/runs is in {project}/kept, among"),
        (["restic:runs/kept"], f"{runs}/kept is in {runs}: "),
        (["restic:local:runs/kept"], f"{runs}/kept is in {runs}: "),
    ]
    (project / "kept/runs").mkdir(parents=True)
    for argv, words in cases:
        said = hpcexp("backup", *argv)
        assert (2, "") == (said.status, said.out)
        assert words in said.err
    assert not [*project.glob("*/kept")]
    assert 0 == hpcexp("backup", "runs-kept").status


def test_a_backup_that_is_killed_leaves_the_former_and_a_half_one_that_nobody_takes(
    runs: Path, hpcexp: Callable[..., Said]
) -> None:
    """Which the next one removes."""
    kept = runs.parent / "kept"
    assert 0 == hpcexp("backup", "kept").status
    with (runs / "digits_mlp/synced/checkpoints/large.ckpt").open("wb") as large:
        os.posix_fallocate(large.fileno(), 0, 1 << 30)  # a file that is mostly holes would be left out
    command = [sys.executable, "-m", "hpcexp", "backup", "kept"]
    process = subprocess.Popen(command, cwd=runs.parent, env=environment())
    try:
        wait_until(lambda: [*kept.glob(".half-*/runs/*/*/checkpoints/large.ckpt")], "it is in the middle of it")
    finally:
        process.kill()
        process.wait()
    assert 1 == len(snapshots(kept))
    assert "0 of" in hpcexp("backup", "kept", "--verify").out
    (runs / "digits_mlp/synced/checkpoints/large.ckpt").unlink()
    assert 0 == hpcexp("backup", "kept").status
    assert [] == [*kept.glob(".half-*")]
    assert 2 == len(snapshots(kept))


def test_what_does_not_fit_is_told_and_leaves_nothing(runs: Path) -> None:
    """As on a full disk; here no file may become larger than a megabyte."""
    (runs / "digits_mlp/synced/checkpoints/large.ckpt").write_bytes(b"x" * (4 << 20))
    done = subprocess.run(
        [sys.executable, "-m", "hpcexp", "backup", "kept"],
        cwd=runs.parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20)),
    )
    assert (2, "") == (done.returncode, done.stdout)
    assert "could not be written" in done.stderr
    assert "File too large" in done.stderr
    assert [] == [path for path in (runs.parent / "kept").iterdir() if path.name != ".lock"]


def test_mistakes_are_named(project: Path, hpcexp: Callable[..., Said]) -> None:
    """With the option that mends them."""
    (project / "kept").mkdir()
    cases = [
        (["backup", "kept"], "Fix: --root DIR for runs, --server DIR for a server."),
        (["backup", "kept", "--verify"], "has no snapshot of `hpcexp backup`. There are: none."),
        (["backup", "kept", "--keep", "0"], "--keep 0 would leave nothing"),
        (["restore", "kept", "--at", "then"], "no snapshot 'then'"),
    ]
    for argv, words in cases:
        said = hpcexp(*argv)
        assert 2 == said.status
        assert words in said.err
