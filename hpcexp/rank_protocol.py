"""Variables by which other launchers tell a process its place in a job of theirs.

hpcexp starts the ranks of its jobs itself, and tells each of them its place. What is left of another launcher in a
user's shell (inside `salloc`, `torchrun`, `mpirun`, a rank of another job) is no part of that. Variables that describe
the allocation (SLURM_JOB_ID, LSB_JOBID) or set something up (OMPI_MCA_*, NCCL_*) stay.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

_NAMES = frozenset(
    (
        # torchrun, and whoever follows its convention: Kubeflow, Ray, accelerate
        *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        # Lightning
        *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "STANDALONE_PORT"),
        # Slurm: a task of a step
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE"),
        *("SLURM_TASKS_PER_NODE", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
        # MPI: a process that finds these tries to reach a manager that is not its own
        *("OMPI_UNIVERSE_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PALS_RANKID", "PALS_LOCAL_RANKID"),
        # hpcexp: a rank whose code starts hpcexp
        *("HPCEXP_PARENT_FD", "HPCEXP_PROGRESS_FD", "HPCEXP_MEETING_FD", "HPCEXP_ANSWER_FD"),
        *("HPCEXP_PARENT_PATH", "HPCEXP_PROGRESS_PATH", "HPCEXP_LOG_BY_RANK", "HPCEXP_CORES"),
        *("HPCEXP_JUDGED", "HPCEXP_LAST_STEP"),
    )
)
_PREFIXES = (
    "TORCHELASTIC_",
    "PET_",  # arguments of torchrun
    "PL_TRAINER_",  # arguments of Lightning's Trainer that a plan does not name
    "JSM_NAMESPACE_",  # LSF's jsrun
    "OMPI_COMM_WORLD_",
    "MV2_COMM_WORLD_",
    "PMI_",
    "PMIX_",
)


def is_left_over(name: str) -> bool:
    """Whether a variable tells of a place in somebody else's job."""
    return name in _NAMES or name.startswith(_PREFIXES)


def without_leftovers(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that hpcexp starts."""
    return {name: value for name, value in environment.items() if not is_left_over(name)}


def forget_leftovers(environment: MutableMapping[str, str]) -> None:
    """Remove them from the environment of this process, before it imports what reads them."""
    for name in list(filter(is_left_over, environment)):
        del environment[name]
