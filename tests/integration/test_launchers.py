"""What every launcher keeps to, each test with `launch=local` and with a third party's from outside the package.

The several machines of `launch=torchrun` are in test_nodes.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from forked import ForkedProcess, command, start
from helpers import LEAN, WARM, Said, ended, only_run, wait_until, write_conf, write_module

from hpcexp.files.documents import read_plain
from hpcexp.launch.base.launcher import Launcher, launcher_of
from hpcexp.plan import load_plan
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.journal import read_points
from hpcexp.runs.records.status import RunState, read_status
from hpcexp.status.state import current_state

pytestmark = pytest.mark.slow

LOCAL, FAR = (WARM,), ("launch=far",)
SHORT = ("trainer.max_epochs=2", "data.global_batch_size=256", "tracking=off", "launch.grace_s=20", *LEAN)
ENDLESS = ("trainer.max_epochs=1000000", "tracking=off", "trainer.log_every_n_steps=1", *LEAN)
TWO = ("hardware=cpu", "hardware.devices=2", "hardware.threads_per_rank=1")
HOSTED = """
import pathlib, socket
from hpcexp.models.mlp import MLP

class Hosted(MLP):
    def __init__(self, in_shape, num_classes, breaks=False):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.breaks = breaks
        pathlib.Path("host").write_text(socket.gethostname())

    def forward(self, x):
        if self.breaks and self.training:
            raise ValueError("the loss of all hope")
        return super().forward(x)
"""


@pytest.fixture(params=[LOCAL, FAR], ids=["local", "far"])
def launcher(request: pytest.FixtureRequest, project: Path) -> tuple[str, ...]:
    """Overrides that choose the launcher, in a project that has it."""
    chosen: tuple[str, ...] = request.param
    if chosen == FAR and subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare(1) makes no UTS namespace here: that takes root")
    shutil.copy(Path(__file__).parents[1] / "third_party" / "far_machine.py", project)
    write_conf(project, {"launch/far.yaml": "_target_: far_machine.FarMachine\nhost: far\n"})
    return chosen


def values(run: RunDir) -> list[tuple[str, int, float]]:
    return sorted((key, p.step, value) for p in read_points(run.journal)[0] for key, value in p.metrics.items())


def begun(project: Path, *overrides: str) -> tuple[ForkedProcess, RunDir, list[psutil.Process]]:
    """A job that has made steps, its directory, and all processes below its supervisor."""
    supervisor = start("train", *ENDLESS, *overrides, cwd=project)

    def has_steps() -> bool:
        return any(run.journal.exists() and run.journal.stat().st_size for run in find_runs(project / "runs"))

    wait_until(lambda: supervisor.poll() is not None or has_steps(), "a step")
    assert None is supervisor.poll(), ended(supervisor)
    return supervisor, only_run(project), psutil.Process(supervisor.pid).children(recursive=True)


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def launcher_here(run: RunDir, project: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    monkeypatch.syspath_prepend(project)
    return launcher_of(load_plan(run.plan).settings)


def test_it_trains_where_it_says(project: Path, launcher: tuple[str, ...]) -> None:
    """In the project's directory, on the machine that is its affair, and once."""
    write_module(project, "hosted", HOSTED)
    write_conf(project, {"model/hosted.yaml": "_target_: hosted.Hosted\n"})
    asked = ("train", "model=hosted", *SHORT, *launcher)
    said = command(*asked, cwd=project)
    assert (0, "") == (said.status, said.err)
    assert ("far" if launcher == FAR else os.uname().nodename) == (project / "host").read_text()
    assert "" == only_run(project).rank_log(0).read_text()
    again = command(*asked, cwd=project)
    assert 0 == again.status
    assert "Not run again" in again.out
    assert 1 == read_status(only_run(project)).attempt


def test_two_ranks_compute_the_same_everywhere(project: Path, launcher: tuple[str, ...]) -> None:
    """To the bit what `launch=local` computes."""
    for root, chosen in (("here", LOCAL), ("there", launcher)):
        said = command("train", *SHORT, *TWO, *chosen, f"run.root={root}", cwd=project)
        assert 0 == said.status, said
    [here], [there] = find_runs(project / "here"), find_runs(project / "there")
    assert values(here) == values(there)
    assert read_plain(here.summary)["weights_sha256"] == read_plain(there.summary)["weights_sha256"]


def test_the_first_cause_is_named(project: Path, launcher: tuple[str, ...]) -> None:
    """With its place in the user's code and where the log is; exit status 1."""
    write_module(project, "hosted", HOSTED)
    write_conf(project, {"model/hosted.yaml": "_target_: hosted.Hosted\nbreaks: true\n"})
    said = command("train", "model=hosted", *SHORT, *launcher, cwd=project)
    assert 1 == said.status
    assert "rank 0 ended with status 1: ValueError: the loss of all hope" in said.err
    assert str(only_run(project).rank_log(0)) in said.err
    assert "Traceback" not in said.out + said.err
    assert RunState.FAILED is read_status(only_run(project)).state


@pytest.mark.parametrize("how", ["signal", "cancel"])
def test_it_ends_in_good_order_and_resumes(
    project: Path, launcher: tuple[str, ...], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a signal to the command, or asked by somebody else: with a checkpoint, from which the same command resumes."""
    supervisor, run, below = begun(project, *launcher)
    other = launcher_here(run, project, monkeypatch)
    assert other.is_alive(run)
    if how == "signal":
        supervisor.send_signal(signal.SIGTERM)
    else:
        assert 0 == command("cancel", "last", "--trust", cwd=project).status
    said = ended(supervisor)
    assert 143 == said.status, said
    assert "there is nothing to cancel" in command("cancel", "last", "--trust", cwd=project).err
    assert (RunState.KILLED, "stopped by SIGTERM") == (read_status(run).state, read_status(run).cause)
    wait_until(lambda: all(map(is_over, below)), "the end of all its processes")
    step = read_points(run.journal)[0][-1].step
    again = start("train", *ENDLESS, *launcher, cwd=project)
    wait_until(lambda: read_points(run.journal)[0][-1].step > step + 1, "steps after the checkpoint")
    again.send_signal(signal.SIGTERM)
    said = ended(again)
    assert f"Continuing from step {step}" in said.out, said
    assert [(step, 2)] == [(step, read_status(run).attempt)]


def test_nothing_outlives_a_supervisor(
    project: Path, launcher: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, it leaves no process, and nobody takes its run for one that runs."""
    supervisor, run, below = begun(project, *TWO, *launcher)
    supervisor.kill()
    ended(supervisor)
    wait_until(lambda: all(map(is_over, below)), "the end of all its processes")
    assert False is launcher_here(run, project, monkeypatch).is_alive(run)
    assert RunState.KILLED is current_state(run)


def test_what_it_cannot_do_is_said_before_anything_starts(project: Path, launcher: tuple[str, ...]) -> None:
    """With exit status 2; nothing is written."""
    said = command("train", *SHORT, *launcher, "launch.nodes=3", cwd=project)
    assert 2 == said.status
    assert "launch.nodes=3" in said.err or "hardware.num_nodes=3" in said.err
    assert "Fix:" in said.err
    assert not (project / "runs").exists()


def test_a_sweep_runs_all_its_jobs(project: Path, launcher: tuple[str, ...]) -> None:
    """No more at once than the launcher can take."""
    said = command("train", "-m", "seed=1,2,3", *SHORT, *launcher, cwd=project)
    assert (0, "") == (said.status, said.err), said
    runs = [read_status(run) for run in find_runs(project / "runs")]
    assert [RunState.FINISHED] * 3 == [status.state for status in runs]
    spans = sorted((status.started or 0.0, status.ended or 0.0) for status in runs)
    if launcher == FAR:
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans)), spans


def test_planning_asks_the_launcher_for_the_machine(project: Path, launcher: tuple[str, ...]) -> None:
    """A job for a machine with GPUs is planned on one without, as on a login node."""
    write_conf(project, {"launch/far.yaml": "_target_: far_machine.FarMachine\nhost: far\nnum_gpus: 2\n"})
    said: Said = command("plan", *launcher, "hardware=gpu", "hardware.devices=2", "tracking=off", cwd=project)
    if launcher == FAR:
        assert 0 == said.status, said
        assert "world size 2" in said.out
    else:
        assert 2 == said.status
        assert "has no GPU" in said.err


def test_what_is_no_launcher_is_refused(project: Path) -> None:
    """With what it lacks."""
    said = command("plan", "launch._target_=collections.OrderedDict", cwd=project)
    assert 2 == said.status
    assert "OrderedDict is not a launcher: it lacks" in said.err
    assert "Traceback" not in said.err


def test_a_launcher_that_cannot_be_made_is_named(project: Path) -> None:
    """Whatever its constructor raises, with the key that chose it and no traceback."""
    write_module(
        project,
        "breaking_launcher",
        """
        from hpcexp.launch.launchers.local import Local

        class Breaks(Local):
            def __init__(self):
                raise OSError("no scheduler")
        """,
    )
    said = command("plan", "launch._target_=breaking_launcher.Breaks", cwd=project)
    assert 2 == said.status
    assert "launch._target_=breaking_launcher.Breaks could not be made: OSError: no scheduler" in said.err
    assert "Traceback" not in said.err
