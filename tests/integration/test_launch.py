"""Jobs as processes: they are not repeated, end together, and say what became of them, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from forked import ForkedProcess, start
from helpers import FAST, LEAN, WARM, Said, command, ended, environment, only_run, wait_until, write_conf, write_module

from hpcexp.files.documents import read_plain
from hpcexp.files.locks import held
from hpcexp.rundir import RunDir, find_runs

pytestmark = pytest.mark.slow

ENDLESS = ("trainer.max_epochs=1000000", "tracking=off", "trainer.log_every_n_steps=1", *LEAN)

SECRET = "tracking.uri=http://ada:s3cret@127.0.0.1:9"

BROKEN = """
import os, signal
import torch
from hpcexp.models.mlp import MLP

class Broken(MLP):
    def __init__(self, in_shape, num_classes, breaks, at=3):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.breaks, self.left = breaks, at

    def forward(self, x):
        self.left -= self.training
        if self.left == 0 and self.breaks == "raise":
            raise ValueError("the loss of all hope")
        if self.left == 0 and self.breaks == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left == 0 and self.breaks == "exit":
            os._exit(0)
        return super().forward(x)
"""


@contextmanager
def running(project: Path, *overrides: str, **env: str) -> Iterator[tuple[ForkedProcess, RunDir, list[psutil.Process]]]:
    """A job that has made steps: its supervisor, its directory and the processes below the supervisor."""
    supervisor = start("train", *ENDLESS, WARM, *overrides, cwd=project, **env)
    below: list[psutil.Process] = []
    try:
        wait_until(lambda: supervisor.poll() is not None or any(map(has_steps, find_runs(project / "runs"))), "a step")
        assert None is supervisor.poll(), ended(supervisor)
        below = psutil.Process(supervisor.pid).children(recursive=True)
        yield supervisor, only_run(project), below
    finally:
        supervisor.kill()
        ended(supervisor)
        for process in below:
            if process.is_running():
                process.kill()


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endless]:
    """A job that has made steps and goes on, on all cores. For looking at only: it is shared.

    It leases them where no other test's job looks, or those of a sweep would wait for it.
    """
    project = tmp_path_factory.mktemp("endless")
    locks = project / "locks"
    with running(project, HPCEXP_DEVICE_LOCKS=str(locks)) as (supervisor, run, _):
        yield Endless(project, locks, supervisor, run)


@contextmanager
def nohup(number: signal.Signals | None) -> Iterator[None]:
    """Have commands that are started ignore a signal."""
    before = signal.signal(number, signal.SIG_IGN) if number else None
    try:
        yield
    finally:
        if number:
            signal.signal(number, before)


@dataclass(frozen=True)
class Endless:
    """A running job."""

    project: Path
    locks: Path
    supervisor: ForkedProcess
    run: RunDir


def has_steps(run: RunDir) -> bool:
    return run.journal.exists() and run.journal.stat().st_size > 0


def is_over(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def broken(project: Path) -> Path:
    """A project with a model that raises, or kills its process, in its third training step."""
    write_module(project, "broken", BROKEN)
    write_conf(project, {"model/broken.yaml": "_target_: broken.Broken\nbreaks: raise\n"})
    return project


def test_a_finished_run_is_not_run_again_unless_asked(project: Path, train: Callable[..., Said]) -> None:
    """`--fresh` keeps the old one beside the new. Variables of a job around this one do not reach its ranks."""
    first = command("train", *FAST, cwd=project, RANK="3", WORLD_SIZE="8", LOCAL_RANK="1", PL_GLOBAL_SEED="9")
    assert (0, "") == (first.status, first.err)
    run = only_run(project)
    before = read_plain(run.status)
    assert "finished" == before["state"]

    again = train(*FAST, "run.label=again", "hardware.threads_per_rank=1")
    assert 0 == again.status
    assert "Not run again" in again.out
    assert "test/acc" in again.out
    assert before == read_plain(run.status)

    fresh = train("--fresh", *FAST)
    assert (0, "") == (fresh.status, fresh.err)
    assert {run.path.name, f"{run.path.name}~1"} == {r.path.name for r in find_runs(project / "runs")}
    assert before == read_plain(RunDir(run.path.with_name(f"{run.path.name}~1")).status)
    assert before["started"] < read_plain(run.status)["started"]


@pytest.mark.parametrize("pictures", [True, False])
def test_without_pictures_and_tracking_nothing_accompanies_a_run(
    train: Callable[..., Said], project: Path, pictures: bool
) -> None:
    """There would be nothing for it to do."""
    assert 0 == train(*FAST, f"run.pictures={pictures}").status
    run = only_run(project)
    assert pictures == (run.logs / "sync.log").exists() == run.plots.exists()


def test_a_job_that_raises_says_why_and_where_its_log_is(
    broken: Path, train: Callable[..., Said], hpcexp: Callable[..., Said]
) -> None:
    """Exit status 1; the traceback is in the log."""
    said = train("model=broken", *FAST)
    log = only_run(broken).rank_log(0)
    assert 1 == said.status
    assert "failed: rank 0 ended with status 1: ValueError: the loss of all hope (" in said.err
    assert "broken.py:" in said.err
    assert f"Its log: {log}" in said.err
    assert "Traceback" not in said.out
    assert "Traceback" not in said.err
    assert 'raise ValueError("the loss of all hope")' in log.read_text()
    status = read_plain(only_run(broken).status)
    assert ("failed", 1) == (status["state"], status["exit"])
    assert "the loss of all hope" in hpcexp("runs", "--state", "failed").out


def test_a_job_that_is_killed_names_the_signal(broken: Path, train: Callable[..., Said]) -> None:
    """As the system's own out-of-memory killer does it."""
    said = train("model=broken", "model.breaks=kill", "launch.isolation=process", *FAST)
    assert 1 == said.status
    assert "rank 0 was killed by SIGKILL" in said.err
    assert "failed" == read_plain(only_run(broken).status)["state"]


@pytest.mark.parametrize(("number", "ignored"), [(signal.SIGINT, None), (signal.SIGTERM, signal.SIGHUP)])
def test_a_stopped_run_leaves_its_state(project: Path, number: signal.Signals, ignored: signal.Signals | None) -> None:
    """The ranks end their step and write a checkpoint; the exit status says which signal it was.

    Not the hangup before it, where nohup has that ignored.
    """
    with nohup(ignored), running(project) as (supervisor, run, below):
        if ignored:
            supervisor.send_signal(ignored)
        supervisor.send_signal(number)
        said = ended(supervisor)
        assert 128 + number == said.status, said
        assert f"stopped by {number.name}" in said.err
        assert "Traceback" not in said.out + said.err
        status = read_plain(run.status)
        assert ("killed", f"stopped by {number.name}", 128 + number) == (
            status["state"],
            status["cause"],
            status["exit"],
        )
        assert torch.load(run.last, weights_only=True)["global_step"] > 0
        wait_until(lambda: all(map(is_over, below)), "the end of all its processes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_before_its_ranks_began_leaves_its_state(project: Path, number: signal.Signals) -> None:
    """From the first moment in which its directory says that it runs."""
    supervisor = start("train", *ENDLESS, WARM, cwd=project)
    wait_until(lambda: any(read_plain(r.status) for r in find_runs(project / "runs")), "the run's state", poll_s=0)
    supervisor.send_signal(number)
    said = ended(supervisor)
    assert 128 + number == said.status, said
    assert f"stopped by {number.name}" in said.err
    assert "Traceback" not in said.out + said.err
    status = read_plain(only_run(project).status)
    assert ("killed", f"stopped by {number.name}") == (status["state"], status["cause"])


def test_a_supervisor_killed_leaves_no_process_and_no_run_that_runs(project: Path, hpcexp: Callable[..., Said]) -> None:
    """With two ranks; `hpcexp runs` says killed at once, and the run directory in the end."""
    with running(project, "hardware=cpu", "hardware.devices=2", "run.pictures=true") as (supervisor, run, below):
        assert 3 <= len(below)
        supervisor.kill()
        supervisor.wait()
        assert hpcexp("runs").out.splitlines()[1].startswith("killed")
        wait_until(lambda: all(map(is_over, below)), "the end of all its processes")
    assert "killed" == read_plain(run.status)["state"]
    planned = hpcexp("plan", *ENDLESS, "hardware=cpu", "hardware.devices=2").out
    assert "tried before (killed, without a checkpoint)" in planned


def test_a_run_directory_has_one_writer(
    endless: Endless, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second command for the same run is told who has it, and disturbs nothing; nor does a dry one."""
    monkeypatch.chdir(endless.project)
    size = endless.run.journal.stat().st_size
    for more in ((), ("launch=dry",)):
        said = hpcexp("train", *ENDLESS, *more)
        assert 2 == said.status
        assert f"is being written by process {endless.supervisor.pid} on {os.uname().nodename}" in said.err
    assert endless.run.plan.exists()
    assert "running now" in hpcexp("plan", *ENDLESS).out
    wait_until(lambda: endless.run.journal.stat().st_size > size, "a further step")


@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_two_ranks_are_one_run_in_mlflow(project: Path, train: Callable[..., Said]) -> None:
    """One journal, one run, and a log for each rank."""
    from mlflow import MlflowClient

    said = train("hardware=cpu", "hardware.devices=2", "debug=fast", "tracking.enabled=true")
    assert 0 == said.status, said.err
    run = only_run(project)
    assert ["rank-0.log", "rank-1.log", "sync.log"] == sorted(f.name for f in run.logs.iterdir())
    client = MlflowClient(f"sqlite:///{project}/runs/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "digits_mlp"]
    [recorded] = client.search_runs([experiment.experiment_id])
    assert ("FINISHED", "2", "ddp") == (
        recorded.info.status,
        recorded.data.tags["hpcexp.world_size"],
        recorded.data.tags["hpcexp.strategy"],
    )
    steps = [m.step for m in client.get_metric_history(recorded.info.run_id, "train/lr")]
    assert [1, 2, 3, 4, 5] == steps


def test_a_sweep_goes_on_after_a_job_that_fails(broken: Path, hpcexp: Callable[..., Said]) -> None:
    """And ends with exit status 1 and a table; given again, it runs only what did not finish."""
    asked = ["-m", "model=broken", "model.at=3,1000", *FAST]
    said = hpcexp("train", *asked)
    assert 1 == said.status
    assert "" == said.err
    states = sorted(read_plain(r.status)["state"] for r in find_runs(broken / "runs"))
    assert ["failed", "finished"] == states
    assert "2 jobs: 1 failed, 1 finished" in said.out
    failure, log = said.out.strip().splitlines()[-2:]
    assert failure.startswith("job 1 (model.at=3) failed: ")
    assert "the loss of all hope" in failure
    assert Path(log.strip()).is_file()

    again = hpcexp("plan", *asked).out
    assert "2 jobs: 1 failed, 1 done" == again.splitlines()[-1]


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=basic"]], ids=["as it is", "hydra/launcher=basic"])
def test_hydras_launcher_takes_the_same_way(hpcexp: Callable[..., Said], project: Path, launcher: list[str]) -> None:
    """Every job of a sweep is frozen into its own run directory."""
    said = hpcexp("train", "-m", "seed=1,2", "launch=dry", *launcher)
    assert (0, "") == (said.status, said.err)
    assert [1, 2] == sorted(read_plan_seed(r) for r in find_runs(project / "runs"))
    assert [] == [f for f in project.iterdir() if f.name != "runs"]


def read_plan_seed(run: RunDir) -> int:
    from hpcexp.plan import load_plan

    seed: int = load_plan(run.plan).config["seed"]
    return seed


def test_a_try_that_was_killed_while_it_wrote_a_note_leaves_nothing(
    hpcexp: Callable[..., Said], project: Path, train: Callable[..., Said]
) -> None:
    """It came to nothing, so there is nothing to keep beside the next try."""
    hpcexp("train", "launch=dry", *FAST)
    half_written = only_run(project).path / f".status.json.{os.getpid()}.0123abcd"
    half_written.write_text("{")
    assert 0 == train(*FAST).status
    assert "finished" == read_plain(only_run(project).status)["state"]


def test_a_run_that_is_held_for_a_moment_is_waited_for(hpcexp: Callable[..., Said], project: Path) -> None:
    """As by a sync process that notes the end of a supervisor which was killed."""
    assert 0 == hpcexp("train", "launch=dry", *FAST).status
    path = only_run(project).path
    is_had = threading.Event()

    def have() -> None:
        with held(path.parent / f".{path.name}.lock", "held by"):
            is_had.set()
            time.sleep(0.3)

    holder = threading.Thread(target=have)
    holder.start()
    is_had.wait()
    said = hpcexp("train", "launch=dry", *FAST)
    holder.join()
    assert (0, "") == (said.status, said.err)


def test_a_stopped_job_stops_its_sweep(project: Path) -> None:
    """Ctrl-C is for all of it."""
    with running(project, "-m", "seed=1,2", "launch.max_jobs=1") as (supervisor, _run, _):
        supervisor.send_signal(signal.SIGINT)
        said = ended(supervisor)
        assert 130 == said.status, said
        assert ["killed"] == [read_plain(r.status).get("state") for r in find_runs(project / "runs")]


def test_a_job_that_leaves_early_has_not_finished(broken: Path, train: Callable[..., Said]) -> None:
    """Exit status 0 of a rank alone is no result."""
    said = train("model=broken", "model.breaks=exit", *FAST)
    assert 1 == said.status
    assert "ended before the run was complete" in said.err
    assert "failed" == read_plain(only_run(broken).status)["state"]


def test_a_reader_that_goes_away_does_not_end_a_training(endless: Endless, project: Path) -> None:
    """`hpcexp train | head -1`, where there is more to say: another job is on the cores."""
    code = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE); "
    code += "p.stdout.readline(); p.stdout.close(); p.wait()"
    subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-m", "hpcexp", "train", *FAST],
        cwd=project,
        env=environment(HPCEXP_DEVICE_LOCKS=str(endless.locks)),
        check=True,
    )
    assert "finished" == read_plain(only_run(project).status)["state"]


def test_a_password_is_for_the_sync_process_alone(project: Path) -> None:
    """Not in the plan, which goes to MLflow; in a file of its own that only its owner may read."""
    said = command("train", *FAST, "tracking=mlflow", "tracking.enabled=true", SECRET, "tracking.wait_s=0", cwd=project)
    assert 0 == said.status, said
    run = only_run(project)
    assert "s3cret" not in said.out + said.err
    for file in run.path.rglob("*"):
        if file.is_file() and file != run.secret_uri:
            assert b"s3cret" not in file.read_bytes(), file
    assert 0o600 == run.secret_uri.stat().st_mode & 0o777
