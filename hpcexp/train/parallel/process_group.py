"""The process group of a job's ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpcexp.errors import RunError
from hpcexp.plan import Plan, digest
from hpcexp.rank_protocol import RankEnv
from hpcexp.train.runtime.rank import Rank

_LATER = timedelta(minutes=1)
"""How much later than the supervisor, which can say where everybody is, a collective gives up."""
_NEVER = timedelta(days=365)


def join(plan: Plan, rank: Rank) -> None:
    """Meet the other ranks, make sure that all have the same plan, and make the group.

    RunError where a rank has read another plan than rank 0, as from a file system that is not the same everywhere.
    """
    hang_s = plan.settings.launch.hang_s
    timeout = _NEVER if hang_s is None else timedelta(seconds=hang_s) + _LATER
    store = _store(rank, timeout)
    store.set(f"plan/{rank.rank}", digest(plan))
    if (theirs := store.get("plan/0").decode()) != digest(plan):
        raise RunError(
            f"Rank {rank.rank} has read another plan ({digest(plan)[:8]}) than rank 0 ({theirs[:8]}): {plan.run_dir}\n"
            "Fix: run.root=… on a file system that all nodes share."
        )
    if rank.device.type == "cuda":
        torch.cuda.set_device(rank.device)
    dist.init_process_group(
        plan.topology.backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=timeout
    )


def world_size() -> int:
    """Ranks that have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leave() -> None:
    """Take the group down, once all ranks are done."""
    dist.barrier()
    dist.destroy_process_group()


def _store(rank: Rank, timeout: timedelta) -> Any:
    """Where the ranks meet. Rank 0 listens on a socket of its supervisor, so that nobody can take the port."""
    env = RankEnv.from_environ()
    if env.store_fd is not None:
        assert env.master_addr is not None
        assert env.master_port is not None
        return dist.TCPStore(  # type: ignore[attr-defined]
            env.master_addr,
            env.master_port,
            rank.world_size,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=env.store_fd,
        )
    store, _, _ = next(dist.rendezvous("env://", rank.rank, rank.world_size, timeout=timeout))  # type: ignore[attr-defined]
    return store
