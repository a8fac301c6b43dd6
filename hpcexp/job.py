"""`python -m hpcexp.job RUN_DIR`: what every rank does with a frozen plan. Never imports MLflow.

Exit status: 0 done; 2 a mistake the user can mend; 1 anything else; 143 and 130 after SIGTERM and SIGINT.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcexp.errors import ConfigError, DataError, HpcexpError
from hpcexp.files.untrusted import open_append
from hpcexp.hardware.machine import take_cores
from hpcexp.lineage.imported import note_job
from hpcexp.plan import Plan, load_whole
from hpcexp.rundir import RunDir

if TYPE_CHECKING:
    from hpcexp.train.engine.builders import Rank

_STDERR = 2


def main(argv: list[str] | None = None) -> int:
    """Run the job of the run directory in `argv`; the exit status."""
    run = RunDir(Path((argv or sys.argv[1:])[0]))
    take_cores()
    _open_by_path()
    if os.environ.get("HPCEXP_LOG_BY_RANK"):
        _log_by_rank(run)
    _die_with_supervisor()
    _write_stacks()
    _say(pid=os.getpid())
    try:
        return _run(run)
    except HpcexpError as e:
        kind = "config" if isinstance(e, ConfigError) else "data" if isinstance(e, DataError) else "run"
        _say(error={"kind": kind, "message": str(e)})
        print(e, file=sys.stderr)
        return 2
    except Exception as e:  # noqa: BLE001 - the traceback goes to the log, the cause to the launcher
        _say(error={"kind": "crash", "message": f"{type(e).__name__}: {e}{_place(e)}"})
        traceback.print_exc()
        return 1


def _run(run: RunDir) -> int:
    started = time.time() - time.process_time()
    plan = load_whole(run)
    from hpcexp.train.runtime.log_filters import import_lightning

    import_lightning()
    from hpcexp.train.engine.fit import train
    from hpcexp.train.engine.interrupts import Interrupted, Pruned, Signals
    from hpcexp.train.engine.pruning import judged
    from hpcexp.train.engine.step_limit import StepLimitReached, last_step

    signals = Signals()
    signals.install()
    rank, progress_fd = _this_rank(plan), _fd("HPCEXP_PROGRESS_FD")
    try:
        train(
            plan,
            run,
            rank,
            signals,
            started=started,
            progress_fd=progress_fd,
            judged=judged(os.environ),
            last_step=last_step(os.environ),
        )
    except (Pruned, StepLimitReached):
        pass  # the summary tells
    except Interrupted as e:
        _say(stopped=int(e.signum))
        return 128 + e.signum
    finally:
        if rank.rank == 0:
            note_job(run, started)
    _say(done=True)
    return 0


def _this_rank(plan: Plan) -> Rank:
    import torch

    from hpcexp.train.engine.builders import Rank

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or plan.topology.threads_per_rank))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if plan.topology.accelerator == "cuda" else torch.device("cpu")
    return Rank(int(os.environ.get("RANK", "0")), plan.topology.world_size, device)


def _fd(name: str) -> int | None:
    value = os.environ.get(name)
    return int(value) if value else None


def _open_by_path() -> None:
    """Open the supervisor's pipes where they could not be inherited; a supervisor that is gone has none."""
    for name, mode in (("HPCEXP_PARENT", os.O_RDONLY), ("HPCEXP_PROGRESS", os.O_WRONLY)):
        if path := os.environ.pop(f"{name}_PATH", None):
            os.environ[f"{name}_FD"] = str(os.open(path, mode))


def _log_by_rank(run: RunDir) -> None:
    """Write into this rank's log, which nobody could name before all machines had met."""
    log = open_append(run.rank_log(int(os.environ["RANK"])))
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _die_with_supervisor() -> None:
    """Wait in a thread for the end of the pipe that only the supervisor holds open."""
    if (fd := _fd("HPCEXP_PARENT_FD")) is not None:
        threading.Thread(target=_wait_for_end, args=(fd,), daemon=True).start()


def _write_stacks() -> None:
    """Have the log tell where a crash of the interpreter was, and where this process is when the supervisor asks."""
    faulthandler.enable(_STDERR)
    faulthandler.register(signal.SIGUSR2, _STDERR, all_threads=True)


def _wait_for_end(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 4096):
            pass
    os.kill(os.getpid(), signal.SIGKILL)


def _say(**what: Any) -> None:
    """Tell the supervisor, which tells the user: a full disk may have no room for the log."""
    if (fd := _fd("HPCEXP_PROGRESS_FD")) is not None:
        with contextlib.suppress(OSError):
            os.write(fd, (json.dumps({"rank": int(os.environ.get("RANK", "0")), **what}) + "\n").encode())


def _place(error: BaseException) -> str:
    """Where in the user's or hpcexp's code an error came from, as ` (file:line)`."""
    installed = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(installed)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


if __name__ == "__main__":
    sys.exit(main())
