"""Whether all machines of a job got the same command, checked before any of them starts a rank.

While it waits for the others, the machine that leads shows its plan in a file beside the runs, which all of them see.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.locks import held
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.launchers.addresses import host_and_port, rdzv_of
from hpcexp.launch.launchers.torchrun_agent import JOIN_S
from hpcexp.lineage.signature import identity_config
from hpcexp.plan import Plan, digest, load_plan, save_plan
from hpcexp.runs.records.files import read_or_none, write
from hpcexp.runs.records.nodes import PlanRefusal
from hpcexp.runs.records.status import RunState
from hpcexp.tracking.mlflow.description import flatten

_LOOK_EVERY_S = 0.5
_UNSEEN_S = 90.0
"""How much later than the machine that leads can be reached its file may appear: NFS caches directories for 60 s."""


class Rendezvous:
    """The files of a rendezvous: who leads, the plan that it shows, and what another machine has to say to that."""

    def __init__(self, plan: Plan) -> None:
        place = Path(plan.run_dir).parent.parent / ".nodes"
        name = rdzv_of(plan).replace("/", "_")
        self.path, self._answer, self._lock = (place / f"{name}.{kind}" for kind in ("yaml", "json", "lock"))
        self.refused: str | None = None
        """What differs on another machine, by its report to the leading machine."""
        self._plan = plan
        self._next = 0.0

    def lead(self) -> AbstractContextManager[int]:
        """Become the leader; RunError if another command of this machine is."""
        return held(self._lock, f"{rdzv_of(self._plan)} is held by")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the plan to the other machines, before any of them can reach this one."""
        self._answer.unlink(missing_ok=True)
        save_plan(replace(self._plan, tracking_uri=None), self.path)
        try:
            yield
        finally:
            for file in (self.path, self._answer):
                file.unlink(missing_ok=True)

    def heard(self) -> str | None:
        """`refused`, read from its file every second."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOOK_EVERY_S
            answer, shown = read_or_none(self._answer, PlanRefusal), self.theirs()
            if answer and shown and answer.to == digest(shown):
                self.refused = answer.differs
        return self.refused

    def theirs(self) -> Plan | None:
        """The plan that the leader shows; None if there is none."""
        with suppress(RunError):
            return load_plan(self.path)
        return None

    def refuse(self, theirs: Plan, differs: str) -> None:
        """Report a difference to the leading machine."""
        with suppress(OSError):
            write(self._answer, PlanRefusal(to=digest(theirs), differs=differs))


def await_leader(plan: Plan, elsewhere: Callable[[], str | None]) -> Outcome | None:
    """Wait until the machine at `launch.rdzv` can be reached, and compare plans; None if the job can start."""
    rendezvous, rdzv = Rendezvous(plan), rdzv_of(plan)
    deadline = time.monotonic() + JOIN_S
    unseen_since: float | None = None
    while time.monotonic() < deadline:
        if cause := elsewhere():
            return Outcome(RunState.FAILED, cause, 1)
        if _can_be_reached(rdzv):
            if (theirs := rendezvous.theirs()) is not None:
                differs = difference(plan, theirs)
                if differs is None:
                    return None
                rendezvous.refuse(theirs, differs)
                return Outcome(RunState.FAILED, differs, 2)
            unseen_since = unseen_since or time.monotonic()
            if time.monotonic() - unseen_since > _UNSEEN_S:
                return Outcome(RunState.FAILED, _unseen(rdzv, rendezvous.path), 2)
        time.sleep(_LOOK_EVERY_S)
    return Outcome(RunState.FAILED, f"launch.rdzv={rdzv}: nobody has come there for {JOIN_S} s.", 1)


def difference(mine: Plan, theirs: Plan) -> str | None:
    """How `mine` differs from `theirs`, the leader's; None if they are the same."""
    here, there = (str(plan.lineage["host"]) for plan in (mine, theirs))
    if here == there:
        here, there = "the second command", "the first"
    ours, others = _must_be_same(mine), _must_be_same(theirs)
    lines = [
        f"{key}: {ours.get(key, 'nothing')} ({here}), {others.get(key, 'nothing')} ({there})"
        for key in sorted(ours.keys() | others.keys())
        if ours.get(key) != others.get(key)
    ]
    if not lines and mine.name != theirs.name:
        lines = [f"the run's name: {mine.name} ({here}), {theirs.name} ({there})"]
    if not lines:
        return None
    listing = "\n".join(lines)
    return (
        f"launch.rdzv={rdzv_of(mine)}: {here} was asked for something else than {there}, which leads.\n"
        f"{listing}\nFix: the same command on all machines, with the same code and data. "
        f"That of {there}: {theirs.lineage['command']}"
    )


def _must_be_same(plan: Plan) -> dict[str, str]:
    topology = plan.topology
    return {
        **flatten(identity_config(plan.config, topology)),
        "launch.nodes": str(topology.num_nodes),
        "hardware.devices": f"{topology.ranks_per_node} {topology.accelerator}",
        "code": plan.lineage["code.digest"][:12],
        "data": plan.data.fingerprint[:12] if plan.data else "",
    }


def _can_be_reached(rdzv: str) -> bool:
    try:
        socket.create_connection(host_and_port(rdzv), timeout=_LOOK_EVERY_S).close()
    except OSError:
        return False
    return True


def _unseen(rdzv: str, path: Path) -> str:
    return (
        f"launch.rdzv={rdzv}: somebody is there, but shows no job in {path.parent} of this machine.\n"
        "Fix: the same command on all machines, and a run.root that all of them see; or a port that nobody uses."
    )
