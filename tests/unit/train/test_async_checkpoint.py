"""Checkpoints that are written while training goes on: whole, in order, never lost, and not worth a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import Said, command, environment, only_run, python, wait_until, write_module
from training_plans import digits_plan, run_warm, step_of

from hpcexp.errors import RunError
from hpcexp.files.documents import read_plain
from hpcexp.launch.resume.interrupted import Continuation, go_back
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import is_intact, read_note
from hpcexp.train.checkpointing import staging
from hpcexp.train.checkpointing.checkpoint_io import AtomicCheckpointIO, read_checkpoint, write_checkpoint
from hpcexp.train.checkpointing.plain_data import plain
from hpcexp.train.checkpointing.staging import Staging
from hpcexp.train.checkpointing.writer import Writer

MEGABYTE = 1 << 20


def test_a_copy_is_its_own_and_in_the_same_memory_every_time() -> None:
    """What changes after it is not in it; tensors that are one stay one."""
    weight, step = torch.ones(3, 4).t(), [1, {"k": 2}]
    state = {"a": weight, "tied": weight, "same view": weight[:], "part": weight[1:, :2], "rest": step}
    held = Staging()
    first = held.copy(state)
    weight.fill_(7)
    step[1]["k"] = 9  # type: ignore[index]
    assert torch.equal(torch.ones(4, 3), first["a"])
    assert [1, {"k": 2}] == first["rest"]
    assert first["a"] is first["tied"] is first["same view"]
    assert weight.stride() == first["a"].stride()
    assert 3 * 2 * 4 == first["part"].untyped_storage().nbytes()
    places = [tensor.data_ptr() for tensor in (first["a"], first["part"])]
    second = held.copy(state)
    assert places == [tensor.data_ptr() for tensor in (second["a"], second["part"])]
    assert torch.equal(torch.full((4, 3), 7.0), second["a"])


def test_only_what_is_seen_of_a_storage_is_written(tmp_path: Path) -> None:
    """Whether from a copy or from the live tensors; tied weights are in the file once."""
    big = torch.randn(MEGABYTE)
    for number, copied in enumerate([Staging().copy({"w": big[:10]}), plain({"w": big[:10]})]):
        path = tmp_path / f"{number}.ckpt"
        write_checkpoint(copied, path)
        assert path.stat().st_size < 10_000
        assert torch.equal(big[:10], read_checkpoint(path)["w"])
    write_checkpoint(Staging().copy({"a": big, "b": big}), tmp_path / "tied.ckpt")
    assert (tmp_path / "tied.ckpt").stat().st_size < 1.1 * big.nbytes
    tied = read_checkpoint(tmp_path / "tied.ckpt")
    assert tied["a"].data_ptr() == tied["b"].data_ptr()


def test_one_save_after_the_other_and_none_after_a_failure() -> None:
    """What stands behind a job that fails may rely on it."""
    writer, done = Writer(), list[int]()
    for number in range(20):
        writer.begin([lambda n=number: done.append(n), lambda n=number: done.append(-n)], background=True)  # type: ignore[misc]
    writer.wait()
    assert [sign * n for n in range(20) for sign in (1, -1)] == done
    writer.begin([lambda: {}["none"], lambda: done.append(99)], background=True)
    writer.wait()
    assert [KeyError] == [type(error) for error in writer.errors]
    assert 99 not in done


def test_a_process_that_ends_finishes_what_it_is_writing(tmp_path: Path) -> None:
    """Nobody has to wait for it."""
    said = python(
        f"""
        import sys, torch
        from functools import partial
        from pathlib import Path
        from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
        from hpcexp.train.checkpointing.writer import Writer
        path = Path({str(tmp_path / "a.ckpt")!r})
        Writer().begin([partial(write_checkpoint, {{"w": torch.ones(8 << 20)}}, path)], background=True)
        sys.exit(5 if path.exists() else 0)
        """,
        tmp_path,
    )
    assert (0, "") == (said.status, said.err)
    assert is_intact(tmp_path / "a.ckpt")


WRITE_FOR_EVER = """
import sys
from functools import partial
from itertools import count

import torch

from hpcexp.rundir import RunDir
from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
from hpcexp.train.checkpointing.staging import Staging
from hpcexp.train.checkpointing.writer import Writer
from pathlib import Path

run, writer, staging, weights = RunDir(Path(sys.argv[1])), Writer(), Staging(), torch.zeros(8 << 20)
for step in count():
    writer.wait()
    note = {"step": step, "best": None}
    job = partial(write_checkpoint, staging.copy({"w": weights.fill_(step)}), run.last, note, run.previous)
    writer.begin([job], background=True)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """The one before, or this one; what was half written goes when the run goes on."""
    run = RunDir(tmp_path)
    (tmp_path / "forever.py").write_text(WRITE_FOR_EVER)
    for _ in range(2):
        newest = read_note(run.last)
        process = subprocess.Popen([sys.executable, "forever.py", str(tmp_path)], cwd=tmp_path, env=environment())
        half = run.checkpoints / f".last.ckpt.{process.pid}"
        wait_until(
            lambda newest=newest, half=half: (  # type: ignore[misc]
                run.previous.exists()
                and read_note(run.last) not in (None, newest)
                and half.exists()
                and half.stat().st_size > MEGABYTE
            ),
            "a write",
        )
        process.kill()
        assert -signal.SIGKILL == process.wait()
        step = step_of(run.last)
        assert is_intact(run.last)
        assert is_intact(run.previous)
        assert float(step) == read_checkpoint(run.last)["w"][-1] == read_checkpoint(run.last)["w"][0]
    assert list(run.checkpoints.glob(".last.ckpt.*"))
    go_back(run, Continuation(run.last, step, None, "killed", 2, ()))
    assert {run.last, run.previous} == set(run.checkpoints.iterdir())


def test_where_a_file_may_not_grow_the_one_before_stays(tmp_path: Path) -> None:
    """RLIMIT_FSIZE ends a write where a quota would."""
    said = python(
        f"""
        import resource, torch
        from pathlib import Path
        from hpcexp.errors import RunError
        from hpcexp.train.checkpointing.checkpoint_io import write_checkpoint
        path = Path({str(tmp_path / "a.ckpt")!r})
        write_checkpoint({{"w": torch.ones(10)}}, path)
        for megabytes in (1, 2, 3):
            resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes << 20, resource.RLIM_INFINITY))
            try:
                write_checkpoint({{"w": [torch.ones(200 << 10) for _ in range(20)]}}, path)
            except RunError as e:
                print(e)
        """,
        tmp_path,
    )
    assert (0, "") == (said.status, said.err)
    assert 3 == said.out.count("could not be written (File too large). The one before is intact.")
    assert torch.equal(torch.ones(10), read_checkpoint(tmp_path / "a.ckpt")["w"])
    assert [tmp_path / "a.ckpt"] == list(tmp_path.iterdir())


def test_a_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    """Without a traceback of what looks for free space there."""
    with pytest.raises(RunError, match="No such file or directory"):
        write_checkpoint({"w": 1}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="File exists"):
        write_checkpoint({"w": 1}, tmp_path / "file" / "last.ckpt")


FILLER = """
import os
from pathlib import Path

import pytorch_lightning as pl


class Filler(pl.Callback):
    '''Leaves no room on the disk from one step to another.'''

    def __init__(self, full_at, empty_at):
        self.full_at, self.empty_at = full_at, empty_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ballast = Path(trainer.default_root_dir) / "ballast"
        if trainer.global_rank == 0 and trainer.global_step == self.full_at:
            with ballast.open("wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        pass
        if trainer.global_rank == 0 and trainer.global_step == self.empty_at:
            ballast.unlink()
"""

FULL = (
    "tracking=off",
    "model.hidden=[512]",
    "trainer.limit_train_batches=10",
    "trainer.max_epochs=3",
    "checkpoint.every_s=null",
    "checkpoint.every_steps=4",
    "callbacks.filler._target_=filler.Filler",
)


STAYS_FULL = (*FULL, "callbacks.filler.full_at=10", "callbacks.filler.empty_at=0")


@pytest.fixture
def small_disk(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of its own, with room for little more than a run."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    write_module(disk, "filler", FILLER)
    monkeypatch.chdir(disk)
    yield disk
    monkeypatch.undo()
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
def test_training_goes_on_while_the_disk_is_full(small_disk: Path, train: Callable[..., Said]) -> None:
    """Loudly, and with a checkpoint again as soon as there is room."""
    asked = (*FULL, "callbacks.filler.full_at=10", "callbacks.filler.empty_at=18")
    said = train(*asked)
    assert 0 == said.status, said
    assert 2 == (said.out + said.err).count("Training continues (checkpoint.on_error=continue)")
    run = only_run(small_disk)
    assert 30 == read_plain(run.summary)["steps"]
    assert is_intact(run.last)
    assert {run.best, run.last} == set(run.checkpoints.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("background", ["true", "false"])
def test_a_run_whose_last_checkpoint_fails_has_failed(
    small_disk: Path, train: Callable[..., Said], background: str
) -> None:
    """It goes on from the one before, once there is room."""
    asked = (*STAYS_FULL, f"checkpoint.async_write={background}")
    said = train(*asked)
    assert said.status not in (0, None), said
    assert "could not be written (No space left on device; 0 MB are free there)" in said.out + said.err
    run = only_run(small_disk)
    assert 8 == step_of(run.last)
    assert is_intact(run.last)
    (run.path / "ballast").unlink()
    said = train(*asked)
    assert "Continuing from step 8 of 30" in said.out


@pytest.mark.slow
def test_nobody_waits_for_what_a_full_disk_has_no_room_for(small_disk: Path) -> None:
    """The final state cannot be written, so that what draws the pictures waits for the end of the command."""
    said = command("train", *STAYS_FULL, cwd=small_disk)
    assert 1 == said.status
    assert "status.json cannot be written: No space left on device. The run failed." in said.err
    assert "60 s at most" not in said.out


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "saved"), [(1, 8), (2, 5)])
def test_training_stops_where_it_is_to(small_disk: Path, train: Callable[..., Said], devices: int, saved: int) -> None:
    """All ranks at the same step, with the words of the one that writes."""
    ranks = ("hardware=cpu", f"hardware.devices={devices}", "strategy=auto")
    said = train(*STAYS_FULL, "checkpoint.on_error=stop", *ranks)
    assert said.status not in (0, None), said
    assert "could not be written (No space left on device; 0 MB are free there)" in said.err
    run = only_run(small_disk)
    assert saved == step_of(run.last)
    assert is_intact(run.last)
    assert not run.summary.exists()


def test_without_room_for_a_copy_it_is_written_before_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a copy would take beside what it has, and what is free."""
    state, held = {"a": torch.ones(1000), "b": [torch.ones(24)]}, Staging()
    assert held.lacks(state) is None
    monkeypatch.setattr(staging, "ROOM_SHARE", 0.0)
    lack = held.lacks(state)
    assert lack is not None
    assert 4096 == lack[0]
    monkeypatch.undo()
    held.copy(state)
    monkeypatch.setattr(staging, "ROOM_SHARE", 0.0)
    assert held.lacks(state) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "hidden", "difference"),
    [
        (1, 64, "model.layers.1.weight has the shape (64, 64) in it, and (32, 64) in the model."),
        (2, 32, "it is of 2 ranks; this run has 1 (hardware.devices"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_gone_on_from(
    tmp_path: Path, ranks: int, hidden: int, difference: str
) -> None:
    """What differs is said, and how to go on."""
    short = {"trainer__limit_train_batches": 2, "trainer__max_epochs": 1, "launch__hang_s": None}
    model = {"_target_": "hpcexp.models.mlp.MLP", "hidden": [hidden]}
    theirs = digits_plan(tmp_path / "theirs", ranks, **short, model=model)
    assert [0] * ranks == run_warm(theirs).statuses
    run = RunDir(tmp_path / "mine")
    run.checkpoints.mkdir(parents=True)
    run.last.write_bytes(RunDir(tmp_path / "theirs").last.read_bytes())
    ended = run_warm(digits_plan(run.path, **short))
    assert [2] == ended.statuses
    [said] = ended.outputs
    assert f"The run cannot resume from {run.last}:\n" in said
    assert difference in said
    assert "--fresh" in said
    assert "Traceback" not in said


def test_lightning_gets_what_it_wrote(tmp_path: Path) -> None:
    """A callback's own checkpoints are there when the call returns."""
    io = AtomicCheckpointIO(RunDir(tmp_path))
    io.save_checkpoint({"w": torch.ones(3)}, tmp_path / "own.ckpt")
    assert torch.equal(torch.ones(3), io.load_checkpoint(tmp_path / "own.ckpt")["w"])
