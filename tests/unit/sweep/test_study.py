"""The study of a search: what it refuses, what it draws, and that nothing it is told is lost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import environment
from postgres import Server

pytest.importorskip("optuna", reason="Optuna is not installed")

from hpcexp.errors import ConfigError, RunError
from hpcexp.runs.records.status import RunState
from hpcexp.schema.sweep import Budget, Search
from hpcexp.sweep.search.retry_queue import RetryQueue
from hpcexp.sweep.search.study import JOURNAL, Study, Trial
from hpcexp.sweep.spec.search_problems import unfit
from hpcexp.sweep.spec.spec import Axis, Choices, Interval, Objective, Spec
from hpcexp.sweep.spec.values import grid_point, grid_size, typed_value

ACC = (Objective("val/acc", "max"),)
BOTH = (Objective("val/acc", "max"), Objective("val/loss", "min"))
LR, WIDTH, MODEL = Interval(1e-4, 1e-1, is_log=True), Interval(1, 8, is_int=True), Choices(("cnn", "mlp"))
AXES: dict[str, Axis] = {"optimizer.lr": LR, "model.width": WIDTH, "model": MODEL}


def spec_of(
    sampler: str = "random",
    axes: dict[str, Axis] | None = None,
    trials: int | None = 8,
    objectives: tuple[Objective, ...] = (),
    **search: Any,
) -> Spec:
    """A search."""
    overrides = Search(sampler, **search)
    return Spec("s", "", (), axes or AXES, objectives=objectives, search=overrides, budget=Budget(trials=trials))


OPEN: list[Study] = []


def opened(place: Path, spec: Spec, objectives: tuple[Objective, ...] = ACC, max_epochs: int = 27) -> Study:
    OPEN.append(Study(spec, objectives, place, project=place, max_epochs=max_epochs))
    return OPEN[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def run(study: Study, num: int, value: Callable[[Trial], float] = lambda trial: trial.number / 10) -> list[Trial]:
    """Ask for `num` trials and tell each its value."""
    trials = []
    for _ in range(num):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, RunState.FINISHED, [value(trial)] * len(study.objectives))
        trials.append(trial)
    return trials


def drawn(trials: list[Trial]) -> list[tuple[str, ...]]:
    return [trial.overrides for trial in trials]


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """Of each kind, as `search.storage` has it."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").uri)
    return {"journal": None, "sqlite": "sqlite:///studies/mine.db"}[request.param]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", "grid", "nsga2"])
def test_every_sampler_finds_points_of_the_space(tmp_path: Path, sampler: str) -> None:
    """Values that are typed as they are, within their ends; a trial for each."""
    axes: dict[str, Axis] = {"a": Interval(0.1, 0.5, step=0.1), "b": WIDTH}
    if sampler != "cmaes":
        axes |= {"c": MODEL}
    study = opened(tmp_path, spec_of(sampler, axes, 14))
    for trial in run(study, 14, lambda trial: float(trial.params["a"])):
        assert list(axes) == list(trial.params)
        assert 0.1 <= float(trial.params["a"]) <= 0.5
        assert 1 <= int(trial.params["b"]) <= 8
    assert study.is_exhausted()
    assert study.ask() is None


def test_a_study_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    """And not its first points once more."""
    whole = drawn(run(opened(tmp_path / "whole", spec_of(seed=1)), 8))
    first = drawn(run(opened(tmp_path / "parts", spec_of(seed=1)), 4))
    rest = drawn(run(opened(tmp_path / "parts", spec_of(seed=1)), 4))
    assert whole == first + rest
    assert 8 == len(set(whole))


def test_searches_of_neighbouring_seeds_have_no_point_in_common(tmp_path: Path) -> None:
    """Nor have studies of other names that are given no seed."""
    one, other = (drawn(run(opened(tmp_path / str(s), spec_of(seed=s)), 8)) for s in (1, 2))
    assert not set(one) & set(other)
    unnamed, named = (drawn(run(opened(tmp_path / "x", spec_of(study=name)), 8)) for name in ("x", "y"))
    assert not set(unnamed) & set(named)


def test_the_budget_is_of_all_continuations(tmp_path: Path) -> None:
    """Failed and pruned trials count; one that runs does too, and can be gone on with."""
    study = opened(tmp_path, spec_of(trials=4))
    run(study, 1)
    for state in (RunState.FAILED, RunState.PRUNED):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, state)
    running = study.ask()
    assert running is not None
    study.note_job(running.number, 17)

    again = opened(tmp_path, spec_of(trials=4))
    assert again.is_exhausted()
    assert again.ask() is None
    assert [replace(running, job=17)] == again.unfinished()
    assert (1, 1, 1, 1) == tuple(vars(again.counts()).values())

    more = opened(tmp_path, spec_of(trials=5, sampler="tpe"))
    run(more, 1)
    assert more.is_exhausted()


def test_a_trial_whose_driver_died_while_asking_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no values, and nobody will run it; one that is being asked for right now is left alone."""
    study = opened(tmp_path, spec_of(trials=2))
    study.optuna.ask().suggest_categorical("model", ("cnn", "mlp"))
    assert [] == study.unfinished()
    assert 1 == study.counts().running
    monkeypatch.setattr("hpcexp.sweep.search.study._ABANDONED_S", -1.0)
    assert [] == study.unfinished()
    assert 0 == study.counts().total
    assert [1, 2] == [trial.number for trial in run(study, 2)]
    assert study.is_exhausted()


def test_a_grid_gives_every_point_once(tmp_path: Path) -> None:
    """Also when it is gone on with under another seed, and then ends."""
    axes: dict[str, Axis] = {"a": Choices(("x", "y", "z")), "b": Interval(0.0, 1.0, step=0.25)}
    first = run(opened(tmp_path, spec_of("grid", axes, 7)), 7)
    rest = run(opened(tmp_path, spec_of("grid", axes, None, seed=9)), 8)
    study = opened(tmp_path, spec_of("grid", axes, None))
    assert study.is_exhausted()
    assert {(a, b) for a in "xyz" for b in ("0.0", "0.25", "0.5", "0.75", "1.0")} == {
        (trial.params["a"], trial.params["b"]) for trial in first + rest
    }


def test_values_are_typed_to_the_last_bit() -> None:
    """Steps are counted as they are written."""
    assert ["0.30000000000000004", "1e-05", "3", "cnn"] == [typed_value(v) for v in (0.1 + 0.2, 1e-5, 3, "cnn")]
    axes: dict[str, Axis] = {"a": Interval(0.1, 1.0, step=0.1), "b": Choices(("x", "y"))}
    assert 20 == grid_size(axes)
    assert [{"a": 0.1, "b": "x"}, {"a": 0.1, "b": "y"}, {"a": 0.2, "b": "x"}] == [grid_point(axes, n) for n in range(3)]
    assert {"a": 0.3, "b": "y"} == grid_point(axes, 5)


def test_telling_twice_is_as_telling_once(tmp_path: Path, storage: str | None) -> None:
    """A driver that died after the study knew, and before it could note so, tells again."""
    spec = spec_of(storage=storage, study="twice")
    study = opened(tmp_path, spec)
    run(study, 2)
    again = opened(tmp_path, spec)
    again.tell(0, RunState.FINISHED, [0.7])
    again.tell(1, RunState.FAILED)
    assert [0.0, 0.1] == [trial.value for trial in again.optuna.trials]


def test_a_second_try_that_finishes_is_learned_from(tmp_path: Path) -> None:
    """Once, and it does not count."""
    study = opened(tmp_path, spec_of(trials=3))
    run(study, 1)
    trial = study.ask()
    assert trial is not None
    study.tell(trial.number, RunState.FAILED)
    for _ in range(2):
        study.tell(trial.number, RunState.FINISHED, [0.9])
    assert [1] == study.best()
    assert (1, 0, 1, 0) == tuple(vars(study.counts()).values())
    assert 1 == len(run(study, 1))


def test_what_diverged_is_the_worst(tmp_path: Path) -> None:
    """Whichever way is better."""
    study = opened(tmp_path, spec_of(), BOTH)
    for values in ([0.5, 1.0], [None, float("nan")]):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, RunState.FINISHED, values)
    assert [[0.5, 1.0], [-float("inf"), float("inf")]] == [trial.values for trial in study.optuna.trials]
    assert [0] == study.best()


@pytest.mark.parametrize(("sampler", "objectives"), [("tpe", ACC), ("tpe", BOTH), ("nsga2", BOTH), ("cmaes", ACC)])
def test_samplers_bear_what_diverged(tmp_path: Path, sampler: str, objectives: tuple[Objective, ...]) -> None:
    """And go on."""
    axes: dict[str, Axis] = {"a": LR, "b": Interval(0.0, 1.0)}
    study = opened(tmp_path, spec_of(sampler, axes, 25), objectives)
    assert 25 == len(run(study, 25, lambda trial: float("nan") if float(trial.params["a"]) > 0.01 else 0.5))


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_pruners_end_the_worse_trials(tmp_path: Path, pruner: str) -> None:
    """What a continued run reports again is judged as before, also by another driver."""
    spec = spec_of(trials=20, pruner=pruner)
    study = opened(tmp_path, spec, max_epochs=9)
    ends = Counter[str]()
    for _ in range(20):
        trial = study.ask()
        assert trial is not None
        verdicts = [study.report(trial.number, 1, -float(trial.number))]
        while not verdicts[-1] and len(verdicts) < 9:
            verdicts.append(study.report(trial.number, len(verdicts) + 1, -float(trial.number)))
        assert {bool} == set(map(type, verdicts))  # they go down a pipe as JSON
        end = len(verdicts) if verdicts[-1] else None
        if end is not None and "pruned" not in ends:
            other = opened(tmp_path, spec, max_epochs=9)
            assert [False, True] == [other.report(trial.number, e, -99.0) for e in (end - 1, end)]
        study.tell(
            trial.number,
            RunState.FINISHED if end is None else RunState.PRUNED,
            [-float(trial.number)] if end is None else (),
        )
        ends["finished" if end is None else "pruned"] += 1
    assert ends["pruned"] >= 5
    assert [0] == study.best()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"axes": {**AXES, "x": MODEL}}, "x: cnn, mlp, was no axis"),
        ({"axes": {"model": MODEL, "model.width": WIDTH}}, "optimizer.lr: was 0.0001 to 0.1 (log), is no axis now"),
        (
            {"axes": {**AXES, "optimizer.lr": Interval(1e-4, 1.0)}},
            "optimizer.lr: was 0.0001 to 0.1 (log), now 0.0001 to 1",
        ),
        ({"axes": {**AXES, "model": Choices(("cnn", "vit"))}}, "model: was cnn, mlp, now cnn, vit"),
    ],
)
def test_another_space_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    """By what has changed."""
    opened(tmp_path, spec_of())
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, spec_of(**change))
    assert told in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_other_objectives_are_refused(tmp_path: Path) -> None:
    """Also the other way round; another sampler, pruner or budget is taken."""
    opened(tmp_path, spec_of())
    for other in ((Objective("val/acc", "min"),), (Objective("val/loss", "max"),), BOTH):
        with pytest.raises(ConfigError, match="objectives: was val/acc max, now"):
            opened(tmp_path, spec_of(), other)
    run(opened(tmp_path, spec_of("tpe", trials=99, pruner="median", seed=5)), 1)


def test_a_study_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    """It may hold anything."""
    import optuna

    storage = f"sqlite:///{tmp_path}/theirs.db"
    optuna.create_study(storage=storage, study_name="s").ask().suggest_float("x", 0, 1)
    with pytest.raises(ConfigError, match="not made by hpcexp"):
        opened(tmp_path, spec_of(storage=storage))


WORKER = """
from hpcexp.runs.records.status import RunState
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from test_study import ACC, opened, spec_of
storage = sys.argv[3] if sys.argv[3] != "-" else None
study = opened(Path(sys.argv[2]), spec_of(trials=30, storage=storage, study="crowd", pruner="median"))
while (trial := study.ask()) or study.problem:
    if trial:
        study.note_job(trial.number, trial.number + 1)
        study.report(trial.number, 1, float(trial.number))
        study.tell(trial.number, RunState.FINISHED, [float(trial.number)])
sys.exit(study.settle(30) is not None)
"""


@pytest.mark.slow
def test_drivers_of_one_study_lose_nothing(tmp_path: Path, storage: str | None) -> None:
    """Three processes make it, ask and tell at the same time: thirty trials, each told once, no point twice."""
    command = [
        sys.executable,
        "-c",
        WORKER,
        ":".join(map(str, Path(__file__).parents[:3])),
        str(tmp_path),
        storage or "-",
    ]
    workers = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    assert [(0, "")] * 3 == [(w.wait(60), w.communicate()[0]) for w in workers]
    study = opened(tmp_path, spec_of(trials=30, storage=storage, study="crowd"))
    assert (30, 0, 0, 0) == tuple(vars(study.counts()).values())
    told = [t for t in study.optuna.trials if "hpcexp.surplus" not in t.user_attrs]
    assert [float(t.number) for t in told] == [t.value for t in told] == [t.intermediate_values[1] for t in told]
    assert [t.number + 1 for t in told] == [t.user_attrs["hpcexp.job"] for t in told]
    assert 30 == len({tuple(t.params.values()) for t in told})


def test_results_wait_for_a_database_that_is_away(tmp_path: Path, postgres: Server) -> None:
    """No call waits for it; once it is back it is told everything."""
    study = opened(tmp_path, spec_of("tpe", storage=postgres.uri, study="away", pruner="median"))
    trial = study.ask()
    assert trial is not None
    postgres.stop()
    try:
        assert not study.report(trial.number, 1, 0.5)
        study.tell(trial.number, RunState.FINISHED, [0.5])
        assert "127.0.0.1" in (study.problem or "")
        assert "s3cr3t" not in (study.problem or "")
        assert study.ask() is None
        assert 0 == study.counts().finished
    finally:
        postgres.start()
    assert study.settle(30) is None
    assert (1, 0, 0, 0) == tuple(vars(study.counts()).values())
    assert {1: 0.5} == study.optuna.trials[0].intermediate_values
    assert study.ask() is not None


def test_a_storage_that_cannot_be_used_is_told_without_its_password(tmp_path: Path, postgres: Server) -> None:
    """A wrong password, nobody there, no such database, no room for a file."""
    wrong = {
        postgres.uri.replace("s3cr3t", "0ther"): "password authentication failed",
        postgres.uri.replace("/postgres", "/none"): 'database "none" does not exist',
        "postgresql://ada:0ther@127.0.0.1:1/db": "refused",
        "sqlite:////proc/none/study.db": "No such file",
    }
    for uri, told in wrong.items():
        with pytest.raises(RunError) as caught:
            opened(tmp_path, spec_of(storage=uri))
        assert told in str(caught.value)
        assert "\nFix: " in str(caught.value)
        assert "0ther" not in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("num", "objectives", "expected"),
    [
        (0, ACC, []),
        (1, ACC, ["history", "epochs"]),
        (2, BOTH, ["history-val_acc", "history-val_loss", "pareto"]),
        (8, ACC, ["history", "importances", "parallel", "epochs"]),
    ],
)
def test_pictures_are_of_what_there_is(
    tmp_path: Path, num: int, objectives: tuple[Objective, ...], expected: list[str]
) -> None:
    """Nothing that few trials, failed or diverged ones cannot tell."""
    from hpcexp.sweep.search.plots import draw_study

    study = opened(tmp_path, spec_of(trials=12, pruner="median" if len(objectives) == 1 else "none"), objectives)
    for _ in range(num):
        trial = study.ask()
        assert trial is not None
        if len(objectives) == 1:
            study.report(trial.number, 1, 0.5)
        study.tell(trial.number, RunState.FINISHED, [trial.number / 10] * len(objectives))
    for state in (RunState.FAILED, RunState.FINISHED) if num else ():
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, state, [None] * len(objectives) if state == RunState.FINISHED else ())
    drawn = draw_study(study, tmp_path / "plots")
    assert [f"{name}.png" for name in expected] == [file.name for file in drawn]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)


def test_a_line_torn_by_a_full_disk_does_not_spoil_the_journal(tmp_path: Path) -> None:
    """It is cut off before the next one."""
    study = opened(tmp_path, spec_of())
    run(study, 1)
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code":5,"stud')
    run(study, 1)
    assert 2 == opened(tmp_path, spec_of()).counts().finished


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    """Where it is, and what to do."""
    (tmp_path / JOURNAL).write_text("nonsense\nmore\n")
    with pytest.raises(RunError, match=r"study\.jsonl is damaged"):
        opened(tmp_path, spec_of())


def test_messages_keep_their_order_and_wait_longer_each_time() -> None:
    """Between tries nothing is tried."""
    now, sent, is_down, tries = [0.0], [], [True], [0]

    def message(word: str) -> None:
        tries[0] += 1
        if is_down[0]:
            raise OSError("away")
        sent.append(word)

    outbox = RetryQueue(lambda: message("probe"), (OSError,), str, clock=lambda: now[0])
    assert not outbox.put(lambda: message("a"))
    assert not outbox.put(lambda: message("b"))
    assert 1 == tries[0]
    now[0] = 1.5
    assert not outbox.send()
    assert (2, 1.5) == (tries[0], outbox.silent_s())
    now[0], is_down[0] = 3.0, False
    assert not outbox.send()
    now[0] = 4.0
    assert outbox.send()
    assert ["probe", "a", "b"] == sent
    assert None is outbox.problem


FLAT: dict[str, Axis] = {"a": LR, "b": WIDTH}


@pytest.mark.parametrize(
    ("spec", "objectives", "told"),
    [
        (spec_of("cma"), ACC, "search.sampler=cma is unknown. Did you mean 'cmaes'?"),
        (spec_of("tpe", pruner="hyper"), ACC, "search.pruner=hyper is unknown"),
        (spec_of("cmaes"), ACC, "search.sampler=cmaes cannot search model=cnn,mlp"),
        (spec_of("cmaes", {"a": LR}), ACC, "needs two axes"),
        (spec_of("cmaes", FLAT), BOTH, "has one objective, not 2"),
        (spec_of("tpe", FLAT, pruner="median"), BOTH, "search.pruner=median has one objective"),
        (spec_of("grid", FLAT), ACC, "search.sampler=grid cannot count the values of a"),
        (spec_of("grid", {"a": Interval(0, 1e6, is_int=True)}), ACC, "1,000,001 points"),
        (spec_of("tpe", trials=None), ACC, "never ends"),
        (spec_of("tpe", trials=0), ACC, "budget.trials=0"),
        (spec_of("tpe", {"a": Interval(2, 1)}), ACC, "no values from 2 to 1"),
        (spec_of("tpe", {"a": Interval(0, 1, is_log=True)}), ACC, "by factors (log) from 0"),
        (spec_of("tpe", {"a": Interval(0.5, 8, is_int=True)}), ACC, "whole numbers"),
        (spec_of("tpe", {"a": Interval(1, 8, is_int=True, step=3)}), ACC, "Fix: end at 7"),
        (spec_of("tpe", {"a": Interval(1, 8, is_log=True, step=1)}), ACC, "leave one of them out"),
        (spec_of("tpe", {"a": Choices(("x", "x"))}), ACC, "name each value once"),
        (spec_of("tpe", FLAT, pruner="asha"), (Objective("test/acc", "max"),), "as val/acc"),
        (spec_of("tpe", FLAT), (Objective("val/acc", "maximal"),), "Fix: one of max, min"),
        (replace(spec_of("tpe", FLAT, pruner="asha"), seeds=(1, 2)), ACC, "one seed"),
        (replace(spec_of("tpe", FLAT), points=(("a=1",),)), ACC, "takes no points"),
        (spec_of("tpe", {**FLAT, "trainer.max_epochs": WIDTH}, pruner="hyperband"), ACC, "trainer.max_epochs"),
        (spec_of("tpe", storage="redis://host"), ACC, "search.storage=redis://host is no database"),
        (spec_of("tpe", storage="mysql+nodriver://u:pw@h/d"), ACC, "pip install nodriver"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_starts(
    spec: Spec, objectives: tuple[Objective, ...], told: str
) -> None:
    """In words of the configuration."""
    problems = unfit(spec, objectives, 30)
    assert 1 == len(problems), problems
    assert told in problems[0]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsga2"])
def test_what_fits_has_no_problem(sampler: str) -> None:
    """Several objectives are for all but cmaes."""
    axes: dict[str, Axis] = {"a": Interval(0.1, 1.0, step=0.1), "b": WIDTH, "c": MODEL}
    assert [] == unfit(spec_of(sampler, axes), BOTH, None)
    assert [] == unfit(spec_of(sampler, axes, pruner="hyperband"), ACC, 30)
    assert [] == unfit(spec_of("cmaes", FLAT, pruner="asha"), ACC, 30)
    assert [] == unfit(replace(spec_of(), search=None), (), None)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what installs them."""
    monkeypatch.setattr("hpcexp.sweep.spec.search_problems.find_spec", lambda name: None)
    assert ["A search needs cmaes, optuna, which is not installed.\nFix: pip install 'hpcexp[optuna]'"] == unfit(
        spec_of("cmaes", FLAT), ACC, 30
    )
