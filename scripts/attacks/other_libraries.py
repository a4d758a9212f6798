"""Files of other libraries with the same weights and damages: wrong are other weights without an error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import prune_fe
from attacks.damage import corrupt, new_network, plain
from attacks.tally import Outcome

WIDTH = 64
"""Units of a layer: the weights, and not the names around them, are most of a file."""


@dataclass(frozen=True)
class Library:
    """How a library saves weights, and reads them into a network.

    Attributes:
        package: The package that it needs.
        save: Writes the weights of a network to a file.
        load: Returns a network with the weights in a file.
        file: Name of the file; with a folder, `save` and `load` get the folder.
    """

    package: str
    save: Callable[[nn.Module, Path], Any]
    load: Callable[[Path], nn.Module]
    file: str = "weights"

    @property
    def label(self) -> str:
        """The name and the version of the package."""
        return f"{self.package} {version(self.package)}"

    def attack(self, directory: Path, count: int, seed: int) -> list[Outcome] | None:
        """Damage a file of the library `count` times; None if the package is not there."""
        if importlib.util.find_spec(self.package.replace("-", "_")) is None:
            return None
        directory.mkdir()
        path = directory / self.file
        self.save(new_network(WIDTH), path)
        return corrupt(path, lambda path: plain(self.load(path).state_dict()), count, seed, any_error=True)


def load_torch(path: Path) -> nn.Module:
    """Read what torch.save wrote."""
    network = new_network(WIDTH)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def save_safetensors(network: nn.Module, path: Path) -> None:
    """Write weights with safetensors."""
    safetensors.torch.save_model(network, str(path))


def load_safetensors(path: Path) -> nn.Module:
    """Read what safetensors wrote."""
    network = new_network(WIDTH)
    safetensors.torch.load_model(network, path)
    return network


def lightning_module() -> Any:
    """Return a class with the small network for Lightning."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = new_network(WIDTH)

    return Module


def save_lightning(network: nn.Module, path: Path) -> None:
    """Write a checkpoint with Lightning's trainer."""
    import lightning

    module = lightning_module()()
    module.network.load_state_dict(network.state_dict())
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


def load_lightning(path: Path) -> nn.Module:
    """Read a checkpoint with Lightning."""
    return lightning_module().load_from_checkpoint(path, map_location="cpu", weights_only=True).network


def save_torch_pruning(network: nn.Module, path: Path) -> None:
    """Write a network as torch-pruning's examples do it."""
    import torch_pruning

    torch.save(torch_pruning.state_dict(network), path)


def load_torch_pruning(path: Path) -> nn.Module:
    """Read what torch-pruning wrote."""
    import torch_pruning

    network = new_network(WIDTH)
    # It holds Python objects, which torch.load refuses otherwise.
    torch_pruning.load_state_dict(network, torch.load(path, weights_only=False))
    return network


LIBRARIES = {
    "torch.load": Library("torch", lambda network, path: torch.save(network.state_dict(), path), load_torch),
    "safetensors": Library("safetensors", save_safetensors, load_safetensors),
    "Lightning, load_from_checkpoint": Library("lightning", save_lightning, load_lightning),
    "torch-pruning": Library("torch-pruning", save_torch_pruning, load_torch_pruning),
    "prune_fe, model.safetensors": Library(
        "prune-fe",
        lambda network, path: prune_fe.save(network, path.parent),
        lambda path: prune_fe.load(path.parent),
        "saved/model.safetensors",
    ),
    "prune_fe, manifest.json": Library(
        "prune-fe",
        lambda network, path: prune_fe.save(network, path.parent),
        lambda path: prune_fe.load(path.parent),
        "saved/manifest.json",
    ),
}
