"""How long torch's threads wait for work before they give up their processor.

The standard library alone is imported, because the setting has to be made before torch is loaded.
"""

import os

SPINS = 10_000
"""Turns of the waiting loop of GNU OpenMP, some tenths of a millisecond; its default, 300,000, takes milliseconds."""


def shorten_waiting() -> None:
    """Let torch's threads wait for less than a millisecond, unless the environment says how long they wait.

    A waiting thread occupies a processor. torch computes gradients in a thread of its own, with helping threads of its
    own, which need the processor on which a helping thread of the forward pass still waits. The layers of a network
    follow each other faster than the threads stop waiting, so that nothing becomes slower.

    There is no effect once torch is loaded, or where torch uses another OpenMP than GNU's.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
