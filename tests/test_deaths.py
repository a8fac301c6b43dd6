"""Processes that are killed from outside, as by `kill -9` or for memory: what is begun again, and how often."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import forkserver
from pathlib import Path

import pytest
from helpers import write_module

from hpcexp.errors import RunError
from hpcexp.launch import warm

pytestmark = pytest.mark.slow


def server() -> int:
    """The process of the server of warm workers."""
    warm.warm_up()
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def test_a_server_that_was_just_killed_is_started_again() -> None:
    """Although the kernel still takes it apart, and multiprocessing takes it for alive."""
    os.kill(server(), signal.SIGKILL)
    assert warm.idle_memory().private > 0


def test_a_server_that_is_killed_while_it_imports_is_started_again() -> None:
    """As when jobs are planned meanwhile: three of them in a row."""
    killed: set[int] = set()

    def kill() -> None:
        while len(killed) < 3:
            pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
            if pid is not None and pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

    server()
    killer = threading.Thread(target=kill)
    killer.start()
    assert warm.idle_memory().private > 0
    killer.join()
    assert 3 == len(killed)


def test_a_server_that_always_ends_is_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message says where to look, and what does without it."""
    write_module(tmp_path, "ends_at_once", "raise RuntimeError('no library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(warm, "PRELOADED", "ends_at_once")
    os.kill(server(), signal.SIGKILL)
    with pytest.raises(RunError, match=r"(?s)ended 5 times before.*Fix: .*launch.isolation=process"):
        warm.idle_memory()
    assert "RuntimeError: no library" in capfd.readouterr().err
