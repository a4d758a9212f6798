"""torch-pruning as the engine: the same networks as with prune_fe's own graph, and errors where it cannot cut them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from prune_fe import prune
from prune_fe.errors import InputError
from prune_fe.pruning import torch_pruning_engine
from prune_fe.pruning.records import Pruned
from prune_fe.scoring.score import score
from prune_fe.tracing.memory_format import is_channels_last
from tests.tracing.networks import Attention, Chunks, Concatenation, Gate, Net, Shuffle, Split, Upwards

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

X = torch.randn(1, 3, 32, 32)


def prune_with_both(model: nn.Module, example: Tensor = X, **settings: Any) -> tuple[Pruned, Pruned]:
    scores = score(model, scorer="l2-filter", example=example)
    return (
        prune(model, scores, example=example, engine="trace", **settings),
        prune(model, scores, example=example, engine="torch-pruning", **settings),
    )


def assert_same(first: Pruned, second: Pruned) -> None:
    assert first.steps == second.steps
    assert (first.macs, first.parameters) == (second.macs, second.parameters)
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


class SmallVGG(nn.Sequential):
    """VGG16's features, with a small classifier."""

    def __init__(self, name: str) -> None:
        features = torchvision.models.get_model(name).features
        super().__init__(features, nn.Flatten(), nn.Linear(512, 20), nn.ReLU(), nn.Linear(20, 5))


torchvision_model = partial(partial, torchvision.models.get_model, num_classes=5)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg16": partial(SmallVGG, "vgg16"),
    "vgg16_bn": partial(SmallVGG, "vgg16_bn"),
    **{name: torchvision_model(name) for name in ("resnet18", "resnet34", "resnet50", "mobilenet_v2")},
    "densenet121": torchvision_model("densenet121"),
    "googlenet": torchvision_model("googlenet", aux_logits=False, init_weights=False),
    **{name: torchvision_model(name) for name in ("efficientnet_b0", "resnext50_32x4d", "regnet_x_400mf")},
}


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"ratio": 0.3}, {"target_macs": 0.4}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_engines_give_the_same_bits(name: str, settings: dict[str, Any]) -> None:
    model = NETWORKS[name]()
    first, second = prune_with_both(model, **settings)
    assert second.parameters < 0.8
    assert_same(first, second)


@pytest.mark.filterwarnings("ignore:left out. layers 'aux1")
def test_branches_of_training_are_cut_too() -> None:
    model = torchvision_model("googlenet", init_weights=False)()
    assert model.aux1 is not None
    first, second = prune_with_both(model, ratio=0.5)
    assert all(step.left is None for step in second.steps)
    assert_same(first, second)
    second.model.train()
    assert [len(output) for output in second.model(torch.cat([X, X]))] == [2, 2, 2]


def test_a_network_that_wants_more_in_training_is_cut_as_in_evaluation() -> None:
    class Supervised(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            output = super().forward(x)
            if not self.training:
                return output
            if labels is None:
                raise ValueError("labels are missing")
            return nn.functional.cross_entropy(output, labels)

    assert_same(*prune_with_both(Supervised(), X[:, :, :16, :16], ratio=0.5))


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.5, "rounds": 3},
        {"ratio": 0.5, "rounds": "layers"},
        {"ratio": {"stem": 0.25, "conv": 0.5}},
        {"target_params": 0.6, "ranking": "global"},
        {"ratio": 0.4, "round_to": 2, "protect": ["stem"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Concatenation, Gate])
def test_the_options_mean_the_same(kind: type[nn.Module], settings: dict[str, Any]) -> None:
    assert_same(*prune_with_both(kind(), X[:, :, :16, :16], **settings))


def test_hidden_units_of_linear_layers_are_cut() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 12), nn.ReLU(), nn.Linear(12, 4))
    example = X[:, :, :8, :8]
    scores = score(model, scorer="l1-filter", example=example, linear=True)
    pruned = prune(model, scores, 0.5, example, engine="torch-pruning")
    assert [(step.layers, step.count) for step in pruned.steps] == [(("1",), 6)]


def test_frozen_weights_and_memory_formats_stay_as_they_are() -> None:
    model = torchvision.models.resnet18(num_classes=3).to(memory_format=torch.channels_last)
    model.conv1.weight.requires_grad_(False)
    first, second = prune_with_both(model, ratio=0.5)
    assert_same(first, second)
    for name, weight in second.model.named_parameters():
        assert weight.requires_grad == (name != "conv1.weight"), name
        assert is_channels_last(weight) == is_channels_last(first.model.get_parameter(name)), name
    assert model.conv1.weight.shape == (64, 3, 7, 7)


def test_a_graph_that_cannot_be_built_is_refused_by_name() -> None:
    class Detached(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(InputError, match='engine torch-pruning: .*the engine "trace" may be able to cut it'):
        prune_with_both(Detached(), X[:, :, :16, :16])


class Scaled(Net):
    """Channels multiplied with a parameter that belongs to no layer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)

    def body(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"ratio": 0.6, "rounds": 2}], ids=str)
def test_a_parameter_of_no_layer_with_one_dimension_is_cut(settings: dict[str, Any]) -> None:
    first, second = prune_with_both(Scaled(8, 1, 1), X[:, :, :16, :16], **settings)
    assert second.model.get_parameter("scale").shape == (len(second.steps[-1].kept["stem"]), 1, 1)
    assert_same(first, second)


def test_a_parameter_of_no_layer_with_several_dimensions_is_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"engine torch-pruning: parameter 'scale' of shape \(8, 16, 16\) belongs to no layer"
    ):
        prune_with_both(Scaled(8, 16, 16), X[:, :, :16, :16])


def test_a_layer_norm_that_moves_the_channels_is_cut() -> None:
    blocks = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)]
    first, second = prune_with_both(ConvNeXt(blocks, num_classes=3), ratio=0.5)
    assert all(step.left is None for step in second.steps)
    assert_same(first, second)


def test_the_units_that_are_viewed_as_one_map_are_removed_together() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.last = nn.Linear(6, 32), nn.Conv2d(8, 4, 1), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu().view(-1, self.conv.in_channels, 2, 2)
            return self.last(self.conv(x).relu().flatten(1))

    model, example = Viewed(), torch.randn(2, 6)
    scores = score(model, scorer="l2-filter", example=example, linear=True)
    first, second = (prune(model, scores, 0.5, example, engine=engine) for engine in ("trace", "torch-pruning"))
    assert [(step.layers, step.count) for step in second.steps] == [(("first",), 4), (("conv",), 2)]
    assert_same(first, second)


def test_channels_that_it_removes_wrongly_are_refused_by_name() -> None:
    model, example = Chunks(), X[:, :, :16, :16]
    with pytest.raises(InputError, match=r"engine torch-pruning: it cuts .* in another way|it cannot cut layer"):
        prune(model, score(model, scorer="l1-filter"), 0.5, example, engine="torch-pruning")


def test_a_cut_that_is_not_the_proved_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_others(self: Any, name: str, units: Any) -> Any:
        return prune_as_asked(self, name, [(unit + 1) % 8 for unit in units])

    prune_as_asked = torch_pruning_engine._Groups.prune
    monkeypatch.setattr(torch_pruning_engine._Groups, "prune", cut_others)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(InputError, match=r"it cuts '0.weight' of layer '0' .* in another way than was verified"):
        prune(model, score(model, scorer="l1-filter"), 0.5, X, engine="torch-pruning")


def test_groups_whose_removal_is_no_masking_keep_their_units() -> None:
    model, example = Shuffle(), X[:, :, :16, :16]  # torch-pruning takes a shuffle of the channels for none
    pruned = prune(model, score(model, scorer="l1-filter"), 0.5, example, engine="torch-pruning")
    stem, conv, last = pruned.steps
    for step in (stem, conv):
        assert step.count == 0
        assert str(step.left).startswith("removing its units is not masking them")
        assert str(step.left).endswith('the engine "trace" may be able to cut it')
    assert last.count == 8


@pytest.mark.parametrize("kind", [Split, Upwards, Attention])
def test_groups_that_are_not_closed_are_refused_by_name(kind: type[nn.Module]) -> None:
    model, example = kind(), X[:, :, :16, :16]
    with pytest.raises(
        InputError, match=r"its group of layer '\w+' names channels that do not exist: .* for the \d+ of"
    ):
        prune(model, score(model, scorer="l1-filter"), 0.5, example, engine="torch-pruning")


def test_layers_that_share_a_weight_share_it_after_the_cut() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu() * self.second(x.flip(1)).relu())

    model, example = Tied(), torch.randn(2, 6)
    scores = score(model, scorer="l2-filter", example=example, linear=True)
    ours, theirs = (prune(model, scores, example=example, engine=engine) for engine in ("trace", "torch-pruning"))
    assert_same(ours, theirs)
    assert theirs.model.get_parameter("first.weight") is theirs.model.get_submodule("second")._parameters["weight"]
    assert theirs.model.get_parameter("first.weight").shape == (4, 6)


def test_a_group_that_it_cannot_find_is_refused_by_name() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru, self.last = nn.Conv2d(3, 12, 3), nn.GRU(12, 10, batch_first=True), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).mean(2).transpose(1, 2)
            return self.last(self.gru(tokens)[0][:, -1])

    model, example = Recurrent(), torch.randn(1, 3, 16, 16)
    scores = score(model, scorer="l2-filter", example=example)
    with pytest.raises(InputError, match="it cannot find the group of layer 'conv' .IndexError: list index.*trace"):
        prune(model, scores, example=example, engine="torch-pruning")


class Counting(Net):
    """A network whose code writes into a weight whenever it runs."""

    def body(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.bias.add_(1)
        return x


def test_weights_that_code_writes_into_stay_as_they_are() -> None:
    model, example = Counting(), X[:, :, :16, :16]
    scores = score(model, scorer="l1-filter", example=example)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune(model, scores, 0.5, example, engine="torch-pruning").model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(pruned.get_parameter("head.bias"), before["head.bias"])
    with torch.no_grad():
        for weight in pruned.parameters():
            weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Weighted(Net):
    """A convolution whose weights are computed before each use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.utils.weight_norm(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x)).relu()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed_stay_as_they_are() -> None:
    first, second = prune_with_both(Weighted(), ratio=0.5)
    assert first.steps == second.steps
    assert [(step.layers, step.count) for step in second.steps] == [(("stem",), 0), (("conv",), 0), (("last",), 4)]
    assert "WeightNorm" in str(second.steps[1].left)
