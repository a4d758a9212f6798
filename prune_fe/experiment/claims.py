"""Who does what, of several processes that share a folder and nothing else."""

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
"""A claim that has not been renewed for so long is that of a dead owner."""

RENEWALS = 6
"""How often a claim is renewed in that time."""


class Claims:
    """Claims on tasks, a file each: TASK.claim-0, and TASK.claim-1 where the owner of the first one has died, …

    A claim is made by creating a file that must not be there, which one process only can do. The highest number is the
    one that counts, so that a dead owner's claim is never removed under the hand of a new owner. If an owner was only
    asleep, its task is done twice, to the same end.
    """

    def __init__(self, folder: Path, expiry: float = EXPIRY_SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.expiry = folder, expiry
        self.owner = uuid.uuid4().hex

    @contextmanager
    def claimed(self, task: str) -> Iterator[bool]:
        """Inside, `task` is this process's own, if True; if False it is somebody else's."""
        path = self._claim(task)
        if path is None:
            yield False
            return
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
        number, last = -1, None
        for path in self.folder.glob(f"{task}.claim-*"):
            match = re.fullmatch(rf"{re.escape(task)}\.claim-(\d+)", path.name)
            if match and int(match[1]) > number:
                number, last = int(match[1]), path
        if last is not None and not self._dead(last):
            return None
        path = self.folder / f"{task}.claim-{number + 1}"
        try:
            with path.open("x") as file:
                json.dump({"owner": self.owner, "machine": _machine(), "process": os.getpid()}, file)
        except FileExistsError:
            return None
        return path

    def _dead(self, path: Path) -> bool:
        """Whether the claim has run out: by the clock of the file system, or because its process is gone from here."""
        try:
            about = json.loads(path.read_text())
            if about["machine"] == _machine() and not _runs(int(about["process"])):
                return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it is just being written, or was cut short: its age decides
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
            with contextlib.suppress(OSError):  # one renewal that fails is no reason to stop
                os.utime(path)


def _machine() -> str:
    """Tells machines apart, and containers, whose processes have numbers of their own; and no more."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = boot.read_text() if boot.exists() else str(uuid.getnode())
    known += str(processes.stat().st_ino) if processes.exists() else ""
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
