"""Estimates: said once, for tasks of measured kinds, with what shortens them."""

from collections import Counter

from prune_fe.experiment.estimate import Kind, TaskTimes, TrainingTime

CURVES = Kind("curves", "ablate.every=4", 0.25)
SCORES, PRUNE = Kind("scores"), Kind("prune", "fewer of compare.ratios")


def test_the_open_tasks_are_estimated_once_from_a_task_of_their_kind() -> None:
    said: list[str] = []
    times = TaskTimes(said.append)
    times.add(SCORES, 600.0, Counter([CURVES] * 22))
    assert said == []  # no curve has been measured
    times.add(CURVES, 120.0, Counter([CURVES] * 20))
    times.add(CURVES, 120.0, Counter([CURVES] * 19))
    assert said == [
        "about 40 minutes for 20 tasks that are left, at the pace of the finished ones; ablate.every=4 would make it "
        "about 10 minutes"
    ]


def test_tasks_of_other_kinds_are_not_part_of_it_and_short_work_is_not_announced() -> None:
    said: list[str] = []
    TaskTimes(said.append).add(PRUNE, 1.0, Counter([PRUNE] * 50))
    TaskTimes(said.append).add(None, 1000.0, Counter([None] * 50))
    assert said == []
    TaskTimes(said.append).add(PRUNE, 60.0, Counter([PRUNE] * 50 + [None, SCORES]))
    assert said == [
        "about 50 minutes for 50 of the 52 tasks that are left, at the pace of the finished ones; fewer of "
        "compare.ratios shorten it"
    ]


def test_a_training_is_estimated_from_its_first_steps_without_the_very_first() -> None:
    said: list[str] = []
    now = 0.0

    def train(seconds: float, total: int) -> None:
        nonlocal now
        training = TrainingTime(said.append, "taylor", lambda: now)
        for step in range(1, total + 1):
            now += seconds if step > 1 else 100.0
            training.step(step, total)

    train(0.1, 1000)  # 100 seconds are not worth a line
    assert said == []
    train(2.0, 606)
    assert said == ["taylor: about 20 minutes for 600 steps, at the pace of the first 5; fewer epochs shorten it"]
