"""The supervisor: one job on this machine, from its frozen plan to its final state."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from hpcexp.errors import RunError
from hpcexp.launch.display import Display, display
from hpcexp.launch.ranks import Ranks
from hpcexp.launch.resume import Continuation, continuation, go_back
from hpcexp.plan import Plan, save_plan
from hpcexp.record.uri import without_password
from hpcexp.rundir import RunDir, held, read_json, write_atomic, write_json

POLL_S = 0.05
PATIENCE_S = 5.0
"""After which the command says what it is still waiting for."""
MISTAKES = ("config", "data")
"""Kinds of errors in a rank that the user can mend in what was asked for."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: str
    """finished, failed or killed; skipped or planned where nothing ran."""
    cause: str
    """Why it did not finish, in the words of the rank that failed first; empty where it did."""
    exit: int
    """Exit status for the command: 0, 2 for a mistake the user can mend, 1 for a failure, 128 + n for a signal."""


def freeze(plan: Plan, found: Continuation | None = None) -> RunDir:
    """Write the plan into its run directory. An earlier try that is not gone on with is kept beside it."""
    run = RunDir(Path(plan.run_dir))
    if found is None and run.plan.exists():
        _set_aside(run.path)
    shown = plan.tracking_uri and without_password(plan.tracking_uri)
    try:
        if found is not None:
            go_back(run, found)
        if shown != plan.tracking_uri:
            write_atomic(run.secret_uri, f"{plan.tracking_uri}\n", mode=0o600)
        save_plan(replace(plan, tracking_uri=shown), run.plan)
    except OSError as e:
        raise RunError(f"{run.path} cannot be written: {e.strerror}.\nFix: run.root=… where there is room.") from e
    return run


def claimed(plan: Plan) -> AbstractContextManager[None]:
    """Keep other commands out of the plan's run directory; RunError names the one that is in it."""
    path = Path(plan.run_dir)
    return held(path.parent / f".{path.name}.lock", f"{path} is being written by")


def run_job(plan: Plan, *, fresh: bool) -> Outcome:
    """Freeze the plan, run its ranks, and leave a final state behind whatever happens.

    An interrupted run is gone on with, in its directory and its MLflow run, unless `fresh`.
    """
    gc.enable()
    with claimed(plan):
        found = None if fresh else continuation(plan, verify=True)
        if found is not None:
            print(f"Continuing from {found.text(plan)} (--fresh starts over)", flush=True)
        run = freeze(plan, found)
        status = {
            "state": "running",
            "started": time.time(),
            "attempt": found.attempt if found else 1,
            "pid": os.getpid(),
            "host": plan.lineage["host"],
        }
        write_json(run.status, status)
        shipper = _start_shipper(run)
        outcome = Outcome("failed", "the supervisor itself failed", 1)
        try:
            outcome = _supervise(plan, run)
        finally:
            ended = {"ended": time.time(), "state": outcome.state, "cause": outcome.cause, "exit": outcome.exit}
            _end(run, {**status, **ended})
            _await_shipper(shipper, run, plan.config["tracking"]["wait_s"])
    return outcome


def _end(run: RunDir, status: dict[str, Any]) -> None:
    """Leave the final state. On a full disk it stays `running` there, and readers see that nobody runs it."""
    try:
        write_json(run.status, status)
    except OSError as e:
        print(f"{run.status} cannot be written: {e.strerror}. The run {status['state']}.", file=sys.stderr)


def _supervise(plan: Plan, run: RunDir) -> Outcome:
    shown = display(plan.config["launch"]["progress"])
    ranks = Ranks(plan, Path(plan.lineage["project"]))
    try:
        with _caught() as caught:
            return _watch(ranks, run, shown, caught, plan.config["launch"]["grace_s"])
    finally:
        ranks.close()
        shown.close()


def _watch(ranks: Ranks, run: RunDir, shown: Display, caught: list[int], grace_s: float) -> Outcome:
    ears = _Ears(ranks.progress_fd, run.rank_log(0), shown)
    deadline: float | None = None
    failure: tuple[int, int] | None = None
    while not ranks.are_done():
        ears.listen(POLL_S)
        failure = failure or ranks.first_failure()
        if deadline is None and (caught or failure):
            ranks.signal(signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        if deadline is not None and (time.monotonic() > deadline or len(caught) > 1):
            ranks.signal(signal.SIGKILL)
    ears.listen(0)
    failure = failure or ranks.first_failure()
    if failure is None and run.summary.exists():
        return Outcome("finished", "", 0)
    if failure is None:
        cause = f"its ranks ended before the run was complete: something called exit.\nIts log: {run.rank_log(0)}"
        return Outcome("failed", cause, 1)
    if caught:
        return Outcome("killed", f"stopped by {signal.Signals(caught[0]).name}", 128 + caught[0])
    return _failed(run, ranks, failure, ears.errors)


def _failed(run: RunDir, ranks: Ranks, failure: tuple[int, int], errors: dict[int, dict[str, Any]]) -> Outcome:
    """The outcome in the words of the rank that complained first, or else of the one that was seen to end first."""
    rank, code = failure
    if errors:
        rank = next(iter(errors))
        code = ranks.processes[rank].returncode
    said = errors.get(rank, {})
    if said.get("kind") in MISTAKES:
        return Outcome("failed", str(said["message"]), 2)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    what = f": {said['message']}" if said else ""
    return Outcome("failed", f"rank {rank} {how}{what}\nIts log: {run.rank_log(rank)}", 1)


@contextmanager
def _caught() -> Iterator[list[int]]:
    """Signals that arrive meanwhile, in their order, instead of what they would do."""
    caught: list[int] = []

    def catch(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    # What nohup or a shell's `&` has them ignore stays ignored.
    before = {s: signal.signal(s, catch) for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ears:
    """What the ranks say: progress and errors down a pipe, and the first one's log."""

    def __init__(self, fd: int, log: Path, shown: Display) -> None:
        self.errors: dict[int, dict[str, Any]] = {}
        """Rank → kind and message of what it failed of."""
        self._fd, self._log, self._shown = fd, log, shown
        self._rest = b""
        self._is_open = True
        self._offset = log.stat().st_size if log.exists() else 0

    def listen(self, wait_s: float) -> None:
        """Show what has come since, or comes within `wait_s`."""
        select.select([self._fd] if self._is_open else [], [], [], wait_s)
        for event in self._events():
            if "error" in event:
                self.errors.setdefault(event["rank"], event["error"])
            else:
                self._shown.progress(event)
        for line in self._lines():
            self._shown.line(line)

    def _events(self) -> list[dict[str, Any]]:
        while self._is_open:
            try:
                chunk = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            self._rest += chunk
            self._is_open = bool(chunk)
        *lines, self._rest = self._rest.split(b"\n")
        return [event for line in lines if (event := _parsed(line)) is not None]

    def _lines(self) -> list[str]:
        """Whole new lines of the log. Not those that a failing rank writes last: the outcome tells what it says."""
        if self.errors:
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].decode(errors="replace").splitlines()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """An event; None where two ranks wrote at once and longer than a pipe keeps whole."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _start_shipper(run: RunDir) -> subprocess.Popen[bytes]:
    run.logs.mkdir(exist_ok=True)
    with (run.logs / "shipper.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hpcexp.record.shipper", str(run.path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_shipper(shipper: subprocess.Popen[bytes], run: RunDir, wait_s: float) -> None:
    """Give the shipper its time; it goes on by itself where that is not enough, or where no server answers."""
    deadline = time.monotonic() + wait_s
    told = False
    try:
        while (left := deadline - time.monotonic()) > 0:
            try:
                shipper.wait(timeout=min(left, PATIENCE_S))
                return
            except subprocess.TimeoutExpired:
                note = read_json(run.mlflow)
            if note.get("problem") and not note.get("run_id"):
                return
            if not told:
                told = True
                print(f"Sending MLflow the rest, {left:.0f} s at most. Ctrl-C leaves it to `hpcexp sync`.", flush=True)
    except KeyboardInterrupt:
        return


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}~{number}")).exists():
        number += 1
    path.rename(aside)
