"""Checkpoints: plain data, written straight to a temporary file, durable before they get their name."""

from __future__ import annotations

import enum
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from hpcexp.errors import HpcexpError, RunError
from hpcexp.rundir import RunDir
from hpcexp.seal import is_intact, is_sealed, seal

_ATOMS = (str, int, float, bool, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: readers and crashes see the old checkpoint or the new one."""

    def __init__(self, run: RunDir | None = None) -> None:
        self._run = run

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write what `torch.load(weights_only=True)` loads; the `last` before stays as `previous`."""
        note = {"step": checkpoint.get("global_step"), "best": checkpoint.get("hpcexp", {}).get("best")}
        previous = self._run.previous if self._run and Path(path) == self._run.last else None
        write_checkpoint(checkpoint, Path(path), note, previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Plain data only, whatever was asked."""
        return read_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file."""
        Path(path).unlink(missing_ok=True)


def write_checkpoint(
    checkpoint: Mapping[str, Any], path: Path, note: dict[str, Any] | None = None, previous: Path | None = None
) -> None:
    """Write, seal with `note`, fsync, rename. What stood in `path` becomes `previous`, where that is given.

    HpcexpError naming the entry that is no plain data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # The checksum in the archive costs a third of the time, and nobody reads it: the seal has one of the whole.
        with _without_crc32():
            torch.save(plain(checkpoint), temporary)
        seal(temporary, note or {})
        _fsync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as e:
        temporary.unlink(missing_ok=True)
        # torch says RuntimeError where the system said that the disk is full.
        if isinstance(e, OSError) or (isinstance(e, RuntimeError) and "inline_container" in str(e)):
            raise RunError(_unwritten(path, e)) from e
        raise
    _fsync(path.parent)


def _unwritten(path: Path, error: Exception) -> str:
    free_mb = shutil.disk_usage(path.parent).free // 2**20
    why = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return (
        f"The checkpoint {path} could not be written ({why}; {free_mb} MB are free there). An earlier one is intact.\n"
        "Fix: make room on that disk, or run.root=… on another one."
    )


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """What `write_checkpoint` wrote; RunError where it is missing or damaged."""
    if path.is_file() and is_sealed(path) and not is_intact(path):
        raise RunError(f"{path} is damaged: its checksum is wrong.")
    try:
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as e:
        raise RunError(f"There is no checkpoint {path}.\nFix: train the run first.") from e
    except Exception as e:  # torch raises nearly anything for a damaged file
        raise RunError(f"{path} is damaged or no plain-data checkpoint: {e}") from e
    return loaded


def plain(value: Any, path: str = "") -> Any:
    """`value` with paths, enums and sets as plain data; HpcexpError for an object that `weights_only` refuses."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, Mapping):
        return {plain(k, path): plain(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(v, f"{path}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, set | frozenset):
        return sorted(plain(v, path) for v in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise HpcexpError(
        f"The checkpoint's entry {path} is a {type(value).__module__}.{type(value).__qualname__}, "
        "which is no plain data.\n"
        "Fix: let the state_dict() that gives it return numbers, strings, tensors, lists and dicts."
    )


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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
