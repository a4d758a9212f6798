"""One run folder: the recipe, the environment, a log of every step, tables, scores and models."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import yaml

from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.io import finite_json, write_csv, write_json, write_text

PACKAGES = (
    "prune-fe",
    "torch",
    "torchvision",
    "numba",
    "numpy",
    "fvcore",
    "scikit-learn",
    "timm",
    "ripser",
    "gudhi",
)


WHERE = ("device", "threads", "workers")
"""The keys of a recipe that say where it is done; with the images' path they may differ among those who share a run."""


NETWORKS = "networks"
"""The folder in that of a comparison that holds what is each network's own; no other run folder has it."""


def is_comparison(folder: Path) -> bool:
    return (folder / NETWORKS).exists()


class RunFolder:
    """A folder that belongs to one run at a time and is never written over by another.

    `log.jsonl` gets one line an event and is on the disk before the next step begins, so that a killed run keeps
    what it finished. shared: several processes of one run may use the folder, each with a log of its own.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any], shared: bool = False) -> None:
        self.path = path
        self.log_name = f"log-{uuid.uuid4().hex[:8]}.jsonl" if shared else "log.jsonl"
        self._lock = None if shared else locked(path)
        try:
            self._begin(recipe)
        except BaseException:
            self.close()
            raise

    def _begin(self, recipe: Mapping[str, Any]) -> None:
        known, log = self.path / "recipe.yaml", self.path / self.log_name
        if known.exists() and is_comparison(self.path) != (self._lock is None):
            what = "the folder of a comparison" if self._lock else "no folder of a comparison"
            raise InputError(f"{self.path} is {what}: choose another one")
        if self._lock is None:
            (self.path / NETWORKS).mkdir(exist_ok=True)
        if not known.exists():
            write_text(known, yaml.safe_dump(dict(recipe), sort_keys=False))
        elif differing := _differing(known, recipe, WHERE if self._lock is None else ()):
            raise InputError(
                f"{self.path} was begun with another recipe (not the same: {', '.join(differing)}); resume with that "
                "one or start a new run"
            )
        if log.exists() and not log.read_bytes().endswith(b"\n"):
            with log.open("a") as file:  # a kill cut the last line short: the next one must not continue it
                file.write("\n")

    @classmethod
    def create(cls, parent: Path, name: str, recipe: Mapping[str, Any], shared: bool = False) -> RunFolder:
        """parent/name-1, or the next number that is free."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            taken = [
                int(m[1]) for entry in parent.iterdir() if (m := re.fullmatch(rf"{re.escape(name)}-(\d+)", entry.name))
            ]
            number = max(taken, default=0)
            while True:
                number += 1
                try:
                    (parent / f"{name}-{number}").mkdir()
                except FileExistsError:
                    continue
                return cls(parent / f"{name}-{number}", recipe, shared)
        except OSError as error:
            raise EnvironmentFault(f"{parent}: {error.strerror}") from error

    @classmethod
    def resume(cls, path: Path, recipe: Mapping[str, Any], shared: bool = False) -> RunFolder:
        if not (path / "recipe.yaml").is_file():
            raise InputError(f"{path}: no run to resume there")
        return cls(path, recipe, shared)

    @property
    def is_shared(self) -> bool:
        """Whether several processes may use the folder at a time."""
        return self._lock is None

    def log(self, event: str, **values: Any) -> None:
        """Append one event and the time; on the disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with (self.path / self.log_name).open("a") as file:
                file.write(json.dumps(finite_json({"event": event, "time": now} | values), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentFault(f"{self.path}/{self.log_name}: {error.strerror}") from error

    def events(self, event: str) -> list[dict[str, Any]]:
        """What log() wrote."""
        return events_of(self.path / self.log_name, event)

    def log_environment(self) -> list[str]:
        """Log where this is done, in env.json too if it is the beginning; returns what is another one than then."""
        here, path = environment(), self.path / "env.json"
        self.log("environment", **here)
        if not path.exists():
            self.write_json(path.name, here)
            return []
        began = json.loads(path.read_text(encoding="utf-8"))
        return [key for key in here if here[key] != began.get(key)]

    def write_table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        write_csv(self.path / name, rows)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(self.path / name, content)

    def write_text(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    def discard(self) -> None:
        """Take away the folder of a run that failed before it had done anything."""
        folders = [entry for entry in self.path.iterdir() if entry.is_dir()]
        if not any(entry.name != NETWORKS or any(entry.iterdir()) for entry in folders):
            shutil.rmtree(self.path)
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


def events_of(log: Path, event: str) -> list[dict[str, Any]]:
    """Those of one kind in a log, without a last line that a kill cut short."""
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["event"] == event:
            found.append(entry)
    return found


def locked(folder: Path) -> TextIO:
    """A file that keeps other processes out of `folder` until it is closed; EnvironmentFault if one is in there."""
    lock = (folder / ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read()
        lock.close()
        raise EnvironmentFault(f"{folder} is in use by another run (process {owner})") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _differing(known: Path, recipe: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """The keys in which the recipe of a run folder is not this one; `but`: keys that may be others."""
    try:
        content = yaml.safe_load(known.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{known}: not the recipe that a run writes")
    missing = object()
    one, other = ({key: value for key, value in each.items() if key not in but} for each in (recipe, content))
    if but and isinstance(one.get("data"), dict) and isinstance(other.get("data"), dict):
        one["data"], other["data"] = ({**each["data"], "path": None} for each in (one, other))
    return [key for key in one | other if other.get(key, missing) != one.get(key, missing)]


def environment() -> dict[str, Any]:
    """Versions, hardware and the commit of the source; no host name, no path."""
    import torch

    from prune_fe.distributed import world_size

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": world_size(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that this source was checked out from, "+changes" when the source differs; None outside git."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "__init__.py"):
            return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return None


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()
