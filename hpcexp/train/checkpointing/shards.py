"""Sharded tensors of a checkpoint: each rank writes its parts, any number of ranks reads them.

They stand in a directory `shards-STEP` beside the checkpoint, in the form of torch.distributed.checkpoint. In the
checkpoint itself has for each what is needed to read it.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, zeros

from hpcexp.errors import HpcexpError, RunError
from hpcexp.files.atomic import fsync
from hpcexp.files.untrusted import UnusableFileError, open_regular
from hpcexp.runs.checkpoint_checksum import checksum

_KEY = "hpcexp.shard"


def write_shards(checkpoint: Mapping[str, Any], place: Path, step: int) -> dict[str, Any]:
    """`checkpoint` with names for its sharded tensors, which all ranks have written below `place`.

    Its `beside` says sizes and checksums of the files. RunError on all ranks where one of them could not write.
    """
    sharded: dict[str, Any] = {}
    rest: dict[str, Any] = _mapped(checkpoint, lambda value: _named(value, sharded))
    if not sharded:
        return rest
    directory = place / _agreed(_free_name(place, step))
    try:
        save(sharded, checkpoint_id=directory)
    except CheckpointException as e:
        free_mb = shutil.disk_usage(place).free // 2**20
        _remove(directory)
        rank, (error, _) = next(iter(e.failures.items()))
        raise RunError(
            f"The shards {directory} could not be written ({free_mb} MB are free there; rank {rank} says "
            f"{str(error).splitlines()[0]}). The checkpoint before is intact.\n"
            "Fix: make room on that disk, or run.root=… on another one."
        ) from e
    rest["beside"] = _sealed(directory)
    return rest


def gathered(rest: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """A checkpoint with whole tensors for its sharded ones, without any process group."""
    return _filled(rest, place, lambda about: torch.empty(about["shape"], dtype=about["dtype"]))


def scattered(rest: Mapping[str, Any], place: Path, mesh: DeviceMesh) -> dict[str, Any]:
    """A checkpoint with this rank's parts of sharded tensors. All ranks of the mesh must call it."""

    def part(about: dict[str, Any]) -> DTensor:
        placements = [Replicate() if dim is None else Shard(dim) for dim in about["placements"]]
        made: DTensor = zeros(
            *about["shape"], dtype=about["dtype"], device_mesh=mesh[tuple(about["mesh"])], placements=placements
        )
        return made

    return _filled(rest, place, part)


def _filled(rest: Mapping[str, Any], place: Path, empty: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    wanted: dict[str, Any] = {}

    def found(value: Any) -> Any:
        if not isinstance(value, dict) or _KEY not in value:
            return None
        return wanted.setdefault(value[_KEY], empty(value))

    checkpoint: dict[str, Any] = _mapped(rest, found)
    if wanted:
        [directory] = {Path(name).parts[0] for name in rest["beside"]}
        try:
            reader = _PlainReader(place / directory)
            reader.read_metadata()  # torch itself would read other files where that is refused
            load(wanted, storage_reader=reader)
        except (CheckpointException, OSError) as e:
            raise RunError(f"{place / directory} is damaged: {e}") from e
    return checkpoint


class _PlainReader(FileSystemReader):
    """torch's reader, for a checkpoint that somebody else may have written: its index is a pickle, which could call.

    torch itself reads tensors as plain data, and anything else by another pickle; hpcexp writes nothing else.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; UnusableFileError where it is more than data about tensors."""
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        with open_regular(path) as file:
            try:
                metadata = _Unpickler(file).load()
            except UnusableFileError:
                raise
            except Exception as e:  # pickle raises nearly anything for what is none
                raise UnusableFileError(path, f"it is no index of a checkpoint ({e})") from e
        if not isinstance(metadata, Metadata) or not all(map(_is_of_tensor, metadata.state_dict_metadata.values())):
            raise UnusableFileError(path, "it is of something else than tensors")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def _is_of_tensor(entry: object) -> bool:
    return isinstance(entry, TensorStorageMetadata)


class _Unpickler(pickle.Unpickler):
    """Makes what an index consists of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """pickle's way to a class or function."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _OF_AN_INDEX.get(module, ()):
            raise ValueError(f"it names {module}.{name}")
        return super().find_class(module, name)


_DCP = "torch.distributed.checkpoint"
_OF_AN_INDEX = {
    f"{_DCP}.metadata": (
        *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
        *("TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    f"{_DCP}.filesystem": ("_StorageInfo",),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("Path", "PosixPath"),
    "pathlib._local": ("Path", "PosixPath"),  # Python 3.13
}
"""Module → the classes that are pickled in an index, all of which only hold data."""


def _named(value: Any, sharded: dict[str, Any]) -> dict[str, Any] | None:
    if not isinstance(value, DTensor):
        return None
    key = str(len(sharded))
    sharded[key] = value.detach()
    return {
        _KEY: key,
        "shape": list(value.shape),
        "dtype": value.dtype,
        "mesh": list(value.device_mesh.mesh_dim_names or ()),
        "placements": [_dim(placement) for placement in value.placements],
    }


def _dim(placement: Placement) -> int | None:
    """The dimension that is sharded; None where every rank has all."""
    if type(placement) is Shard:
        return placement.dim
    if isinstance(placement, Replicate):
        return None
    raise HpcexpError(
        f"A tensor that is placed as {placement} cannot be written to a checkpoint.\n"
        "Fix: let configure_model() shard along dimensions of tensors."
    )


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested containers with `change(x)` for every x for which that is not None."""
    changed = change(value)
    if changed is not None:
        return changed
    if isinstance(value, Mapping):
        return {k: _mapped(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_mapped(v, change) for v in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _free_name(place: Path, step: int) -> str:
    """A directory that no checkpoint refers to: a step that is done again may be written again."""
    name, number = f"shards-{step}", 1
    while (place / name).exists():
        name, number = f"shards-{step}~{number}", number + 1
    return name


def _remove(directory: Path) -> None:
    """What all ranks have begun to write."""
    if dist.get_rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)


def _agreed(name: str) -> str:
    said = [name]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def _sealed(directory: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of the directory, each worked out by one of the ranks."""
    files = sorted(directory.iterdir())[dist.get_rank() :: dist.get_world_size()]
    mine = {f"{directory.name}/{f.name}": [f.stat().st_size, checksum(f, f.stat().st_size)] for f in files}
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    fsync(directory)
    return {name: sealed for part in of_ranks for name, sealed in sorted(part.items())}
