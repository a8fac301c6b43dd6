"""Stopping and ending the processes of a drill."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcexp.drill.processes import end_all_in, freeze, thaw
from hpcexp.errors import RunError


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_session_stands_still_until_it_is_let_go() -> None:
    """At once, where the kernel can."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as process:
        freeze([process.pid])
        assert "T" == state_of(process.pid)
        thaw([process.pid])
        process.communicate(b"\n")
    assert 0 == process.returncode


def test_a_process_that_does_not_stop_is_named() -> None:
    """One that leads no session is not reached by a signal to its session, as one that the kernel holds is not."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(
            RunError, match=rf"Processes {process.pid} do not stop within 0.05 s of SIGSTOP(?s:.*)Fix: "
        ):
            freeze([process.pid], patience_s=0.05)
        process.communicate(b"\n")


def test_processes_with_output_in_a_directory_are_ended(tmp_path: Path) -> None:
    """Whoever started them; this one stays."""
    with (tmp_path / "log").open("w") as log, subprocess.Popen(["sleep", "1000"], stdout=log) as process:
        end_all_in(tmp_path)
        assert -signal.SIGKILL == process.wait()


def test_processes_that_do_not_end_are_named(tmp_path: Path) -> None:
    """Without patience, one that has just been killed counts as one that the kernel holds."""
    with (tmp_path / "log").open("w") as log, subprocess.Popen(["sleep", "1000"], stdout=log) as process:
        text = rf"Processes {process.pid} with output in {tmp_path} do not end within 0 s of SIGKILL(?s:.*)Fix: "
        with pytest.raises(RunError, match=text):
            end_all_in(tmp_path, patience_s=0.0)
        process.kill()
