"""Attack the program, and count what goes wrong: damaged files, kills at random moments, and full disks.

    python scripts/attack.py            # some minutes on two cores
    python scripts/attack.py --short    # a tenth of it, for CI
    python scripts/attack.py --others   # only what other libraries do with damaged files of the same weights

Prints a table of what was tried, right and wrong, and the wrong outcomes; exits with 1 if anything was wrong. What is
right stands at the top of each file of scripts/attacks. The commands are those of a user, in processes of their own
that share the imported libraries; they save unfinished work as often as they can, so that there is more to attack, and
time each network for 0.02 s.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # The thread count changes the last bits. It is read when torch is imported.

import torch

from attacks.commands import COMMANDS, prepare
from attacks.damage import KINDS
from attacks.disks import WORDS, FullDisk, is_possible
from attacks.kills import interrupt_start, kill, run_whole
from attacks.other_libraries import LIBRARIES
from attacks.tally import Tally, in_parallel

CORES = len(os.sched_getaffinity(0))


def attack(directory: Path, seed: int, n_corruptions: int, n_kills: int, sizes: list[int]) -> Tally:
    """Attack the program in every way.

    Args:
        directory: An empty folder for everything that is written.
        seed: Seed of the damages and of the moments of the kills.
        n_corruptions: Damages of each kind of file.
        n_kills: Kills of each command.
        sizes: Free bytes on the disks.
    """
    wholes = in_parallel([partial(run_whole, each, directory / each.name) for each in COMMANDS], directory, CORES)
    made = directory / "made"
    for name in ("run", "ablate"):
        (made / "runs").mkdir(parents=True, exist_ok=True)
        (directory / name / "runs" / f"{name}-1").rename(made / "runs" / f"{name}-1")
    [why_not] = in_parallel([is_possible(directory / "disk")], directory, 1)
    if why_not:
        print(f"full disks are left out: a small file system cannot be mounted here ({why_not})")
    works = [
        (
            f"kill {command.name}",
            partial(kill, command, directory / f"{command.name}-{number}", whole, f"{seed}/{number}"),
        )
        for command, whole in zip(COMMANDS, wholes, strict=True)
        for number in range(n_kills)
    ]
    works += [
        ("signal while starting", partial(interrupt_start, directory / f"start-{number}", f"{seed}/{number}"))
        for number in range(n_kills)
    ]
    works += [
        (f"full disk: {name}", partial(FullDisk(name, made, directory / f"disk-{number}").attack, sizes))
        for number, name in enumerate(WORDS)
        if not why_not
    ]
    works += [(name, partial(kind.attack, made, directory, n_corruptions, seed)) for name, kind in KINDS.items()]
    tally = Tally()
    for (name, _), outcomes in zip(works, in_parallel([work for _, work in works], directory, CORES), strict=True):
        tally.count(name, outcomes)
    return tally


def attack_others(directory: Path, seed: int, n_corruptions: int) -> Tally:
    """Damage files of other libraries; the arguments are as in `attack`."""
    works = [
        partial(library.attack, directory / str(number), n_corruptions, seed)
        for number, library in enumerate(LIBRARIES.values())
    ]
    tally = Tally()
    for (name, library), outcomes in zip(LIBRARIES.items(), in_parallel(works, directory, CORES), strict=True):
        if outcomes is None:
            print(f"{name} is left out: there is no package {library.package}")
        else:
            tally.count(f"{name} ({library.label})", outcomes)
    return tally


def main() -> int:
    """Attack, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a tenth of it, for CI")
    parser.add_argument("--others", action="store_true", help="only the files of other libraries")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damages and of the moments of the kills")
    arguments = parser.parse_args()
    began = time.monotonic()
    # A shell lets the jobs in its background ignore Ctrl-C, and the attacked commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.others:
            tally = attack_others(Path(folder), arguments.seed, 20 if arguments.short else 200)
        else:
            prepare()
            size = (20, 1, [8 << 10]) if arguments.short else (200, 6, [0, 8 << 10, 40 << 10, 160 << 10])
            tally = attack(Path(folder), arguments.seed, *size)
    print(tally.table("damaged files of" if arguments.others else "attack"))
    print(f"\n{time.monotonic() - began:.0f} s, seed {arguments.seed}, {CORES} cores, torch {torch.__version__}")
    if arguments.others:
        return 0
    for text in tally.wrong:
        print(f"wrong: {text}")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
