"""What a person sees of a running job: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Protocol

from hpcexp.rank_protocol import Progress
from hpcexp.text.formatting import in_line
from hpcexp.text.terminal import beneath, pass_on, say

LINE_EVERY_S = 5.0


class Display(Protocol):
    """Shows progress events of rank 0 and what it prints."""

    def progress(self, event: Progress) -> None: ...

    def line(self, text: str) -> None: ...

    def close(self) -> None: ...


def display(kind: str) -> Display:
    """`auto`, `bar`, `lines` or `none`, as `launch.progress` says."""
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "lines"
    kinds: dict[str, type[Display]] = {"bar": Bar, "lines": Lines, "none": Silent}
    return kinds[kind]()


def metrics_text(event: Progress) -> str:
    """`loss 0.123  val/acc 0.981`."""
    loss = {} if event.loss is None else {"loss": event.loss}
    return "  ".join(f"{k} {math.nan if v is None else v:.4g}" for k, v in {**loss, **event.metrics}.items())


class Silent:
    """Shows only what the job prints."""

    def progress(self, event: Progress) -> None:
        """Progress is not shown."""

    def line(self, text: str) -> None:
        pass_on(text)

    def close(self) -> None:
        """Nothing is open."""


class Lines(Silent):
    """A line every few seconds and at the last step, for logs."""

    def __init__(self) -> None:
        self._next = 0.0
        self._shown = ""

    def progress(self, event: Progress) -> None:
        is_last = event.steps and event.step >= event.steps
        if time.monotonic() < self._next and not is_last:
            return
        self._next = time.monotonic() + LINE_EVERY_S
        of = f"/{event.steps}" if event.steps else ""
        epochs = f"/{event.epochs}" if event.epochs else ""
        text = f"epoch {event.epoch}{epochs}  step {event.step}{of}  {metrics_text(event)}".rstrip()
        if not self._shown.startswith(text):
            say(text)
        self._shown = text


class Bar:
    """One line that is redrawn; the job's output scrolls above it."""

    def __init__(self) -> None:
        from tqdm import tqdm

        shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self._bar: Any = tqdm(
            total=None,
            desc="starting",
            bar_format=shape,
            leave=False,
            dynamic_ncols=True,
            file=beneath(sys.stderr),
        )

    def progress(self, event: Progress) -> None:
        self._bar.total = event.steps
        self._bar.n = event.step
        epochs = f"/{event.epochs}" if event.epochs else ""
        self._bar.set_description_str(f"epoch {event.epoch}{epochs}", refresh=False)
        self._bar.set_postfix_str(in_line(metrics_text(event)), refresh=True)

    def line(self, text: str) -> None:
        self._bar.clear()
        pass_on(text)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
