"""Seeds and folds of a sweep: what repeats a point is no part of it."""

from __future__ import annotations

from hpcexp.runs.records.status import RunState
from hpcexp.schema.sweep import Search
from hpcexp.sweep.report.ranking import as_csv, columns
from hpcexp.sweep.spec.search_problems import unfit
from hpcexp.sweep.spec.spec import Choices, Interval, Objective, Spec, combinations, repeats, searched
from hpcexp.sweep.store.ledger import LedgerEntry
from hpcexp.sweep.store.results import Result, ranked

ACC = Objective("val/acc", "max")
FOLDS = Choices(("0", "1", "2"))


def spec(**others: object) -> Spec:
    axes = {"optimizer.lr": Choices(("0.1", "0.2")), "data.fold": FOLDS}
    return Spec(**{"name": "cv", "question": "?", "base": (), "axes": axes, "seeds": (1, 2), **others})  # type: ignore[arg-type]


def test_a_ranking_has_a_row_for_all_folds_and_seeds_of_a_point() -> None:
    """Its value is their mean, and no column is of a fold; each job's line in the file has its own."""
    asked = combinations(spec())
    assert 12 == len(asked)
    results = [
        Result(LedgerEntry(i, overrides, (), None, "", ""), RunState.FINISHED, (float(i),))
        for i, overrides in enumerate(asked)
    ]
    points = ranked(results, [ACC])
    assert [("optimizer.lr=0.2",), ("optimizer.lr=0.1",)] == [point.overrides for point in points]
    assert [8.5, 2.5] == [point.mean() for point in points]
    assert ["optimizer.lr"] == columns(spec())
    assert as_csv(results, columns(spec()), [ACC]).startswith("job,optimizer.lr,seed,data.fold,state,")


def test_a_search_repeats_its_trials_over_folds() -> None:
    """It chooses none of them, and prunes no trial by one of its jobs."""
    search = spec(search=Search(sampler="random", pruner="median"))
    assert ["optimizer.lr"] == list(searched(search))
    assert [("data.fold=0", "seed=1"), ("data.fold=0", "seed=2")] == repeats(search)[:2]
    assert 6 == len(repeats(search))
    assert [()] == repeats(spec(axes={"optimizer.lr": FOLDS}, seeds=()))
    told = unfit(search, (ACC,), None)
    assert any("here each has 6 (seeds, folds)" in problem for problem in told)
    ranges = spec(
        search=Search(sampler="random"), axes={"optimizer.lr": FOLDS, "data.fold": Interval(0, 2, is_int=True)}
    )
    assert any("data.fold repeats each trial" in problem for problem in unfit(ranges, (ACC,), None))
