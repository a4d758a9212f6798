"""Small networks and images that the tests of training share."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning.prune import prune
from prune_fe.pruning.records import Pruned
from prune_fe.scoring.scores import Scores
from prune_fe.training import epochs


def pictures(count: int = 24, size: int = 8, channels: int = 1, classes: int = 3, seed: int = 0) -> TensorDataset:
    """Images whose brightness tells their class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randn(count, channels, size, size, generator=generator) + labels.view(-1, 1, 1, 1).float()
    return TensorDataset(images, labels)


def small(seed: int = 0, **arguments: Any) -> SmallVGG:
    torch.manual_seed(seed)
    return SmallVGG(3, 1, **{"stages": [[4], [4]]} | arguments)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def script_validation(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float] | None = None
) -> None:
    """Let the validation images give these results, epoch by epoch."""
    pairs = zip(accuracies, losses or [1.0] * len(accuracies), strict=True)
    results = iter([SimpleNamespace(accuracy=accuracy, loss=loss) for accuracy, loss in pairs])
    monkeypatch.setattr(epochs, "evaluate", lambda *_, **__: next(results))


class Recorded(Dataset[Any]):
    """Remembers which images were read."""

    def __init__(self, inner: TensorDataset) -> None:
        self.inner, self.read = inner, list[int]()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.inner[index]


def by_hand(classes: int = 2) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Two 1×1 convolutions with whole numbers as weights, one unit a row, and as momentum."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    weights = {
        "0.weight": torch.tensor([2.0, 3, 4, 5]).view(4, 1, 1, 1),
        "2.weight": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])[:classes].view(classes, 4, 1, 1),
        "2.bias": torch.tensor([10.0, 20])[:classes],
    }
    model.load_state_dict(weights)
    return model, {name: 10 * weight for name, weight in weights.items()}


def without_one_and_three(model: nn.Module, **arguments: Any) -> Pruned:
    return prune(model, Scores("by hand", {"0": np.array([4.0, 1, 3, 2])}), 0.5, torch.rand(1, 1, 8, 8), **arguments)
