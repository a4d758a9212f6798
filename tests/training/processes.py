"""Trainings that the tests run in one process and in several."""

import functools
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from prune_fe.distributed import world_size
from prune_fe.errors import PruneFEError
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.training.custom import Step
from prune_fe.training.loop import finetune

IMAGES = 70
OPTIONS: dict[str, Any] = {"lr": 0.05, "schedule": "cosine", "epochs": 2, "batch_size": 32, "seed": 3}


def network(norm: bool = False, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    second: nn.Module = nn.BatchNorm2d(4) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 4, 3), second, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (IMAGES,), generator=generator)
    return TensorDataset(torch.randn(IMAGES, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1) / 4, labels)


class WithSpare(nn.Module):
    """Has weights that take no part in what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.spare = network(), nn.Linear(2, 2)

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = self.inner(values)
        return output


def train(model: nn.Module, **settings: Any) -> list[Tensor]:
    """Train, and return the weights and buffers and the losses of the epochs."""
    history = finetune(model, images(), images(), **OPTIONS | settings)
    losses = [value for epoch in history[1:] for value in (epoch.train_loss, epoch.validation_loss)]
    return [*(value.clone() for value in model.state_dict().values()), torch.tensor(losses)]


def train_frozen() -> list[Tensor]:
    model = network()
    model[0].requires_grad_(False)
    return train(model)


def train_between_rounds() -> list[Tensor]:
    model: nn.Module = network()
    momentum: dict[str, Tensor] = {}
    values = train(model, momentum_buffers=momentum)
    example = images()[0][0][None]
    pruned = prune(model, score(model, None, "l1-filter", example=example), 0.5, example, carry=momentum)
    return values + train(pruned.model, momentum_buffers=momentum) + [momentum[name] for name in sorted(momentum)]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "a last batch of 6": lambda: train(network()),
    "a last batch of 2": lambda: train(network(), batch_size=17),
    "a frozen layer": train_frozen,
    "a part": lambda: train(network(), only=["4"], cache_gib=0.0),
    "unused weights": lambda: train(WithSpare()),
    "parts of a step": lambda: train(network(), accumulate=3),
    "augmented": lambda: train(network(), augment=True),
    "synchronised norms": lambda: train(network(norm=True), sync_batchnorm=True, batch_size=17),
    "AdamW and an average": lambda: train(network(), opt="adamw", lr=1e-3, ema=0.8, warmup=0.2),
    "taught": lambda: train(network(), teacher=network(seed=5), distill={"weight": 0.5}),
    "smooth labels": lambda: train(network(), label_smoothing=0.1),
    "rounds": train_between_rounds,
}
"""Trainings that give the same in one process and in several, up to rounding."""


def train_loader() -> list[Tensor]:
    data = images()
    sampler: Any = DistributedSampler(data, seed=1) if world_size() > 1 else None
    model = network()
    finetune(model, DataLoader(data, 10, sampler=sampler), data, **OPTIONS)
    return list(model.state_dict().values())


def run_cases(rank: int, count: int, folder: str) -> None:
    """Run all trainings as one process of several, and save what they give."""
    with joined(rank, count, folder):
        results = {name: case() for name, case in CASES.items()}
        results["norms of each process"] = train(network(norm=True))
        results["norms of parts"] = train(network(norm=True), sync_batchnorm=True, accumulate=2)
        results["loader"] = train_loader()
        model = WithSpare()
        train(model)
        model.inner(images()[0][0][None]).sum().backward()  # Nothing of the other processes is left at the network.
        try:
            train(network(), batch_size=count - 1)
        except PruneFEError as error:
            Path(folder, f"error-{rank}").write_text(str(error))
        torch.save(results, f"{folder}/{rank}")


class joined:  # noqa: N801
    """Make this process one of a group for a context."""

    def __init__(self, rank: int, count: int, folder: str) -> None:
        self.arguments = rank, count, folder

    def __enter__(self) -> None:
        rank, count, folder = self.arguments
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", "training takes")
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)

    def __exit__(self, *_: object) -> None:
        distributed.destroy_process_group()


def train_unfinished(unfinished: str, on_step: Callable[[Step], None] | None = None) -> list[Tensor]:
    return train(network(), epochs=4, unfinished=unfinished, on_step=on_step or [])


def die_or_say(rank: int, count: int, folder: str, how: str) -> None:
    """Train; process 1 dies in the third epoch, and the others write down what they are told."""
    try:
        with joined(rank, count, folder):
            end = functools.partial(_end, how) if rank == 1 else None
            train_unfinished(f"{folder}/unfinished", end)
    except PruneFEError as error:
        Path(folder, f"told-{rank}").write_text(str(error))


def _end(how: str, step: Step) -> None:
    if step.epoch == 3:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("a fault of its own")


def go_on(rank: int, count: int, folder: str) -> None:
    """Go on from the unfinished training."""
    with joined(rank, count, folder):
        torch.save(train_unfinished(f"{folder}/unfinished"), f"{folder}/{rank}")
