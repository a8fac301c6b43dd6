"""A search ends a run that is not worth going on with: on all ranks, at the same step, with a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import Said, python
from record_support import make_run, query, set_state
from training_plans import step_of

from hpcexp.compose.composer import Composed
from hpcexp.errors import ConfigError
from hpcexp.files.atomic import write_json
from hpcexp.files.documents import read_plain
from hpcexp.launch.base.context import LaunchContext
from hpcexp.launch.base.display import Silent
from hpcexp.launch.base.polling import alone, signals_caught
from hpcexp.launch.base.pruner import Pruner
from hpcexp.launch.base.rank_process import Process, Start, start_fresh
from hpcexp.launch.dispatch import started
from hpcexp.plan import Plan
from hpcexp.planner import prepare
from hpcexp.rank_protocol import RankEnv
from hpcexp.rundir import RunDir
from hpcexp.runs.journal import read_points
from hpcexp.tracking.sync.run_process import sync
from hpcexp.train.engine.pruning import Question, pruning_query

SMALL = ("trainer.max_epochs=4", "trainer.limit_train_batches=3", "tracking=off", "launch.progress=none")
TWO = ("strategy=ddp", "hardware=cpu", "hardware.devices=2")
JOBS: dict[str, tuple[tuple[str, ...], str]] = {
    "one": ((), "val/loss"),
    "two": (TWO, "val/loss"),
    "end": (("trainer.max_epochs=2",), "val/loss"),
    "wrong": ((), "val/accuracy"),
}
"""Overrides of each, and what it is judged by: not worth going on with after two epochs."""

LAUNCHES = """
import json, shutil, sys
sys.path[:0] = {tests!r}
from pathlib import Path
from hpcexp.compose.composer import Composer
from hpcexp.launch.dispatch import started, starter
from hpcexp.launch.base.pruner import Pruner
from hpcexp.launch.base.polling import alone
from hpcexp.planner import prepare
from test_pruning import JOBS, SMALL, context

def launched(name, pruner, root):
    asked = [*SMALL, *JOBS[name][0], f"run.root={{root}}/{{name}}"]
    plan = prepare(Composer(Path.cwd()).compose(asked), Path.cwd(), [])
    return vars(alone(started(plan, context(starter(plan, many=True), pruner), fresh=False)))

def story(name, metric):
    heard = []
    def is_to_end(epoch, value):
        heard.append((epoch, value))
        return epoch >= 2
    outcomes = [launched(name, Pruner(metric, is_to_end), "judged")]
    if outcomes[0]["state"] == "pruned":
        shutil.copytree(f"judged/{{name}}", f"then/{{name}}")
        outcomes += [launched(name, None, root) for root in ("judged", "whole")]
    return heard, outcomes

if __name__ == "__main__":
    print(json.dumps({{name: story(name, metric) for name, (_, metric) in JOBS.items()}}))
"""


class NoUploader:
    def begin(self, run: RunDir, plan: Plan) -> None: ...

    def end(self, run: RunDir, plan: Plan) -> None: ...


def context(start: Callable[[Start], Process], pruner: Pruner | None) -> LaunchContext:
    """Those of a job that nothing is shown of."""
    return LaunchContext(start, signals_caught, lambda plan: Silent(), lambda plan, text: None, NoUploader(), pruner)


@dataclass(frozen=True)
class Judged:
    """All of JOBS: each judged, those that were pruned gone on with, and run once more without a judge."""

    project: Path
    told: dict[str, Any]

    def heard(self, name: str) -> list[list[float]]:
        """What its judge heard."""
        heard: list[list[float]] = self.told[name][0]
        return heard

    def outcomes(self, name: str) -> list[dict[str, Any]]:
        outcomes: list[dict[str, Any]] = self.told[name][1]
        return outcomes

    def run(self, name: str, root: str) -> RunDir:
        """`judged`, `then`: a copy of what was left when it was pruned, or `whole`."""
        [plan] = (self.project / root / name).glob("*/*/plan.yaml")
        return RunDir(plan.parent)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    project = tmp_path_factory.mktemp("judged")
    said = python(LAUNCHES.format(tests=[str(path) for path in Path(__file__).parents[:2]]), project)
    assert 0 == said.status, said
    return Judged(project, json.loads(said.out.splitlines()[-1]))


def values(run: RunDir, metric: str) -> list[tuple[int, float]]:
    """Step and value of a metric in the journal."""
    points, _ = read_points(run.journal)
    return [(point.step, point.metrics[metric]) for point in points if metric in point.metrics]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "two"])
def test_a_pruned_run_ends_at_one_step_and_can_be_gone_on_with(
    jobs: Judged, hpcexp: Callable[..., Said], name: str
) -> None:
    """On one rank and on two. Its end is then that of a run that was never judged, to the bit."""
    assert {"state": "pruned", "cause": "pruned at epoch 2", "exit": 0, "signal": 0} == jobs.outcomes(name)[0]
    then, losses = jobs.run(name, "then"), values(jobs.run(name, "then"), "val/loss")
    assert [3, 6] == [step for step, _ in losses]
    assert [[epoch, value] for epoch, (_, value) in enumerate(losses, 1)] == jobs.heard(name)
    status, summary = read_plain(then.status), read_plain(then.summary)
    assert ("pruned", "pruned at epoch 2") == (status["state"], status["cause"])
    assert (2, 6, {}) == (summary["epochs"], summary["steps"], summary["test"])
    assert max(value for _, value in values(then, "val/acc")) == summary["best"]["value"]
    assert 6 == step_of(then.last)
    place = str(jobs.project / "then" / name)
    assert "pruned at epoch 2" in hpcexp("runs", "--root", place, "--state", "pruned").out
    assert "pruned at epoch 2" in hpcexp("show", "last", "--root", place).out

    assert ["finished", "finished"] == [outcome["state"] for outcome in jobs.outcomes(name)[1:]]
    gone_on, whole = jobs.run(name, "judged"), jobs.run(name, "whole")
    assert values(whole, "val/loss") == values(gone_on, "val/loss")
    assert read_plain(whole.summary)["weights_sha256"] == read_plain(gone_on.summary)["weights_sha256"]


@pytest.mark.slow
def test_a_run_is_not_pruned_at_its_end(jobs: Judged) -> None:
    """It is trained to the end by then, and is tested."""
    assert ([2], ["finished"]) == ([len(jobs.heard("end"))], [o["state"] for o in jobs.outcomes("end")])
    assert "test/acc" in read_plain(jobs.run("end", "judged").summary)["test"]


@pytest.mark.slow
def test_a_metric_that_no_validation_gives_is_refused_before_training(jobs: Judged) -> None:
    """With those that there are."""
    [outcome] = jobs.outcomes("wrong")
    assert ([], "failed", 2) == (jobs.heard("wrong"), outcome["state"], outcome["exit"])
    assert "objective=val/accuracy is no metric of this task; did you mean 'val/acc'?" in outcome["cause"]


def test_trials_on_several_machines_are_not_judged(project: Path, compose: Callable[..., Composed]) -> None:
    """Nobody could be asked there."""
    plan = prepare(compose("launch=torchrun", "launch.nodes=2", "launch.rdzv=ada:29400"), project, [])
    with pytest.raises(ConfigError, match=r"Fix: search\.pruner=none"):
        alone(started(plan, context(start_fresh, Pruner("val/acc", lambda epoch, value: False)), fresh=False))


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, Question]]:
    """Where a question is heard, where it is answered, and who asks it."""
    (heard, asked), (hears, answer) = os.pipe(), os.pipe()
    yield heard, answer, Question(asked, hears)
    for fd in (heard, asked, hears):
        os.close(fd)


def test_a_question_takes_its_own_answer(pipes: tuple[int, int, Question], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that came too late for the question before; without any, or without a supervisor, training goes on."""
    heard, answer, question = pipes
    monkeypatch.setattr("hpcexp.train.engine.pruning.ANSWER_S", 0.0)
    assert not question(1, 0.5)
    monkeypatch.setattr("hpcexp.train.engine.pruning.ANSWER_S", 60.0)
    os.write(answer, b'{"epoch": 1, "prune": true}\n{"epoch": 2, "pru')
    os.write(answer, b'ne": false}\n')
    assert not question(2, 0.5)
    os.write(answer, b'{"epoch": 3, "prune": true}\n')
    assert question(3, float("nan"))
    told = [json.loads(line)["epoch"] for line in os.read(heard, 4096).splitlines()]
    assert [1, 2, 3] == told
    os.close(answer)
    assert not question(4, 0.5)


def test_only_rank_0_of_a_judged_job_asks() -> None:
    """The others know that they are judged."""
    assert pruning_query(RankEnv(events_fd=3)) is None
    other = pruning_query(RankEnv(pruning_metric="val/acc", events_fd=3))
    assert other is not None
    assert ("val/acc", None) == (other.metric, other.ask)
    first = pruning_query(RankEnv(pruning_metric="val/acc", events_fd=3, verdicts_fd=4))
    assert first is not None
    assert first.ask is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
def test_mlflow_is_told_of_a_pruned_run(tmp_path: Path) -> None:
    """KILLED, with a tag, which a run that is gone on with loses."""
    run = make_run(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", steps=3)
    told = []
    for state in ("pruned", "finished"):
        write_json(run.summary, {"test": {}, "best": None})
        set_state(run, state)
        assert sync(run.path) is None
        [(status,)] = query(tmp_path / "mlflow.db", "SELECT status FROM runs")
        [(tag,)] = query(tmp_path / "mlflow.db", "SELECT value FROM tags WHERE key = 'hpcexp.pruned'")
        told.append((status, tag))
    assert [("KILLED", "true"), ("FINISHED", "false")] == told
