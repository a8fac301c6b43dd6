"""What other launchers leave in a user's environment changes no run: Slurm, torchrun, MPI, LSF, Kubeflow, Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import FAST, LEAN, Said, command, only_run

from hpcexp.files.atomic import write_json
from hpcexp.launch.supervisor.ranks import job_environment
from hpcexp.plan import Topology
from hpcexp.rank_protocol import RankEnv, without_foreign
from hpcexp.rundir import find_runs
from hpcexp.runs.records.status import read_status

SALLOC = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
SRUN = {
    **SALLOC,
    "SLURM_JOB_NAME": "train.sh",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS_PER_NODE": "3",
}
TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "none",
    "MASTER_ADDR": "no.such.host.invalid",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
}
KUBEFLOW = {"KUBERNETES_PORT": "tcp://10.0.0.1:443", "PET_NNODES": "3", "PET_STANDALONE": "1", "PET_RDZV_BACKEND": "x"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_FD": "9"}
LSF = {
    "LSB_JOBID": "1",
    "LSB_DJOB_RANKFILE": "/nowhere",
    "LSB_HOSTS": "a b",
    "JSM_NAMESPACE_RANK": "1",
    "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_SIZE": "2",
}
LIGHTNING = {"PL_GLOBAL_SEED": "none", "PL_TRAINER_FAST_DEV_RUN": "1", "PL_TRAINER_MAX_TIME": "none"}
OURS = RankEnv(store_fd=99, supervisor_path="/nowhere", log_by_rank=True, last_step=1).to_environ()
ALL = {**SRUN, **TORCHRUN, **KUBEFLOW, **MPI, **LSF, **LIGHTNING, **OURS}
TWO_RANKS = ("hardware=cpu", "hardware.devices=2", "hardware.threads_per_rank=1", "trainer.deterministic=true")


@pytest.fixture
def with_slurm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with Slurm's client, which tells when it is called."""
    place = tmp_path_factory.mktemp("slurm")
    for name in ("srun", "scontrol", "sbatch"):
        (place / name).write_text('#!/bin/sh\ntouch "$0.called"\nexit 1\n')
        (place / name).chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["process", "warm"])
@pytest.mark.parametrize("ranks", [(), TWO_RANKS], ids=["1", "2"])
def test_a_run_is_the_same_inside_of_other_launchers(
    project: Path, with_slurm: str, ranks: tuple[str, ...], isolation: str
) -> None:
    """To the bit, and silent; so is what is done with it afterwards."""
    asked = ("train", *FAST, *ranks, f"launch.isolation={isolation}")
    outside = command(*asked, "run.root=clean", cwd=project)
    inside = command(*asked, cwd=project, PATH=with_slurm, **ALL)
    assert (0, outside.err) == (inside.status, inside.err), inside
    [clean], run = find_runs(project / "clean"), only_run(project)
    for log in run.logs.glob("rank-*.log"):
        assert "" == log.read_text()
    assert values(clean.journal) == values(run.journal)
    for verb in ("test", "export"):
        done = command(verb, "last", cwd=project, PATH=with_slurm, **ALL)
        assert (0, "") == (done.status, done.err), (verb, done)
    assert not list(Path(with_slurm.partition(os.pathsep)[0]).glob("*.called"))


@pytest.mark.slow
def test_drills_and_sweeps_are_the_same_inside_of_other_launchers(project: Path, with_slurm: str) -> None:
    """What starts hpcexp itself, and what forks ranks for many jobs."""
    drill = ("drill", "devices", "drill.devices=1,2", "hardware=cpu", "trainer.max_epochs=1", *LEAN)
    sweep = ("train", "-m", "seed=1,2", *FAST)
    for argv in (drill, sweep):
        done = command(*argv, cwd=project, PATH=with_slurm, **ALL)
        assert (0, "") == (done.status, done.err), done
    assert {"finished"} == {str(read_status(run).state) for run in find_runs(project / "runs")}


@pytest.mark.parametrize("around", [SALLOC, SRUN], ids=["salloc", "srun"])
def test_lightning_looks_for_no_slurm(
    project: Path, train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, with_slurm: str, around: dict[str, str]
) -> None:
    """Not for a checkpoint of its own that it would take for this run's, either."""
    for name, value in {**around, "PATH": with_slurm}.items():
        monkeypatch.setenv(name, value)
    assert 0 == train(*FAST, "launch=dry").status
    run = only_run(project)
    write_json(run.status, {"state": "killed", "started": 1.0, "ended": 2.0, "attempt": 1})
    (run.path / "hpc_ckpt_1.ckpt").write_text("not ours")
    said = train(*FAST)
    assert (0, "") == (said.status, said.err), said
    assert 2 == read_status(run).attempt
    assert "" == run.rank_log(0).read_text()


def test_what_describes_an_allocation_stays() -> None:
    """Users' code may want it, and lineage records it."""
    kept = {"SLURM_JOB_ID": "1", "LSB_JOBID": "1", "OMPI_MCA_btl": "tcp", "NCCL_SOCKET_IFNAME": "ib0", "PATH": "/bin"}
    assert kept.items() <= without_foreign({**ALL, **kept}).items()
    env = job_environment(Topology("cpu", (0,), 1, 1, "single", None), Path("/p"), {**ALL, **kept})
    assert not {name for name in env if name in {*TORCHRUN, *MPI, *LIGHTNING, *OURS, "SLURM_PROCID", "SLURM_NTASKS"}}
    assert kept.items() <= env.items()


def values(journal: Path) -> list[str]:
    """The journal's lines without their times."""
    return [line.partition(",")[2] for line in journal.read_text().splitlines()]
