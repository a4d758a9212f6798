"""The options that say where the tasks of a command run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prune_fe.errors import InputError
from prune_fe.options import Threads, options


@options
class ExecutorOptions:
    """Where the tasks of a command run; the string under each option is its help text."""

    executor: Literal["local", "ray"] = "local"
    """local: one task after the other in this process. ray: many at a time, on this machine or on a cluster; tasks
    whose worker or machine dies are run again (pip install 'prune-fe[ray]')."""

    address: Annotated[str, Field(pattern=r"^(auto|local|[\w.\-]+:\d+|\[[\da-fA-F:]+\]:\d+)$")] | None = None
    """The cluster of Ray: auto for the one that this machine belongs to, HOST:PORT, or local for one of this machine
    that begins and ends with the command. By default the variable RAY_ADDRESS, or local."""

    cpus_per_task: Threads | None = None
    """CPUs of each task of Ray, which computes with as many threads. By default the recipe's threads, or 1."""

    gpus_per_task: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPU of each task of Ray: 1, or a share such as 0.5 with which two tasks use one GPU at a time. By default 1 if
    the recipe's device is auto or cuda and the cluster has GPUs, otherwise 0."""

    def __post_init__(self) -> None:
        given = [name for name in ("address", "cpus_per_task", "gpus_per_task") if getattr(self, name) is not None]
        if given and self.executor != "ray":
            raise InputError(f"{given[0]}: only the executor ray has it; pass executor=ray")
