"""Networks, images and forged files that several tests use."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Own(nn.Module):
    """A user's network: nothing in the package knows it."""

    grey: Tensor
    scale: Tensor

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=1)
        self.head = nn.Linear(width, 5)
        self.register_buffer("grey", torch.tensor([3, 1, 2]))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.device_name = "of the user"

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.first(images * self.scale)))
        return self.head(torch.relu(self.second(maps)).mean((2, 3))) + self.grey[0]


def alive(model: nn.Module) -> nn.Module:
    """Not fresh: norms that have seen images, so that a lost buffer shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return model.eval()


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(example)


def images(size: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(2))


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, rows: Tensor) -> Tensor:
        return self.again(self.second(self.first(rows)))


class SplitBlock(nn.Module):
    """A user's own network that keeps the size of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts = 4, [2, 6]
        self.conv, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.conv(x), self.width, 1)
        c, d = torch.split(torch.cat([a, self.inner(b)], 1), self.parts, 1)
        return self.head(torch.cat([d, c], 1).mean((2, 3)))


def forge(path: Path, change: Callable[[dict[str, Any]], Any], weights: bytes | None = None) -> None:
    """Change the manifest and make the hash right again, as someone with intent would."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    if weights is not None:
        (path / "model.safetensors").write_bytes(weights)
    fields = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(fields, sort_keys=True).encode() + (path / "model.safetensors").read_bytes()
    manifest["sha256"] = hashlib.sha256(text).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def setting(module: str, key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["settings"].setdefault(module, {}).update({key: value})


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
