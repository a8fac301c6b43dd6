"""A third party's launcher: ranks run on a second machine, one with a host name of its own (a UTS namespace).

As somebody would write it outside hpcexp: it knows the contract, and what hpcexp offers to those who supervise from
here. A real one would say `ssh HOST` where this one says `unshare`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from hpcexp.hardware.machine import Machine
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import Supervision
from hpcexp.launch.base.rank_process import Process, Start
from hpcexp.launch.supervisor.lifecycle import run_here
from hpcexp.launch.supervisor.ownership import ask_to_end
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir
from hpcexp.runs.owner import is_alive
from hpcexp.runs.records.status import read_status
from hpcexp.schema.settings import Settings


class FarMachine:
    """Ranks on the machine `host`, which has `num_cores` cores and `num_gpus` GPUs."""

    is_here = False

    def __init__(self, host: str, num_cores: int = 2, num_gpus: int = 0) -> None:
        self.host, self.num_cores, self.num_gpus = host, num_cores, num_gpus

    def problems(self, settings: Settings) -> list[str]:
        """There is one such machine."""
        num_nodes = settings.hardware.num_nodes
        return [] if num_nodes == 1 else [f"launch.nodes={num_nodes}: {self.host} is one machine.\nFix: launch.nodes=1"]

    def machine(self, settings: Settings) -> Machine:
        """What is planned with, whatever this machine has."""
        return Machine(self.host, self.num_cores, self.num_gpus)

    def capacity(self, settings: Settings) -> int | None:
        """One job after the other."""
        return 1

    def run(self, plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
        """Supervise from here what starts there."""
        return (yield from run_here(plan, replace(context, start=self._start), fresh=fresh))

    def is_alive(self, run: RunDir) -> bool | None:
        """Its supervisor is on this machine."""
        return is_alive(read_status(run), run.beat)

    def cancel(self, run: RunDir) -> None:
        """As hpcexp's own do."""
        ask_to_end(run)

    def _start(self, start: Start) -> Process:
        there = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.host]
        with start.log.open("ab") as log:
            return subprocess.Popen(
                [*there, sys.executable, "-m", "hpcexp.job", start.run_dir],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**start.env, **{name: str(fd) for name, fd in start.fds.items()}},
                pass_fds=tuple(start.fds.values()),
                cwd=start.project,
                start_new_session=True,
            )
