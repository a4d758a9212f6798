"""Commands write to a disk that is full: right is exit 5 with the file and the space, and that they go on with space.

A small file system is mounted, which is not allowed everywhere.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attacks.commands import Command, call, new_directory, said
from attacks.tally import Outcome

FULL = 5
"""The exit code of a command whose disk is full."""

MODEL = "--model MADE/runs/run-1/seed-0/trained"
TUNE = f"finetune {MODEL} --data digits --size 8 --epochs 1"
WORDS = {
    "compare": "compare recipe.yaml --output DISK/runs",
    "run": "run recipe.yaml --output DISK/runs",
    "ablate": "ablate recipe.yaml --output DISK/runs",
    "export": f"export {MODEL} --format torch-export --output DISK/out.pt2",
    "finetune": f"{TUNE} --output DISK/out",
    "finetune --checkpoints": f"{TUNE} --output out --checkpoints DISK/epochs",
    "score": f"score {MODEL} --data digits --size 8 --samples 5 --output DISK/out",
    "prune": f"prune {MODEL} --scores MADE/runs/run-1/seed-0/l1-filter --output DISK/out",
}
"""Name -> words of a command that writes to DISK, after other commands have written to MADE; the longest first."""


def is_possible(path: Path) -> Callable[[], str | None]:
    """Return a function that says why no small file system can be mounted at a new folder; None if it can."""

    def try_it() -> str | None:
        try:
            with small_disk(path):
                return None
        except OSError as error:
            return str(error)

    return try_it


@contextmanager
def small_disk(path: Path, megabytes: int = 8) -> Iterator[None]:
    """Mount a small file system at a new folder, in a name space of this process only.

    Raises:
        OSError: That is not allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    new_users, new_mounts, private = 0x10000000, 0x00020000, 0x44000
    user = os.getuid()
    check(libc.unshare(new_mounts if user == 0 else new_mounts | new_users))
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    check(libc.mount(b"none", b"/", None, private, None))
    path.mkdir()
    check(libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={megabytes}m".encode()))
    try:
        yield
    finally:
        libc.umount2(os.fsencode(path), 2)


@dataclass(frozen=True)
class FullDisk:
    """A command that writes to a full disk.

    Attributes:
        name: Its name in `WORDS`.
        made: The folder of the finished commands.
        directory: A new folder for this attack.
    """

    name: str
    made: Path
    directory: Path

    def attack(self, sizes: Sequence[int]) -> list[Outcome]:
        """Run the command with each number of free bytes, on disks of their own."""
        return [self._attack(size, self.directory / str(size)) for size in sizes]

    def _attack(self, free: int, folder: Path) -> Outcome:
        new_directory(folder, "disk")
        disk = folder / "disk"
        words = WORDS[self.name].replace("MADE", str(self.made)).replace("DISK", str(disk)).split()
        with small_disk(disk):
            problem = fill(Command(self.name, words, lambda path: None), disk, folder, free)
        return problem and f"{free >> 10} KiB free: {problem}"


def fill(command: Command, disk: Path, folder: Path, free: int) -> Outcome:
    """Run a command with `free` bytes left on the disk, and again with space; return what was wrong."""
    kept, filler = disk / "kept", disk / "filler"
    kept.write_bytes(b"kept" * 1000)
    filler.write_bytes(bytes(max(shutil.disk_usage(disk).free - free, 0)))
    code = call(command.words, folder)
    error = said(folder)
    if code not in (0, FULL) or (code and ("no space left" not in error or str(disk) not in error or "\n" in error)):
        return f"exit {code}: {error}"
    if kept.read_bytes() != b"kept" * 1000:
        return "a file that was there is lost"
    filler.unlink()
    if code and (code := command.resume(folder)):
        return f"continued with space, exit {code}: {said(folder)}"
    leftovers = {entry.name for entry in disk.iterdir()} - {"kept", "runs", "out", "out.pt2", "epochs"}
    return f"left {', '.join(sorted(leftovers))}" if leftovers else None
