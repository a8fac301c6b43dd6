"""`python -m hpcexp.job RUN_DIR`: what every rank does with a frozen plan. Never imports MLflow.

Exit status: 0 done; 2 a mistake the user can mend; 1 anything else; 143 and 130 after SIGTERM and SIGINT.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hpcexp.errors import ConfigError, DataError, HpcexpError
from hpcexp.files.untrusted import open_append
from hpcexp.hardware.machine import take_cores
from hpcexp.lineage.imported import note_job
from hpcexp.plan import Plan, load_whole
from hpcexp.rank_protocol import Done, Event, Failed, RankEnv, Started, Stopped, send
from hpcexp.rundir import RunDir

if TYPE_CHECKING:
    from hpcexp.train.runtime.rank import Rank

_STDERR = 2


def main(argv: list[str] | None = None) -> int:
    """Run the job of the run directory in `argv`; the exit status."""
    run = RunDir(Path((argv or sys.argv[1:])[0]))
    env = _opened(RankEnv.from_environ())
    rank = env.rank or 0
    take_cores(env.cores, env.local_rank or 0)
    if env.log_by_rank:
        _log_by_rank(run, rank)
    _die_with_supervisor(env)
    _write_stacks()
    _report(env, Started(rank, os.getpid()))
    try:
        return _run(run, env)
    except HpcexpError as e:
        kind: Literal["config", "data", "run"] = "run"
        kind = "config" if isinstance(e, ConfigError) else "data" if isinstance(e, DataError) else kind
        _report(env, Failed(rank, kind, str(e)))
        print(e, file=sys.stderr)
        return 2
    except Exception as e:  # noqa: BLE001 - the traceback goes to the log, the cause to the launcher
        from hpcexp.train.engine.causes import cause_of

        _report(env, Failed(rank, "crash", cause_of(e, _place(e))))
        traceback.print_exc()
        return 1


def _run(run: RunDir, env: RankEnv) -> int:
    started = time.time() - time.process_time()
    plan = load_whole(run)
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning()
    from hpcexp.train.engine.fit import train
    from hpcexp.train.engine.interrupts import Interrupted, Pruned, Signals
    from hpcexp.train.engine.pruning import pruning_query
    from hpcexp.train.engine.step_limit import StepLimitReached

    signals = Signals()
    signals.install()
    rank = _this_rank(plan, env)
    try:
        train(
            plan,
            run,
            rank,
            signals,
            started=started,
            progress_fd=env.events_fd,
            pruning=pruning_query(env),
            last_step=env.last_step,
        )
    except (Pruned, StepLimitReached):
        pass  # the summary tells
    except Interrupted as e:
        _report(env, Stopped(rank.rank, int(e.signum)))
        return 128 + e.signum
    finally:
        if rank.rank == 0:
            note_job(run, started)
    _report(env, Done(rank.rank))
    return 0


def _this_rank(plan: Plan, env: RankEnv) -> Rank:
    import torch

    from hpcexp.train.runtime.rank import Rank

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or plan.topology.threads_per_rank))
    cuda = plan.topology.accelerator == "cuda"
    device = torch.device("cuda", env.local_rank or 0) if cuda else torch.device("cpu")
    return Rank(env.rank or 0, plan.topology.world_size, device)


def _opened(env: RankEnv) -> RankEnv:
    """Open the supervisor's pipes where they could not be inherited; a supervisor that is gone has none."""
    if env.supervisor_path is None or env.events_path is None:
        return env
    supervisor_fd, events_fd = os.open(env.supervisor_path, os.O_RDONLY), os.open(env.events_path, os.O_WRONLY)
    return replace(env, supervisor_fd=supervisor_fd, events_fd=events_fd)


def _log_by_rank(run: RunDir, rank: int) -> None:
    """Write into this rank's log, which nobody could name before all machines had met."""
    log = open_append(run.rank_log(rank))
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _die_with_supervisor(env: RankEnv) -> None:
    """Wait in a thread for the end of the pipe that only the supervisor holds open."""
    if env.supervisor_fd is not None:
        threading.Thread(target=_wait_for_end, args=(env.supervisor_fd,), daemon=True).start()


def _write_stacks() -> None:
    """Have the log tell where a crash of the interpreter was, and where this process is when the supervisor asks."""
    faulthandler.enable(_STDERR)
    faulthandler.register(signal.SIGUSR2, _STDERR, all_threads=True)


def _wait_for_end(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 4096):
            pass
    os.kill(os.getpid(), signal.SIGKILL)


def _report(env: RankEnv, event: Event) -> None:
    """Send an event to the supervisor, which shows it to the user: a full disk may have no room for the log."""
    if env.events_fd is not None:
        with contextlib.suppress(OSError):
            send(env.events_fd, event)


def _place(error: BaseException) -> str:
    """Where in the user's or hpcexp's code an error came from, as ` (file:line)`."""
    installed = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(installed)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


if __name__ == "__main__":
    sys.exit(main())
