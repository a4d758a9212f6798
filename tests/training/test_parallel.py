"""Several processes train as one: the same weights and losses up to rounding, whatever the last batch and the part."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import get_context

from prune_fe.training.options import TrainOptions
from prune_fe.training.parallel import smallest_batch, weigh
from tests.training import processes
from tests.training.processes import CASES, die_or_say, go_on, network, run_cases, train_unfinished

pytestmark = pytest.mark.xdist_group("parallel")  # so that `together` is made once

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""Of weights of about 0.1, after six to sixteen steps in float32."""


def start(function: Any, count: int, *arguments: Any) -> list[int | None]:
    """Run a function in several processes, whatever becomes of each, and return their exit codes."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.training.processes"])  # torch is imported once for all processes.
    running = [context.Process(target=function, args=(rank, count, *arguments)) for rank in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join(600)
    return [process.exitcode for process in running]


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What each process of a group computes, by the name of the training."""
    folder = tmp_path_factory.mktemp("processes")
    assert start(run_cases, request.param, str(folder)) == [0] * request.param
    errors = {(folder / f"error-{rank}").read_text() for rank in range(request.param)}
    assert errors == {f"batch_size={request.param - 1} cannot be shared by {request.param} processes"}
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(request.param)]


def test_several_processes_train_as_one(together: list[dict[str, list[Tensor]]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = {name: case() for name, case in CASES.items()}
    finally:
        torch.set_num_threads(threads)
    for name, expected in alone.items():
        for results in together:
            for value, other in zip(results[name], expected, strict=True):
                assert torch.allclose(value, other, **TOLERANCE), name
    assert not torch.equal(alone["a last batch of 6"][0], network().state_dict()["0.weight"])
    # Their shares of the images differ, so the statistics of their own are not those of one process.
    assert not torch.allclose(together[0]["norms of each process"][0], alone["synchronised norms"][0], **TOLERANCE)


def test_all_processes_have_the_same_bits(together: list[dict[str, list[Tensor]]]) -> None:
    first, *others = together
    assert {"norms of each process", "norms of parts", "loader", *CASES} == first.keys()
    for name, expected in first.items():
        for results in others:
            assert all(torch.equal(*pair) for pair in zip(results[name], expected, strict=True)), name


@pytest.mark.parametrize(
    ("how", "reason"), [("killed", "killed, or its machine is lost"), ("raises", "a fault of its own")]
)
def test_a_process_that_ends_is_named_and_others_go_on(tmp_path: Path, how: str, reason: str) -> None:
    codes = start(die_or_say, 3, str(tmp_path), how)
    assert codes == [0, -9 if how == "killed" else 1, 0]
    for rank in (0, 2):
        told = (tmp_path / f"told-{rank}").read_text()
        assert "of 3 processes these have ended: process 1 (" in told
        assert reason in told
        assert "process 0" not in told
        assert f"the same call goes on from {tmp_path}/unfinished" in told
    if how == "killed":
        again = tmp_path / "again"
        again.mkdir()
        shutil.copy(tmp_path / "unfinished", again)
        assert start(go_on, 2, str(again)) == [0, 0]
        alone = train_unfinished(str(tmp_path / "alone"))
        for rank in (0, 1):
            for value, other in zip(torch.load(again / str(rank)), alone, strict=True):
                torch.testing.assert_close(value, other, **TOLERANCE)


def test_a_loss_of_all_images_is_left_alone() -> None:
    loss = torch.tensor(3.0)
    assert weigh(loss, 5, 5) is loss
    assert weigh(loss, 2, 5) == pytest.approx(1.2)
    assert weigh(loss, 0, 5) == 0


def test_one_process_leaves_out_a_single_image_alone() -> None:
    modules = list(network(norm=True).modules())
    assert smallest_batch(modules, TrainOptions()) == 2
    assert processes.IMAGES % 17 == 2
