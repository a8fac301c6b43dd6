"""The run to reproduce: how far it got, what it was made from, and what of that has changed since."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpcexp.compare.provenance_diff import Part, part_of
from hpcexp.errors import RunError, listed
from hpcexp.files.documents import parse_yaml
from hpcexp.files.untrusted import UnreadableFileError, sha256_of
from hpcexp.lineage.manifest import last_record
from hpcexp.lineage.signature import identity_config, signature
from hpcexp.plan import Plan, load_whole
from hpcexp.redaction import MASK
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import read_checksum
from hpcexp.runs.journal import read_points
from hpcexp.runs.records.files import read, read_or_none
from hpcexp.runs.records.lineage import CheckpointOrigin, CodeFacts, OriginFacts
from hpcexp.runs.records.results import read_summary
from hpcexp.runs.records.status import RunState
from hpcexp.status.state import current_state
from hpcexp.tracking.mlflow.description import flatten

_RESULTS = ("plan.yaml", "metrics.jsonl", "summary.json", "checkpoints/best.ckpt")
"""Files of a run that say what was trained and what resulted."""


@dataclass(frozen=True)
class Original:
    """A run, and how much of it is trained again."""

    run: RunDir
    plan: Plan
    """With its secrets."""
    code: CodeFacts | None
    """None where the run kept nothing of its code."""
    until: int | None
    """The step after which the rerun ends; None where it goes to its end, as the run did."""
    is_whole: bool
    """Whether the run has all that belongs to its last step; one that was killed may not."""

    @property
    def name(self) -> str:
        return f"{self.plan.experiment}/{self.run.path.name}"


def opened(run: RunDir, steps: int | None) -> Original:
    """The run, of which `steps` are reproduced; RunError if it cannot be."""
    code, state = read_or_none(run.lineage / "code.json", CodeFacts), current_state(run)
    if state is RunState.RUNNING:
        raise RunError(f"{run.path} is still being trained.\nFix: wait for it, or end it.")
    plan = _with_secrets(run)
    journalled = max((point.step for point in read_points(run.journal)[0]), default=0)
    made = read_summary(run).steps or journalled
    if made < 1:
        raise RunError(
            f"{run.path} never finished a step ({state}): there is nothing to compare another training with.\n"
            "Fix: rerun the command that made it to resume."
        )
    _check_origin(run, plan)
    if state is RunState.FINISHED:
        return Original(run, plan, code, None if steps is None or steps >= made else steps, is_whole=True)
    is_whole = state is RunState.PRUNED or (steps is not None and steps < made)
    return Original(run, plan, code, min(made, steps or made), is_whole=is_whole)


def checkpoint_origin(run: RunDir) -> CheckpointOrigin | None:
    """The checkpoint of another run that this one began with (`run.resume_from`); None if it has none."""
    return read(run.lineage / "origin.json", OriginFacts).initialised_from


def changed_since(original: Original) -> list[Part]:
    """What was done to the run since it was trained, by its seal, its signature and its overrides."""
    recorded = last_record(original.run.lineage).files
    then = {name: file.sha256 for name, file in recorded.items() if _counts(name) and file.sha256 is not None}
    now = {name: sha256_of(path) for name in then if (path := original.run.path / name).is_file()}
    return [_config(original), part_of("record", "files", then, now, shown=lambda digest: digest[:12])]


def _with_secrets(run: RunDir) -> Plan:
    try:
        plan = load_whole(run)
    except UnreadableFileError as e:
        raise RunError(f"{run.secrets} can be read by its owner alone.\nFix: let the owner reproduce the run.") from e
    masked = [name for name, value in flatten(identity_config(plan.config, plan.topology)).items() if value == MASK]
    if not masked:
        return plan
    raise RunError(f"The values of {listed(masked)} are secret, and {run.secrets} is gone.\nFix: have that file back.")


def _counts(name: str) -> bool:
    return name in _RESULTS or name.startswith("lineage/")


def _config(original: Original) -> Part:
    """Keys of the plan that are not what was asked for: the seed in its name, overrides.

    Looked for only where the signature is of something else, as overrides may be written in many ways.
    """
    plan = original.plan
    here = flatten(identity_config(plan.config, plan.topology))
    code, data = plan.lineage.get("code.digest", ""), plan.data.fingerprint if plan.data else ""
    begun = plan.initial_weights.sha256 if plan.initial_weights else ""
    anew = signature(plan.config, plan.topology, plan.batch, plan.steps, code=code, data=data, weights=begun)
    if plan.signature == anew:
        return Part("config", "keys", {}, len(here))
    then = {**here, **_overridden(plan)}
    if seed := re.search(r"-s(\d+)-[0-9a-f]+$", plan.name):
        then["seed"] = seed[1]
    note = "the signature is of another plan: plan.yaml was edited, or is of another hpcexp"
    found = part_of("config", "keys", then, here, note=note)
    if found.differing:
        return found
    return Part("config", "keys", {"plan.yaml": (plan.signature[:8], anew[:8])}, len(here), note)


def _overridden(plan: Plan) -> dict[str, str]:
    """Plain values of overrides, by the keys that the configuration has."""
    known = flatten(plan.config)
    found = {}
    for override in plan.overrides:
        key, _, text = override.lstrip("+").partition("=")
        value = _as_plain(text)
        if key in known and isinstance(value, bool | int | float | str) and _as_plain(known[key]) != value:
            found[key] = str(value)
    return found


def _as_plain(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return None


def _check_origin(run: RunDir, plan: Plan) -> None:
    """RunError where the checkpoint that it began with is not there any more."""
    if not plan.settings.run.resume_from:
        return
    origin = checkpoint_origin(run)
    checkpoint = Path(origin.checkpoint if origin else plan.settings.run.resume_from)
    if origin and read_checksum(checkpoint) == origin.crc32:
        return
    raise RunError(
        f"{run.path} began with {checkpoint} (run.resume_from), which is not there any more as it was.\n"
        "Fix: have that run's directory back from a backup."
    )
