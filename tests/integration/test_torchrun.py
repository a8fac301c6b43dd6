"""One job on two machines: network namespaces with an address, and a host name, of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import FAST, LEAN, Said, command, ended, environment, only_run, wait_until, write_conf, write_module
from record_support import free_port
from test_foreign_variables import ALL
from test_ranks import BREAKING

from hpcexp.files.documents import read_plain
from hpcexp.launch.base.launcher import launcher_of
from hpcexp.rundir import find_runs
from hpcexp.runs.journal import read_points
from hpcexp.schema.settings import Settings

MACHINES = {"ada": "10.213.7.1", "bob": "10.213.7.2"}
SPACES = {name: f"hpcexp-{name}-{os.getpid()}" for name in MACHINES}
"""Network namespaces, which all processes of a real machine see."""
NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
    reason="network namespaces need root, ip and unshare",
)
RDZV = "10.213.7.1:29411"
SHORT = (*FAST, "hardware=cpu")
ENDLESS = (
    "hardware=cpu",
    "trainer.max_epochs=1000000",
    "tracking=off",
    "trainer.log_every_n_steps=1",
    *LEAN,
)


def ip(arguments: str) -> bool:
    return subprocess.run(["ip", *arguments.split()], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """Two namespaces, joined by a cable."""
    ada, bob = SPACES.values()
    made = all(ip(f"netns add {space}") for space in SPACES.values())
    made = made and ip(f"link add cable netns {ada} type veth peer name cable netns {bob}")
    for space, address in zip(SPACES.values(), MACHINES.values(), strict=True):
        made = made and ip(f"-n {space} address add {address}/24 dev cable")
        made = made and ip(f"-n {space} link set cable up") and ip(f"-n {space} link set lo up")
    try:
        if not made:
            pytest.skip("this machine does not let network namespaces be made")
        yield
    finally:
        for space in SPACES.values():
            ip(f"netns del {space}")


def start_on(machine: str, project: Path, *overrides: str, rdzv: str = RDZV) -> subprocess.Popen[str]:
    """The command as it is given on one of two machines."""
    asked = ("launch=torchrun", "launch.nodes=2", f"launch.rdzv={rdzv}", *overrides)
    hpcexp = [sys.executable, "-m", "hpcexp", "train", *asked]
    with_name = ["unshare", "--uts", "sh", "-c", f'hostname {machine}; exec "$@"', "sh", *hpcexp]
    return subprocess.Popen(
        ["ip", "netns", "exec", SPACES[machine], *with_name],
        cwd=project,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def on_both(project: Path, *overrides: str) -> dict[str, Said]:
    started = {machine: start_on(machine, project, *overrides) for machine in MACHINES}
    return {machine: ended(process) for machine, process in started.items()}


@pytest.mark.slow
@NEEDS_ROOT
def test_two_machines_train_as_one_does(machines: None, project: Path, train: Callable[..., Said]) -> None:
    """The same values, one run directory, one log for each rank; given again, nothing runs."""
    said = on_both(project, *SHORT)
    assert [0, 0] == [s.status for s in said.values()], said
    run = only_run(project)
    plan = run.plan.read_text()
    assert "num_nodes: 2" in plan
    assert ["rank-0.log", "rank-1.log"] == sorted(log.name for log in run.logs.glob("rank-*"))
    assert 0 == train(*SHORT, "run.root=alone").status
    [alone] = find_runs(project / "alone")
    for ours, theirs in zip(read_points(run.journal)[0], read_points(alone.journal)[0], strict=True):
        assert ours.step == theirs.step
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4)
    assert all("Not run again" in s.out for s in on_both(project, *SHORT).values())


@pytest.mark.slow
@NEEDS_ROOT
def test_a_rank_that_dies_on_one_machine_is_named_on_both(machines: None, project: Path) -> None:
    """Not the connection that the other one lost."""
    write_module(project, "breaking", BREAKING)
    write_conf(project, {"model/breaking.yaml": "_target_: breaking.Breaking\nbreaks: raises\nwhom: 0\n"})
    said = on_both(project, *SHORT, "model=breaking", "model.breaks=is_killed", "model.whom=1")
    assert [1, 1] == [s.status for s in said.values()], said
    assert all(re.search(r"rank 1 was killed by SIGKILL", s.err) for s in said.values()), said
    assert 1 == sum(bool(re.search("on (ada|bob): rank 1", s.err)) for s in said.values()), said
    status = read_plain(only_run(project).status)
    assert ("failed", signal.SIGKILL) == (status["state"], status["signal"])


@pytest.mark.slow
@NEEDS_ROOT
def test_a_signal_on_one_machine_stops_both_and_the_same_commands_go_on(machines: None, project: Path) -> None:
    """After a checkpoint. A third command is turned away meanwhile; a killed one leaves nothing."""
    both = {machine: start_on(machine, project, *ENDLESS) for machine in MACHINES}
    wait_until(lambda: any(run.journal.exists() for run in find_runs(project / "runs")), "a step")
    third = ended(start_on("bob", project, *ENDLESS))
    assert 2 == third.status
    assert "as many machines as launch.nodes=2 asks for" in third.err
    psutil.Process(both["bob"].pid).send_signal(signal.SIGTERM)
    said = {machine: ended(process) for machine, process in both.items()}
    assert [143, 143] == [s.status for s in said.values()], said
    assert "killed" == read_plain(only_run(project).status)["state"]

    both = {machine: start_on(machine, project, *ENDLESS) for machine in MACHINES}
    run = only_run(project)
    wait_until(lambda: read_plain(run.status).get("attempt") == 2, "the second attempt")
    size = run.journal.stat().st_size
    wait_until(lambda: run.journal.stat().st_size > size, "a step of the second attempt")
    below = [p for process in both.values() for p in psutil.Process(process.pid).children(recursive=True)]
    both["ada"].kill()
    said = {machine: ended(process) for machine, process in both.items()}
    assert "Continuing from step" in said["ada"].out
    assert 0 != said["bob"].status
    wait_until(
        lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below), "no process is left"
    )


def test_what_is_wrong_with_nodes_is_said_before_anything_starts() -> None:
    """Where the ranks would start here only, and where they could not meet."""

    def problems(rdzv: Any = "ada:29400", *, num_nodes: int = 2, is_local: bool = False) -> list[str]:
        target = "local.Local" if is_local else "torchrun.Torchrun"
        launch = {"_target_": f"hpcexp.launch.launchers.{target}", "nodes": 2, **({} if is_local else {"rdzv": rdzv})}
        settings = Settings({"hardware": {"num_nodes": num_nodes}, "launch": launch})
        return launcher_of(settings).problems(settings)

    assert [] == problems()
    assert [] == problems("[::1]:29400")
    assert [] == problems(num_nodes=1, is_local=True)
    [local] = problems(is_local=True)
    assert "launch=torchrun launch.nodes=2" in local
    [differ] = problems(num_nodes=3)
    assert "leave hardware.num_nodes out" in differ
    for wrong in (None, "ada", "ada:0", "ada:99999", "ada:x", ":29400", "http://ada:29400"):
        [told] = problems(wrong)
        assert f"launch.rdzv={wrong}: not HOST:PORT" in told


@pytest.mark.slow
def test_a_host_that_cannot_be_reached_is_named(project: Path) -> None:
    """Before the machine waits for anybody."""
    said = command(
        "train", *SHORT, "launch=torchrun", "launch.nodes=2", "launch.rdzv=no.such.host.invalid:29400", cwd=project
    )
    assert 2 == said.status
    assert "launch.rdzv=no.such.host.invalid:29400" in said.err
    assert "Fix:" in said.err


@pytest.mark.slow
def test_two_agents_on_one_machine(project: Path) -> None:
    """The first of two commands leads, whatever other launchers have left in the environment."""
    asked = (*SHORT, "launch=torchrun", "launch.nodes=2", f"launch.rdzv=127.0.0.1:{free_port()}")
    hpcexp = [sys.executable, "-m", "hpcexp", "train", *asked]
    both = [
        subprocess.Popen(
            hpcexp, cwd=project, env=environment(**ALL), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [0, 0] == [ended(process).status for process in both]
    assert "finished" == read_plain(only_run(project).status)["state"]
