"""Checkpoints: plain data, written straight to a temporary file, durable before they get their name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from hpcexp.errors import RunError
from hpcexp.files.atomic import fsync
from hpcexp.rundir import RunDir
from hpcexp.runs.checkpoint_checksum import SealedFile, is_intact, is_sealed
from hpcexp.train.checkpointing.hyperparameters import as_data
from hpcexp.train.checkpointing.plain_data import plain


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: readers and crashes see the old checkpoint or the new one."""

    take: Callable[[Mapping[str, Any]], None] | None = None
    """Who sees to the writing of the run's `last.ckpt`, where anybody does."""
    warn: Callable[[str], None] | None = None
    """Who says that a checkpoint of a user's callback could not be written; None where training ends then."""
    check: Callable[[Mapping[str, Any], Path], None] | None = None
    """Raises where a checkpoint that was read does not fit."""

    def __init__(self, run: RunDir | None = None) -> None:
        self._run = run

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write what `torch.load(weights_only=True)` loads."""
        checkpoint = as_data(checkpoint)
        if self.take is not None and self._run is not None and Path(path) == self._run.last:
            self.take(checkpoint)
            return
        with contextlib.suppress(OSError):  # a user's `filename` may name directories; what is wrong is reported below
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            write_checkpoint(plain(checkpoint), Path(path))
        except RunError as e:
            if self.warn is None:
                raise
            self.warn(f"{e}\nTraining continues (checkpoint.on_error=continue).")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Plain data only, whatever was asked."""
        checkpoint = read_checkpoint(Path(path), map_location or "cpu")
        if self.check is not None:
            self.check(checkpoint, Path(path))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file."""
        Path(path).unlink(missing_ok=True)


def write_checkpoint(
    checkpoint: Any, path: Path, note: dict[str, Any] | None = None, previous: Path | None = None
) -> None:
    """Write plain data, seal it with `note`, fsync, rename. What stood in `path` becomes `previous`, if that is named.

    RunError where that fails; what stood in `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        with SealedFile(temporary) as file:
            # The checksum in the archive costs a third of the time, and nobody reads it: the seal has one of the whole.
            with _without_crc32():
                torch.save(checkpoint, file)  # type: ignore[arg-type]  # it needs no more than `write` and `flush`
            file.seal(note or {})
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise RunError(_unwritten(path, e)) from e
        raise


def _unwritten(path: Path, error: OSError) -> str:
    why, fix = error.strerror or str(error), "let hpcexp write there, or run.root=… elsewhere."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = next(parent for parent in path.parents if parent.is_dir())
        why += f"; {shutil.disk_usage(place).free // 2**20} MB are free there"
        fix = "make room on that disk, or run.root=… on another one."
    intact = " The one before is intact." if path.is_file() else ""
    return f"The checkpoint {path} could not be written ({why}).{intact}\nFix: {fix}"


def read_checkpoint(path: Path, map_location: Any = "cpu", *, whole: bool = True) -> dict[str, Any]:
    """What `write_checkpoint` wrote; RunError where it is missing or damaged.

    Sharded tensors are put together, unless only what tells where they stand is wanted (not `whole`); many ranks read
    it then, and the supervisor has looked at all checksums.
    """
    if path.is_file() and is_sealed(path) and not is_intact(path, alone=not whole):
        raise RunError(f"{path} is damaged: its checksum is wrong.")
    try:
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as e:
        raise RunError(f"There is no checkpoint {path}.\nFix: train the run first.") from e
    except Exception as e:  # torch raises nearly anything for a damaged file
        raise RunError(f"{path} is damaged or no plain-data checkpoint: {e}") from e
    if whole and "beside" in loaded:
        from hpcexp.train.checkpointing.shards import gathered

        return gathered(loaded, path.parent)
    return loaded


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bits of the weights, the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


class _without_crc32:  # noqa: N801 - used as a context manager
    def __enter__(self) -> None:
        self._before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)

    def __exit__(self, *error: object) -> None:
        torch.serialization.set_crc32_options(self._before)
