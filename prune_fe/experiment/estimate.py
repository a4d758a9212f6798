"""How long a run will still take, from the measured time of its finished tasks and of the first steps of a training."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TASKS = "tasks"
"""Name under which the progress of tasks is reported. `TaskTimes` estimates it, because tasks take different times."""

WORTH_SAYING = 120.0
"""Shortest time in seconds that is worth printing."""

MEASURED_STEPS, MEASURED_SECONDS = 20, 10.0
"""Steps of a training, without the first one, after which its time is estimated; fewer where they take that long."""


@dataclass(frozen=True)
class Kind:
    """Tasks that take about the same time.

    Attributes:
        name: Name of the kind.
        shorter: What makes such tasks shorter or fewer, such as "ablate.every=4"; "" where nothing does.
        factor: Share of their time that is left then; None where that depends on how much the user changes.
    """

    name: str
    shorter: str = ""
    factor: float | None = None


class TaskTimes:
    """Says once how long the open tasks will take, as soon as a task of their kind has been measured.

    Args:
        say: Prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.seconds: dict[Kind, float] = defaultdict(float)  # of all finished tasks of a kind
        self.finished: Counter[Kind] = Counter()
        self.has_said = False

    def add(self, kind: Kind | None, seconds: float, left: Mapping[Kind | None, int]) -> None:
        """Add the time of a finished task, and say how long the open ones will take unless it is short or said already.

        Args:
            kind: The kind of the finished task; None if its time says nothing about others.
            seconds: How long it took.
            left: Kind -> the number of its open tasks.
        """
        if kind is None or self.has_said:
            return
        self.seconds[kind] += seconds
        self.finished[kind] += 1
        if not left.get(kind):
            return
        text = self._describe(left)
        if text is not None:
            self.say(text)
            self.has_said = True

    def _describe(self, left: Mapping[Kind | None, int]) -> str | None:
        """Return the estimate; None if it is short."""
        open_tasks = {kind: left.get(kind, 0) for kind in self.finished}
        times = {kind: self.seconds[kind] / n * open_tasks[kind] for kind, n in self.finished.items()}
        total = sum(times.values())
        if total < WORTH_SAYING:
            return None
        n_known, n_open = sum(open_tasks.values()), sum(left.values())
        count = f"{n_known} tasks" if n_known == n_open else f"{n_known} of the {n_open} tasks"
        text = f"about {describe_seconds(total)} for {count} that are left, at the pace of the finished ones"
        # The advice is about the kind that takes the most time.
        longest = max(times, key=lambda kind: times[kind])
        if not longest.shorter:
            return text
        if longest.factor is None:
            return f"{text}; {longest.shorter} shorten it"
        saved = (1 - longest.factor) * times[longest]
        return f"{text}; {longest.shorter} would make it about {describe_seconds(total - saved)}"


class TrainingTime:
    """Says once how long a training will take, from the time of its first steps.

    Args:
        say: Prints a line.
        name: Name of the training.
        clock: Returns seconds.
    """

    def __init__(self, say: Callable[[str], None], name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.name, self.clock = say, name, clock
        self.began: tuple[int, float] | None = None
        self.has_said = False

    def step(self, done: int, total: int) -> None:
        """Count a step.

        Args:
            done: Number of finished steps.
            total: Number of steps in all.
        """
        if self.has_said or total <= 0:
            return
        if self.began is None:  # The first step is slower than the others.
            self.began = done, self.clock()
            return
        steps, seconds = done - self.began[0], self.clock() - self.began[1]
        if steps < 1 or (steps < MEASURED_STEPS and seconds < MEASURED_SECONDS):
            return
        self.has_said = True
        left = seconds / steps * (total - done)
        if left >= WORTH_SAYING:
            self.say(
                f"{self.name}: about {describe_seconds(left)} for {total - done:,} steps, at the pace of the first "
                f"{steps}; fewer epochs shorten it"
            )


def describe_seconds(seconds: float) -> str:
    """Return a duration in words, with as many digits as an estimate has.

    >>> describe_seconds(45), describe_seconds(100), describe_seconds(2500), describe_seconds(9000)
    ('1 minute', '2 minutes', '42 minutes', '2.5 hours')
    """
    minutes = max(round(seconds / 60), 1)
    if minutes < 90:
        return f"{minutes} minute" + "s" * (minutes > 1)
    return f"{seconds / 3600:.1f} hours"
