"""The environment a job runs in, read without importing it."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hpcexp.redaction import masked

PACKAGES = ("hpcexp", "torch", "pytorch-lightning", "hydra-core", "omegaconf", "mlflow", "numpy")

SCHEDULERS = {
    "SLURM_JOB_ID": "slurm",
    "PBS_JOBID": "pbs",
    "LSB_JOBID": "lsf",
    "OAR_JOB_ID": "oar",
    "FLUX_JOB_ID": "flux",
    "COBALT_JOBID": "cobalt",
    "RAY_JOB_ID": "ray",
}
"""Variable with the id that a scheduler gave the job → the scheduler."""
_RELEVANT = re.compile(
    "OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|CUDA_|CUBLAS_|CUDNN_|NVIDIA_|NCCL_|GLOO_|UCX_|FI_|OMPI_|I_MPI_|TORCH|PYTORCH_"
    "|TRITON_|XLA_|PYTHON|VIRTUAL_ENV$|CONDA_|LD_LIBRARY_PATH$|LD_PRELOAD$|MALLOC_|HPCEXP_|HYDRA_|MLFLOW_|HF_|WANDB_"
    "|SLURM|PBS_|LSB_|OAR_|FLUX_|COBALT_|RAY_|SGE_|RANK$|LOCAL_RANK$|WORLD_SIZE$|MASTER_|LANG$|LC_ALL$|TZ$"
)
"""Variables that change what a training does, or tell where it ran."""


def environment() -> dict[str, str]:
    """Flat facts: host, user, platform, versions, and the scheduler's name for the job."""
    facts = {"host": socket.gethostname(), "user": _user(), "platform": _platform()}
    facts["version.python"] = platform.python_version()
    known = installed()
    facts |= scheduler(os.environ)
    return facts | {f"version.{package}": known[package] for package in PACKAGES if package in known}


def installed() -> dict[str, str]:
    """Package → version, from the names of installed metadata directories.

    importlib.metadata would parse a mail header for each, and costs an eighth of all planning.
    """
    versions: dict[str, str] = {}
    for name in _entries():
        match = re.fullmatch(r"(.+?)-(.+)\.dist-info", name)
        if match:
            versions.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return versions


def scheduler(environ: Mapping[str, str]) -> dict[str, str]:
    """Which scheduler runs this, and its id of the job; empty where none does."""
    for variable, name in SCHEDULERS.items():
        if variable in environ:
            return {"scheduler": name, "scheduler.job": environ[variable]}
    return {}


def variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """What of the environment can matter to a result; what looks like a secret is masked."""
    return {name: masked(name, value) for name, value in sorted(environ.items()) if _RELEVANT.match(name)}


def software() -> dict[str, Any]:
    """Python, the versions of all packages that are installed, and the variables that can matter."""
    return {
        "python": {"version": platform.python_version(), "executable": sys.executable, "build": sys.version},
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "packages": dict(sorted(installed().items())),
        "variables": variables(os.environ),
        **scheduler(os.environ),
    }


def _entries() -> Iterator[str]:
    for place in sys.path:
        try:
            yield from os.listdir(place or ".")  # noqa: PTH208 - names alone, of a thousand entries
        except OSError:
            continue


def _platform() -> str:
    """Kernel and machine, as `Linux-6.1.0-x86_64`. `platform.platform` starts a process to know no more."""
    system = os.uname()
    return f"{system.sysname}-{system.release}-{system.machine}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
