"""What MLflow records of a run: parameters, tags and a description, from its plan and its result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hpcexp.checks.values import typed
from hpcexp.data.manifest import samples
from hpcexp.data_spec import DataSpec
from hpcexp.lineage.manifest import last_record
from hpcexp.plan import Plan
from hpcexp.runs.records.files import read
from hpcexp.runs.records.lineage import CodeFacts, DataRecord, OriginFacts
from hpcexp.runs.records.results import Best, Summary
from hpcexp.runs.records.sweep import AxisRecord, SweepRecord
from hpcexp.text.formatting import metric
from hpcexp.tracking.mlflow import tags as names
from hpcexp.tracking.mlflow.links import page
from hpcexp.tracking.mlflow.views import view_key

NOTE_LIMIT = 7500
"""Characters of a description; MLflow cuts what is longer at 8,000."""
NOT_PARAMS = ("tracking", "launch", "run")
"""Sections of the configuration that don't change what is computed."""

_MLFLOW_TAGS = {
    "mlflow.user": "user",
    "mlflow.source.name": "command",
    "mlflow.source.git.commit": "git.commit",
}
"""MLflow's own tag → the fact it takes."""


@dataclass(frozen=True)
class DataSet:
    """What MLflow records of the data; all but the name and the digest in JSON."""

    name: str
    digest: str
    source: str
    schema: str
    profile: str


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every value under its dotted name, as it would be typed on the command line; lists stay whole."""
    return dict(_leaves(config, prefix))


def params(plan: Plan) -> dict[str, str]:
    """The configuration under dotted names, without the sections of `NOT_PARAMS`."""
    return flatten({key: value for key, value in plan.config.items() if key not in NOT_PARAMS})


def tags(plan: Plan) -> dict[str, str]:
    """Identity, code, data, machine and shape of the run."""
    facts = {f"{names.PREFIX}{key}": typed(value) for key, value in {**_shape(plan), **plan.lineage}.items()}
    facts |= {f"{names.CHOICES}{group}": typed(option) for group, option in plan.choices.items()}
    known = {tag: typed(plan.lineage[fact]) for tag, fact in _MLFLOW_TAGS.items() if plan.lineage.get(fact)}
    own = {key: typed(value) for key, value in plan.settings.tracking.tags.items()}
    return {**facts, "mlflow.source.type": "LOCAL", **known, "mlflow.runName": plan.name, **own}


def best_tags(summary: Summary) -> dict[str, str]:
    """What was monitored at its best, and when: MLflow shows and filters by the last value of a metric."""
    if (best := summary.best) is None:
        return {}
    values = {names.BEST_MONITOR: best.monitor, names.BEST_VALUE: best.value, names.BEST_EPOCH: best.epoch}
    return {key: typed(value) for key, value in values.items() if value is not None}


def sweep_tags(name: str, axes: Mapping[str, str], parent: str | None) -> dict[str, str]:
    """What a run of a sweep is grouped and found by: the sweep, its value on each axis, the MLflow run above it.

    MLflow's interface nests a run below the one that `mlflow.parentRunId` names.
    """
    above = {} if parent is None else {"mlflow.parentRunId": parent}
    return {names.SWEEP: name, **{f"{names.AXIS}{key}": value for key, value in axes.items()}, **above}


def note(plan: Plan, results: Mapping[str, float], links: Mapping[str, str] | None = None) -> str:
    """The run's description (Markdown): what it is about, what it gave, what belongs to it, how to repeat it.

    `links`: what (`Sweep`) → Markdown. MLflow shows the first lines unasked.
    """
    facts = plan.lineage
    commit = f" at commit `{facts['git.commit']}`" if facts.get("git.commit") else ""
    dirty = " with uncommitted changes" if facts.get("git.dirty") else ""
    where = f"{facts['host']}:{plan.run_dir}" if facts.get("host") else plan.run_dir
    command = facts.get("command") or " ".join(["hpcexp train", *plan.overrides])
    lines = [
        plan.settings.notes,
        "**Result:** " + ", ".join(f"{key} {value:.4g}" for key, value in results.items()) if results else "",
        " · ".join(f"**{what}:** {link}" for what, link in (links or {}).items()),
        f"**Overridden:** {' '.join(f'`{override}`' for override in plan.overrides) or 'nothing'}",
        f"**Run directory:** `{where}`",
        f"**Reproduce:** `{command}`{commit}{dirty}",
    ]
    return "\n\n".join(line for line in lines if line)


def dataset(plan: Plan, facts: DataSpec) -> DataSet:
    """The data with its rows and its schema."""
    sampled = samples(facts)
    source = typed(flatten(plan.settings.data.given))
    name = plan.choices.get("data", "data")
    return DataSet(name, facts.fingerprint, source, json.dumps(sampled["schema"]), json.dumps(sampled["rows"]))


def lineage_tags(lineage: Path) -> dict[str, str]:
    """Digests from a run's `lineage/`: the seal, data and patch, and the runs that it resumes from."""
    data, code = read(lineage / "data.json", DataRecord), read(lineage / "code.json", CodeFacts)
    origin = read(lineage / "origin.json", OriginFacts)
    continued, begun = origin.continued, origin.initialised_from
    found = {
        names.SEAL: last_record(lineage).sha256,
        names.DATA_DIGEST: data.digest,
        names.PATCH_SHA256: code.patch and code.patch.sha256,
        names.CONTINUED_FROM_STEP: continued and continued.step,
        names.WEIGHTS_FROM: origin.initial_weights and (origin.initial_weights.run or origin.initial_weights.path),
        names.WEIGHTS_SHA256: origin.initial_weights and origin.initial_weights.sha256,
        names.INITIALISED_FROM: begun and begun.checkpoint,
        names.INITIALISED_FROM_RUN: begun and begun.mlflow_run_id,
    }
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def model_note(plan: Plan, best: Best | None, run: str, checkpoint: str) -> str:
    """A model's description (Markdown). `run`: a link to its run."""
    when = f"{best.monitor} {metric(best.value)} in epoch {best.epoch + 1}" if best else ""
    lines = [
        f"The best weights of {run}" + (f": {when}" if when else ""),
        f"**Data:** {data_text(plan)}" if plan.data else "",
        f"**Checkpoint:** `{checkpoint}`",
        f"**Use it:** `hpcexp test {plan.name}`, `hpcexp export {plan.name}`",
    ]
    return "\n\n".join(line for line in lines if line)


def data_text(plan: Plan) -> str:
    """The data set's name, sizes and the start of its fingerprint; empty where planning knew nothing of it."""
    if plan.data is None:
        return ""
    sizes = f"{plan.data.num_train} / {plan.data.num_val} / {plan.data.num_test}"
    return f"{plan.choices.get('data', 'data')}, {sizes} samples, `{plan.data.fingerprint[:8]}`"


def axis_text(axis: AxisRecord) -> str:
    """An axis for people: `0.1, 0.01`, or the ends of an interval."""
    if axis.values is None:
        return f"{axis.low:.12g} … {axis.high:.12g}" + (" (log)" if axis.is_log else "")
    return ", ".join(axis.values)


def sweep_params(asked: SweepRecord) -> dict[str, str]:
    """The axes of a sweep."""
    return {key: axis_text(axis) for key, axis in asked.axes.items()}


def sweep_note(asked: SweepRecord, best: str, table: str, path: str, look: str = "") -> str:
    """A sweep's description (Markdown): question, links to `look` at, `best` job, axes, head of the `table`, place."""
    axes = [f"- `{key}`: {text}" for key, text in sweep_params(asked).items()]
    command = asked.command
    lines = [
        asked.question,
        f"**Look:** {look}" if look else "",
        f"**Best:** {best}" if best else "",
        "\n".join(["**Axes:**", "", *axes]) if axes else "",
        f"**Sweep directory:** `{path}`",
        f"**Resume it:** `{command}`" if command else "",
    ]
    text = "\n\n".join(line for line in lines if line)
    return "\n\n".join(filter(None, [text, _head_of(table, NOTE_LIMIT - len(text))]))


def sweep_links(experiment_id: str, name: str) -> str:
    """Links (Markdown) to the jobs of a sweep: the best first, and as charts."""
    view = view_key(name)
    return f"[ranking]({page(experiment_id, view=view)}), [charts]({page(experiment_id, view=view, charts=True)})"


def _head_of(table: str, room: int) -> str:
    """As many whole rows of a Markdown table as fit, and how many do not."""
    rows = table.strip().splitlines()
    kept = [row for row, size in zip(rows, accumulate(len(row) + 1 for row in rows), strict=True) if size <= room - 40]
    left = len(rows) - len(kept)
    return "\n".join(kept) + (f"\n\n… and {left} more in table.md" if left else "")


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", typed(value)


def _shape(plan: Plan) -> dict[str, Any]:
    shape = {
        "signature": plan.signature,
        "run_dir": plan.run_dir,
        "overrides": " ".join(plan.overrides),
        "accelerator": plan.topology.accelerator,
        "strategy": plan.topology.strategy,
        "world_size": plan.topology.world_size,
        "seed": plan.settings.seed,
        "num_params": plan.num_params,
        "data.fingerprint": plan.data and plan.data.fingerprint,
        "batch.per_rank": plan.batch and plan.batch.per_rank,
        "batch.accumulate": plan.batch and plan.batch.accumulate,
        "steps.total": plan.steps and plan.steps.total,
    }
    return {key: value for key, value in shape.items() if value is not None}
