"""Machines of one job that were asked for different things: named before any rank starts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import FAST, ended, start
from record_support import free_port

from hpcexp.compose.composer import Composed
from hpcexp.launch.base.outcome import Outcome
from hpcexp.launch.launchers import rendezvous
from hpcexp.launch.launchers.rendezvous import Rendezvous, await_leader, difference
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.runs.records.status import RunState


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """What the agent of the machine that leads opens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def asked(compose: Callable[..., Composed], project: Path, listener: socket.socket) -> Callable[..., Plan]:
    """The plan of a job on two machines, as one of them makes it."""

    def plan(*overrides: str, **lineage: Any) -> Plan:
        rdzv = f"launch.rdzv=127.0.0.1:{listener.getsockname()[1]}"
        made = prepare(compose("launch=torchrun", "launch.nodes=2", rdzv, "hardware=cpu", *overrides), project, [])
        return replace(made, lineage={**made.lineage, "command": "hpcexp train …", **lineage})

    return plan


def nothing() -> None:
    """No word from another machine."""


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.lr=0.02"], "optimizer.lr: 0.02 (bob), 0.01 (ada)"),
        (["model=cnn"], "model._target_: hpcexp.models.cnn.CNN (bob), hpcexp.models.mlp.MLP (ada)"),
        (["~model.dropout"], "model.dropout: nothing (bob), 0.0 (ada)"),
        (["launch.nodes=3", "data.global_batch_size=63"], "launch.nodes: 3 (bob), 2 (ada)"),
        (["hardware.devices=2"], "hardware.devices: 2 cpu (bob), 1 cpu (ada)"),
        (["data.val_fraction=0.2"], "data: "),
        (["run.label=mine"], "the run's name: mine-"),
    ],
)
def test_what_differs_is_named(asked: Callable[..., Plan], overrides: list[str], expected: str) -> None:
    """By the key, and as it is on either machine."""
    theirs = asked("optimizer.lr=0.01", host="ada")
    told = difference(asked("optimizer.lr=0.01", *overrides, host="bob"), theirs)
    assert told is not None
    first, *lines, fix = told.splitlines()
    assert "bob was asked for something else than ada, which leads." in first
    assert any(line.startswith(expected) for line in lines), told
    assert "Fix: the same command on all machines" in fix


@pytest.mark.parametrize(
    "overrides", [["launch.progress=none", "tracking=off"], ["strategy.name=ddp"], ["hardware.devices=[1]"]]
)
def test_what_changes_no_result_may_differ(asked: Callable[..., Plan], overrides: list[str]) -> None:
    """Each machine has devices and a terminal of its own."""
    mine, theirs = asked(*overrides, host="bob"), asked(host="ada")
    assert None is difference(replace(mine, name=theirs.name), theirs)


def test_other_code_is_named(asked: Callable[..., Plan]) -> None:
    """By its digest."""
    told = difference(asked(host="bob", **{"code.digest": "b" * 64}), asked(host="ada"))
    assert f"code: {'b' * 12} (bob), " in (told or "")


def test_both_machines_are_told(asked: Callable[..., Plan]) -> None:
    """The one that leads, in the words of the other."""
    led, other = asked(), asked("optimizer.lr=0.02")
    board = Rendezvous(led)
    with board.shown():
        assert None is await_leader(asked("launch.progress=none"), nothing)
        assert None is board.heard()
        outcome = await_leader(other, nothing)
        board = Rendezvous(led)
        assert outcome == Outcome(RunState.FAILED, board.heard() or "", 2)
        assert "optimizer.lr: 0.02 (the second command), " in outcome.cause
    assert [] == list(board.path.parent.iterdir())


def test_a_plan_that_a_killed_command_has_left_is_not_compared_with(
    asked: Callable[..., Plan], listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only while somebody can be reached there; what goes wrong elsewhere ends the wait."""
    monkeypatch.setattr(rendezvous, "JOIN_S", 0.2)
    with ExitStack() as killed:
        killed.enter_context(Rendezvous(asked()).shown())
        mine = asked("optimizer.lr=0.02")
        listener.close()
        outcome = await_leader(mine, nothing)
        assert outcome is not None
        assert "nobody has come there for 0.2 s" in outcome.cause
        assert Outcome(RunState.FAILED, "the disk is full", 1) == await_leader(mine, lambda: "the disk is full")


def test_somebody_else_at_the_place_is_told(asked: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the machines do not see the same directory of runs."""
    monkeypatch.setattr(rendezvous, "_UNSEEN_S", 0.0)
    outcome = await_leader(asked(), nothing)
    assert outcome is not None
    assert (2, True) == (outcome.exit, "a run.root that all of them see" in outcome.cause)


@pytest.mark.slow
def test_two_commands_that_differ_both_end_at_once(project: Path) -> None:
    """With exit status 2 and the same words; no rank has started."""
    asked = (
        "train",
        *FAST,
        "hardware=cpu",
        "launch=torchrun",
        "launch.nodes=2",
        f"launch.rdzv=127.0.0.1:{free_port()}",
    )
    both = [start(*asked, f"optimizer.lr={lr}", cwd=project) for lr in (0.01, 0.02)]
    said = [ended(process) for process in both]
    assert [2, 2] == [s.status for s in said], said
    assert said[0].err == said[1].err
    assert "optimizer.lr: 0.0" in said[0].err
    assert [] == list(project.glob("runs/*/*/logs/rank-*"))
