"""The machines of Ray's cluster: what a task gets on one, and whether each sees the run folder and the images.

Nothing heavy is imported, because a worker starts for the check of each machine.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import prune_fe
from prune_fe.errors import EnvironmentFault

RETRIES = 3
"""A task whose worker or machine dies is run again at most this often."""

NODE_SECONDS = 300.0
"""Time to wait for a machine that can run a task, in a cluster that may be starting machines."""

INSPECTION_SECONDS = 180.0
"""Time that a machine has to say what it sees, most of which a worker needs to start."""

VISIBLE_SECONDS = 90.0
"""Time after which a file that another machine has written must be visible; NFS looks again after 60 s at most."""

PACKAGES = ("torch", "torchvision", "numpy", "numba", "timm")
"""The packages whose versions all machines should share."""


@dataclass(frozen=True)
class Share:
    """What each task gets.

    Attributes:
        cpus: CPUs, and threads.
        gpus: Share of a GPU; 0 for none.
        device: The device, as a recipe names it.
    """

    cpus: int
    gpus: float
    device: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of Ray for a task."""
        # Without them, libraries that a worker imports would start as many threads as there are CPUs.
        variables = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), str(self.cpus))
        # See ray_worker._choose_gpu.
        variables["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "max_retries": RETRIES,
            "runtime_env": {"env_vars": variables},
        }

    def fits(self, node: Mapping[str, Any]) -> int:
        """Return how many tasks a machine can run at a time."""
        counts = [int(node["Resources"].get("CPU", 0.0) / self.cpus)]
        if self.gpus:
            # Ray does not split a task's share over two GPUs.
            counts.append(int(node["Resources"].get("GPU", 0.0)) * int(1 / self.gpus))
        return min(counts)

    def describe(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        """Return what is run where, in words."""
        count, n_tasks = len(nodes), sum(map(self.fits, nodes))
        machines = "1 machine" if count == 1 else f"{count} machines"
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{machines}, {n_tasks} tasks at a time, each with {self.cpus} CPU{'s' * (self.cpus > 1)}{gpus}"


@dataclass(frozen=True)
class Site:
    """What every machine must have before it can work.

    Attributes:
        folder: The run folder.
        mark: Name of a file in the run folder, by which a machine knows that it sees this folder.
        inputs: Files and folders that the recipe reads.
        seconds: How long to wait for each of them, since a network file system may show it late.
    """

    folder: Path
    mark: str
    inputs: tuple[Path, ...]
    seconds: float = 5.0


@dataclass(frozen=True)
class Inspection:
    """What a machine has.

    Attributes:
        machine: The address of the machine.
        unseen: Those of the site's files and folders that the machine does not see.
        code: A hash of the source of prune_fe.
        packages: Versions of other packages.
    """

    machine: str
    unseen: Sequence[str]
    code: str
    packages: Mapping[str, str]


def wait_for_nodes(share: Share, seconds: float, say: Callable[[str], None]) -> list[Mapping[str, Any]]:
    """Return the machines that can run a task, once there is one.

    Args:
        share: What a task gets.
        seconds: How long to wait.
        say: Shows a message.

    Raises:
        EnvironmentFault: There is none after some time.
    """
    end, is_waiting = time.monotonic() + seconds, False
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        if able := [node for node in alive if share.fits(node)]:
            return able
        there = "; ".join(
            f"{node['NodeManagerAddress']} has {node['Resources'].get('CPU', 0):g} CPUs and "
            f"{node['Resources'].get('GPU', 0):g} GPUs"
            for node in alive
        )
        wanted = f"{share.cpus} CPUs and {share.gpus:g} GPU"
        if time.monotonic() >= end:
            raise EnvironmentFault(f"Ray: no machine has {wanted} for a task: {there or 'there is none'}")
        if not is_waiting:
            say(f"Ray: no machine has {wanted} for a task ({there}); waiting {seconds:g} s for one")
        is_waiting = True
        time.sleep(2.0)


def inspect_all(nodes: Sequence[Mapping[str, Any]], site: Site, say: Callable[[str], None]) -> None:
    """Check that each machine sees the run folder and the images, and has this prune_fe.

    Args:
        nodes: The machines, as `ray.nodes` describes them.
        site: What they must see.
        say: Shows a message.

    Raises:
        EnvironmentFault: A machine does not; the text names each of them.
    """
    inspect = ray.remote(inspect_machine)
    references = []
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = inspect.options(num_cpus=0, scheduling_strategy=strategy, max_retries=RETRIES)
        references.append((node["NodeManagerAddress"], remote.remote(site)))
    faults, code, packages = list[str](), hash_code(), package_versions()
    for address, reference in references:
        try:
            inspection: Inspection = ray.get(reference, timeout=INSPECTION_SECONDS)
        except GetTimeoutError:
            faults.append(f"machine {address} did not answer for {INSPECTION_SECONDS:g} s")
        except RayError as error:
            faults.append(f"machine {address} cannot run prune_fe: {_last_line(error)}")
        else:
            if inspection.unseen:
                faults.append(describe_unseen(inspection))
            elif inspection.code != code:
                faults.append(f"machine {address} has another prune_fe: install the same one everywhere")
            elif differing := [name for name in packages if inspection.packages[name] != packages[name]]:
                names = ", ".join(f"{name} {inspection.packages[name] or 'missing'}" for name in differing)
                say(f"note: machine {address} has {names}; numbers may differ in the last bits")
    if faults:
        raise EnvironmentFault("; ".join(faults))


def _last_line(error: Exception) -> str:
    """Return the last line of an error's text: what a worker raised stands behind its traceback."""
    return str(error).strip().splitlines()[-1]


def inspect_machine(site: Site) -> Inspection:
    """Return what this machine has of what a site needs."""
    wanted = (site.folder / site.mark, *site.inputs)
    unseen = [
        str(path.parent if path.name == site.mark else path)
        for path in wanted
        if not becomes_visible(path, site.seconds)
    ]
    return Inspection(ray.util.get_node_ip_address(), unseen, hash_code(), package_versions())


def require_site(site: Site) -> None:
    """Check that this machine sees the files of a site; one that joins the cluster later was not inspected before.

    Raises:
        EnvironmentFault: It does not.
    """
    inspection = inspect_machine(site)
    if inspection.unseen:
        raise EnvironmentFault(describe_unseen(inspection))


def describe_unseen(inspection: Inspection) -> str:
    """Return what a machine does not see, and what to do about it."""
    names = ", ".join(inspection.unseen)
    return f"machine {inspection.machine} does not see {names}: mount it there under the same path"


def becomes_visible(path: Path, seconds: float) -> bool:
    """Wait until a file or folder exists, which a network file system may show some time after it was written.

    Args:
        path: The file or folder.
        seconds: How long to wait.

    Returns:
        Whether it exists.
    """
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        # Opening the folder makes NFS ask the server, instead of what it remembers.
        if path.parent.is_dir():
            os.listdir(path.parent)
        time.sleep(0.2)
    return True


def hash_code() -> str:
    """Return a hash of the source of prune_fe."""
    root, digest = Path(prune_fe.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on; "" for one that is not installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions
