"""In what runs differ: their configuration, code, data and environment, without what follows from something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from hpcexp.compare.runs import SECTIONS, ComparedRun
from hpcexp.lineage.signature import HOW, WHERE_AND_HOW
from hpcexp.tracking.mlflow.description import NOT_PARAMS

_DEVICES = ("accelerator", "world_size", "strategy")
"""Facts of the environment that a result depends on beyond rounding."""

Values = tuple[str | None, ...]
"""Of each run, in order; None where it has none."""


@dataclass(frozen=True)
class Difference:
    """Something that not all runs have in common."""

    section: str
    """One of `runs.SECTIONS`."""
    key: str
    values: Values

    @property
    def is_result(self) -> bool:
        """Whether runs that differ in it are other experiments, and not the same one again, run in another way."""
        head, _, rest = self.key.partition(".")
        if self.section == "config":
            return head not in WHERE_AND_HOW and rest not in HOW.get(head, ())
        return self.key in ("code.digest", "data.fingerprint", *_DEVICES)


@dataclass(frozen=True)
class Differences:
    """What differs, and how much does not."""

    found: tuple[Difference, ...]
    same: Mapping[str, int]
    """Section → number of its keys that all runs have in common."""


def differences(runs: Sequence[ComparedRun]) -> Differences:
    """In what the runs differ, in the order of their configurations."""
    found: list[Difference] = []
    same = {}
    for section in SECTIONS:
        facts = [run.facts[section] for run in runs]
        keys = _keys(facts)
        differing = [d for key in keys if len(set((d := Difference(section, key, _values(facts, key))).values)) > 1]
        found += differing
        same[section] = len(keys) - len(differing)
    return Differences(tuple(_without_what_follows(runs, found)), same)


def repeats(found: Iterable[Difference], over: Iterable[str]) -> list[Difference]:
    """The keys in `over`, and what always is as the seed: `seed: ${seed}` of a section."""
    found, keys = [d for d in found if d.section == "config"], frozenset(over)
    seed = next((d.values for d in found if d.key == "seed"), None) if "seed" in keys else None
    return [d for d in found if d.key in keys or (d.key.rpartition(".")[2] == "seed" and d.values == seed)]


def _without_what_follows(runs: Sequence[ComparedRun], found: Sequence[Difference]) -> list[Difference]:
    """Where another option of a group was chosen: that, and not the keys that came with it; and no second name."""
    experiments = tuple(run.experiment for run in runs)
    chosen = [Difference("config", "experiment", experiments)] if len(set(experiments)) > 1 else []
    rest = [d for d in found if d.values != experiments or d.key != "name"]
    for choice in _choices(runs):
        following = [d for d in rest if d.section == "config" and _follows(d, choice)]
        if following:
            chosen.append(choice)
            rest = [d for d in rest if d not in following]
    return [*chosen, *rest]


def _choices(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Config groups of which the runs have chosen differently; none where one does not say what it chose."""
    if not all(run.choices for run in runs):
        return []
    groups = [group for group in _keys(run.choices for run in runs) if group not in ("experiment", *NOT_PARAMS)]
    found = [Difference("config", group, tuple(run.choices.get(group) for run in runs)) for group in groups]
    return [choice for choice in found if len(set(choice.values)) > 1]


def _follows(difference: Difference, choice: Difference) -> bool:
    """Whether it is a key of the group that has one value with each option."""
    pairs = set(zip(choice.values, difference.values, strict=True))
    return difference.key.startswith(f"{choice.key}.") and len(pairs) == len(set(choice.values))


def _keys(mappings: Iterable[Mapping[str, str]]) -> list[str]:
    """Those of all mappings, of which many are the same object."""
    distinct = {id(mapping): mapping for mapping in mappings}
    return list(dict.fromkeys(key for mapping in distinct.values() for key in mapping))


def _values(mappings: Sequence[Mapping[str, str]], key: str) -> Values:
    try:
        return tuple(map(itemgetter(key), mappings))
    except KeyError:  # rare, and asking each costs ten times as much
        return tuple([mapping.get(key) for mapping in mappings])
