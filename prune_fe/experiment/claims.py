"""Claims on tasks by processes that share a folder and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXPIRY_SECONDS = 180.0
"""A claim that its owner has not renewed for this long is no longer valid."""

RENEWALS = 6
"""Number of renewals in that time."""


class Claims:
    """Claims on tasks, one file each: TASK.claim-0, then TASK.claim-1 if the first owner has died, and so on.

    A claim is made by creating a file that must not exist yet, which only one process can do. The highest number
    counts, so that the claim of a dead owner need not be removed, which could remove the claim of its successor. If
    the owner was only suspended, two processes work on the task, with the same result.

    Args:
        folder: Where the files are; made if it does not exist.
        expiry: Seconds after which a claim that was not renewed is no longer valid.
    """

    def __init__(self, folder: Path, expiry: float = EXPIRY_SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.expiry = folder, expiry
        self.owner = uuid.uuid4().hex

    @contextmanager
    def claimed(self, task: str) -> Iterator[bool]:
        """Try to claim a task for the duration of the block.

        Args:
            task: Name of the task.

        Yields:
            Whether the task is claimed by this process; otherwise another process works on it.
        """
        path = self._claim(task)
        if path is None:
            yield False
            return
        # A thread renews the claim, because a task may take longer than `expiry`.
        stop = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(path, stop), daemon=True)
        renewing.start()
        try:
            yield True
        finally:
            stop.set()
            renewing.join()
            path.unlink(missing_ok=True)

    def _claim(self, task: str) -> Path | None:
        """Create the file of a claim; return None where another process has a valid one."""
        number, last = -1, None
        for path in self.folder.glob(f"{task}.claim-*"):
            match = re.fullmatch(rf"{re.escape(task)}\.claim-(\d+)", path.name)
            if match and int(match[1]) > number:
                number, last = int(match[1]), path
        if last is not None and not self._is_expired(last):
            return None
        path = self.folder / f"{task}.claim-{number + 1}"
        try:
            # "x" fails where the file exists, so that of two processes only one gets this number.
            with path.open("x") as file:
                json.dump({"owner": self.owner, "machine": _machine(), "process": os.getpid()}, file)
        except FileExistsError:
            return None
        return path

    def _is_expired(self, path: Path) -> bool:
        """Return whether a claim's process has ended on this machine, or has not renewed the claim for too long."""
        try:
            owner = json.loads(path.read_text())
            if owner["machine"] == _machine() and not _is_running(int(owner["process"])):
                return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the file is being written, or its writer was killed: its age decides
        # The clocks of machines differ, so the age is the difference of two modification times of the file system.
        probe = self.folder / f".now-{self.owner}"
        probe.touch()
        try:
            return probe.stat().st_mtime - path.stat().st_mtime > self.expiry
        except FileNotFoundError:
            return False
        finally:
            probe.unlink(missing_ok=True)

    def _renew(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self.expiry / RENEWALS):
            with contextlib.suppress(OSError):  # the next renewal may succeed
                os.utime(path)


def _machine() -> str:
    """Return a hash that identifies this machine, or this container, whose processes have numbers of their own."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = boot.read_text() if boot.exists() else str(uuid.getnode())
    known += str(processes.stat().st_ino) if processes.exists() else ""
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 is not sent; only the process's existence is checked
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the process exists and belongs to another user
    return True
