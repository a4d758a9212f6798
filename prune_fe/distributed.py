"""Helpers for torch.distributed; without a process group they behave as one process of rank 0."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from prune_fe.errors import EnvironmentFault, PruneFEError, describe_error

T = TypeVar("T")

LOST = re.compile(r"connect|peer|gloo|nccl|broken pipe|timed? ?out|socket|store", re.IGNORECASE)
"""What the text of an error of torch.distributed speaks of when another process has ended."""

PATIENCE = 5.0
"""Seconds in which the processes that are left say so, after one of them has lost the connection to another."""

_watched = itertools.count()


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
def naming_lost_processes(advice: str) -> Iterator[None]:
    """Turn the error of a lost connection in the block into one that names the processes that have ended.

    All processes enter the block together. Nothing happens where there is one process.

    Args:
        advice: The end of the error's text: how the work goes on.

    Raises:
        EnvironmentFault: A process has ended; the error names it, and says why if it could leave its error.
    """
    if world_size() == 1:
        yield
        return
    number, store = next(_watched), distributed.distributed_c10d._get_default_store()
    keys = [f"prune_fe/{number}/{each}" for each in range(world_size())]
    try:
        yield
    except BaseException as error:
        is_lost = _is_lost_connection(error)
        try:
            store.set(keys[rank()], "" if is_lost else describe_error(error))
            reasons = _wait_for_reasons(store, keys) if is_lost else {}
        except (RuntimeError, OSError):  # The store is in process 0 where no launcher holds it.
            reasons = {0: None}
        if not is_lost or not reasons:
            raise
        faults = [f"process {each} ({reason or 'killed, or its machine is lost'})" for each, reason in reasons.items()]
        text = f"of {world_size()} processes these have ended: {', '.join(faults)}; {advice}"
        raise EnvironmentFault(text) from error


def _is_lost_connection(error: BaseException | None) -> bool:
    """Return whether an error, or the one that it comes from, is that of a connection to another process."""
    if error is None:
        return False
    is_torchs = type(error) is RuntimeError or isinstance(error, distributed.DistError)
    return (is_torchs and LOST.search(str(error)) is not None) or _is_lost_connection(error.__cause__)


def _wait_for_reasons(store: Any, keys: list[str]) -> dict[int, str | None]:
    """Return rank -> error of each process that has not lost the connection itself; None for one without a word."""
    end = time.monotonic() + PATIENCE
    while not store.check(keys) and time.monotonic() < end:
        time.sleep(0.05)
    said = {each: store.get(key).decode() if store.check([key]) else None for each, key in enumerate(keys)}
    return {each: text for each, text in said.items() if text != ""}


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
