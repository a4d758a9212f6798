"""Several processes of torch.distributed give the results of one; without a group there is one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from prune_fe.distributed import all_gather, all_reduce_mean, from_rank_0, local_rank, process_group, rank, world_size
from prune_fe.errors import InputError


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def test_without_a_group_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with process_group():
        assert (rank(), world_size(), local_rank()) == (0, 1, 0)
        assert all_gather("value") == ["value"]
        assert from_rank_0(lambda: 3) == 3
        with pytest.raises(InputError, match="no good"):
            from_rank_0(fails)
    tensor = torch.tensor([1.5])
    all_reduce_mean([tensor])
    assert tensor.tolist() == [1.5]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert local_rank() == 2


def threads() -> list[str]:
    return [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]


def leaving(own_rank: int, port: int) -> None:
    os.environ.update(RANK=str(own_rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    with process_group():
        torch.optim.SGD(network().parameters(), lr=0.1)  # Its import would keep the group of this moment.
        assert all_gather(own_rank) == [0, 1]
        assert any("gloo" in name for name in threads())
        norm = nn.BatchNorm1d(2)
        assert norm.running_mean is not None
        norm.running_mean += own_rank
        all_reduce_mean(norm.buffers())
        assert norm.running_mean.tolist() == [0.5, 0.5]
        with pytest.raises(InputError if own_rank == 0 else SystemExit, match="no good" if own_rank == 0 else "2"):
            from_rank_0(fails)
    assert not any("gloo" in name for name in threads())


def fails() -> None:
    raise InputError("no good")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the threads of a process from /proc")
def test_nothing_of_the_group_is_left_behind() -> None:
    torch.multiprocessing.spawn(leaving, (_port(),), nprocs=2)


def test_torchrun_serves_a_comparison(tmp_path: Path) -> None:
    # Imported here: the processes of the other tests import this file, and pandas takes seconds.
    from prune_fe.report.loading import load_findings

    content = {
        "name": "t", "data": {"source": "digits", "size": 12}, "scorers": ["apoz"], "score": {"samples": 10},
        "model": {"name": "vgg-small", "arguments": {"stages": [[4], [8]]}},
        "train": {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 64},
        "compare": {"ratios": [0.5], "scratch": []},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{_port()}", "-m", "prune_fe", "compare", "r.yaml",
    ]  # fmt: skip
    completed = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("run folder: ") == 1  # rank 1 prints nothing
    findings = load_findings(tmp_path / "runs/t-1")
    assert (findings.scorers, findings.missing) == (["apoz", "random", "l1-filter"], [])
    for result in findings.results:
        assert result.correct.mean() == pytest.approx(result.row.accuracy)
        assert len(result.correct) == len(findings.labels) == 360


def _port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
