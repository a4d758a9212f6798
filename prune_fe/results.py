"""One run folder: the recipe, the environment, a log of every step, tables, scores and models."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from prune_fe.errors import EnvironmentFault, InputError

PACKAGES = (
    "prune-fe",
    "torch",
    "torchvision",
    "torch-pruning",
    "numba",
    "numpy",
    "fvcore",
    "scikit-learn",
    "timm",
)


class RunFolder:
    """A folder that belongs to one run at a time and is never written over by another.

    `log.jsonl` gets one line an event and is on the disk before the next step begins, so that a killed run keeps
    what it finished.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise EnvironmentFault(f"{path} is in use by another run") from None
        known = path / "recipe.yaml"
        if not known.exists():
            known.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
        elif yaml.safe_load(known.read_text()) != dict(recipe):
            raise InputError(f"{path} was begun with another recipe; resume with that one or start a new run")

    @classmethod
    def create(cls, parent: Path, name: str, recipe: Mapping[str, Any]) -> RunFolder:
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
                return cls(parent / f"{name}-{number}", recipe)
        except OSError as error:
            raise EnvironmentFault(f"{parent}: {error.strerror}") from error

    @classmethod
    def resume(cls, path: Path, recipe: Mapping[str, Any]) -> RunFolder:
        if not (path / "recipe.yaml").is_file():
            raise InputError(f"{path}: no run to resume there")
        return cls(path, recipe)

    def log(self, event: str, **values: Any) -> None:
        """Append one event; on the disk when this returns."""
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(json.dumps({"event": event} | values) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentFault(f"{self.path}/log.jsonl: {error.strerror}") from error

    def events(self, event: str) -> list[dict[str, Any]]:
        """What log() wrote, without a last line that a kill cut short."""
        file = self.path / "log.jsonl"
        found = []
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["event"] == event:
                found.append(entry)
        return found

    def write_table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        with (self.path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def close(self) -> None:
        self._lock.close()


def environment() -> dict[str, Any]:
    """Versions, hardware and the commit of the source; no host name, no path."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that this source was checked out from, "+changes" when the source differs; None outside git."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name):
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
