"""The frozen plan: everything a job needs, resolved once, read by every rank on every try."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from msgspec import UNSET, UnsetType, defstruct, to_builtins

from hpcexp.data_spec import DataSpec
from hpcexp.errors import RunError, listed
from hpcexp.files.atomic import write_atomic
from hpcexp.files.documents import convert, parse_yaml, read_plain, sortable
from hpcexp.files.untrusted import UnusableFileError, lines_of, open_regular, read_bytes
from hpcexp.redaction import filled
from hpcexp.rundir import RunDir
from hpcexp.schema.keys import OPEN_SECTIONS, Config
from hpcexp.schema.settings import Settings

VERSION = 2
"""Of the format of `plan.yaml`."""
_FACTS = ("code.digest", "command", "host", "project")
"""Of `lineage`, what every plan has and its readers use."""
_MAX_HEAD = 1 << 20
"""Bytes before a plan's configuration."""

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Topology:
    """Which devices, how many ranks, what holds them together."""

    accelerator: str
    """`cpu` or `cuda`."""
    device_ids: tuple[int, ...]
    """CUDA device numbers of the ranks of a node; for the CPU just 0, 1, … (a process each)."""
    num_nodes: int
    threads_per_rank: int
    strategy: str
    """`single`, `ddp`, `fsdp` or `custom`."""
    backend: str | None
    """`nccl` or `gloo` where there is more than one rank."""

    @property
    def ranks_per_node(self) -> int:
        return len(self.device_ids)

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True)
class Batch:
    """How the global batch is made: `global_size = per_rank × accumulate × world_size`."""

    global_size: int
    per_rank: int
    accumulate: int


@dataclass(frozen=True)
class Steps:
    """Optimizer steps. An epoch's last, incomplete global batch is dropped."""

    per_epoch: int
    total: int
    epochs: int


@dataclass(frozen=True)
class InitialWeights:
    """The file that a new run's model takes its weights from."""

    path: str
    sha256: str
    run: str | None = None
    """`experiment/name` of the run whose best weights they are."""


@dataclass(frozen=True)
class JobOf:
    """The sweep that a plan is a job of."""

    sweep: str
    """Its directory."""
    overrides: tuple[str, ...]
    """Overrides that it asks of this job alone."""


@dataclass(frozen=True)
class Plan:
    """One job, resolved. `config` is plain data: the composed experiment with nothing left to interpolate.

    What is secret in it is masked, and no part of the run's identity.
    """

    version: int
    name: str
    experiment: str
    run_dir: str
    signature: str
    config: dict[str, Any]
    overrides: tuple[str, ...]
    choices: dict[str, str]
    """Config group → chosen option."""
    topology: Topology
    batch: Batch | None
    """None where the data module is the user's own and says no batch size."""
    steps: Steps | None
    """None where the amount of data is known only once it is loaded."""
    data: DataSpec | None
    num_params: int | None
    tracking_uri: str | None
    """Resolved MLflow URI; None when tracking is off."""
    lineage: dict[str, Any]
    """Flat facts: `git.commit`, `git.dirty`, `code.digest`, `host`, `user`, `command`, `version.torch`, …"""
    warnings: tuple[str, ...]
    metrics: Mapping[str, Literal["max", "min"] | None] | None = None
    """Metric that the run will record → its better direction; None where the job alone knows, as of users' modules."""
    initial_weights: InitialWeights | None = None
    """What `model.init_from` names."""
    secrets: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Dotted name → what is masked there. For the job alone: `plan.yaml` has none of it."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Path → SHA-256 of the code that `code.digest` is of; kept in the run's lineage, not in `plan.yaml`."""
    job_of: JobOf | None = field(default=None, compare=False, repr=False)
    """None where it is no job of a sweep, or is read from its file; kept in the run's lineage."""

    @cached_property
    def settings(self) -> Settings:
        """`config` with its types."""
        return Settings(self.config)


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data, as `plan.yaml` holds it."""
    data = asdict(replace(plan, secrets={}, sources={}, job_of=None))
    del data["secrets"], data["sources"], data["job_of"]
    return {**data, "data": to_builtins(plan.data)}


def digest(plan: Plan) -> str:
    """The same for equal plans only."""
    return hashlib.sha256(json.dumps(sortable(to_dict(plan)), sort_keys=True, default=str).encode()).hexdigest()


def from_dict(data: Any) -> Plan:
    """The plan that `to_dict` gave; ValueError says what is missing or of another type."""
    plan = convert(data, Plan)
    convert(plan.config, _config_type())
    if missing := [fact for fact in _FACTS if not isinstance(plan.lineage.get(fact), str)]:
        raise ValueError(f"lineage has no {listed(missing)}")
    return plan


def build_types() -> None:
    """Build the types that plans are decoded into. It takes twice as long as decoding one."""
    for kind in (Plan, _config_type()):
        with suppress(ValueError):
            convert({}, kind)


@cache
def _config_type() -> type:
    """The type of a frozen configuration: whoever reads a plan finds every key of the schema, with its type.

    Composition fills in the closed sections; an open one may leave out any key.
    """
    return defstruct("Config", [(name, _section_type(name, hint)) for name, hint in _hints(Config)])


def _section_type(name: str, hint: Any) -> Any:
    is_open = name in OPEN_SECTIONS
    kind = OPEN_SECTIONS[name] if is_open else hint
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return hint
    return defstruct(name, [_optional(k, h) if is_open else (k, h) for k, h in _hints(kind)])


def _optional(key: str, hint: Any) -> tuple[str, Any, Any]:
    return key, hint | UnsetType, UNSET


def _hints(kind: type) -> list[tuple[str, Any]]:
    return list(get_type_hints(kind).items())


def save_plan(plan: Plan, path: Path) -> None:
    """Freeze the plan."""
    write_atomic(path, yaml.dump(_plain(to_dict(plan)), Dumper=_DUMPER, sort_keys=False, width=120))


def load_plan(path: Path) -> Plan:
    """The frozen plan in `path`; RunError where there is none, or it is damaged or of another version."""
    data = _checked(path, lambda: parse(read_bytes(path).decode()))
    try:
        return from_dict(data)
    except ValueError as e:
        raise UnusableFileError(path, str(e)) from e


def load_whole(run: RunDir) -> Plan:
    """The frozen plan of a run with its secrets, for who builds from it."""
    return whole(replace(load_plan(run.plan), secrets=read_plain(run.secrets)))


def whole(plan: Plan) -> Plan:
    """The plan with its secrets in their places."""
    return replace(plan, config=filled(plan.config, plan.secrets))


def load_signature(path: Path) -> str:
    """The signature of the frozen plan in `path`, without its long rest; RunError as of `load_plan`."""
    signature = _checked(path, lambda: load_head(path)).get("signature")
    if not isinstance(signature, str):
        raise UnusableFileError(path, "it has no signature")
    return signature


def load_head(path: Path) -> dict[str, Any]:
    """The first entries of a plan, before its configuration; empty where it does not begin as one.

    RunError where there is none or it is damaged.
    """
    head = _read(path, lambda: parse(_before_config(path)))
    return head if isinstance(head, dict) else {}


def parse(text: str) -> Any:
    """A plan, or a part of one, as plain data; yaml.YAMLError where it is no YAML that hpcexp writes."""
    return parse_yaml(text)


def _checked(path: Path, read: Callable[[], Any]) -> Any:
    """What is read of a plan; RunError where there is none or it is of another version."""
    data = _read(path, read)
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise RunError(f"{path} is of another version of hpcexp (plan version {version}).\nFix: use that version.")
    return data


def _read(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FileNotFoundError as e:
        raise RunError(f"No run in {path.parent}: it has no {path.name}.\nFix: `hpcexp runs` lists the runs.") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UnusableFileError(path, "it is no plan") from e


def _before_config(path: Path) -> str:
    head = b""
    with open_regular(path) as file:
        for line in lines_of(file, _MAX_HEAD):
            if line.startswith(b"config:"):
                break
            head += line
            if len(head) > _MAX_HEAD:
                raise UnusableFileError(path, f"its head has more than {_MAX_HEAD:,} bytes")
    return head.decode()


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML writes readably."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
