"""What a study is about and seeded with: stored in it when it is made, and compared by every later command."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import optuna

from hpcexp.errors import ConfigError
from hpcexp.sweep.search.space import changed, record
from hpcexp.sweep.spec.spec import Axis, Objective

SPACE, SEED = "hpcexp.space", "hpcexp.seed"
"""Attributes of a study."""
_ANOTHER_NAME = "Fix: ask for what it was begun with, or give the sweep or its study (search.study) another name."


def check_space(
    study: optuna.Study, where: str, axes: Mapping[str, Axis], objectives: Sequence[Objective], *, is_new: bool
) -> None:
    """Store the space in a new study; ConfigError if an existing one has another, as its trials would not fit."""
    space = record(axes, objectives)
    if SPACE not in study.user_attrs and is_new:
        study.set_user_attr(SPACE, space)
    before = study.user_attrs.get(SPACE)
    if before is None:
        raise ConfigError(f"The study {study.study_name} in {where} was not made by hpcexp.\n{_ANOTHER_NAME}")
    if changes := changed(before, space):
        lines = "\n".join(f"  {change}" for change in changes)
        raise ConfigError(
            f"The study {study.study_name} in {where} was begun with another space:\n{lines}\n"
            f"What it has learned does not hold for this one.\n{_ANOTHER_NAME}"
        )


def seed_of(study: optuna.Study, given: int | None) -> int:
    """The given seed, else the one stored in the study, else one that follows from the study's name."""
    before = study.user_attrs.get(SEED)
    seed = given if given is not None else before if before is not None else _derived_seed(study.study_name)
    if seed != before:
        study.set_user_attr(SEED, seed)
    return seed


def _derived_seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
