"""A job on several machines: each gets the same command, and torchrun's agents find each other at `launch.rdzv`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hpcexp.errors import RunError
from hpcexp.files.locks import held
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.base.polling import Supervision
from hpcexp.launch.launchers.addresses import is_here, rdzv_of
from hpcexp.launch.launchers.rendezvous import Rendezvous, await_leader
from hpcexp.launch.launchers.torchrun_agent import JOIN_S, Node, RemoteFailures
from hpcexp.launch.supervisor.lifecycle import lead as lead_run
from hpcexp.launch.supervisor.lifecycle import on_devices, supervised
from hpcexp.launch.supervisor.ownership import claimed
from hpcexp.launch.supervisor.rank_events import RankEvents
from hpcexp.plan import Plan
from hpcexp.rundir import RunDir


def run_on_nodes(plan: Plan, context: LaunchContext, *, fresh: bool) -> Supervision[Outcome]:
    """Run this machine's part of the plan. The host of `launch.rdzv` leads: it freezes the plan and keeps its state."""
    elsewhere, rendezvous = RemoteFailures(RunDir(Path(plan.run_dir))), Rendezvous(plan)

    with ExitStack() as stack:
        leads = _leads(plan, rendezvous, stack)
        devices = stack.enter_context(ExitStack())
        plan, device_env = on_devices(plan, devices, context)
        where = rdzv_of(plan)
        context.say(plan, f"Waiting for {plan.topology.num_nodes} machines at {where}, {JOIN_S} s at most")

        def take_part(run: RunDir) -> Supervision[Outcome]:
            with devices, context.catching() as stop:
                node = Node(plan, device_env, leads=False)
                return elsewhere.agreed(
                    (yield from supervised(plan, run, node, context, stop, lambda _: elsewhere(), leads=False))
                )

        def lead(run: RunDir, stop: Sequence[int], check: Callable[[], None]) -> Supervision[Outcome]:
            def trouble(events: RankEvents) -> str | None:
                # A refusal that arrives once ranks have started does not concern them.
                return elsewhere() or (None if events.pids else rendezvous.heard())

            with devices, rendezvous.shown():
                node = Node(plan, device_env, leads=True)
                outcome = elsewhere.agreed(
                    (yield from supervised(plan, run, node, context, stop, trouble, check=check))
                )
            return replace(outcome, exit=2) if rendezvous.refused else outcome

        if leads:
            elsewhere.forget()
            return (yield from lead_run(plan, context, fresh=fresh, supervise=lead))
        stack.enter_context(seat(plan))
        refused = await_leader(plan, elsewhere)
        return refused or (yield from take_part(RunDir(Path(plan.run_dir))))


def _leads(plan: Plan, rendezvous: Rendezvous, stack: ExitStack) -> bool:
    """Whether this command is the first on the host of `launch.rdzv`; it then has the run directory."""
    if not is_here(rdzv_of(plan)):
        return False
    try:
        stack.enter_context(rendezvous.lead())
    except RunError:
        return False
    stack.enter_context(claimed(plan))
    return True


@contextmanager
def seat(plan: Plan) -> Iterator[None]:
    """One of the places beside the machine that leads; RunError where all are taken."""
    path = Path(plan.run_dir)
    with ExitStack() as stack:
        for number in range(1, plan.topology.num_nodes):
            with contextlib.suppress(RunError):
                stack.enter_context(held(path.parent / f".{path.name}.node-{number}.lock", ""))
                break
        else:
            raise RunError(
                f"{path} is being written by as many machines as launch.nodes={plan.topology.num_nodes} asks for.\n"
                "Fix: wait for them, or end them."
            )
        yield
