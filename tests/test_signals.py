"""What Ctrl-C and SIGTERM do while a command starts, works and saves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from prune_fe.signals import ignore_signals, interrupting, set_handler

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in BOTH}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_interrupts_the_block_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in BOTH]
    with pytest.raises(KeyboardInterrupt), interrupting() as received:
        os.kill(os.getpid(), number)
    assert received == [number]
    assert [signal.getsignal(each) for each in BOTH] == before


def test_what_saves_is_not_interrupted() -> None:
    with interrupting() as received:
        ignore_signals()
        for number in BOTH:
            os.kill(os.getpid(), number)
    assert received == []


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert list(set_handler(signal.SIG_DFL)) == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("stop_at_once(); os.kill(os.getpid(), NUMBER)", "interrupted"),
        (
            "with interrupting():\n    try:\n        os.kill(os.getpid(), NUMBER)\n    finally:\n"
            "        os.kill(os.getpid(), NUMBER)",
            "interrupted a second time, stopped at once",
        ),
    ],
    ids=["while it starts", "a second one"],
)
@pytest.mark.parametrize("number", BOTH)
def test_the_process_ends_at_once_with_one_line(code: str, line: str, number: signal.Signals) -> None:
    program = f"import os, signal\nsignal.signal(2, signal.default_int_handler)\nfrom prune_fe.signals import *\n{code}"
    words = [sys.executable, "-c", program.replace("NUMBER", str(int(number)))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, f"prune-fe: {line}\n", "")


def test_it_imports_nothing_of_the_package_and_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import prune_fe.signals; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15
