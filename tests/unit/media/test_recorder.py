"""`hpcexp.log_*`: what is stored, and what is said where it cannot be."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hpcexp
from hpcexp.errors import RunError
from hpcexp.media.active import recording
from hpcexp.media.entries import Entry, index_of, read_entries
from hpcexp.media.recorder import Recorder
from hpcexp.rundir import RunDir


def entries(run: RunDir) -> list[Entry]:
    return read_entries(index_of(run.media, 0))[0]


def content(run: RunDir, entry: Entry) -> bytes:
    return (run.media / entry.f).read_bytes()


def test_logging_outside_a_job_is_refused() -> None:
    """By a sentence that says what to do."""
    for word in hpcexp.__all__:
        with pytest.raises(RunError, match=f"hpcexp.{word} works in a job of hpcexp"):
            getattr(hpcexp, word)("name", "value")


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process grows beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_ends_no_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is said, and what comes later is stored if it can be."""
    run = RunDir(tmp_path)
    noise = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    with recording(Recorder(run, 0, lambda: 1)):
        with no_room():
            hpcexp.log_image("large", noise)
            hpcexp.log_image("large", noise, step=2)
            hpcexp.log_text("small", "text")
        hpcexp.log_image("large", noise, step=3)
    assert [(entry.n, entry.s) for entry in entries(run)] == [("small", 1), ("large", 3)]
    said = capfd.readouterr().err
    assert said.count("cannot be written") == 1
    assert "2 things that were logged could not be written" in said
    assert sorted(path.suffix for path in run.media.rglob("*") if path.is_file()) == [".jsonl", ".png", ".txt"]


def test_names_are_kept_apart(tmp_path: Path) -> None:
    """Also by file systems that see no difference, in every attempt the same."""
    names = ("a/b", "a~b", "a//b", "A/b", "", "..", "猫", "x" * 400)
    run = RunDir(tmp_path)
    for _ in range(2):
        with recording(Recorder(run, 0, lambda: 1)):
            for name in names:
                hpcexp.log_text(name, f"text of {name}")
    assert {entry.n: content(run, entry).decode() for entry in entries(run)} == {
        name: f"text of {name}" for name in names
    }
    assert len(entries(run)) == len(names) == len({entry.f.casefold() for entry in entries(run)})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(2, 5, 5), "image 'x' has the shape"),
        (np.zeros((3, 4, 4, 4, 4)), "image 'x' has the shape"),
        (object(), "image 'x' is a builtins.object, not"),
        (np.array(["a"]), "not an array of numbers"),
    ],
)
def test_what_is_no_picture_is_said_so(tmp_path: Path, value: Any, said: str) -> None:
    """By name, kind and shape."""
    with recording(Recorder(RunDir(tmp_path), 0, lambda: 1)), pytest.raises((TypeError, ValueError), match=said):
        hpcexp.log_image("x", value)


@pytest.mark.parametrize(
    ("value", "pixel"),
    [
        (np.full((4, 5, 3), 7, np.uint8), (7, 7, 7)),
        (torch.full((3, 4, 5), 0.5), (128, 128, 128)),
        (np.full((4, 5), True), 255),
        (torch.full((1, 4, 5), 1.0, dtype=torch.bfloat16), 255),
        (np.full((4, 5), 200, np.int64), 200),
        (np.full((4, 5, 4), 9, np.uint8), (9, 9, 9, 9)),
        (Image.new("CMYK", (5, 4), (0, 0, 0, 255)), (0, 0, 0)),
        ([[0.0] * 5] * 4, 0),
    ],
)
def test_pictures_have_the_pixels_of_the_array(tmp_path: Path, value: Any, pixel: Any) -> None:
    """Of whatever type and layout."""
    run = RunDir(tmp_path)
    with recording(Recorder(run, 0, lambda: 1)):
        hpcexp.log_image("x", np.array(value) if isinstance(value, list) else value)
    [entry] = entries(run)
    with Image.open(run.media / entry.f) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((5, 4), pixel)


def test_a_worker_of_a_data_loader_is_told_where_to_log(tmp_path: Path) -> None:
    """It has no index of its own."""
    with recording(Recorder(RunDir(tmp_path), 0, lambda: 1)):
        hpcexp.log_text("parent", "text")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                hpcexp.log_text("child", "text")
            except RunError as e:
                os.write(write, str(e).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert b"hpcexp.log_text was called in a process that the training has started" in os.read(read, 1000)
    assert [entry.n for entry in entries(RunDir(tmp_path))] == ["parent"]
