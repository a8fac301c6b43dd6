"""Run directories made by hand, as launch and rank 0 leave them, for the tests of recording."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hpcexp.compose.composer import Composer
from hpcexp.data_spec import Classes, DataSpec, TensorSpec
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.plan import VERSION, Batch, Plan, Steps, Topology, save_plan
from hpcexp.rundir import RecordDir, RunDir, SweepDir
from hpcexp.runs.clock import started_now
from hpcexp.runs.journal import Journal, read_points
from hpcexp.runs.owner import Owner

REPOSITORY = Path(__file__).parent.parent


@cache
def default_config() -> dict[str, Any]:
    """The packaged configuration, composed."""
    return Composer(REPOSITORY).compose(["run.root=runs"]).config


def make_plan(run_dir: Path, uri: str | None, **tracking: Any) -> Plan:
    """A small classification run, recorded at `uri`."""
    default = default_config()
    config = {
        **default,
        "name": "digits_mlp",
        "notes": "Does a wider layer help?",
        "seed": 1,
        "hardware": {**default["hardware"], "devices": [0, 1], "threads_per_rank": None},
        "model": {"_target_": "hpcexp.models.MLP", "hidden": [128, 64]},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01},
        "tracking": {
            **default["tracking"],
            "experiment": "digits_mlp",
            "tags": {"team": "vision"},
            "model": "auto",
            "wait_s": 5.0,
            **tracking,
        },
    }
    return Plan(
        version=VERSION,
        name=run_dir.name,
        experiment=run_dir.parent.name,
        run_dir=str(run_dir),
        signature="a1b2c3d4",
        config=config,
        overrides=("optimizer.lr=0.01",),
        choices={"data": "digits"},
        topology=Topology("cpu", (0,), 1, 1, "single", None),
        batch=Batch(64, 64, 1),
        steps=Steps(22, 660, 30),
        data=DataSpec(1437, 180, 180, {"image": TensorSpec((1, 8, 8))}, Classes(tuple("0123456789")), "f" * 64),
        num_params=17_226,
        tracking_uri=uri,
        lineage={
            "git.commit": "c" * 40,
            "git.dirty": True,
            "command": "hpcexp train optimizer.lr=0.01",
            "user": "ada",
            "host": socket.gethostname(),
            "project": str(run_dir.parent.parent.parent),
            "code.digest": "d" * 64,
        },
        warnings=(),
    )


def make_run(root: Path, uri: str | None, name: str = "lr=0.01", steps: int = 0, **tracking: Any) -> RunDir:
    """A run directory with its plan, in state `running` under this process, `steps` of them in its journal."""
    run = RunDir(root / "digits_mlp" / name)
    save_plan(make_plan(run.path, uri, **tracking), run.plan)
    set_state(run, "running")
    write_steps(run, steps)
    return run


def write_steps(run: RunDir, steps: int, first: int = 1) -> None:
    """Two metrics for each step, as rank 0 journals them."""
    journal = Journal(run.journal)
    journal.append((step, {"train/loss": 1.0 / step, "train/lr": 0.01}) for step in range(first, first + steps))
    journal.close()


def finish(run: RunDir) -> None:
    """What a run that went well leaves behind."""
    journal = Journal(run.journal)
    journal.append([(660, {"test/acc": 0.985, "test/loss": 0.06})])
    journal.close()
    run.checkpoints.mkdir(exist_ok=True)
    run.best.write_bytes(b"weights")
    run.logs.mkdir(exist_ok=True)
    run.rank_log(0).write_text("trained\n")
    write_json(run.confusion, {"labels": ["a", "b"], "matrix": [[9, 1], [0, 10]]})
    best = {"monitor": "val/acc", "value": 0.97, "epoch": 3, "path": "checkpoints/best.ckpt"}
    write_json(run.summary, {"test": {"test/acc": 0.985, "test/loss": 0.06}, "best": best})
    set_state(run, "finished")


def set_state(run: RecordDir, state: str, pid: int | None = None) -> None:
    """Write `status.json` as launch does: of a run or sweep of this process, or of an old one of process `pid`."""
    status: dict[str, Any] = {"state": state, **started_now(), **Owner.this().facts()}
    if pid is not None:
        status |= {"started": 1_700_000_000.0, "pid": pid, "ticks": 1}
    if state != "running":
        status |= {"ended": status["started"] + 60.0, "took_s": 60.0}
    write_json(run.status, status)


@contextmanager
def uploader(run: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """The real process beside a run, with the pipe that launch gives it; killed if it is still there afterwards."""
    command = [sys.executable, "-m", "hpcexp.tracking.sync.run_process", str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY) as sync_process:
        try:
            yield sync_process
        finally:
            sync_process.kill()


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 240.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.02)
    return value


def journalled(run: RunDir) -> list[tuple[str, int, float]]:
    """Every (key, step, value) of the journal, sorted."""
    points, _ = read_points(run.journal)
    return sorted((key, point.step, value) for point in points for key, value in point.metrics.items())


def stored(database: Path, run_id: str) -> list[tuple[str, int, float]]:
    """Every (key, step, value) that MLflow's database has of a run, sorted."""
    return query(database, "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY 1, 2, 3", run_id)


def noted(record: RecordDir, key: str) -> Any:
    """An entry of `mlflow.json`."""
    return read_plain(record.mlflow).get(key)


def mlflow_client(uri: str) -> Any:
    """MLflow's own client; imported here as it takes seconds."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


def in_mlflow(uri: str, record: RecordDir) -> Any:
    """What MLflow says of a run or a sweep."""
    return mlflow_client(uri).get_run(noted(record, "run_id"))


def query(database: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a SQLite database."""
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        return connection.execute(sql, values).fetchall()


@contextmanager
def serving(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process with all that it starts, ended afterwards."""
    with log.open("ab") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield server
    finally:
        kill_group(server)


@contextmanager
def mlflow_server(place: Path) -> Iterator[tuple[int, Callable[[], subprocess.Popen[bytes]]]]:
    """A port, and a function that starts MLflow's own server there, on `place/server.db`, as many groups have it."""
    port = free_port()
    store = ("--backend-store-uri", f"sqlite:///{place}/server.db")
    artifacts = ("--default-artifact-root", (place / "mlartifacts").as_uri(), "--no-serve-artifacts")
    where = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    command = [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *where]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with ExitStack() as running:

        def start() -> subprocess.Popen[bytes]:
            process = running.enter_context(serving(command, environment, place / "server.log"))
            wait_until(lambda: answer(port, "/health") == b"OK", "the server answers")
            return process

        yield port, start


def answer(port: int, path: str) -> bytes | None:
    """What the server says at `path`; None where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return bytes(response.read())
    except OSError:
        return None


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process and its children, and wait for its end."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_sweep(root: Path, name: str = "lr") -> SweepDir:
    """A sweep's directory as its driver leaves it at the beginning, in state `running` under this process."""
    sweep = SweepDir(root / "sweeps" / name)
    axes = {"optimizer.lr": {"values": ["0.1", "0.01"]}, "model.width": {"low": 16, "high": 64, "is_log": True}}
    asked = {
        "name": name,
        "question": "Which rate learns fastest?",
        "axes": axes,
        "objectives": [{"metric": "val/acc", "mode": "max"}],
        "command": f"hpcexp sweep {name}",
    }
    write_json(sweep.definition, asked)
    set_state(sweep, "running")
    return sweep


def end_sweep(sweep: SweepDir, best: RunDir, state: str = "finished") -> None:
    """What a sweep's driver leaves behind: the answer, then the state."""
    sweep.table_csv.write_text(f"job,optimizer.lr,state,run\n1,0.1,finished,{best.path}\n2,0.01,failed,\n")
    sweep.table_md.write_text("| # | optimizer.lr | val/acc |\n|---|---|---|\n| 1 | 0.1 | 0.97 |\n")
    write_json(sweep.best, {"run": str(best.path), "params": {"optimizer.lr": "0.1"}, "metrics": {"val/acc": 0.97}})
    sweep.plots.mkdir(exist_ok=True)
    (sweep.plots / "axes.png").write_bytes(b"\x89PNG")
    set_state(sweep, state)


def told_of(run: RunDir, **axes: str) -> dict[str, Any]:
    """What a driver tells the sync process of a run."""
    return {"run": str(run.path), "axes": {key.replace("__", "."): value for key, value in axes.items()}}
