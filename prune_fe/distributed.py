"""Helpers for torch.distributed; without a process group they behave as one process of rank 0."""

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
    """Return the rank of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """Return the rank of this process among those of its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def all_gather(value: T) -> list[T]:
    """Return the value of every process, in the order of their ranks.

    Args:
        value: Anything that can be pickled.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def from_rank_0(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only, and broadcast its result.

    Args:
        make: Returns anything that can be pickled.

    Raises:
        PruneFEError: What `make` raised, on rank 0.
        SystemExit: `make` raised an error, on the other ranks: they end with its exit code and print nothing.
    """
    result: Any = None
    error: PruneFEError | None = None
    if rank() == 0:
        try:
            result = make()
        except PruneFEError as raised:
            error = raised
    result, exit_code = all_gather((result, error and error.exit_code))[0]
    if error is not None:
        raise error
    if exit_code is not None:
        raise SystemExit(exit_code)
    return result


@torch.no_grad()
def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Replace each floating-point tensor by its mean over the processes, in place; leave other tensors as they are."""
    if world_size() > 1:
        for tensor in tensors:
            if tensor.is_floating_point():
                distributed.all_reduce(tensor)
                tensor.div_(world_size())


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started into a group, which ends with the context.

    Nothing happens in a process that torchrun did not start, or where a group exists already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    # The functions of this module have the default group at the time of import as a default argument. If torch.optim
    # imported it inside the context, they would keep our group, whose threads then may abort the process as it ends.
    import torch.distributed.nn.functional

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
