"""Machines that the tests make of this one: a host name, and so beats instead of processes, for each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import environment

NEEDS_HOSTS = pytest.mark.skipif(
    subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode != 0,
    reason="host names of their own need unshare, and the right to use it",
)


def on_host(host: str, *argv: str) -> list[str]:
    """A command line that runs `hpcexp argv` on a machine of that name."""
    hpcexp = [sys.executable, "-m", "hpcexp", *argv]
    return ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *hpcexp]


_STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture
def hosts() -> Iterator[None]:
    """Whatever a test has started there ends with it."""
    yield
    while _STARTED:
        if (process := _STARTED.pop()).poll() is None:
            lose_power(process)


def start_on(host: str, project: Path, *argv: str, **env: str) -> subprocess.Popen[str]:
    """`hpcexp argv` there, in a process of its own."""
    process = subprocess.Popen(
        on_host(host, *argv),
        cwd=project,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _STARTED.append(process)
    return process


def lose_power(process: subprocess.Popen[str]) -> None:
    """kill -9 of a command and all that it has started, none of which sees another of them die first."""
    everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everything:
        one.suspend()
    for one in everything:
        os.kill(one.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(everything)
