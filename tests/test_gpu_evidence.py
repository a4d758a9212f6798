"""scripts/gpu_evidence.sh: a rehearsal on the CPU, a part that is cut off, and a check that fails."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"

pytestmark = [
    # Of NumPy, at the interpreter of Triton 3.6.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.xdist_group("gpu evidence"),  # Groups begin first, and this one takes minutes.
]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.is_available(),
    reason="the rehearsal runs the GPU kernels in Triton's interpreter, where there is no CUDA device",
)

STUB = """#!/usr/bin/env bash
case "$*" in
    *bench_gpu.py*check*) echo WRONG: size 14; exit 1 ;;
    *bench_scoring.py*) echo measured so far; exec sleep 600 ;;
    *) exec {python} "$@" ;;
esac
"""


def rehearse(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with small networks on the CPU; its output goes to tmp_path / "out"."""
    settings = {"TINY": "1", "RUNS": str(tmp_path / "runs"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    (tmp_path / "runs").mkdir(exist_ok=True)
    return subprocess.run(
        [str(SCRIPTS / "gpu_evidence.sh"), str(tmp_path / "out")],
        env=os.environ | settings | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """An interpreter with which the check of the births fails and the benchmark of scoring hangs."""
    path = tmp_path / "python"
    path.write_text(STUB.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@needs_triton
def test_a_rehearsal_does_every_part_and_leaves_its_numbers(tmp_path: Path) -> None:
    completed = rehearse(tmp_path)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    out = tmp_path / "out"
    summary = (out / "summary.txt").read_text()
    for name in ("births-check", "births-times", "scoring-resnet18", "tiny-evidence", "tiny-evidence-distill"):
        assert f"{name}: done in" in summary
    assert '"torch": ' in summary
    assert "120 maps so far agree with the CPU to the bit" in (out / "births-check.txt").read_text()
    assert "% of the forward pass" in (out / "births-times.txt").read_text()
    assert "score / evaluate, images/s" in (out / "scoring-resnet18.txt").read_text()
    assert "made anew with random weights" in (out / "comparison.txt").read_text()
    table = (out / "table12.md").read_text()
    for scorer in ("random", "feature-entropy", "l1-filter", "nisp", "(unpruned)"):
        assert table.count(f"| {scorer} | 1 |") == 2, scorer
    with tarfile.open(out / "comparison.tar.gz") as archive:
        names = archive.getnames()
    for run in ("tiny-evidence-1", "tiny-evidence-distill-1"):
        assert f"{run}/cells/vgg-small.seed-0.random.ratio-0.5.json" in names
    assert not any(name.endswith(("safetensors", "scores.npz")) for name in names)
    assert len(list(out.iterdir())) <= 8
    assert f"written to {out}" in completed.stdout


def test_a_part_that_reaches_its_limit_is_cut_off_and_no_error(tmp_path: Path, stub: str) -> None:
    # Everything else of the script takes less than LIMIT − 15 − 3 seconds; the rest is for the part that hangs.
    completed = rehearse(tmp_path, PYTHON=stub, PARTS="scoring", LIMIT="40")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "scoring-resnet18: cut off after" in completed.stdout
    assert (tmp_path / "out" / "scoring-resnet18.txt").read_text() == "measured so far\n"


def test_wrong_integers_are_an_error_and_nothing_is_timed(tmp_path: Path, stub: str) -> None:
    completed = rehearse(tmp_path, PYTHON=stub)
    assert completed.returncode == 1
    assert "births-check: FAILED with status 1" in completed.stdout
    assert "WRONG: size 14" in (tmp_path / "out" / "births-check.txt").read_text()
    assert not (tmp_path / "out" / "births-times.txt").exists()
    assert not (tmp_path / "out" / "comparison.txt").exists()


def test_missing_data_is_said_at_once(tmp_path: Path) -> None:
    completed = rehearse(tmp_path, TINY="", DATA=str(tmp_path / "nothing"), WEIGHTS="nothing")
    assert completed.returncode == 2
    assert "nothing or nothing does not exist" in completed.stderr


def test_a_folder_with_earlier_results_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.txt").touch()
    completed = rehearse(tmp_path)
    assert completed.returncode == 2
    assert "is not empty" in completed.stderr


@needs_triton
def test_the_check_of_the_births_finds_a_wrong_integer(
    load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load_script("bench_gpu")
    right = bench.device_births

    def wrong(maps: torch.Tensor, rank: str) -> torch.Tensor:
        births = right(maps, rank)
        births.view(-1)[0] += 1
        return births

    monkeypatch.setattr(bench, "device_births", wrong)
    with pytest.raises(SystemExit, match=r"WRONG: size 4, torch\.float32, torch\.contiguous_format, elements, seed 1"):
        bench.check(1, "cpu", tiny=True)


def test_table_12_has_a_line_for_each_ratio_and_criterion(load_script: Callable[[str], Any]) -> None:
    rows = [
        ("(unpruned)", 0, None, 0.9, None, None),
        ("random", 0, 0.5, 0.9, 0.1, 0.6),
        ("random", 1, 0.5, 0.8, 0.3, 0.7),
        ("random", 0, 0.4, 0.9, 0.2, None),
    ]
    columns = ["scorer", "seed", "point", "accuracy_before", "accuracy_pruned", "accuracy_finetuned"]
    frame = pd.DataFrame(rows, columns=columns).assign(parameters=2e6, macs=3e9)
    assert load_script("table12").table(frame).splitlines()[2:] == [
        "| 0% | (unpruned) | 1 | 90.0 | – | 2.00 M | 3.00 G |",
        "| 50% | random | 2 | 20.0 ± 14.1 | 65.0 ± 7.1 | 2.00 M | 3.00 G |",
        "| 40% | random | 1 | 20.0 | – | 2.00 M | 3.00 G |",
    ]
