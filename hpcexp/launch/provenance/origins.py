"""Where a run's settings come from, and which checkpoint it starts from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcexp.compose.sources import describe
from hpcexp.files.atomic import sha256
from hpcexp.files.documents import parse_yaml, plain
from hpcexp.launch.resume.checkpoint_transfer import TransferOrigin
from hpcexp.launch.resume.interrupted import Continuation
from hpcexp.plan import Plan
from hpcexp.redaction import masked_config
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_checksum
from hpcexp.runs.records.files import read
from hpcexp.runs.records.lineage import OriginFacts
from hpcexp.runs.records.sync import read_sync_record
from hpcexp.tracking.mlflow.description import flatten


def parents(found: Continuation | None, transferred: TransferOrigin | None) -> dict[str, Any]:
    """The checkpoint that an attempt starts from: of the attempt before, or of another run."""
    if found is not None:
        return {"continued": {**_checkpoint(found.checkpoint, found.step), "why": found.why}}
    if transferred is not None:
        noted = read_sync_record(transferred.run).run_id
        return {"initialised_from": {**_checkpoint(transferred.checkpoint, transferred.step), "mlflow_run_id": noted}}
    return {}


def _checkpoint(path: Path, step: int) -> dict[str, Any]:
    return {"checkpoint": str(path), "step": step, "crc32": read_checksum(path)}


def origin_facts(plan: Plan, run: RunDir, attempt: int, parents: Mapping[str, Any]) -> dict[str, Any]:
    """Command, overrides with their origins, experiment, sweep, and the checkpoint that the run starts from."""
    facts = {
        "attempt": attempt,
        "command": plan.lineage.get("command"),
        "overrides": [{"override": o, "from": source} for o, source in override_origins(plan)],
        "experiment": _experiment(plan),
        "sweep": plan.job_of and plan.job_of.sweep,
        "initial_weights": plan.initial_weights and asdict(plan.initial_weights),
        "continued": None,
        "initialised_from": None,
    }
    earlier = (read(file, OriginFacts).initialised_from for file in run.lineage.glob("attempt-*/origin.json"))
    transferred = next(filter(None, earlier), None)
    return {**facts, "initialised_from": transferred and plain(transferred), **parents}


def override_origins(plan: Plan) -> Iterator[tuple[str, str]]:
    """Each override, and where it was given: on the command line, on an axis of a sweep, or in the sweep's file."""
    typed = shlex.split(plan.lineage.get("command", ""))
    axes = plan.job_of.overrides if plan.job_of else ()
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    for override in plan.overrides:
        plain = override.lstrip("+")
        if plain in axes:
            yield override, "sweep axis"
        elif override in typed or plain in typed:
            yield override, "command line"
        else:
            yield override, "sweep axis" if plain.partition("=")[0] in keys else "sweep file"


def _experiment(plan: Plan) -> dict[str, Any] | None:
    """The experiment's file and what it sets; None if there is none."""
    named = plan.lineage.get("experiment.file")
    if named is None or not (file := Path(named)).is_file():
        return None
    facts = parse_yaml(file.read_text(encoding="utf-8-sig")) or {}
    sets = {key: value for key, value in facts.items() if key != "defaults"}
    where = describe(file, Path(plan.lineage["project"]))
    return {"file": where, "sha256": sha256(file), "sets": flatten(masked_config(sets)[0])}
