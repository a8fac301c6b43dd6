"""The ranks of this machine below torchrun's agent, and what ends a job on another machine."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hpcexp.files.untrusted import open_append
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.rank_process import signal_one
from hpcexp.launch.launchers.addresses import interface_of, own_address, rdzv_of
from hpcexp.launch.supervisor.ranks import job_environment
from hpcexp.plan import Plan
from hpcexp.rank_protocol import RankEnv
from hpcexp.rundir import RunDir
from hpcexp.runs.records.files import read_or_none, write
from hpcexp.runs.records.nodes import RemoteFailure
from hpcexp.runs.records.status import RunState

JOIN_S = 600
"""The time in which all machines must have reached the rendezvous."""
_LOOK_EVERY_S = 1.0
_LATER_S = 10.0
"""How long a machine that lost its connection waits for another to report the cause."""
_LOST = ("gloo", "NCCL", "ProcessGroup", "TCPStore")
"""Words in a rank's error that mean that it lost the others."""


class Node:
    """The ranks of this machine, below torchrun's agent, which starts them once all agents have met."""

    def __init__(self, plan: Plan, devices: Mapping[str, str], *, leads: bool) -> None:
        logs = RunDir(Path(plan.run_dir)).logs
        logs.mkdir(parents=True, exist_ok=True)
        # Held open: the leading machine may still set the directory of an earlier attempt aside.
        self._path = logs / f"node-{socket.gethostname()}-{os.getpid()}.log"
        self._log = os.fdopen(open_append(self._path), "ab+")
        alive_read, self._alive_write = os.pipe()
        self.events_fd, events_write = os.pipe()
        os.set_blocking(self.events_fd, False)
        self._ends = (alive_read, events_write)
        self._agent = self._start(plan, {**self._environment(plan), **devices}, leads=leads)

    def failures(self) -> dict[int, int]:
        """From the agent's log."""
        _, _, root = self._log_text().partition("Root Cause (first observed failure):")
        root_cause = re.search(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)", root)
        return {int(root_cause[1]): int(root_cause[2])} if root_cause else {}

    def left(self) -> list[int]:
        """None: the agent does not report ranks that ended with status 0."""
        return []

    def trouble(self) -> str | None:
        """Why the agent failed, if no rank caused it."""
        if not self._agent.poll() or self.failures():
            return None
        last = (self._log_text().strip().splitlines() or ["it said nothing"])[-1]
        what = "not all machines came in time" if "RendezvousTimeoutError" in last else last
        return f"torchrun ended with status {self._agent.returncode}: {what}\nIts log: {self._path}"

    def _log_text(self) -> str:
        if not self._agent.poll():
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def are_done(self) -> bool:
        """Whether the agent has ended, and its ranks with it."""
        return self._agent.poll() is not None

    def signal(self, number: int) -> None:
        """The agent forwards signals to its ranks. If it is killed, they end when `close` closes their pipe."""
        signal_one(self._agent.pid, number)

    def close(self) -> None:
        """End whatever still runs."""
        signal_one(self._agent.pid, signal.SIGKILL)
        self._agent.wait()
        for fd in (self._alive_write, self.events_fd, *self._ends):
            os.close(fd)
        self._log.close()

    def _environment(self, plan: Plan) -> dict[str, str]:
        # The agent closes inherited files, so its ranks reopen the pipes by their paths in this process.
        here = f"/proc/{os.getpid()}/fd"
        env = {
            **job_environment(plan.topology, Path(plan.lineage["project"]), os.environ),
            **RankEnv(
                supervisor_path=f"{here}/{self._ends[0]}", events_path=f"{here}/{self._ends[1]}", log_by_rank=True
            ).to_environ(),
        }
        if interface := interface_of(own_address(rdzv_of(plan))):
            env.setdefault("GLOO_SOCKET_IFNAME", interface)
            env.setdefault("NCCL_SOCKET_IFNAME", interface)
        return env

    def _start(self, plan: Plan, env: Mapping[str, str], *, leads: bool) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *agent_arguments(plan, leads=leads)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=plan.lineage["project"],
            start_new_session=True,
        )


def agent_arguments(plan: Plan, *, leads: bool) -> list[str]:
    """torchrun's arguments on this machine."""
    launch, topology = plan.settings.launch, plan.topology
    # Without `is_host` torchrun looks this machine's name up, which no name server may know.
    conf = {"join_timeout": JOIN_S, "last_call_timeout": 1, "is_host": str(leads).lower()}
    settings = {
        "nnodes": topology.num_nodes,
        "nproc-per-node": topology.ranks_per_node,
        "max-restarts": 0,
        "rdzv-backend": "c10d",
        "rdzv-endpoint": rdzv_of(plan),
        "rdzv-id": plan.signature[:16],
        "rdzv-conf": ",".join(f"{name}={value}" for name, value in conf.items()),
        "local-addr": own_address(rdzv_of(plan)),
        "shutdown-timeout": math.ceil(launch.grace_s),
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), "--module", "hpcexp.job", plan.run_dir]


class RemoteFailures:
    """What ended the job on another machine, read from a file that all machines see."""

    def __init__(self, run: RunDir) -> None:
        self._file = run.path / "failed.json"
        self._of_earlier = read_or_none(self._file, RemoteFailure)
        self._next = 0.0
        self._found: RemoteFailure | None = None

    def __call__(self) -> str | None:
        if self._found is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK_EVERY_S
            failure = read_or_none(self._file, RemoteFailure)
            if failure and failure != self._of_earlier:
                self._found = failure
        return f"on {self._found.host}: {self._found.cause}" if self._found else None

    def forget(self) -> None:
        """Remove the file of an earlier attempt."""
        self._file.unlink(missing_ok=True)

    def agreed(self, outcome: Outcome) -> Outcome:
        """The outcome, with the cause from another machine if that is the real one; else publish this machine's."""
        if outcome.state not in (RunState.FAILED, RunState.KILLED):
            return outcome
        if self._found:
            return replace(outcome, signal=self._found.signal)
        deadline = time.monotonic() + _LATER_S
        # A machine that lost a connection did not fail first.
        while any(sign in outcome.cause for sign in _LOST) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S / 2)
            if (cause := self()) and self._found:
                return Outcome(RunState.FAILED, cause, 1, self._found.signal)
        self._publish(outcome)
        return outcome

    def _publish(self, outcome: Outcome) -> None:
        own = self._file.with_name(f".failed.{socket.gethostname()}.{os.getpid()}")
        write(
            own, RemoteFailure(host=socket.gethostname(), cause=outcome.cause, time=time.time(), signal=outcome.signal)
        )
        with contextlib.suppress(FileExistsError):
            os.link(own, self._file)
        own.unlink()
