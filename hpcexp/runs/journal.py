"""The journal: an append-only file of metrics that survives what kills the run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from hpcexp.files.untrusted import lines_of, open_append, open_regular

_TAIL = 1 << 16
"""Bytes at a journal's end among which its last line is looked for."""
_MAX_PENDING = 16 << 20
"""Bytes that are held for a disk that takes nothing."""
_MAX_STEP = 2**63 - 1
"""What SQLite and PostgreSQL hold."""
_MAX_TIME_MS = 10**13
"""The year 2286."""
_MEASURED = ("DeviceStatsMonitor.", "|device/", "|time")
"""In names of metrics of Lightning's monitors, which differ from one attempt to the next."""
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Point(NamedTuple):
    """Metrics of one step, and when they were logged."""

    time_ms: int
    step: int
    metrics: dict[str, float]


class _Line(Struct):
    """A line of the file."""

    t: Annotated[int, Meta(ge=0, le=_MAX_TIME_MS)]
    """Unix time in milliseconds."""
    s: Annotated[int, Meta(ge=0, le=_MAX_STEP)]
    """Step."""
    m: dict[str, float | str]
    """Metric → value; `nan`, `inf`, `-inf` as texts, for which JSON has no number."""


_decode = msgspec.json.Decoder(_Line).decode


class Journal:
    """The one writer of a run's journal: rank 0 opens it, also to continue one that a killed run left.

    A run that resumes from a checkpoint of step `redone_from`, or restarts from 0, repeats some steps, with the same
    bits: values that the journal has from there on are not written twice. One that differs is
    said once on stderr.

    A disk that refuses is said once on stderr and never raised: the lines wait and go with a later call.
    """

    def __init__(self, path: Path, *, redone_from: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = open_append(path, 0o644)
        with contextlib.suppress(OSError):  # not every network file system has locks
            # Held until this process dies: a rank whose supervisor was killed may not have noticed yet.
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
        self._size, self._last_ms = _cut_torn_line(self._fd)
        self._known = {} if redone_from is None else _known_from(self._fd, redone_from)
        self._pending = b""
        self._complained = False
        self._has_differed = False

    def __deepcopy__(self, memo: Any) -> Journal:
        """Itself: there is one writer, also where what holds it is copied."""
        return self

    def append(self, points: Iterable[tuple[int, Mapping[str, float]]], times_ms: Sequence[int] | None = None) -> None:
        """Write a line for each `(step, metrics)`, all with one `write(2)`; `times_ms`: when each was logged."""
        now = time.time_ns() // 1_000_000
        lines = [
            self._line(step, new, times_ms[i] if times_ms else now)
            for i, (step, metrics) in enumerate(points)
            if (new := self._new(step, metrics))
        ]
        self._write("".join(lines).encode())

    def sync(self) -> None:
        """Have everything on the disk, so that it survives the machine's death as well."""
        self._write(b"")
        try:
            os.fsync(self._fd)
        except OSError as e:
            self._complain(e)

    def close(self) -> None:
        """Sync and let go of the file; further calls of `close` do nothing."""
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1

    def _new(self, step: int, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Those that the journal does not have."""
        if not self._known:
            return metrics
        new = {}
        for key, value in metrics.items():
            before = self._known.get((key, step))
            if before is None:
                new[key] = value
            elif not _is_close(before, float(value)):
                self._differ(key, step, before, float(value))
        return new

    def _differ(self, key: str, step: int, before: float, now: float) -> None:
        if self._has_differed or any(mark in key for mark in _MEASURED):
            return
        self._has_differed = True
        with contextlib.suppress(OSError):
            print(
                f"WARNING: {key} at step {step} came out as {now:.9g}, and as {before:.9g} in the attempt before: "
                "code, data or machine are not what they were. What was recorded first stays.\n"
                "Fix: hpcexp train --fresh … does and records all of it anew.",
                file=sys.stderr,
                flush=True,
            )

    def _line(self, step: int, metrics: Mapping[str, float], time_ms: int) -> str:
        self._last_ms = max(self._last_ms, time_ms)
        entry = {"t": self._last_ms, "s": step, "m": metrics}
        try:
            return _encode(entry) + "\n"
        except ValueError:
            return _encode({**entry, "m": {key: _jsonable(value) for key, value in metrics.items()}}) + "\n"

    def _write(self, data: bytes) -> None:
        data = self._pending + data
        if not data:
            return
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                written += os.write(self._fd, data[written:])  # the second try says why the first stopped short
        except OSError as e:
            self._hold(data, e)
        else:
            self._size += written
            self._pending = b""

    def _hold(self, data: bytes, error: OSError) -> None:
        """Take back what was written of `data`, so that no line is torn, and keep it for later."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:  # some file systems need room for this too; readers pass over what is no line
            self._size = os.fstat(self._fd).st_size
            data = b"\n" + data
        self._pending = data if len(data) <= _MAX_PENDING else data[: data.rfind(b"\n", 0, _MAX_PENDING) + 1]
        self._complain(error)

    def _complain(self, error: OSError) -> None:
        if self._complained:
            return
        self._complained = True
        with contextlib.suppress(OSError):  # the log may lie on the same disk
            print(
                f"ERROR: {self._path} cannot be written: {error.strerror}.\n"
                f"Training continues; up to {_MAX_PENDING >> 20} MiB of metrics wait in memory until it can be.\n"
                "Fix: make room on that disk.",
                file=sys.stderr,
                flush=True,
            )


def read_points(
    path: Path, offset: int = 0, limit: int | None = None, metric: str | None = None
) -> tuple[list[Point], int]:
    """Points from byte `offset` on, at most `limit`, and the offset to continue from.

    A last line without its end is left for the next call; a line that is no journal line is passed over, and with
    `metric` also one that does not have it: looking for its name takes a tenth of reading the line.
    """
    points: list[Point] = []
    needle = b"" if metric is None else _encode(metric).encode() + b":"
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return points, offset
    with file:
        file.seek(offset)
        for line in lines_of(file):
            if not line.endswith(b"\n") or (limit is not None and len(points) >= limit):
                break
            offset += len(line)
            point = _parse(line) if needle in line else None
            if point is not None:
                points.append(point)
    return points, offset


def last_values(path: Path, *splits: str) -> list[Point]:
    """The last value of each metric of the `splits` (`val`: `val/loss`, …), at its own step and time."""
    marks = [f'"{split}/'.encode() for split in splits]
    last: dict[str, Point] = {}
    with open_regular(path) if path.exists() else BytesIO() as file:
        # Most lines are of training; to look for the mark is a hundredth of parsing them.
        lines = (line for line in lines_of(file) if line.endswith(b"\n") and any(mark in line for mark in marks))
        for point in filter(None, map(_parse, lines)):
            found = {key: value for key, value in point.metrics.items() if key.partition("/")[0] in splits}
            last |= {key: point._replace(metrics={key: value}) for key, value in found.items()}
    return list(last.values())


def _is_close(before: float, now: float) -> bool:
    """Whether two values of one metric are the same but for the order of additions."""
    return math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-12) or (math.isnan(before) and math.isnan(now))


def _known_from(fd: int, step: int) -> dict[tuple[str, int], float]:
    """Every value from `step` on, by metric and step."""
    # Not by the path: to close another descriptor of the file would give up the lock.
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        points = filter(None, map(_parse, lines_of(file)))
        return {(key, p.step): value for p in points if p.step >= step for key, value in p.metrics.items()}


def _parse(line: bytes) -> Point | None:
    try:
        entry = _decode(line)
        metrics = {key: _SPECIAL[v] if isinstance(v, str) else v for key, v in entry.m.items()}
        return Point(entry.t, entry.s, metrics)
    except (ValueError, KeyError, RecursionError):
        return None


def _jsonable(value: Any) -> float | str:
    """A number as JSON can hold it."""
    number = float(value)
    if math.isfinite(number):
        return number
    return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _cut_torn_line(fd: int) -> tuple[int, int]:
    """Drop what follows the last line's end; the file's size then, and the time of its last line (0: none)."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        size -= torn
        os.ftruncate(fd, size)
        tail = tail[:-torn]
    lines = tail.splitlines()
    last = _parse(lines[-1]) if lines else None
    return size, last.time_ms if last else 0
