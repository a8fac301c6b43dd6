"""Whether a run is at work, told by its process or its beat, and never by the time of day."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import LEAN, Said, command, ended, environment, only_run, start, wait_until, write_module
from hosts import NEEDS_HOSTS, hosts, lose_power, on_host, start_on  # noqa: F401 - a fixture
from record_support import make_run, set_state

from hpcexp.errors import InUseError
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.launch.supervisor.ownership import claimed
from hpcexp.plan import load_plan, save_plan
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.beat import Beat, silence
from hpcexp.runs.clock import ended_now, running_s, started_now
from hpcexp.runs.mark import mark
from hpcexp.runs.owner import Owner
from hpcexp.runs.records.status import RunState, Status, read_status
from hpcexp.status.listing import read_row
from hpcexp.status.state import current_state, elapsed_s
from hpcexp.tracking.sync.run import end_if_abandoned

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
NEEDS_FAKETIME = pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian: faketime)")
ENDLESS = ("train", "hardware=cpu", "trainer.max_epochs=1000000", "trainer.log_every_n_steps=1", "tracking=off", *LEAN)
YEAR_S = 365 * 86400


def at(offset: str) -> dict[str, str]:
    """The environment of a process whose time of day is off by so much, like `-10m`."""
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset}


def listed(project: Path, *, host: str | None = None, **env: str) -> dict[str, object]:
    """The one run of the project as `hpcexp runs` tells of it, on another machine if that has a name."""
    argv = ("runs", "--json")
    if host is None:
        said = command(*argv, cwd=project, **env)
        assert (0, "") == (said.status, said.err)
        return dict(json.loads(said.out))
    done = subprocess.run(on_host(host, *argv), cwd=project, env=environment(**env), capture_output=True, check=True)
    return dict(json.loads(done.stdout))


def age(run: RunDir, seconds: float) -> None:
    """Have the last sign of life so long ago; in the future where that is negative."""
    then = run.beat.stat().st_mtime - seconds
    os.utime(run.beat, (then, then))


@pytest.fixture
def foreign(tmp_path: Path) -> RunDir:
    """A run of another machine, which has a beat of just now."""
    run = make_run(tmp_path / "runs", None)
    write_json(run.status, {**read_plain(run.status), "host": "elsewhere"})
    write_json(run.beat, {"token": "t", "timeout_s": 60.0})
    return run


@pytest.mark.slow
@NEEDS_FAKETIME
@NEEDS_HOSTS
def test_a_run_lives_while_it_does_whatever_the_clocks_say(project: Path) -> None:
    """Also where its own clock is set back meanwhile; it takes as long as it takes. Killed, no clock brings it back."""
    clock = project / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    process = start(*ENDLESS, cwd=project, **faked, FAKETIME_DONT_FAKE_MONOTONIC="1")
    try:
        wait_until(lambda: any(run.journal.exists() for run in find_runs(project / "runs")), "a step")
        run = only_run(project)
        for own in ("-600", f"-{3 * YEAR_S}", f"+{5 * YEAR_S}"):
            clock.write_text(own)
            for offset in ("-10m", "+10m", "-3y", "+5y"):
                for host in (None, "bob"):
                    row = listed(project, host=host, **at(offset))
                    assert "running" == row["state"], (own, offset, host)
                    assert 0 <= float(str(row["duration_s"])), (own, offset, host)
        clock.write_text("-600")
        process.send_signal(signal.SIGTERM)
        assert 143 == ended(process).status
    finally:
        process.kill()
    assert "killed" == str(read_status(run).state)
    assert 0 < (read_status(run).took_s or 0) < 300
    assert not run.beat.parent.exists()

    process = start(*ENDLESS, cwd=project)
    wait_until(lambda: run.beat.exists() and "running" == str(read_status(run).state), "the second attempt")
    lose_power(process)
    for offset in ("-10m", "+10m", "-3y", "+5y"):
        assert "killed" == listed(project, **at(offset))["state"]
        assert "running" == listed(project, host="bob", **at(offset))["state"]
    for seconds in (61.0, -61.0, 10.0 * YEAR_S, -10.0 * YEAR_S):
        age(run, seconds)
        assert "killed" == listed(project, host="bob", **at("-3y"))["state"]
        run.beat.touch()


@pytest.mark.parametrize(
    ("seconds", "state"), [(0, "running"), (50, "running"), (70, "killed"), (-70, "killed"), (YEAR_S, "killed")]
)
def test_a_beat_decides_from_elsewhere(foreign: RunDir, seconds: float, state: str) -> None:
    """By the clock that stamps files, which is another than that of any process."""
    age(foreign, seconds)
    assert state == current_state(foreign)
    assert [foreign.beat] == list(foreign.beat.parent.iterdir())


def test_what_is_not_known_is_not_dead(foreign: RunDir) -> None:
    """No beat; a beat that is none."""
    foreign.beat.unlink()
    assert "running" == current_state(foreign)
    foreign.beat.mkdir()
    assert "running" == current_state(foreign)
    foreign.beat.rmdir()
    os.mkfifo(foreign.beat)
    assert "running" == current_state(foreign)
    shutil.rmtree(foreign.beat.parent)
    foreign.beat.parent.write_text("")
    assert "running" == current_state(foreign)


@pytest.mark.parametrize("timeout_s", ["NaN", "1e999", "-5", '"60"', "[]", "true", f"1{'0' * 400}", "null"])
def test_a_damaged_beat_counts_by_its_time(foreign: RunDir, timeout_s: str) -> None:
    """What it promises is held within bounds."""
    foreign.beat.write_text(f'{{"timeout_s": {timeout_s}}}')
    assert "running" == current_state(foreign)
    age(foreign, 100_000)
    assert "killed" == current_state(foreign)


QUEUE = """
from pathlib import Path
from hpcexp.launch.launchers.local import Local
from hpcexp.runs.owner import is_alive
from hpcexp.runs.records.status import read_status

Path("imported").touch()

class Queue(Local):
    '''Reads a file where another would ask a scheduler.'''

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def is_alive(self, run):
        return is_alive(read_status(run), run.beat) or {"has it": True, "has it no more": False}[self.file.read_text()]
"""


@pytest.fixture
def queued(foreign: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run of another machine, silent for longer than it may be, in whose project a launcher has a queue."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "queue_launcher", raising=False)
    write_module(tmp_path, "queue_launcher", QUEUE)
    plan = load_plan(foreign.plan)
    plan.config["launch"] |= {"_target_": "queue_launcher.Queue", "file": str(tmp_path / "queue")}
    save_plan(plan, foreign.plan)
    mark(foreign)
    age(foreign, 61)
    return foreign


@pytest.mark.parametrize(
    ("answer", "state"), [("has it", "running"), ("has it no more", "killed"), ("cannot be asked", "running")]
)
def test_a_launcher_may_have_a_job_whose_supervisor_is_silent(queued: RunDir, answer: str, state: str) -> None:
    """All readers believe it: lists, sync, and who would resume the run. What it cannot say is unknown, not dead."""
    Path("queue").write_text(answer)
    assert state == current_state(queued)
    row = read_row(queued)
    text = "no sign of life from process .* on elsewhere for 1 min" + ".*; its launcher does not" * (state == "running")
    assert (state, True) == (row.state, bool(re.match(text, row.cause or ""))), row
    plan = load_plan(queued.plan)
    lock = queued.path.parent / f".{queued.path.name}.lock"
    with lock.open("w") as file:  # the lock of a dead machine that its file server never freed
        fcntl.flock(file, fcntl.LOCK_EX)
        lock.write_text(str(Owner.of(read_status(queued))))
        with ExitStack() as stack:
            if state == "running":
                stack.enter_context(pytest.raises(InUseError))
            stack.enter_context(claimed(plan, is_sure=True))
    with ExitStack() as stack:
        if answer == "has it":  # where locks are of one machine alone
            stack.enter_context(pytest.raises(InUseError, match="or will be: its launcher still has the job"))
        stack.enter_context(claimed(plan))
    end_if_abandoned(queued, "run", is_orphan=False)
    assert state == read_status(queued).state


def test_a_launcher_is_not_asked_without_need(queued: RunDir) -> None:
    """While the beat is young. That of somebody else's run is not even imported, and what it knows is unknown."""
    queued.beat.touch()
    assert "running" == current_state(queued)
    age(queued, 61)
    queued.mark.unlink()
    assert "running" == current_state(queued)
    assert not Path("imported").exists()
    mark(queued)
    Path("queue").write_text("has it no more")
    assert "killed" == current_state(queued)
    assert Path("imported").exists()


def test_where_locks_are_of_one_machine_alone_a_living_beat_refuses(foreign: RunDir) -> None:
    """Once it is dead, the lock decides; that of a dead machine is passed over by one command, and by no second."""
    plan = load_plan(foreign.plan)
    message = r"is being written by process \d+ on elsewhere, which gave a sign of life"
    with pytest.raises(InUseError, match=message), claimed(plan):
        pass
    age(foreign, 61)
    with claimed(plan), pytest.raises(InUseError, match="is being written by process"), claimed(plan, is_sure=True):
        pass
    lock = foreign.path.parent / f".{foreign.path.name}.lock"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lock.write_text(str(Owner.of(read_status(foreign))))
        with claimed(plan, is_sure=True), pytest.raises(InUseError), claimed(plan, is_sure=True):
            pass


def test_a_backup_keeps_a_beat_as_it_was(foreign: RunDir, hpcexp: Callable[..., Said], tmp_path: Path) -> None:
    """A run that was at work then is none that is at work now; what readers make for a moment is left out."""
    probe = foreign.beat.with_name(".now.1.00000000")
    probe.touch()
    age(foreign, 61)
    root = foreign.path.parent.parent
    assert 0 == hpcexp("backup", str(tmp_path / "backup"), "--root", str(root)).status
    assert 0 == hpcexp("backup", str(tmp_path / "backup"), "--verify").status
    assert 0 == hpcexp("restore", str(tmp_path / "backup"), "--root", str(tmp_path / "new")).status
    [run] = find_runs(tmp_path / "new")
    assert "killed" == current_state(run)
    assert [run.beat] == list(run.beat.parent.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_who_may_only_read_does_not_know(foreign: RunDir) -> None:
    """The viewer's clock may be off; that nothing was heard for long is said."""
    age(foreign, 7200)
    code = (
        "import sys; from pathlib import Path; from hpcexp.rundir import RunDir;"
        "from hpcexp.status.listing import read_row; row = read_row(RunDir(Path(sys.argv[1])));"
        "print(row.state, row.cause)"
    )
    with TemporaryDirectory() as place:  # pytest's own is closed to others
        Path(place).chmod(0o755)
        copy = shutil.copytree(foreign.path, Path(place, "e", "run"))
        argv = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code, str(copy)]
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("running no sign of life from process"), done
    assert "for 2 h 0 min, by the clock of this machine" in done.stdout


def test_a_machine_that_was_booted_again_has_lost_its_runs(tmp_path: Path) -> None:
    """Its own of before; one of the same name whose beat is young is another machine."""
    run = make_run(tmp_path, None)
    write_json(run.status, {**read_plain(run.status), "boot": "another"})
    assert "killed" == current_state(run)
    write_json(run.beat, {"token": "t", "timeout_s": 60.0})
    assert "running" == current_state(run)


def test_a_container_sees_other_processes(tmp_path: Path) -> None:
    """With its numbers another process is meant."""
    run = make_run(tmp_path, None)
    write_json(run.status, {**read_plain(run.status), "spaces": "pid:[1] time:[1]", "ticks": 1})
    write_json(run.beat, {"token": "t", "timeout_s": 60.0})
    assert "running" == current_state(run)
    age(run, 61)
    assert "killed" == current_state(run)


def test_a_beat_is_touched_while_its_owner_runs(tmp_path: Path) -> None:
    """Not once it is stopped."""
    beat = Beat(tmp_path / "launch" / "beat", timeout_s=1.0)
    beat.start({"token": "t"})
    await_touches(beat)
    last = silence(beat.file)
    assert last is not None
    assert (1.0, True) == (last.timeout_s, last.is_alive)
    beat.stop()
    os.utime(beat.file, (0, 0))
    assert beat._thread is None
    assert 0 == beat.file.stat().st_mtime


def test_a_beat_needs_no_room(tmp_path: Path) -> None:
    """On a disk without a free byte or file it goes on, and a reader that can make no file takes it for alive."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "small", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    beat = Beat(place / "launch" / "beat", timeout_s=1.0)
    try:
        beat.start({"token": "t"})
        with pytest.raises(OSError, match="No space"):
            (place / "large").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space"):
            list(map(Path.touch, [place / str(number) for number in range(100)]))
        await_touches(beat)
        last = silence(beat.file)
        assert last is not None
        assert (False, True) == (last.is_certain, last.is_alive)
    finally:
        beat.stop()
        subprocess.run(["umount", str(place)], check=True)


def await_touches(beat: Beat) -> None:
    for _ in range(3):
        os.utime(beat.file, (0, 0))
        wait_until(lambda: beat.file.stat().st_mtime > 0, "a touch")


def test_durations_are_measured_and_never_negative(tmp_path: Path) -> None:
    """By who lives through them; what is worked out from two clocks is cut at nothing."""
    began = started_now()
    assert 0 <= ended_now(began["started_boot_s"])["took_s"] < 60
    assert 593.0 == Status(started=1000.0, ended=7.0, took_s=593.0).seconds
    assert 0.0 == Status(started=1000.0, ended=407.0).seconds
    assert 1000.0 == Status(started=1000.0, ended=407.0).ended_at
    assert 1005.0 == Status(started=1000.0, ended=99.0, took_s=5.0).ended_at
    assert 0.0 == running_s(1e9 * 9, None, is_here=False)
    running = Status(**{**began, **Owner.this().facts(), "started": 9e9})
    assert 0 <= (elapsed_s(RunState.RUNNING, running) or 0) < 60
    run = make_run(tmp_path, None)
    set_state(run, "finished")
    assert 60.0 == read_row(run).duration_s


@pytest.mark.slow
@NEEDS_HOSTS
def test_a_run_of_a_dead_machine_is_continued_on_another(
    project: Path,
    hpcexp: Callable[..., Said],
    hosts: None,  # noqa: F811
) -> None:
    """Once its beat is old; sealed, without the beat."""
    asked = (*ENDLESS, "checkpoint.every_steps=5", "launch.beat_timeout_s=5")
    process = start_on("ada", project, *asked)
    wait_until(lambda: any(run.last.exists() for run in find_runs(project / "runs")), "a checkpoint")
    lose_power(process)
    run = only_run(project)
    told = hpcexp("show", "last").out
    age(run, 6)
    assert "killed" in hpcexp("show", "last").out, told
    process = start_on("bob", project, *asked)
    wait_until(lambda: read_status(run).attempt == 2, "the second attempt")
    size = run.journal.stat().st_size
    wait_until(lambda: run.journal.stat().st_size > size, "a step of it")
    assert "bob" == read_status(run).host
    process.send_signal(signal.SIGTERM)
    assert "Continuing from step" in ended(process).out
    assert "unchanged" in hpcexp("verify", "last").out


@pytest.mark.slow
@NEEDS_HOSTS
def test_a_command_that_slept_leaves_its_run_to_who_took_it(project: Path, hosts: None) -> None:  # noqa: F811
    """It ends its ranks and writes nothing; meanwhile a second rank 0 waits for the journal."""
    asked = (*ENDLESS, "checkpoint.every_steps=5", "launch.beat_timeout_s=5")
    asleep = start_on("ada", project, *asked)
    wait_until(lambda: any(run.last.exists() for run in find_runs(project / "runs")), "a checkpoint")
    run = only_run(project)
    refused = ended(start_on("bob", project, *asked))
    assert (2, True) == (refused.status, "is being written by process" in refused.err), refused
    asleep.send_signal(signal.SIGSTOP)
    age(run, 6)
    other = start_on("bob", project, *asked)
    wait_until(lambda: read_status(run).host == "bob", "the other machine has the run")
    before = read_status(run)
    asleep.send_signal(signal.SIGCONT)
    said = ended(asleep)
    assert 2 == said.status
    assert "was taken over by process" in said.err
    assert "on bob" in said.err
    assert before == read_status(run)
    size = run.journal.stat().st_size
    wait_until(lambda: run.journal.stat().st_size > size, "a step of the other machine")
    other.send_signal(signal.SIGTERM)
    assert 143 == ended(other).status
    assert ("killed", 2) == (str(read_status(run).state), read_status(run).attempt)
