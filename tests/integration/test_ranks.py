"""Ranks as processes: warm and fresh ones behave alike, agree on their plan, and tell where they hang or crash."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import FAST, LEAN, Said, ended, environment, only_run, start, wait_until, write_conf, write_module
from record_support import free_port

from hpcexp.files.documents import read_plain
from hpcexp.launch.supervisor.oom import oom_kills
from hpcexp.rundir import RunDir, find_runs

pytestmark = pytest.mark.slow

BREAKING = """
import ctypes, os, signal, sys, time
import torch.distributed as dist
from hpcexp.models.mlp import MLP

class Breaking(MLP):
    '''In its third step the rank of this number does what is asked.'''
    def __init__(self, in_shape, num_classes, breaks, whom=0):
        super().__init__(in_shape, num_classes, hidden=[8])
        self.breaks, self.left = breaks, 3 if int(os.environ["RANK"]) == whom else -1

    def forward(self, x):
        self.left -= self.training
        if self.left == 0:
            getattr(self, self.breaks)()
        return super().forward(x)

    def raises(self):
        raise ValueError("the loss of all hope")

    def segfaults(self):
        ctypes.string_at(0)

    def is_killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(self):
        while True:
            time.sleep(1)

    def leaves(self):
        os._exit(0)

    def is_stopped(self):
        os.kill(os.getpid(), signal.SIGSTOP)
"""

TWO = ("hardware=cpu", "hardware.devices=2")


@pytest.fixture
def breaking(project: Path) -> Path:
    """A project with a model that breaks in one rank."""
    write_module(project, "breaking", BREAKING)
    write_conf(project, {"model/breaking.yaml": "_target_: breaking.Breaking\nbreaks: raises\nwhom: 0\n"})
    return project


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        ("raises", r"rank 1 ended with status 1: ValueError: the loss of all hope \(.*breaking.py:\d+\)"),
        ("is_killed", r"rank 1 was killed by SIGKILL"),
        ("leaves", r"rank 1 left with status 0 before the run was complete"),
    ],
)
def test_the_rank_that_fails_ends_the_others_and_is_named(
    breaking: Path, train: Callable[..., Said], breaks: str, told: str
) -> None:
    """Not the one whose collective it took down."""
    said = train(*FAST, *TWO, "model=breaking", f"model.breaks={breaks}", "model.whom=1")
    assert 1 == said.status
    assert re.search(told, said.err), said.err
    assert f"Its log: {only_run(breaking).rank_log(1)}" in said.err


@pytest.mark.parametrize("isolation", ["process", "warm"])
def test_a_crash_of_an_interpreter_is_told_alike_however_it_was_started(
    breaking: Path, train: Callable[..., Said], isolation: str
) -> None:
    """Its log has the stack."""
    said = train(
        *FAST, *TWO, "model=breaking", "model.breaks=segfaults", "model.whom=1", f"launch.isolation={isolation}"
    )
    assert 1 == said.status
    assert "rank 1 was killed by SIGSEGV" in said.err
    log = only_run(breaking).rank_log(1).read_text()
    assert re.search(r"Segmentation fault[\s\S]*breaking.py\", line \d+ in segfaults", log)


@pytest.mark.parametrize("isolation", ["process", "warm"])
def test_ranks_that_hang_are_ended_with_their_stacks(
    breaking: Path, train: Callable[..., Said], isolation: str
) -> None:
    """The message has the place of each rank, its log all of them."""
    asked = ("model=breaking", "model.breaks=hangs", "model.whom=1", "launch.hang_s=4", f"launch.isolation={isolation}")
    said = train(*FAST, *TWO, *asked)
    assert 1 == said.status
    assert "no rank has got any further for 4 s (launch.hang_s)" in said.err
    assert re.search(r"rank 1.*: hangs, .*breaking.py:\d+", said.err), said.err
    assert re.search(r"rank 0.*: \S+, .*\.py:\d+", said.err), said.err
    assert "breaking.py" in only_run(breaking).rank_log(1).read_text()


def test_a_rank_that_cannot_answer_is_told_apart(breaking: Path, train: Callable[..., Said]) -> None:
    """A stopped process writes no stack."""
    said = train(*FAST, "model=breaking", "model.breaks=is_stopped", "launch.hang_s=4")
    assert 1 == said.status
    assert "rank 0: does not answer (stopped)" in re.sub(r" after step \d+", "", said.err), said.err


def test_warm_ranks_compute_what_fresh_ones_do(project: Path, hpcexp: Callable[..., Said]) -> None:
    """Bit for bit, also with two ranks; and the interpreter of one job knows nothing of the one before."""
    for isolation in ("process", "warm"):
        where = (f"launch.isolation={isolation}", f"run.root={isolation}")
        said = hpcexp("train", "-m", *FAST, "hardware=cpu", "hardware.devices=1,2", *where)
        assert (0, "") == (said.status, re.sub("warning: .*\n", "", said.err))
    digests = [
        {read_plain(run.summary)["weights_sha256"] for run in find_runs(project / isolation)}
        for isolation in ("process", "warm")
    ]
    assert digests[0] == digests[1]


def test_a_sweep_takes_warm_workers_by_itself(project: Path, hpcexp: Callable[..., Said]) -> None:
    """From its first job on; a single run does not. Data workers are started in the same way by both."""
    write_module(project, "who", SAY_WHO)
    asked = ("callbacks.who._target_=who.Who", *FAST)
    assert 0 == hpcexp("train", "-m", "seed=1,2", *asked).status
    assert 0 == hpcexp("train", "seed=3", *asked).status
    method = multiprocessing.get_start_method()
    assert [f"forkserver {method}", f"forkserver {method}", f"hpcexp.job {method}"] == sorted(
        (run.path / "who.txt").read_text() for run in find_runs(project / "runs")
    )


SAY_WHO = """
import multiprocessing
import pytorch_lightning as pl

class Who(pl.Callback):
    '''Whether the process was forked from the server, by how its interpreter was started; how it starts others.'''
    def on_fit_start(self, trainer, module):
        command = open("/proc/self/cmdline").read()
        who = "forkserver" if "forkserver" in command else "hpcexp.job" if "hpcexp.job" in command else command
        open(trainer.default_root_dir + "/who.txt", "w").write(f"{who} {multiprocessing.get_start_method()}")
"""


def test_a_module_edited_between_warm_jobs_counts(project: Path, hpcexp: Callable[..., Said]) -> None:
    """The server knows nothing of the user's."""
    code = """
    import pathlib
    import pytorch_lightning as pl

    class Edits(pl.Callback):
        def on_fit_start(self, trainer, module):
            pathlib.Path(trainer.default_root_dir, "version.txt").write_text("VERSION")
            here = pathlib.Path(__file__)
            here.write_text(here.read_text().replace('"' + "VERSION" + '"', '"later"'))
    """
    write_module(project, "edits", code)
    asked = ("-m", "seed=1,2", "callbacks.e._target_=edits.Edits", "launch.max_jobs=1")
    assert 0 == hpcexp("train", *asked, *FAST).status
    assert {"VERSION", "later"} == {(run.path / "version.txt").read_text() for run in find_runs(project / "runs")}


def test_the_server_of_warm_workers_may_die(project: Path) -> None:
    """The job that runs then resumes with a new server; nothing is left behind."""
    longer = ("trainer.max_epochs=1000", "trainer.max_steps=1000", "trainer.val_every_epochs=1000")
    shown = ("tracking=off", *LEAN, "trainer.log_every_n_steps=1", "launch.max_jobs=1")
    supervisor = start("train", "-m", "seed=1,2", "data=synthetic", *longer, *shown, cwd=project)
    wait_until(lambda: any(run.journal.exists() for run in find_runs(project / "runs")), "a step")
    below = psutil.Process(supervisor.pid).children(recursive=True)
    [server] = [p for p in below if "forkserver" in " ".join(p.cmdline()) and p.ppid() == supervisor.pid]
    server.kill()
    said = ended(supervisor)
    states = sorted(read_plain(run.status)["state"] for run in find_runs(project / "runs"))
    assert ["finished", "finished"] == states, said
    assert 0 == said.status
    assert "was killed by SIGKILL" in said.out
    assert [] == [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_ranks_refuse_to_train_on_different_plans(hpcexp: Callable[..., Said], tmp_path: Path) -> None:
    """Each rank compares what it has read with what rank 0 has."""
    for rank, epochs in enumerate((1, 2)):
        asked = (f"trainer.max_epochs={epochs}", f"run.root={tmp_path / str(rank)}", "launch=dry", "tracking=off")
        assert 0 == hpcexp("train", *TWO, *asked).status
    runs = [next(find_runs(tmp_path / str(rank))) for rank in range(2)]
    port = free_port()
    first, second = (rank_by_hand(rank, run, port) for rank, run in enumerate(runs))
    try:
        out, _ = second.communicate(timeout=120)
    finally:
        for rank in (first, second):
            rank.kill()
            rank.communicate()
    assert 2 == second.returncode
    assert re.search(r"Rank 1 has read another plan \(\w{8}\) than rank 0 \(\w{8}\)", out), out


def rank_by_hand(number: int, run: RunDir, port: int) -> subprocess.Popen[str]:
    """A rank as another launcher would start it."""
    told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-m", "hpcexp.job", str(run.path)],
        env=environment(**{name: str(value) for name, value in told.items()}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_kills_for_memory_are_counted(tmp_path: Path) -> None:
    """As the kernel counts them; none where it does not say."""
    (tmp_path / "vmstat").write_text("nr_free_pages 17\noom_kill 3\nswap_ra 0\n")
    (tmp_path / "memory.events").write_text("oom 2\noom_kill 1\n")
    assert 4 == oom_kills([tmp_path / "vmstat", tmp_path / "memory.events"])
    assert 0 == oom_kills([tmp_path / "nothing"])
