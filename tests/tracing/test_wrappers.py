"""A network in a wrapper is scored, pruned, saved and loaded like the network alone; TorchScript is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

from prune_fe import cost, inspect, load, prune, save, score
from prune_fe.errors import InputError
from prune_fe.tracing.wrappers import unwrap

X = torch.randn(2, 3, 16, 16)
DATA = TensorDataset(torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)


def block(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, units, 3, 2, 1, bias=False), nn.BatchNorm2d(units), nn.ReLU())


def bare() -> nn.Sequential:
    """Return the same network each time."""
    torch.manual_seed(0)
    layers = [block(3, 8), block(8, 6), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))]
    return nn.Sequential(*layers).eval()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


class Trained(nn.Module):
    """A module as Lightning has them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.loss = network, nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, number: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])


class Normalising(Trained):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 1)


class WithoutForward(Trained):
    forward: Any = nn.Module.forward


def compiled_part() -> nn.Module:
    model = bare()
    model[1] = compiled(model[1])
    return model


def compiled_in_place() -> nn.Module:
    model = bare()
    model.compile(backend="eager")
    return model


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "DataParallel": lambda: nn.DataParallel(bare()),
    "AveragedModel": lambda: AveragedModel(bare()),
    "torch.compile": lambda: compiled(bare()),
    "both": lambda: nn.DataParallel(compiled(bare())),
    "nn.Module.compile": compiled_in_place,
    "a compiled part": compiled_part,
    "Lightning": lambda: Trained(bare()),
    "Lightning without forward": lambda: WithoutForward(bare()),
    "Lightning, compiled": lambda: compiled(Trained(compiled(bare()))),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_the_network(kind: str, tmp_path: Path) -> None:
    wrapped = WRAPPED[kind]()
    scores, expected = score(wrapped, DATA, "feature-entropy"), score(bare(), DATA, "feature-entropy")
    assert scores.provenance["key"] == expected.provenance["key"]
    assert {layer: values.tolist() for layer, values in scores.keep.items()} == {
        layer: values.tolist() for layer, values in expected.keep.items()
    }
    pruned = prune(wrapped, expected, 0.5, X)
    alone = prune(bare(), expected, 0.5, X).model.state_dict()
    assert type(pruned.model) is nn.Sequential
    assert {name: value.tolist() for name, value in pruned.model.state_dict().items()} == {
        name: value.tolist() for name, value in alone.items()
    }
    assert cost(wrapped, X) == cost(bare(), X)
    assert inspect(wrapped, X).equals(inspect(bare(), X))
    loaded = load(save(wrapped, tmp_path / "wrapped"), bare())
    assert torch.equal(loaded(X), bare()(X))
    assert torch.equal(load(save(bare(), tmp_path / "bare"), wrapped)(X), bare()(X))


def test_a_distributed_network_is_the_network(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        inner = bare()
        assert unwrap(nn.parallel.DistributedDataParallel(compiled(inner))) is inner
    finally:
        torch.distributed.destroy_process_group()


def test_the_parts_of_an_unwrapped_network_keep_their_weights() -> None:
    model = compiled_part()
    assert [id(weight) for weight in unwrap(model).parameters()] == [id(weight) for weight in model.parameters()]
    assert type(model[1]).__name__ == "OptimizedModule"  # type: ignore[index]


def test_a_module_that_does_more_than_its_network_stays() -> None:
    model = Normalising(bare())
    assert unwrap(model, X) is model
    assert set(score(model, scorer="l1-filter", example=X).keep) == {"network.0.0", "network.1.0"}


def test_a_module_that_reads_other_inputs_than_its_network_stays() -> None:
    class Reading(Trained):
        def forward(self, batch: Any) -> Tensor:
            return self.network(batch["image"])

    model, inputs = Reading(bare()), ({"image": X},)
    assert unwrap(model, inputs) is model
    assert unwrap(model) is model
    assert prune(model, score(model, scorer="l1-filter", example=inputs), 0.5, inputs).steps[0].count > 0


def test_what_a_module_does_beside_its_network_is_saved_and_loaded(tmp_path: Path) -> None:
    scores = score(Normalising(bare()), scorer="l1-filter")
    pruned = prune(Normalising(bare()), scores, 0.5, X).model
    loaded = load(save(pruned, tmp_path / "normalising"), Normalising(bare()))
    assert type(loaded) is Normalising
    assert torch.equal(loaded(X), pruned(X))


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("what", [torch.jit.script, lambda model: torch.jit.trace(model, X)])
def test_torchscript_is_refused_by_name(what: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    scripted, part = what(bare()), bare()
    part[0] = torch.jit.script(part[0])
    for model, name in ((scripted, "model is TorchScript"), (part, "layer '0' is TorchScript")):
        with pytest.raises(InputError, match=name):
            score(model, DATA, "feature-entropy")
        with pytest.raises(InputError, match=name):
            prune(model, score(bare(), scorer="l1-filter"), 0.5, X)
        with pytest.raises(InputError, match=name):
            inspect(model, X)
        with pytest.raises(InputError, match=name):
            save(model, tmp_path / "saved")
