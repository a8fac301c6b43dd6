"""Copies of a checkpoint in host memory, so that training continues while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hpcexp.train.checkpointing.plain_data import plain
from hpcexp.train.data.datamodule import free_memory

ROOM_SHARE = 0.8
"""Of the host memory that is free, what the copies may take: training needs some as well."""

_Kind = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], bool]
_Buffers = dict[_Kind, list[Tensor]]


class Staging:
    """Host memory that one checkpoint after another is copied to: it is taken once, as first use of memory is slow.

    A copy is good until the next one is made. Buffers for CUDA devices are pinned, and filled while the device works.
    """

    def __init__(self) -> None:
        self._buffers: _Buffers = {}

    def lacks(self, checkpoint: Any) -> tuple[int, int] | None:
        """Bytes that a copy would take beside what is held, and bytes that are free, where these are too few."""
        held = sum(buffer.nbytes for buffers in self._buffers.values() for buffer in buffers)
        needed = sum({_place(t): t.nbytes for t in _tensors(checkpoint)}.values()) - held
        if needed <= 0 or needed <= ROOM_SHARE * (free := free_memory(torch.device("cpu"))):
            return None
        return needed, free

    def copy(self, checkpoint: Any) -> Any:
        """`checkpoint` as plain data of its own. Tensors that are one stay one, and no more of them than is seen.

        HpcexpError for an object that is no plain data.
        """
        free, self._buffers = self._buffers, {}
        copies: dict[Any, Tensor] = {}
        devices: set[torch.device] = set()

        def staged(tensor: Tensor) -> Tensor:
            if type(tensor) not in (Tensor, Parameter) or tensor.layout is not torch.strided or tensor.is_quantized:
                return tensor.detach().to("cpu", copy=True)
            place = _place(tensor)
            if place not in copies:
                copies[place] = self._buffer(tensor, free).copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                devices.add(tensor.device)
            return copies[place]

        copied = plain(checkpoint, tensor=staged)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        return copied

    def _buffer(self, tensor: Tensor, free: _Buffers) -> Tensor:
        kind = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_cuda)
        fitting = free.get(kind)
        buffer = fitting.pop() if fitting else torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._buffers.setdefault(kind, []).append(buffer)
        return buffer


def _place(tensor: Tensor) -> Any:
    """The same for tensors that are the same memory seen the same way."""
    if type(tensor) not in (Tensor, Parameter) or tensor.layout is not torch.strided:
        return id(tensor)
    view = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), *view)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
