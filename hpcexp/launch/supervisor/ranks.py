"""The processes of a job on this machine, and the environment of each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from hpcexp.launch.base.rank_process import Process, Start, signal_one, signal_session
from hpcexp.plan import Plan, Topology
from hpcexp.rank_protocol import VARIABLES, RankEnv, Verdict, send, without_foreign
from hpcexp.rundir import RunDir

_BACKLOG = 4096
"""Ranks that may wait for the first one to listen."""


def job_environment(topology: Topology, project: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the environments of all ranks on this machine have in common."""
    env = without_foreign(inherited)
    path = [str(project), *filter(None, [env.get("PYTHONPATH")])]
    threads = str(topology.threads_per_rank)
    # Threads that wait by spinning take the core that the sync process or another job needs: on two busy cores the
    # digits MLP trained 24 s instead of 1.9. On idle ones, sleeping costs it 1.8 s instead of 1.5.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.update(
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        CUDA_VISIBLE_DEVICES=visible_devices(topology, inherited.get("CUDA_VISIBLE_DEVICES")),
        PYTHONPATH=os.pathsep.join(path),
        PYTHONUNBUFFERED="1",
    )
    return env


def rank_environment(topology: Topology, rank: int, port: int) -> dict[str, str]:
    """What a rank of a job on one machine has of its own."""
    return RankEnv(
        rank=rank,
        local_rank=rank,
        node_rank=0,
        world_size=topology.world_size,
        local_world_size=topology.ranks_per_node,
        master_addr="127.0.0.1",
        master_port=port,
    ).to_environ()


def visible_devices(topology: Topology, outer: str | None) -> str:
    """CUDA_VISIBLE_DEVICES of a job's ranks: the chosen devices, counted among those that are visible here."""
    if topology.accelerator != "cuda":
        return ""
    names = [n.strip() for n in outer.split(",")] if outer else None
    return ",".join(names[i] if names else str(i) for i in topology.device_ids)


class Ranks:
    """A job's processes. Each leads a session of its own, so that a terminal's Ctrl-C reaches only the supervisor."""

    def __init__(
        self,
        plan: Plan,
        start: Callable[[Start], Process],
        devices: Mapping[str, str],
        pruning_metric: str | None = None,
    ) -> None:
        """Start them. After each validation rank 0 reports `pruning_metric` and waits for a verdict."""
        run, project = RunDir(Path(plan.run_dir)), Path(plan.lineage["project"])
        run.logs.mkdir(parents=True, exist_ok=True)
        alive_read, self._alive_write = os.pipe()
        self.events_fd, events_write = os.pipe()
        os.set_blocking(self.events_fd, False)
        verdicts_read, self._verdicts_write = os.pipe()
        os.set_blocking(self._verdicts_write, False)
        self.processes: list[Process] = []
        with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as meeting:
            try:
                pruning = RankEnv(pruning_metric=pruning_metric).to_environ()
                shared = {**job_environment(plan.topology, project, os.environ), **devices, **pruning}
                for rank in range(plan.topology.world_size):
                    env = {**shared, **rank_environment(plan.topology, rank, meeting.getsockname()[1])}
                    fds = {"supervisor_fd": alive_read, "events_fd": events_write}
                    if rank == 0 and plan.topology.world_size > 1:
                        fds["store_fd"] = meeting.fileno()
                    if rank == 0 and pruning_metric is not None:
                        fds["verdicts_fd"] = verdicts_read
                    named = {VARIABLES[field]: fd for field, fd in fds.items()}
                    self.processes.append(start(Start(plan.run_dir, env, run.rank_log(rank), project, named)))
            except BaseException:
                self.close()
                raise
            finally:
                for fd in (events_write, alive_read, verdicts_read):
                    os.close(fd)

    def failures(self) -> dict[int, int]:
        """Rank → exit code of those that ended badly; negative codes are signals."""
        return {rank: code for rank, process in enumerate(self.processes) if (code := process.poll())}

    def left(self) -> list[int]:
        """Ranks that ended as if all were well."""
        return [rank for rank, process in enumerate(self.processes) if process.poll() == 0]

    def answer(self, epoch: int, is_to_end: bool) -> None:
        """Send rank 0 the verdict on its report of `epoch`."""
        with contextlib.suppress(OSError):  # it does not wait any more
            send(self._verdicts_write, Verdict(epoch=epoch, prune=is_to_end))

    def trouble(self) -> str | None:
        """None: these are the supervisor's own children."""
        return None

    def are_done(self) -> bool:
        """Whether every rank has ended."""
        return all(p.poll() is not None for p in self.processes)

    def signal(self, number: int) -> None:
        """Send a signal to every rank that still runs; one that ends it at once also to the children in its session.

        Not to a data worker what its rank ends in good order on: a rank that loses a worker crashes.
        """
        send = signal_session if number == signal.SIGKILL else signal_one
        for process in self.processes:
            if process.poll() is None:
                send(process.pid, number)

    def close(self) -> None:
        """End whatever still runs, with its children, and close the pipes."""
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for fd in (self.events_fd, self._alive_write, self._verdicts_write):
            os.close(fd)
