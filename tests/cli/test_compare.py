"""`hpcexp compare` on a real sweep of four trainings: from its directories, from MLflow's file and from its server."""

from __future__ import annotations

import csv
import io
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from forked import command
from helpers import HEAVY, LEAN, Said, environment, python
from record_support import free_port, make_run, serving, wait_until

from hpcexp.compare.sources import mlflow_store
from hpcexp.errors import ConfigError, RunError
from hpcexp.files.documents import read_plain
from hpcexp.plan import VERSION
from hpcexp.rundir import RunDir, find_runs

ASKED = ("optimizer.lr=0.003,0.01", "seed=1,2", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a sweep of two rates and two seeds, in MLflow too. For looking at only."""
    project = tmp_path_factory.mktemp("swept")
    said = command("train", "-m", *ASKED, *LEAN, "tracking.wait_s=240", cwd=project)
    assert (0, "") == (said.status, said.err)
    return project


@pytest.fixture
def compare(swept: Path, hpcexp: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`hpcexp compare …` in that project."""
    monkeypatch.chdir(swept)
    return lambda *argv: hpcexp("compare", *argv)


def table(said: Said) -> list[dict[str, str]]:
    """The runs of `--format csv`."""
    assert (0, "") == (said.status, said.err)
    return list(csv.DictReader(io.StringIO(said.out)))


def runs(swept: Path) -> list[RunDir]:
    return list(find_runs(swept / "runs"))


def test_only_what_differs_is_shown_over_seeds(compare: Callable[..., Said]) -> None:
    """Beside what the runs came to, with the paired test; all else is a number."""
    said = compare()
    assert (0, "") == (said.status, said.err)
    lines = [line.split() for line in said.out.splitlines()]
    assert ["4", "runs", "of", "digits_mlp", "in", "2", "groups"] == lines[0]
    assert [["config"], ["optimizer.lr", "0.01", "0.003"], ["metrics"]] == lines[3:6]
    assert ["val/acc", "p", "test/acc", "test/loss", "runs"] == [line[0] for line in lines[6:11]]
    assert ["±", "(2)"] == [lines[6][2], lines[6][4]]
    assert re.search(r"^The same in all: [1-9]\d+ keys of the configuration, code, data,", said.out, re.MULTILINE)


def test_a_sweep_is_compared_by_its_name(compare: Callable[..., Said], swept: Path) -> None:
    """Or as the latest; it may be asked for in a query as well."""
    [place] = (swept / "runs" / "sweeps").iterdir()
    expected = compare()
    asked = [("--sweep", "last"), ("--sweep", place.name), ("--query", f"sweep = '{place.name}'")]
    assert [expected] * 3 == [compare(*words) for words in asked]


@pytest.mark.parametrize("source", ["directories", "store"])
def test_runs_are_named_by(compare: Callable[..., Said], swept: Path, source: str) -> None:
    """Name, experiment and name, start of the signature or of the MLflow id; of directories also by their place."""
    told = runs(swept)
    ids = [read_plain(run.mlflow)["run_id"] for run in told]
    words = [told[0].path.name, f"digits_mlp/{told[1].path.name}", told[2].path.name[-8:-1], ids[3][:12], ids[3]]
    more = ("--uri", "sqlite:///runs/mlflow.db") if source == "store" else (str(told[3].path),)
    found = table(compare(*words, *more, "--format", "csv"))
    assert sorted(run.path.name for run in told) == sorted(row["run"] for row in found)


def test_a_query_chooses(compare: Callable[..., Said]) -> None:
    """By configuration, by metric, by state."""
    query = "config.optimizer.lr < 0.01 and metrics.val/acc > 0.1 and state = 'finished' and val/loss > 0"
    found = table(compare("--each", "--query", query, "--format", "csv"))
    assert {("0.003", "1"), ("0.003", "2")} == {
        (row["run"].split(",")[0].removeprefix("lr="), row["seed"]) for row in found
    }


def test_mlflows_file_tells_the_same(compare: Callable[..., Said]) -> None:
    """Of metrics too that only the curves have."""
    for more in (
        [],
        ["--sweep", "last"],
        ["--metric", "val/loss", "--metric", "train/loss"],
        ["--metric", "num_params"],
    ):
        directories, store = compare(*more), compare(*more, "--uri", "sqlite:///runs/mlflow.db")
        assert (0, "", 0, "") == (directories.status, directories.err, store.status, store.err)
        without_facts = [said.out.partition("The same in all")[0] for said in (directories, store)]
        assert without_facts[0] == without_facts[1]


def test_runs_that_something_else_recorded_are_compared_too(
    compare: Callable[..., Said], swept: Path, tmp_path: Path
) -> None:
    """By parameters and last values; of a validation the best."""
    with (
        closing(sqlite3.connect(swept / "runs" / "mlflow.db")) as ours,
        closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy,
    ):
        ours.backup(copy)
    runs = [("a" * 32, "0.1", [0.5, 0.75, 0.25]), ("b" * 32, "0.2", [0.5, 1.0, 0.125])]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        for run_id, rate, values in runs:
            told = (run_id, f"theirs-{rate}", "FINISHED", 1, "active", 0)
            columns = "run_uuid, name, status, start_time, lifecycle_stage, experiment_id"
            database.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?)", told)
            database.execute("INSERT INTO params (key, value, run_uuid) VALUES ('lr', ?, ?)", (rate, run_id))
            for metric, step, value in [(m, s, v) for m in ("val_acc", "loss") for s, v in enumerate(values)]:
                row = (metric, value, step, step, run_id)
                database.execute(
                    "INSERT INTO metrics (key, value, timestamp, step, run_uuid) VALUES (?, ?, ?, ?, ?)", row
                )
                columns = "key, value, timestamp, step, run_uuid, is_nan"
                database.execute(f"INSERT OR REPLACE INTO latest_metrics ({columns}) VALUES (?, ?, ?, ?, ?, 0)", row)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = table(
        compare("theirs-0.1", "bbbbb", "--uri", uri, "--metric", "val_acc", "--metric", "loss", "--format", "csv")
    )
    expected = [("Default", "0.2", "1.0", "0.125", "b" * 32), ("Default", "0.1", "0.75", "0.25", "a" * 32)]
    assert expected == [tuple(row[key] for key in ("experiment", "lr", "val_acc", "loss", "location")) for row in found]
    assert 6 == len(table(compare("--uri", uri, "--metric", "loss", "--format", "csv")))


def test_curves_are_drawn(compare: Callable[..., Said], tmp_path: Path) -> None:
    """Into a file that is named at the end."""
    for more in ([], ["--uri", "sqlite:///runs/mlflow.db"]):
        picture = tmp_path / "curves.png"
        said = compare("--plot", str(picture), *more)
        assert 0 == said.status
        assert said.err.startswith("curves: ")
        assert b"\x89PNG" == picture.read_bytes()[:4]
        picture.unlink()


def test_reading_needs_nothing_heavy(swept: Path) -> None:
    """Neither torch nor MLflow nor pandas, from directories and from the file."""
    said = python(
        f"""
        import sys
        from hpcexp.cli.main import run
        assert run(["compare"]) == 0
        assert run(["compare", "--uri", "sqlite:///runs/mlflow.db"]) == 0
        print(*[name for name in {HEAVY!r} if name in sys.modules and name != "numpy"], file=sys.stderr)
        """,
        swept,
    )
    assert (0, "\n") == (said.status, said.err)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["nothere"], "No run is named 'nothere'"),
        (["runs/digits_mlp"], "No run is named 'runs/digits_mlp'"),
        (["--sweep", "nothere"], "is named 'nothere'"),
        (["--query", "optimizer.l = 1"], "no run has 'optimizer.l'"),
        (["--query", "seed > 5"], "They have seed 1, 2."),
        (["--query", "seed = = 1"], "--query: a name, text or number is missing here"),
        (["--metric", "val/los"], "Fix: --metric val/loss"),
        (["--top", "3", "--format", "csv"], "--top 3: a table has so many rows"),
        (["--top", "-1"], "--top -1: a table has so many rows"),
        (["--root", "nowhere"], "There are no runs in"),
        (["--plot", "curves.svg"], "Fix: --plot curves.png"),
        (["--uri", "runs"], "--uri runs names a directory"),
        (["--uri", "sqlite:///nowhere.db"], "There is no nowhere.db"),
        (["--uri", "sqlite:///runs/mlflow.db", "nothere"], "No run in the store is named 'nothere'"),
        (["--uri", "sqlite:///runs/mlflow.db", "l"], "No run in the store is named 'l'"),
        (["--uri", "sqlite:///runs/mlflow.db", "--sweep", "nothere"], "No sweep in the store is named 'nothere'"),
    ],
)
def test_a_mistake_is_told_with_a_way_out(compare: Callable[..., Said], argv: list[str], told: str) -> None:
    """Exit status 2, and nothing printed that looks like an answer."""
    said = compare(*argv)
    assert (2, "") == (said.status, said.out)
    assert told in said.err
    assert any(word in said.err for word in ("Fix: ", "Sweeps: "))


def test_a_damaged_run_is_left_out_unless_it_is_asked_for(hpcexp: Callable[..., Said], project: Path) -> None:
    """Then it is a mistake."""
    make_run(project / "runs", None)
    damaged = make_run(project / "runs", None, name="lr=0.1-s1-abcdef01")
    damaged.plan.write_text(f"version: {VERSION}\n")
    said = hpcexp("compare")
    assert (0, "1 run of digits_mlp") == (said.status, said.out.splitlines()[0])
    assert said.err.startswith("left out: ")
    assert "is damaged" in said.err
    for asked in (["abcdef01"], ["abcdef01", "lr=0.01"]):
        said = hpcexp("compare", *asked)
        assert (2, "") == (said.status, said.out)
        assert "plan.yaml is damaged: object missing required field `name`.\nFix: restore" in said.err


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    """A file of something else, and an empty store."""
    (tmp_path / "other.db").write_text("no database at all" * 100)
    with closing(sqlite3.connect(tmp_path / "empty.db")) as other:
        other.execute("CREATE TABLE a (b)")
    for name in ("other.db", "empty.db"):
        with pytest.raises(RunError, match=r"cannot be read as an MLflow store: .*\nFix: "):
            mlflow_store.read_runs(f"sqlite:///{tmp_path / name}")
    with pytest.raises(ConfigError, match=r"--uri mysql://me@host/db is a database that is not read directly\.\nFix: "):
        mlflow_store.read_runs("mysql://me:secret@host/db")


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that says one thing; where it is, and what it was shown to be let in."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", shown
        server.shutdown()


def test_a_server_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the password that it was shown."""
    with pytest.raises(RunError, match=r"does not answer as an MLflow server: Connection refused\.\nFix: "):
        mlflow_store.read_runs(f"http://127.0.0.1:{free_port()}")
    with answering(503, b"") as (place, _), pytest.raises(RunError, match="answer as an MLflow server: 503 Service"):
        mlflow_store.read_runs(f"http://{place}")
    fix = r" \(401 Unauthorized\)\.\nFix: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment\."
    with answering(401, b"") as (place, _), pytest.raises(RunError, match=f"wants a user and a password{fix}"):
        mlflow_store.read_runs(f"http://{place}")
    with answering(401, b"") as (place, shown), pytest.raises(RunError, match=f"does not know .*{fix}") as caught:
        mlflow_store.read_runs(f"http://ada:secr%65t@{place}")
    assert (["Basic YWRhOnNlY3JldA=="], False) == (shown, "secr" in str(caught.value))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    with answering(200, b"<html>") as (place, shown), pytest.raises(RunError, match="does not answer as an MLflow"):
        mlflow_store.read_runs(f"http://{place}")
    assert ["Bearer abc"] == shown
    with answering(200, b"{}") as (place, _), pytest.raises(RunError, match="There are no runs in http://"):
        mlflow_store.read_runs(f"http://{place}")


@pytest.mark.slow
def test_a_server_tells_the_same(compare: Callable[..., Said], swept: Path, tmp_path: Path) -> None:
    """MLflow's own, page by page."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{swept}/runs/mlflow.db", "--port", str(port), "--workers", "1"]
    asked = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with serving([sys.executable, "-m", "mlflow", "server", *store], asked, tmp_path / "log"):
        wait_until(lambda: compare("--uri", uri).status == 0, "the server answers")
        for more in (["--each"], ["--sweep", "last", "--metric", "val/loss"]):
            assert compare(*more, "--uri", "sqlite:///runs/mlflow.db").out == compare(*more, "--uri", uri).out
