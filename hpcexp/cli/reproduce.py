"""`hpcexp reproduce`: train a run again from what it has kept, and say whether the same comes out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcexp.cli.shared.arguments import RUN_HELP, find_run, parser
from hpcexp.cli.shared.results import part_text
from hpcexp.cli.shared.trust import add_trust, check_trust
from hpcexp.compare.provenance_diff import Part
from hpcexp.launch.base.polling import ending_on_signals
from hpcexp.reproduce.original import Original, opened
from hpcexp.reproduce.reproduce import ReproduceReport, ReproduceRequest
from hpcexp.reproduce.reproduce import reproduce as reproduced
from hpcexp.reproduce.rerun import RerunInterrupted
from hpcexp.reproduce.verdict import ReproduceVerdict
from hpcexp.reproduce.workspace import Code
from hpcexp.runs.mark import CODE, PACKAGES
from hpcexp.text.formatting import duration, near, table

SUMMARY = """Restore a run's code in a separate git worktree, compare data and packages, train its frozen plan again on
as many ranks, and compare weights and every logged value. Records nothing, and leaves nothing behind. Exit status: 0
identical or within tolerance, 1 diverged, 2 it cannot be reproduced."""


def reproduce(argv: Sequence[str]) -> int:
    """Exit status: 0 identical or within tolerance, 1 diverged or the rerun failed, 2 it cannot be done."""
    p = parser("reproduce", SUMMARY)
    p.add_argument("run", help=RUN_HELP)
    p.add_argument("--steps", type=int, metavar="N", help="train only the first N steps of the same schedule")
    p.add_argument("--env", action="store_true", help="use a new virtual environment with the run's packages")
    p.add_argument("--as-is", action="store_true", help="use the current code if the run's cannot be restored")
    p.add_argument("--rtol", type=float, help="relative difference to tolerate (default: by trainer.precision)")
    p.add_argument("--keep", action="store_true", help="keep the restored code and the rerun")
    add_trust(p)
    a = p.parse_args(argv)
    if a.steps is not None and a.steps < 1:
        p.error(f"--steps {a.steps}: at least one")
    if a.rtol is not None and not 0 <= a.rtol < math.inf:
        p.error(f"--rtol {a.rtol:g}: a number from 0 on")
    original = opened(find_run(a.root, a.run), a.steps)
    check_trust(original.run, is_trusted=a.trust, names=(*CODE, *PACKAGES) if a.env else CODE)
    began = time.monotonic()
    with ending_on_signals():
        try:
            description = reproduced(original, ReproduceRequest(a.env, a.keep, a.as_is, a.rtol), _begin)
        except RerunInterrupted as e:
            print("Stopped.", file=sys.stderr)
            return e.status
    print("\n".join(_lines(description, time.monotonic() - began)))
    return int(description.verdict.kind == "diverged")


def _begin(original: Original, code: Code, parts: Sequence[Part], kept: Path | None) -> None:
    """What is going to be trained, before that begins."""
    topology = original.plan.topology
    ranks = f"{topology.world_size} rank{'s' * (topology.world_size > 1)} on {topology.accelerator}"
    steps = "" if original.until is None else f", up to step {original.until}"
    print(f"{original.name} again: {code.description}; {ranks}{steps}")
    shown = [part for part in parts if part.differing or part.name not in ("config", "record")]
    print("\n".join(map(part_text, shown)), flush=True)
    if kept:
        away = f"; git worktree remove --force {near(kept / 'code')} removes the code" * code.is_restored
        print(f"Kept in {near(kept)}{away}", flush=True)


def _lines(description: ReproduceReport, took_s: float) -> Iterator[str]:
    verdict = description.verdict
    yield ""
    yield table(("compared", "", ""), [(c.what, "same" if c.is_same else "DIFFERS", c.detail) for c in verdict.checks])
    yield ""
    yield _sentence(verdict)
    differing = [f"{part.name} ({_first(part)})" for part in description.parts if part.differing]
    if verdict.kind == "identical" and differing:
        yield f"Identical although these differ: {'; '.join(differing)}."
    elif differing:
        yield f"Known to differ: {'; '.join(differing)}."
    elif verdict.kind != "identical":
        yield _UNKNOWN
    yield f"It took {duration(took_s)}."


_UNKNOWN = """\
Nothing is known to differ. What to look at: kernels that do not give the same bits twice (trainer.deterministic=true);
data and code that draw random numbers without a seed; metrics that are times; files read besides the data."""


def _sentence(v: ReproduceVerdict) -> str:
    if v.kind == "identical":
        what = "weights and " if any(check.what == "weights" for check in v.checks) else ""
        return f"Identical: {what}all {v.num_values:,} values of {v.num_metrics} metrics, bit for bit."
    if v.kind == "within tolerance" and v.first and v.largest:
        return (
            f"Within tolerance: no value is further apart than {v.rtol:g} of it; the furthest {v.largest.apart:.1e}, "
            f"{v.largest.metric} of step {v.largest.step}. The first that differs: {v.first}."
        )
    if v.first is None:
        return "Diverged: every logged value is identical, but the weights or the summary are not."
    beyond = v.beyond or v.first
    late = "" if beyond == v.first else f", and by more than {v.rtol:g} at {beyond}"
    return f"Diverged at {v.first}{late}."


def _first(part: Part) -> str:
    """The first pieces that differ."""
    rows = [f"{name} {then} → {now}" for name, (then, now) in part.differing.items()]
    return ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
