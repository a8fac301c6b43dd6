"""Users' data on one and two ranks: the same steps, each sample once."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Said
from own_project import OWN, write_own_project

from hpcexp.files.documents import read_plain
from hpcexp.rundir import RunDir, find_runs
from hpcexp.runs.journal import read_points

pytestmark = pytest.mark.slow

KINDS = {
    "tuple": (),
    "dict": ("data.kind=dict", "+data.num_workers=2"),
    "named tuple": ("data.kind=named",),
    "dataclass": ("data.kind=dataclass",),
    "random split": ("data.kind=split",),
    "weighted": ("data.kind=weighted",),
    "combined": ("data.kind=combined",),
    "stream": ("data.kind=stream", "+data.num_workers=2"),
    "Hugging Face": ("data.kind=hf",),
    "Hugging Face, stream": ("data.kind=hf_stream",),
    "data sets by split": ("data=own_splits",),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project."""
    project = tmp_path_factory.mktemp("own_data")
    write_own_project(project)
    return project


def steps_of(run: Path, stage: str) -> dict[tuple[int, int], list[tuple[list[int], float]]]:
    """(epoch, step) → indices and loss of each batch of each rank."""
    found = defaultdict(list)
    for file in sorted(run.glob("seen-*.json")):
        for epoch, step, indices, loss in json.loads(file.read_text())[stage]:
            found[epoch, step].append((indices, loss))
    return dict(found)


def series_of(run: RunDir, name: str) -> dict[int, float]:
    """Step → value, as journalled."""
    return {point.step: point.metrics[name] for point in read_points(run.journal)[0] if name in point.metrics}


def over_samples(batches: list[tuple[list[int], float]]) -> tuple[list[int], float]:
    """All indices, and the mean of the loss over them."""
    number = sum(len(indices) for indices, _ in batches)
    return sorted(i for indices, _ in batches for i in indices), sum(len(i) * loss for i, loss in batches) / number


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one(
    shared: Path, tmp_path: Path, train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every step has the same samples and loss; validation and test read each sample once."""
    pytest.importorskip("datasets") if "Face" in kind else None
    monkeypatch.chdir(shared)
    runs: dict[int, Any] = {}
    for devices in (1, 2):
        root = tmp_path / str(devices)
        said = train(*OWN, *KINDS[kind], f"hardware.devices={devices}", f"run.root={root}")
        assert 0 == said.status, said.err
        [run] = find_runs(root)
        runs[devices] = run
    for stage in ("train", "validate", "test"):
        alone, pair = (steps_of(runs[devices].path, stage) for devices in (1, 2))
        assert (7 if kind != "combined" else 6) * 2 == len(alone) or stage != "train"
        assert alone.keys() == pair.keys()
        for step, batches in alone.items():
            indices, loss = over_samples(batches)
            assert (indices, pytest.approx(loss, rel=1e-5)) == over_samples(pair[step]), (stage, step)
    losses = [series_of(runs[devices], "train/loss") for devices in (1, 2)]
    assert 2 * (6 if kind == "combined" else 7) == len(losses[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    alone, pair = (read_plain(runs[devices].summary) for devices in (1, 2))
    assert alone["steps"] == pair["steps"]
    assert alone["best"]["value"] == pytest.approx(pair["best"]["value"], rel=1e-5)
    assert alone["test"] == pytest.approx(pair["test"], rel=1e-5)
