"""A search's journal as input: `study.jsonl` is handed around with its sweep, and Optuna believes whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct
from optuna.trial import FrozenTrial

from hpcexp.files.documents import Count, check_depth, convert
from hpcexp.files.untrusted import UnusableFileError, lines_of, open_regular

MAX_OPERATION_BYTES = 1 << 20
"""Of a line; the longest has the space of a search."""
_LAST_OPERATION = 10
REPLAY_ERRORS = (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RecursionError)
"""What Optuna raises beside ValueError where operations do not fit together."""


class _Operation(Struct):
    """A line, of which each operation has some fields; those that Optuna adds later are passed over."""

    op_code: Annotated[int, Meta(ge=0, le=_LAST_OPERATION)]
    worker_id: str
    study_id: Count | None = None
    trial_id: Count | None = None
    study_name: str | None = None
    directions: list[int] | None = None
    user_attr: dict[str, Any] | None = None
    system_attr: dict[str, Any] | None = None
    user_attrs: dict[str, Any] | None = None
    system_attrs: dict[str, Any] | None = None
    param_name: str | None = None
    param_value_internal: float | None = None
    distribution: str | None = None
    distributions: dict[str, str] | None = None
    params: dict[str, float] | None = None
    state: int | None = None
    value: float | None = None
    values: list[float] | None = None
    step: int | None = None
    intermediate_value: float | None = None
    intermediate_values: dict[str, float] | None = None
    datetime_start: str | None = None
    datetime_complete: str | None = None


class _Notes(Struct):
    """What hpcexp notes with a trial."""

    job: Count | None = None
    pruned: Count | None = None
    again: Count | None = None


def check_journal(path: Path) -> None:
    """UnusableFileError where there is anything else than a file of Optuna's operations. A torn last line is none."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(lines_of(file, MAX_OPERATION_BYTES), 1):
            if not line.endswith(b"\n"):
                if len(line) < MAX_OPERATION_BYTES:
                    return  # it is torn, or being written
                raise UnusableFileError(path, f"line {number} has {MAX_OPERATION_BYTES:,} bytes or more")
            try:
                _check_operation(line)
            except (ValueError, ArithmeticError, RecursionError) as e:
                raise UnusableFileError(path, f"line {number}: {e}") from e


def _check_operation(line: bytes) -> None:
    # Not by msgspec: Optuna writes infinities, as of trainings that have diverged, the way Python does.
    operation = json.loads(line)
    check_depth(operation)
    convert(operation, _Operation)


def check_trials(trials: Iterable[FrozenTrial], prefix: str, num_objectives: int) -> None:
    """ValueError where what trials hold is not what hpcexp has written; `prefix`: of its attributes' names."""
    for trial in trials:
        noted = {key.removeprefix(prefix): value for key, value in trial.user_attrs.items() if key.startswith(prefix)}
        try:
            convert(noted, _Notes)
        except ValueError as e:
            raise ValueError(f"trial {trial.number}: {e}") from e
        if trial.values is not None and len(trial.values) != num_objectives:
            raise ValueError(f"trial {trial.number} has {len(trial.values)} values, for {num_objectives} objectives")


class _Described(Struct, rename={"text": "is"}):
    text: str


class _Objective(Struct):
    metric: str
    mode: str


class _Space(Struct):
    axes: dict[str, _Described]
    objectives: list[_Objective]


def check_study(attributes: Mapping[str, Any], space: str, seed: str) -> None:
    """ValueError where a study's notes of its space and seed, under these names, are not what hpcexp has written."""
    if space in attributes:
        convert(attributes[space], _Space)
    if seed in attributes:
        convert(attributes[seed], Count)
