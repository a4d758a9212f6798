"""How long torch's threads wait for work."""

import os
import subprocess
import sys

import pytest

from prune_fe.openmp import SPINS, shorten_waiting


def test_threads_wait_shorter_unless_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    shorten_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    shorten_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    shorten_waiting()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_command_line_says_it_before_torch_is_loaded() -> None:
    program = """
import os, sys
from prune_fe import openmp
real = openmp.shorten_waiting
def shorten_waiting():
    print("torch" in sys.modules)
    real()
openmp.shorten_waiting = shorten_waiting
from prune_fe.__main__ import main
sys.argv = ["prune-fe", "--version"]
main()
print(os.environ["GOMP_SPINCOUNT"])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split()[0] == "False"
    assert done.stdout.split()[-1] == str(SPINS)
