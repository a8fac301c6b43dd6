"""What people see of a sweep and its runs on MLflow's pages, in a real browser against the real server.

`HPCEXP_IMAGES=docs/images` keeps the pages as the pictures of the documentation.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import PROGRAM, browsing
from helpers import LEAN, command
from record_support import query
from served import ADMIN, serving

from hpcexp.files.documents import read_plain
from hpcexp.rundir import find_runs, find_sweeps

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium")

MACHINE_LEARNING = "workflowType=machine_learning"


@dataclass(frozen=True)
class Shown:
    """A page of the browser, and what is to be seen on it."""

    page: Page
    address: str
    sweep: dict[str, Any]
    runs: list[dict[str, Any]]
    """Of `mlflow.json`, the best run first."""
    names: list[str]

    def open(self, place: str) -> Page:
        """A page of the interface, from its beginning."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/{place}")
        return self.page

    @property
    def experiment(self) -> str:
        return f"#/experiments/{self.sweep['experiment_id']}"

    def keep(self, name: str) -> None:
        """Keep the page as a picture of the documentation, where that is asked for."""
        if folder := os.environ.get("HPCEXP_IMAGES"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A server on SQLite that ends by Ctrl-C, a sweep of four jobs on it, and a browser."""
    project = tmp_path_factory.mktemp("group")
    with serving(project / "data", end=signal.SIGINT) as server:
        asked = ["-m", "optimizer.lr=0.003,0.03", "model.hidden=[8],[64]", "trainer.max_epochs=2", "notes=Which rate?"]
        there = {"MLFLOW_TRACKING_URI": f"http://admin@127.0.0.1:{server.port}", "MLFLOW_TRACKING_PASSWORD": ADMIN[1]}
        said = command("train", *asked, *LEAN, cwd=project, **there)
        assert 0 == said.status, said.err
        sweep = read_plain(next(find_sweeps(project / "runs")).mlflow)
        best = "SELECT run_uuid, value FROM latest_metrics WHERE key = 'val/acc' ORDER BY value DESC"
        order = [run_id for run_id, _ in query(server.data / "mlflow.db", best)]
        runs = {
            (note := read_plain(run.mlflow))["run_id"]: (note, run.path.name) for run in find_runs(project / "runs")
        }
        notes, names = zip(*(runs[run_id] for run_id in order), strict=True)
        with browsing(tmp_path_factory.mktemp("chromium"), ADMIN) as page:
            yield Shown(page, server.address, sweep, list(notes), list(names))


@pytest.fixture
def see(shown: Shown) -> Callable[..., None]:
    """Wait until a text is to be seen."""
    from playwright.sync_api import expect

    return lambda text, **more: expect(shown.page.get_by_text(text, **more).first).to_be_visible(timeout=30_000)


def test_the_list_of_runs_has_a_sweep_as_one_row_with_its_best_result(shown: Shown, see: Callable[..., None]) -> None:
    """And its jobs below it, once it is unfolded."""
    page = shown.open(f"{shown.experiment}/runs?{MACHINE_LEARNING}&viewStateShareKey=hpcexp")
    see("best/val/acc")
    assert 0 == page.get_by_role("link", name=shown.names[0]).count()
    page.get_by_role("gridcell").get_by_role("button").first.click()
    see(shown.names[0])
    assert 4 == page.get_by_role("link", name=re.compile("max_epochs=2")).count()
    shown.keep("runs")


def test_a_sweeps_page_leads_to_its_ranking_and_charts(shown: Shown, see: Callable[..., None]) -> None:
    """Question, best job and links stand in the description; the ranking has the best job first, with its axes."""
    page = shown.open(f"{shown.experiment}/runs/{shown.sweep['run_id']}?{MACHINE_LEARNING}")
    see("Best:")
    page.get_by_text("Show more").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="ranking").click()
    ranking = opened.value
    ranking.get_by_text("You're viewing a shared view").wait_for()
    for column in ("optimizer.lr", "model.hidden", "val/acc"):
        ranking.get_by_text(column, exact=True).first.wait_for()
    first = ranking.get_by_role("link", name=re.compile("max_epochs=2")).first
    assert shown.names[0] == first.inner_text()
    ranking.close()


def test_a_sweeps_charts_are_there_without_setting_up(shown: Shown, see: Callable[..., None]) -> None:
    """Parallel coordinates of the axes and the metric, a bar for each job, and every curve."""
    sweep = shown.runs[0]["sweep"]["path"].rpartition("/")[2]
    view = f"viewStateShareKey=sweep-{sweep}&compareRunsMode=CHART"
    shown.open(f"{shown.experiment}/runs?{MACHINE_LEARNING}&{view}")
    see("Parallel Coordinates")
    for axis in ("optimizer.lr", "model.hidden", "val/acc"):
        see(axis, exact=True)
    see("train/loss")
    assert 0 == shown.page.get_by_text("does not serve").count()
    shown.keep("charts")


def test_a_runs_page_tells_its_story(shown: Shown, see: Callable[..., None]) -> None:
    """What it is about and what it gave, with links to the sweep, its siblings and the model."""
    page = shown.open(f"{shown.experiment}/runs/{shown.runs[0]['run_id']}?{MACHINE_LEARNING}")
    see("Result:")
    see("Which rate?")
    page.get_by_text("Show more").click()
    see("Reproduce:")
    see("digits, 1259 / 179 / 359 samples")
    page.get_by_text("Result:").scroll_into_view_if_needed()
    shown.keep("run")
    links = {"charts": "compareRunsMode=CHART", "digits_mlp": shown.runs[0]["model_id"]}
    for name, part in links.items():
        targets = [link.get_attribute("href") or "" for link in page.get_by_role("link", name=name, exact=True).all()]
        assert [] != [target for target in targets if part in target], (name, targets)


def test_two_runs_can_be_compared(shown: Shown, see: Callable[..., None]) -> None:
    """With the values that differ side by side."""
    ids = "%5B" + ",".join(f'"{run["run_id"]}"' for run in shown.runs[:2]) + "%5D"
    experiments = f'%5B"{shown.sweep["experiment_id"]}"%5D'
    shown.open(f"#/compare-runs?runs={ids}&experiments={experiments}&{MACHINE_LEARNING}")
    see("Comparing 2 Runs from 1 Experiment")
    see("Run details")
    see(shown.names[0])
    see(shown.names[1])


def test_a_models_page_says_what_it_is(shown: Shown, see: Callable[..., None]) -> None:
    """Of which run and data it is, where it lies, how it is used."""
    page = shown.open(f"{shown.experiment}/models/{shown.runs[0]['model_id']}?{MACHINE_LEARNING}")
    see("The best weights of")
    see(f"hpcexp export {shown.names[0]}")
    see("Datasets used")
    assert page.get_by_text(re.compile(r"^digits \(#")).count() > 0
    shown.keep("model")


HIDDEN = ("MLflow Assistant", "GenAI", "Traces", "Prompts", "AI Gateway", "LLM Connections", "Webhooks", "Start Demo")


def test_nothing_leads_to_what_is_not_served(shown: Shown) -> None:
    """No assistant, no gateway, no pages for language models: in a browser that has never been here."""
    run = f"{shown.experiment}/runs/{shown.runs[0]['run_id']}"
    pages = {
        "#/": "Recent Experiments",
        "#/experiments": "digits_mlp",
        f"{shown.experiment}/runs": "matching runs",
        run: "About this run",
        f"{run}/artifacts": "Select a file to preview",
        "#/models": "Registered Models",
        "#/settings": "Theme preference",
    }
    for place, text in pages.items():
        page = shown.open(place)
        page.get_by_text(text).first.wait_for()
        seen = [e.inner_text() for e in page.locator("a, button, [data-assistant-ui]").all() if e.is_visible()]
        assert [] == [(place, words) for words in seen for hidden in HIDDEN if hidden in words]
        assert 0 == page.locator("[data-assistant-ui]:visible").count()
        assert 0 == page.get_by_text("does not serve").count(), "an error is shown"
    assert "mlflow.assistant" in shown.page.evaluate("JSON.stringify(localStorage)")
