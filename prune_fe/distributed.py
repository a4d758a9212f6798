"""The processes of torch.distributed, seen as one; without it there is one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from prune_fe.errors import PruneFEError

T = TypeVar("T")


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_gather(value: T) -> list[T]:
    """The value of every process, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def from_rank_0(make: Callable[[], T]) -> T:
    """In every process what `make` gives in the first one, where alone it is called. Its PruneFEError is raised there,
    and ends the others quietly."""
    made: Any = None
    fault: PruneFEError | None = None
    try:
        made = make() if rank() == 0 else None
    except PruneFEError as error:
        fault = error
    made, code = all_gather((made, fault and fault.exit_code))[0]
    if fault is not None:
        raise fault
    if code is not None:
        raise SystemExit(code)
    return made


@torch.no_grad()
def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Put the mean over the processes in the place of each floating-point tensor."""
    if world_size() > 1:
        for tensor in tensors:
            if tensor.is_floating_point():
                distributed.all_reduce(tensor)
                tensor.div_(world_size())


def local_rank() -> int:
    """The number of this process among those of its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group() -> Iterator[None]:
    """Inside, the processes that torchrun has started are one; without it there is one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    # Its functions take the group of the moment as their default; imported later (torch.optim does) it would hold ours
    # to the end of the process, whose threads then can abort it while it leaves.
    import torch.distributed.nn.functional

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
