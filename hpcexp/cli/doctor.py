"""`hpcexp doctor`: what works on this machine, what does not, and what that means."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpcexp import __version__
from hpcexp.checks.paths import root_problems
from hpcexp.cli.shared.arguments import parser
from hpcexp.compose.sources import conf_dirs
from hpcexp.hardware.cpus import Node, cores_text, read_nodes
from hpcexp.hardware.gpus import Gpu, Survey, processes_text, survey
from hpcexp.hardware.leases import leases_text
from hpcexp.hardware.machine import cores, this_machine
from hpcexp.lineage.environment import PACKAGES, installed
from hpcexp.redaction import without_password
from hpcexp.text.formatting import pairs
from hpcexp.tracking.mlflow.authentication import refused
from hpcexp.tracking.mlflow.uri import resolve_uri, unreachable, uri_problem

_TORCH = "import torch; print(torch.__version__, torch.cuda.is_available(), torch.cuda.device_count())"


def doctor(argv: Sequence[str]) -> int:
    """Exit status 0 when training would work here, 1 when it would not."""
    p = parser("doctor", "Report what works on this machine: versions, devices, stores, tools.")
    a = p.parse_args(argv)
    root = a.root.resolve()
    findings = [*_packages(), *_devices(), *_workers(), *_paths(root), *_tracking(root), *_tools()]
    print(f"hpcexp {__version__} on Python {platform.python_version()}, {platform.platform(terse=True)}")
    print(pairs((f"{'ok' if good else '!!'}  {what}", detail) for what, good, detail in findings))
    return 0 if all(good for _, good, _ in findings) else 1


Finding = tuple[str, bool, str]
"""What was looked at, whether it is well, and what was seen."""


def _packages() -> Iterator[Finding]:
    known = installed()
    for package in PACKAGES:
        found = known.get(package)
        yield package, found is not None, found or f"not installed.\nFix: pip install {package}"


def _devices() -> Iterator[Finding]:
    machine = this_machine()
    yield "cores", True, f"{machine.num_cores} that this process may use"
    if (mine := cores()) is not None:
        yield "memory nodes", True, "; ".join(map(_node_text, read_nodes(mine)))
    done = subprocess.run([sys.executable, "-P", "-c", _TORCH], capture_output=True, text=True, check=False)
    if done.returncode:
        yield "torch works", False, (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return
    version, available, count = done.stdout.split()
    yield "torch works", True, version
    if machine.num_gpus and available != "True":
        yield (
            "GPUs",
            False,
            f"{machine.num_gpus} here, but torch {version} cannot use them: a CPU build, or an old driver",
        )
    else:
        yield "GPUs", True, f"{count} that torch can use" if machine.num_gpus else "none: use hardware=cpu"
    if machine.num_gpus:
        yield from gpu_findings(survey())
    yield "leased", True, leases_text()


def _node_text(node: Node) -> str:
    threads = [core for physical in node for core in physical]
    return f"cores {cores_text(frozenset(threads))} ({len(node)} physical)"


def gpu_findings(found: Survey) -> Iterator[Finding]:
    """The driver, and each GPU with who computes on it."""
    without = "hardware.devices=N takes GPUs in their order, whoever computes on them"
    driver = f"{found.driver}, for CUDA up to {found.cuda}" if found.driver else f"{found.problem}; {without}"
    yield "GPU driver", True, driver
    for gpu in found.gpus:
        name = f"GPU {gpu.index}" + (f" {gpu.uuid}" if gpu.uuid.startswith("MIG-") else "")
        yield name, True, _gpu_text(gpu)


def _gpu_text(gpu: Gpu) -> str:
    facts = [gpu.name] if gpu.name else []
    if gpu.total is not None and gpu.free is not None:
        facts.append(f"{(gpu.total - gpu.free) / 2**30:.1f} of {gpu.total / 2**30:.1f} GB used")
    if gpu.utilisation is not None:
        facts.append(f"{gpu.utilisation} % busy")
    return f"{', '.join(facts) or 'present'}; {processes_text(gpu) or 'no process reported'}"


def _workers() -> Iterator[Finding]:
    from hpcexp.launch.supervisor.forkserver import idle_memory

    try:
        memory = idle_memory()
    except (OSError, EOFError) as e:
        yield "warm workers", False, f"their server does not start ({type(e).__name__}): launch.isolation=process"
        return
    own, common = memory.private >> 20, memory.shared >> 20
    yield "warm workers", True, f"{own} MiB each while idle, beside {common} MiB that all of them share"


def _paths(root: Path) -> Iterator[Finding]:
    problems = root_problems(root)
    free_gb = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free / 2**30
    yield "runs", not problems, problems[0] if problems else f"{root}, {free_gb:.0f} GB free"
    for directory in conf_dirs(Path.cwd(), None):
        yield (
            "config files",
            (directory / "config.yaml").exists() or directory != conf_dirs(Path.cwd(), None)[-1],
            str(directory),
        )


def _tracking(root: Path) -> Iterator[Finding]:
    uri = resolve_uri(None, root, os.environ)
    problem = uri_problem(uri) or unreachable(uri) or refused(uri, os.environ)
    yield "MLflow store", problem is None, problem or without_password(uri)


def _tools() -> Iterator[Finding]:
    tools: dict[str, Callable[[str | None], str]] = {
        "git": lambda path: path or "not found: runs cannot say which commit they are of",
        "nvidia-smi": lambda path: path or "not found",
        "sbatch": lambda path: path or "not found: no Slurm here",
    }
    for name, detail in tools.items():
        yield name, True, detail(shutil.which(name))
