"""Names that MLflow does not take: what it has instead, and how the user learns of that."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from hpcexp.plan import Plan
from hpcexp.runs.journal import Point
from hpcexp.text.key_names import KeyTable, renamed
from hpcexp.tracking.mlflow import description, tags

Renamed = Mapping[str, Mapping[str, str]]
"""Kind (`metrics`) → name → key; kinds of which all have their own names are left out."""


def by_key(points: Iterable[Point], keys: KeyTable) -> Iterator[Point]:
    """The points with the keys of their metrics in place of the names."""
    for point in points:
        yield point._replace(metrics={keys[name]: value for name, value in point.metrics.items()})


def renamed_of(plan: Plan, keys: KeyTable) -> Renamed:
    """All of a run: its metrics so far, and what is known of the plan."""
    found = {
        "metrics": keys.renamed,
        "params": renamed(description.params(plan)),
        "tags": renamed(description.tags(plan)),
    }
    return {kind: names for kind, names in found.items() if names}


def text_of(found: Renamed) -> str:
    """As the tag and the file have it."""
    return json.dumps(found, ensure_ascii=False)


def report(news: Renamed) -> None:
    """Write a line to the log."""
    pairs = [f"{kind} {name!r} as {key!r}" for kind, names in news.items() for name, key in names.items()]
    text = f"MLflow cannot hold these names one to one, and has {', '.join(pairs)} (tag {tags.RENAMED})"
    with contextlib.suppress(OSError):  # the log may lie on a full disk
        print(text, file=sys.stderr, flush=True)


def read_renamed(text: str) -> dict[str, dict[str, str]]:
    """Kind → key → name, from the text of the tag; empty where that is none, or was cut."""
    try:
        found = msgspec.json.decode(text, type=dict[str, dict[str, str]])
    except msgspec.DecodeError:
        return {}
    return {kind: {key: name for name, key in names.items()} for kind, names in found.items()}
