"""Runs compared: their differences, means over seeds, and damaged directories."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_support import finish, make_plan, make_run

from hpcexp.compare.comparison import Comparison, Metric, compare, default_metrics
from hpcexp.compare.differences import differences
from hpcexp.compare.plot import band_of, draw
from hpcexp.compare.query import parse
from hpcexp.compare.report import answer, as_csv, as_markdown, labels
from hpcexp.compare.runs import ComparedRun
from hpcexp.compare.selection import recorded, select, selected_metrics
from hpcexp.compare.sources import directories
from hpcexp.compare.sources.plans import Plans
from hpcexp.errors import ConfigError, RunError
from hpcexp.files.atomic import write_json
from hpcexp.plan import save_plan
from hpcexp.runs.series import Series
from hpcexp.tracking.mlflow.description import NOT_PARAMS, flatten

ACC = Metric("test/acc", "max")


def run(
    number: int,
    acc: float | None = None,
    config: Mapping[str, str] | None = None,
    facts: Mapping[str, Mapping[str, str]] | None = None,
    **told: Any,
) -> ComparedRun:
    """A finished run, as a reader would tell of it."""
    curve = told.pop("curve", Series())
    return ComparedRun(
        **{
            "experiment": "digits",
            "name": f"run-{number}",
            "id": f"id{number}",
            "location": f"runs/digits/run-{number}",
            "state": "finished",
            "started": float(number),
            "choices": {},
            "numbers": {} if acc is None else {"test/acc": acc},
            "curve_of": lambda metric: curve,
            "curve_names": lambda: ["val/acc"] if curve.steps else [],
            "facts": {
                "config": {"seed": "1", **(config or {})},
                "code": {},
                "data": {},
                "environment": {},
                **(facts or {}),
            },
            **told,
        }
    )


def grid(**told: Any) -> list[ComparedRun]:
    """Two rates with three seeds each; 0.01 is better."""
    found = {
        ("0.1", "1"): 0.5,
        ("0.1", "2"): 0.6,
        ("0.1", "3"): 0.55,
        ("0.01", "1"): 0.8,
        ("0.01", "2"): 0.85,
        ("0.01", "3"): 0.9,
    }
    return [run(i, acc, {"lr": lr, "seed": seed}, **told) for i, ((lr, seed), acc) in enumerate(found.items())]


def compared(runs: list[ComparedRun], *metrics: Metric, **told: Any) -> Comparison:
    return compare(runs, metrics or [ACC], **told)


def test_seeds_are_told_of_together_and_the_best_first() -> None:
    """With the mean, how sure it is, and whether the other is really worse."""
    text = answer(compared(grid()), top=20)
    expected = """\
6 runs of digits in 2 groups

            1                 2
config
  lr        0.01              0.1
metrics
  test/acc  0.85 ± 0.12 (3)   0.55 ± 0.12 (3)
  p         -                 0.0091
runs        id3 +2            id0 +2
"""
    assert [line.split() for line in expected.splitlines()] == [line.split() for line in text.splitlines()[:9]]
    assert "paired t-test of test/acc against row 1" in text


def test_each_run_is_told_of_by_itself_where_that_is_asked() -> None:
    """Then the seed is a difference like others."""
    whole = compared(grid(), is_grouped=False)
    assert ["seed", "lr"] == [d.key for d in whole.columns]
    assert ["id5", "id4", "id3", "id1", "id2", "id0"] == [whole.runs[i].id for [i] in whole.rows]
    assert "±" not in answer(whole, top=20)


def test_only_finished_runs_count_and_of_one_seed_the_latest() -> None:
    """Others are told of by number."""
    runs = [run(0, 0.5), run(1, 0.7), run(2, 0.9, {"seed": "2"}, state="failed")]
    whole = compared(runs)
    assert {("1", ""): 0.7} == whole.numbers(whole.rows[0], "test/acc")
    assert "id0 +2, 1 failed" in answer(whole, top=20)


def test_runs_without_a_value_stand_last() -> None:
    """And have a dash."""
    whole = compared([run(0, None, {"lr": "1"}), run(1, 0.5, {"lr": "2"})])
    assert ["2", "1"] == [d.values[row[0]] for d in whole.columns for row in whole.rows]
    assert "| 2 | 1 | - |" in as_markdown(whole)


def test_a_chosen_option_stands_for_the_keys_that_come_with_it() -> None:
    """What else differs is shown."""
    mlp, cnn = {"model.hidden": "[64]", "lr": "1"}, {"model.channels": "8", "lr": "2"}
    runs = [run(0, 0.1, mlp, choices={"model": "mlp"}), run(1, 0.2, cnn, choices={"model": "cnn"})]
    assert {"model": ("mlp", "cnn"), "lr": ("1", "2")} == {d.key: d.values for d in differences(runs).found}


def test_code_data_and_environment_are_told_by_their_section() -> None:
    """A commit with the digits that a person compares."""
    commits = [
        {"code": {"git.commit": letter * 40, "code.digest": letter * 64}, "data": {"data.fingerprint": letter}}
        for letter in "ab"
    ]
    text = answer(compared([run(i, 0.5, facts=facts) for i, facts in enumerate(commits)]), top=20)
    assert ["code", "git.commit", "code.digest", "data", "data.fingerprint"] == [
        line.split()[0] for line in text.splitlines()[3:8]
    ]
    assert "  git.commit        aaaaaaaa  bbbbbbbb" in text


def test_another_machine_makes_no_other_group() -> None:
    """Nor do settings that change no result; another number of ranks does."""
    hosts = [
        run(i, 0.5, {"seed": str(i), "hardware.devices": str(i)}, {"environment": {"host": str(i)}}) for i in (1, 2)
    ]
    assert [(0, 1)] == list(compared(hosts).rows)
    ranks = [run(i, 0.5, {"seed": str(i)}, {"environment": {"world_size": str(i)}}) for i in (1, 2)]
    assert 2 == len(compared(ranks).rows)


def test_points_of_a_sweep_are_what_its_jobs_were_asked() -> None:
    """What follows from an axis in each job is not told beside it; the seed is none."""
    runs = [
        run(i, 0.5, {"lr": lr, "warmup": f"of {lr}", "seed": seed}, axes={"lr": lr, "seed": seed})
        for i, (lr, seed) in enumerate([("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")])
    ]
    whole = compared(runs)
    assert (["lr"], 2) == ([d.key for d in whole.columns], len(whole.rows))


def test_csv_has_every_run_whole() -> None:
    """With the number of its row."""
    first, *rest = csv.DictReader(io.StringIO(as_csv(compared(grid()))))
    assert {
        "group": "1",
        "run": "run-3",
        "seed": "1",
        "lr": "0.01",
        "test/acc": "0.8",
        "state": "finished",
    }.items() <= first.items()
    assert ["1", "1", "2", "2", "2"] == [row["group"] for row in rest]


def test_markdown_is_a_table() -> None:
    """Of every row."""
    lines = as_markdown(compared([run(0, 0.5, {"a": "x|y"}), run(1, 0.6, {"a": "z"})])).splitlines()
    assert [
        "| # | a | test/acc | runs |",
        "|---|---|---|---|",
        "| 1 | z | 0.6 | id1 |",
        r"| 2 | x\|y | 0.5 | id0 |",
    ] == lines


def test_long_tables_end_with_how_many_are_left() -> None:
    """The best are shown, a line each."""
    text = answer(compared([run(i, i / 10, {"lr": str(i)}) for i in range(9)]), top=6)
    assert "and 3 more: --top 0 shows them" in text
    assert ["1", "8", "0.8", "id8"] == text.splitlines()[3].split()


def test_what_runs_monitored_comes_first() -> None:
    """Then what was tested; where there is neither, other numbers."""
    told = {"trainer.monitor": "val/acc", "trainer.mode": "max"}
    runs = [run(0, config=told, numbers={"test/loss": 1.0, "test/acc": 0.5, "steps": 3.0})]
    assert [("val/acc", "max"), ("test/acc", "max"), ("test/loss", "min")] == default_metrics(runs)
    assert [("steps", "min")] == default_metrics([run(0, numbers={"steps": 3.0})])


def test_a_metric_may_say_which_way_is_better() -> None:
    """Otherwise its name does."""
    runs = [run(0, numbers={"distance": 3.0})]
    assert [[("distance", "max")], [("distance", "min")]] == [
        selected_metrics([m], runs) for m in ("distance", "distance=min")
    ]
    with pytest.raises(ConfigError, match=r"^--metric distance=low: better is either min or max\.\nFix: "):
        selected_metrics(["distance=low"], runs)
    with pytest.raises(ConfigError, match=r"(?s)^--metric distanc: no run has .*\nFix: --metric distance\n"):
        selected_metrics(["distanc"], runs)


def test_a_query_may_name_the_section() -> None:
    """As well as leave it out."""
    told = run(
        0, 0.5, {"optimizer.lr": "0.1"}, {"environment": {"host": "ada"}}, choices={"model": "cnn"}, sweeps=("lr",)
    )
    names = ["optimizer.lr", "config.optimizer.lr", "test/acc", "metrics.test/acc", "host", "environment.host", "model"]
    names += ["config.model", "state", "run", "experiment", "sweep", "metrics.nothing", "nothing", "config.nothing"]
    expected = [
        "0.1",
        "0.1",
        0.5,
        0.5,
        "ada",
        "ada",
        "cnn",
        "cnn",
        "finished",
        "run-0",
        "digits",
        ("lr",),
        None,
        None,
        None,
    ]
    assert expected == [recorded(told, name) for name in names]


def test_a_query_that_asks_for_what_no_run_has_is_told_what_there_is() -> None:
    """Names that are not there, with those that are like them; or the values that are."""
    with pytest.raises(ConfigError) as caught:
        select(grid(), parse("optimizer.lr < 1 and sead = 1"))
    fixes = [problem.splitlines()[-1] for problem in caught.value.problems]
    text = "text is quoted"
    assert [f'Fix: lr; {text}: "optimizer.lr".', f'Fix: seed; {text}: "sead".'] == fixes
    with pytest.raises(ConfigError, match=r"holds for none of 6 runs: lr > 1\nThey have lr 0\.1, 0\.01\."):
        select(grid(), parse("lr > 1"))


def test_curves_are_joined_at_each_step_over_seeds(tmp_path: Path) -> None:
    """Of those that have the step."""
    band = band_of([Series([1, 2, 3], [0.0, 1.0, 2.0]), Series([1, 3], [1.0, 4.0])])
    assert ([1, 2, 3], [0.5, 1.0, 3.0], [0.0, 1.0, 2.0], [1.0, 1.0, 4.0]) == band


def test_curves_are_drawn_with_what_the_rows_differ_in(tmp_path: Path) -> None:
    """Of a test metric that of the validation; what is no number is left out."""
    whole = compared(grid(curve=Series([1, 2, 3], [0.1, float("nan"), 0.3])))
    assert ["lr=0.01", "lr=0.1"] == labels(whole, whole.rows)
    assert b"\x89PNG" == draw(whole, tmp_path / "new" / "curves.png").read_bytes()[:4]


def test_runs_that_differ_in_much_are_drawn_too(tmp_path: Path) -> None:
    """Their labels are cut."""
    curve = Series([1, 2], [0.1, 0.2])
    runs = [run(i, 0.5, {f"key_{k}": f"{i}" * 30 for k in range(20)}, curve=curve) for i in range(10)]
    assert draw(compared(runs), tmp_path / "curves.png").stat().st_size > 0


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Another format, nothing to draw, no room."""
    with pytest.raises(ConfigError, match=r"Fix: --plot curves\.png"):
        draw(compared(grid()), Path("curves.pdf"))
    with pytest.raises(ConfigError, match="no run has more than one value of val/acc"):
        draw(compared(grid()), tmp_path / "curves.png")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"curves\.png cannot be written: File exists"):
        draw(compared(grid(curve=Series([1, 2], [1.0, 2.0]))), tmp_path / "file" / "curves.png")


ODD = {
    "model": {
        "_target_": "torch.nn.Identity",
        "run": "in a section",
        "hidden": [64, {"a": [1]}],
        "deep": {"er": {"est": 1}, "none": {}},
        "text": "a\nb: c",
    },
    "text": "long " * 60,
    "names": {0: "x", "a b": "y", "z": None},
}


@pytest.mark.parametrize(
    "config", [{}, ODD, {"a": {"run": 1}, "vars": {"run": 1}}], ids=["plain", "odd", "one name twice"]
)
@pytest.mark.parametrize(
    "edit",
    [lambda text: text, lambda text: "# by hand\n" + text.replace("  notes:", "  'notes':")],
    ids=["as written", "by hand"],
)
def test_a_plan_is_read_by_its_pieces_as_by_yaml(tmp_path: Path, edit: Any, config: dict[str, Any]) -> None:
    """Also one that was edited by hand, and one that cannot be cut into pieces."""
    plan = make_plan(tmp_path / "digits_mlp" / "run", None)
    plan = replace(plan, config={**plan.config, **config})
    path = tmp_path / "plan.yaml"
    save_plan(plan, path)
    path.write_text(edit(path.read_text()))
    told = Plans().read(path)
    assert flatten({k: v for k, v in plan.config.items() if k not in NOT_PARAMS}) == told.facts["config"]
    assert {"git.commit": "c" * 40, "git.dirty": "true", "code.digest": "d" * 64} == told.facts["code"]
    assert {"data.fingerprint": "f" * 64} == told.facts["data"]
    assert {"user": "ada", "world_size": "1", "accelerator": "cpu"}.items() <= told.facts["environment"].items()
    assert {"data": "digits"} == told.choices


def test_directories_tell_of_their_runs(tmp_path: Path) -> None:
    """Tries that were set aside are none, nor what is no run's directory."""
    first, second = make_run(tmp_path, None, steps=3), make_run(tmp_path, None, name="lr=0.1")
    finish(first)
    shutil.copytree(second.path, second.path.with_name("lr=0.1~1"))
    (tmp_path / "digits_mlp" / "empty").mkdir()
    found = directories.read_runs(directories.find(tmp_path), {second.path: ("lr",)})
    assert ([("lr=0.01", "finished", ()), ("lr=0.1", "running", ("lr",))], ()) == (
        [(run.name, run.state, run.sweeps) for run in found.runs],
        found.problems,
    )
    done = found.runs[0]
    assert (0.985, 1 / 3) == (done.value("test/acc", "max"), done.value("train/loss", "min"))
    assert {"train/loss", "train/lr", "test/acc", "test/loss"} == set(done.curve_names())
    assert [] == list(directories.find(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", ["plan.yaml", "status.json", "summary.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_damaged_directory_is_left_out_and_told(tmp_path: Path, file: str, content: str) -> None:
    """With the file, and a way out."""
    whole, damaged = make_run(tmp_path, None), make_run(tmp_path, None, name="damaged")
    write_json(damaged.summary, {})
    (damaged.path / file).write_bytes(content.encode(errors="surrogateescape"))
    found = directories.read_runs([whole, damaged])
    assert ["lr=0.01"] == [run.name for run in found.runs]
    [problem] = found.problems
    assert f"damaged/{file}" in problem  # from here, or from the root
    assert "is damaged: " in problem
    assert "\nFix: " in problem


def test_folds_are_means_as_seeds_are(tmp_path: Path) -> None:
    """Nested with seeds: one row, whose values are paired by seed and fold; never a column to rank by."""
    runs = []
    for lr, better in (("0.1", 0.0), ("0.2", 0.02)):
        for seed in ("1", "2"):
            for fold in ("0", "1", "2"):
                acc = 0.8 + better + 0.01 * int(fold) + 0.001 * int(seed) * (1 + better)
                config = {"optimizer.lr": lr, "seed": seed, "data.fold": fold, "data.folds": "3"}
                runs.append(run(len(runs), acc, config))
    whole = compare(runs, [ACC])
    assert ["optimizer.lr"] == [column.key for column in whole.columns]
    assert [6, 6] == [len(row) for row in whole.rows]
    assert 6 == len(whole.numbers(whole.rows[0], "test/acc"))
    assert (p := whole.p(whole.rows[1])) is not None
    assert p < 0.001
    assert "number of combinations of seed and data.fold" in answer(whole, 0)
    rows = list(csv.DictReader(io.StringIO(as_csv(whole))))
    assert {("1", "0"), ("1", "1"), ("1", "2"), ("2", "0"), ("2", "1"), ("2", "2")} == {
        (row["seed"], row["data.fold"]) for row in rows
    }


def test_means_are_over_any_key_that_is_asked(tmp_path: Path) -> None:
    """`--over`."""
    runs = [run(i, 0.8 + i / 100, {"model.depth": str(i % 2), "optimizer.lr": str(i // 2)}) for i in range(4)]
    whole = compare(runs, [ACC], over=["model.depth"])
    assert ["optimizer.lr"] == [column.key for column in whole.columns]
    assert [2, 2] == [len(whole.numbers(row, "test/acc")) for row in whole.rows]
