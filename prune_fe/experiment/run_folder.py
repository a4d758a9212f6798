"""One run folder: the recipe, the environment, a log of every step, tables, scores and models."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import yaml

from prune_fe.errors import InputError
from prune_fe.io import explain_disk_errors, finite_json, lock_folder, safe_file_name, write_csv, write_text
from prune_fe.records import read_record, read_yaml, write_record, write_yaml

PACKAGES = (
    "prune-fe",
    "torch",
    "torch-pruning",
    "torchvision",
    "numba",
    "numpy",
    "fvcore",
    "scikit-learn",
    "timm",
    "ripser",
    "gudhi",
)
"""The packages whose versions are recorded."""

MACHINE_KEYS = ("device", "threads", "workers")
"""Keys of a recipe that, like the path of the images, may change when a comparison goes on, maybe elsewhere."""

LATENCY = "latency.json"
"""File of `prune-fe compress` inside the run folder: the times of both networks in turn."""

NETWORKS = "networks"
"""The folder of a comparison's networks inside its run folder; other run folders do not have it."""

FAILED, UNFINISHED = "failed", "unfinished"
"""Folders inside a run folder: of the errors of failed tasks, and of the files of unfinished ones."""


def is_comparison(folder: Path) -> bool:
    """Return whether a run folder is that of a comparison."""
    return (folder / NETWORKS).exists()


def has_results(folder: Path) -> bool:
    """Return whether a run folder holds anything that would be computed again without it."""
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name != FAILED]
    return any(any(entry.iterdir()) for entry in folders)


class RunFolder:
    """The folder of one run, with its recipe and a log of every step.

    The folder is locked until `close`, so that no second command works on the same run. The processes that work for the
    one that holds the lock, ranks of torchrun or workers of Ray, open the folder by `join`.

    Each event is one line of `log.jsonl`, which is on the disk before the next step begins; a process that has joined
    writes `log-ID.jsonl`. The log is for people, and no command reads it; what is read back has a digest, see
    `prune_fe.records`.

    Args:
        path: The folder, which must exist.
        recipe: The recipe as it is saved in the folder.
        comparison: Whether it is the folder of a comparison.

    Raises:
        InputError: The folder was begun with another recipe, or it is a comparison's and `comparison` is False, or the
            other way round.
        EnvironmentFault: Another process uses the folder.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any], comparison: bool = False) -> None:
        self._open(path, "log.jsonl", lock_folder(path))
        try:
            self._begin(recipe, comparison)
        except BaseException:
            self.close()
            raise

    @classmethod
    def join(cls, path: Path) -> RunFolder:
        """Open the folder of a run whose lock another process holds, to work for that process.

        Args:
            path: The folder.
        """
        folder = cls.__new__(cls)
        folder._open(path, f"log-{uuid.uuid4().hex[:8]}.jsonl", None)
        return folder

    def _open(self, path: Path, log_name: str, lock: TextIO | None) -> None:
        self.path, self.log_name, self._lock = path, log_name, lock
        self._task: str | None = None
        self._n_unfinished = 0

    def _begin(self, recipe: Mapping[str, Any], comparison: bool) -> None:
        """Write the recipe to a new folder; check that an old one has the same recipe."""
        known, log = self.path / "recipe.yaml", self.path / self.log_name
        if known.exists() and is_comparison(self.path) != comparison:
            what = "not the folder of a comparison" if comparison else "the folder of a comparison"
            raise InputError(f"{self.path} is {what}: choose another one")
        if comparison:
            (self.path / NETWORKS).mkdir(exist_ok=True)
        if not known.exists():
            write_yaml(known, yaml.safe_dump(dict(recipe), sort_keys=False))
        elif differing := _differing_keys(known, recipe, MACHINE_KEYS if comparison else ()):
            raise InputError(
                f"{self.path} was begun with another recipe (different: {', '.join(differing)}); resume with that "
                "recipe or start a new run"
            )
        if log.exists() and not log.read_bytes().endswith(b"\n"):
            # The process was killed while it wrote the last line; the next line must not continue it.
            with log.open("a") as file:
                file.write("\n")

    @classmethod
    def create(cls, parent: Path, name: str, recipe: Mapping[str, Any], comparison: bool = False) -> RunFolder:
        """Create the folder `parent`/`name`-N with the next free number N.

        Args:
            parent: Where run folders are; made if it does not exist.
            name: Name of the recipe.
            recipe: The recipe as it is saved in the folder.
            comparison: Whether it is the folder of a comparison.

        Raises:
            EnvironmentFault: The folder cannot be made.
        """
        with explain_disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            taken = [
                int(m[1]) for entry in parent.iterdir() if (m := re.fullmatch(rf"{re.escape(name)}-(\d+)", entry.name))
            ]
            number = max(taken, default=0)
            while True:
                number += 1
                # Another process may create the folder of this number in between; mkdir then fails.
                with contextlib.suppress(FileExistsError):
                    (parent / f"{name}-{number}").mkdir()
                    break
            try:
                return cls(parent / f"{name}-{number}", recipe, comparison)
            except BaseException:
                # The disk may be full. A folder without a recipe would stand before those that can be resumed.
                shutil.rmtree(parent / f"{name}-{number}", ignore_errors=True)
                raise

    @classmethod
    def resume(cls, path: Path, recipe: Mapping[str, Any], comparison: bool = False) -> RunFolder:
        """Open the folder of an earlier run.

        Args:
            path: The folder.
            recipe: The recipe, which must be the one that the run was begun with.
            comparison: Whether it is the folder of a comparison.

        Raises:
            InputError: There is no run, or it has another recipe.
            EnvironmentFault: Another process uses the folder.
        """
        if not (path / "recipe.yaml").is_file():
            raise InputError(f"{path}: there is no run to resume")
        return cls(path, recipe, comparison)

    @property
    def saved_recipe(self) -> dict[str, Any]:
        """The content of recipe.yaml, as the version that began the run wrote it."""
        return read_yaml(self.path / "recipe.yaml")

    def log(self, event: str, **values: Any) -> None:
        """Append an event and the time to the log; it is on the disk when this returns.

        Raises:
            EnvironmentFault: The log cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        path = self.path / self.log_name
        with explain_disk_errors(path), path.open("a") as file:
            file.write(json.dumps(finite_json({"event": event, "time": now} | values), allow_nan=False) + "\n")
            # flush() hands the line to the system, and fsync() makes the system write it to the disk.
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def working_on(self, task: str) -> Iterator[None]:
        """Give a task a place for its unfinished work, which is removed when the block ends without an error."""
        self._task, self._n_unfinished = safe_file_name(task), 0
        try:
            yield
            shutil.rmtree(self.path / UNFINISHED / self._task, ignore_errors=True)
        finally:
            self._task = None

    def next_unfinished(self, kind: str) -> Path | None:
        """Return the file for the next unfinished work of the task that is worked on; None outside of `working_on`.

        A task that is resumed asks for its files in the same order, so that it finds those of its work again.

        Args:
            kind: What the work is, such as "training"; the name of the file begins with it.
        """
        if self._task is None:
            return None
        self._n_unfinished += 1
        return self.path / UNFINISHED / self._task / f"{kind}-{self._n_unfinished}"

    def record_failure(self, task: str, result: Path, error: Exception) -> None:
        """Write down that a task failed, for the report, and log it.

        Args:
            task: Name of the task.
            result: The file that is missing therefore.
            error: Why.
        """
        content = {"task": task, "result": result.relative_to(self.path).as_posix(), "error": str(error)}
        with explain_disk_errors(self.path / FAILED):
            (self.path / FAILED).mkdir(exist_ok=True)
        write_record(self.path / FAILED / f"{safe_file_name(task)}.json", content)
        self.log("failed", **content)

    def log_environment(self) -> list[str]:
        """Log versions and hardware, and write them to env.json in a new folder.

        Returns:
            The keys of `environment` that differ from env.json.
        """
        here, path = environment(), self.path / "env.json"
        self.log("environment", **here)
        if not path.exists():
            write_record(path, here)
            return []
        began = read_record(path)
        return [key for key in here if here[key] != began.get(key)]

    def write_table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a CSV file of this name to the folder."""
        write_csv(self.path / name, rows)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of this name to the folder."""
        write_text(self.path / name, text)

    def discard(self) -> None:
        """Close the folder, and remove it if the run has no results yet."""
        if not has_results(self.path):
            shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.close()


def failed_tasks(folder: Path) -> dict[str, str]:
    """Return task -> error, of the failed tasks of a run folder that still have no result.

    Raises:
        CheckpointError: A file is damaged.
    """
    failures = [read_record(path) for path in sorted((folder / FAILED).glob("[!.]*.json"))]
    return {
        str(each.get("task")): str(each.get("error"))
        for each in failures
        if not (folder / str(each.get("result"))).exists()
    }


def _differing_keys(known: Path, recipe: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """Return the keys in which the recipe in a run folder differs from another recipe.

    Args:
        known: The recipe file of the run folder.
        recipe: The other recipe.
        ignored: Keys that may differ; if there are any, the paths of the images may differ too.
    """
    content = read_yaml(known)
    missing = object()  # a missing key differs from one whose value is None
    complete = (_with_defaults(recipe, content), _with_defaults(content, content))
    one, other = ({key: value for key, value in each.items() if key not in ignored} for each in complete)
    if ignored and isinstance(one.get("data"), dict) and isinstance(other.get("data"), dict):
        one["data"], other["data"] = (_without_places(each["data"]) for each in (one, other))
    return [key for key in one | other if other.get(key, missing) != one.get(key, missing)]


def _without_places(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `data` of a recipe without where the images lie."""
    return {**data, "path": None, "validation_path": data.get("validation_path") is not None}


def _with_defaults(content: Mapping[str, Any], saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a recipe with the default of every key that it lacks, as a run folder's recipe has them.

    Content that is no valid recipe is returned as it is.

    Args:
        content: The recipe.
        saved: The recipe of the run folder, whose version may have had other defaults.
    """
    from pydantic import ValidationError

    from prune_fe.experiment.recipe import Recipe, with_earlier_rescale

    try:
        return with_earlier_rescale(Recipe.model_validate(content), saved).model_dump(mode="json")
    except ValidationError:
        return content


def environment() -> dict[str, Any]:
    """Return versions, hardware and the commit of the source, without host name and paths."""
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


@functools.cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache  # the source that was imported does not change, and every result records its commit
def _commit() -> str | None:
    """Return the commit of the source, with "+changes" where its files differ from that; None outside git."""

    def git(*arguments: str) -> str:
        package = Path(__file__).parents[1]
        return subprocess.run(
            ["git", *arguments], cwd=package, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "__init__.py"):
            return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return None


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor()
