"""What is asked is what is removed, and removing is masking."""

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.prune import l1_unstructured
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import mobilenet_v2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from prune_fe.errors import InputError
from prune_fe.measure.cost import cost
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning import pooled_weights
from prune_fe.pruning.cut import Cutter
from prune_fe.pruning.groups import find_groups
from prune_fe.pruning.options import PruneOptions
from prune_fe.pruning.plan import plan_quotas, start_plan
from prune_fe.pruning.prune import prune
from prune_fe.pruning.records import Pruned, Step
from prune_fe.pruning.remaining_cost import RemainingCost
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.channel_tracer import build_dependency_graph
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers
from prune_fe.tracing.memory_format import is_channels_last
from prune_fe.tracing.watching import tensors_in
from tests.tracing import networks
from tests.tracing.keeping import Keeping, state

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def small() -> nn.Module:
    return SmallVGG(classes=4, stages=((6, 6), (8,))).eval()


def trained_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that have seen something, so that a wrong channel would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def removed_units(pruned: Pruned) -> dict[str, tuple[int, ...]]:
    """Layer -> what it lost, in one group or in several."""
    found: dict[str, tuple[int, ...]] = {}
    for step in pruned.steps:
        for layer, numbers in step.removed.items():
            found[layer] = tuple(sorted({*found.get(layer, ()), *numbers}))
    return found


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    with torch.device("meta"):
        model = torchvision.models.vgg16()
    model = model.to_empty(device="cpu").eval()
    for weight in model.parameters():
        nn.init.constant_(weight, 1e-3)
    return model


TABLE_12 = [(0, 138.358, 30.94), (0.4, 87.783, 11.15), (0.5, 75.943, 7.86), (0.6, 64.163, 5.01)]
"""(ratio, million parameters, gflops) in the design's table, which rounds as table 12 of the paper does: multiply-adds
counted as two, classifier included."""


def test_vgg16_comes_out_as_table_12_says(vgg16: nn.Module) -> None:
    image = torch.zeros(1, 3, 224, 224)
    before, scores, graph = cost(vgg16, image), score(vgg16, scorer="l1-filter"), build_dependency_graph(vgg16, image)
    remaining, widths = (
        RemainingCost(vgg16, Cutter(vgg16, graph)),
        {name: len(keep) for name, keep in scores.keep.items()},
    )
    groups = find_groups(vgg16, graph, list(widths))
    for ratio, million_parameters, gflops in TABLE_12:
        options = PruneOptions(ratio=ratio)
        plan = start_plan(groups, widths, scores.keep, options)
        plan = plan.with_quotas(plan_quotas(plan, options, Fraction(1), remaining.share))
        removed = plan.filling_quotas(plan.open_groups).removed_sets
        assert round(before.parameters * remaining.share("parameters", removed) / 1e6, 3) == million_parameters
        assert round(before.flops * remaining.share("macs", removed) / 1e9, 2) == gflops


def test_the_cut_vgg16_is_the_one_of_table_12(vgg16: nn.Module) -> None:
    ratio, million_parameters, gflops = TABLE_12[-1]
    pruned = prune(vgg16, score(vgg16, scorer="l1-filter"), ratio, torch.zeros(1, 3, 32, 32)).model
    result = cost(pruned, torch.zeros(1, 3, 224, 224))
    assert round(result.parameters / 1e6, 3) == million_parameters
    assert round(result.flops / 1e9, 2) == gflops


@pytest.mark.parametrize(
    "name",
    ["vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0"]
    + ["regnet_y_400mf", "timm/efficientnet_lite0", "timm/resnet18"],
)
def test_masking_units_equals_removing_them(name: str) -> None:
    library = timm.create_model if name.startswith("timm/") else torchvision.models.get_model
    model = trained_statistics(library(name.removeprefix("timm/"), num_classes=5))
    if name == "vgg16_bn":  # its classifier has nine tenths of the weights
        model.classifier = nn.Sequential(nn.Linear(25088, 16), nn.ReLU(), nn.Linear(16, 5))
    pruned = prune(model, score(model, scorer="random"), ratio=0.4, example=X[:1])
    assert all(step.left is None and step.count == step.asked > 0 for step in pruned.steps)
    with torch.no_grad():
        with mask(model, find_layers(model, X), removed_units(pruned)):
            masked = model(X)
        torch.testing.assert_close(pruned.model(X), masked, rtol=1e-4, atol=1e-4 * masked.abs().max().item())


def test_the_removed_units_are_the_weakest_and_the_rest_keeps_its_weights() -> None:
    model = small()
    scores = score(model, scorer="l1-filter")
    pruned = prune(model, scores, ratio=0.5, example=X)
    for step in pruned.steps:
        (layer,) = step.layers
        assert set(step.removed[layer]) == set(scores.weakest(layer, step.asked))
        assert sorted(step.removed[layer] + step.kept[layer]) == list(range(step.units))
    first = pruned.steps[0].kept["features.0"]
    assert torch.equal(pruned.model.features[0].weight, model.features[0].weight[list(first)])  # type: ignore[index,union-attr]


def test_steps_run_from_shallow_to_deep() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    order = [layer.name for layer in find_layers(model, X)]
    firsts = [order.index(step.layers[0]) for step in prune(model, score(model, scorer="random"), example=X).steps]
    assert firsts == sorted(firsts)


def test_equal_scores_go_in_the_order_of_their_numbers_and_no_more_than_asked() -> None:
    model = small()
    scores = Scores("ties", {layer.name: np.zeros(layer.units) for layer in find_layers(model, X)})
    removed = removed_units(prune(model, scores, ratio=0.5, example=X))
    assert list(removed.values()) == [(0, 1, 2)] * 2 + [(0, 1, 2, 3)]


def test_the_blocks_of_a_grouped_convolution_lose_equally_many() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    )
    x = torch.randn(2, 3, 10, 10)
    keep = {"0": np.array([0.0, 9, 1, 9, 5, 9, 3, 9]), "2": np.array([9, 0.0, 1, 9, 9, 9, 9, 8])}
    pruned = prune(net, Scores("by hand", keep), ratio=0.25, example=x)
    assert removed_units(pruned) == {"0": (0, 6), "2": (1, 7)}
    with torch.no_grad(), mask(net, find_layers(net, x), removed_units(pruned)):
        torch.testing.assert_close(pruned.model(x), net(x))


def test_coupled_units_go_by_the_mean_of_their_layers() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    scores = score(model, scorer="l1-filter")
    pruned = prune(model, scores, ratio=0.5, example=X)
    (stream,) = [step for step in pruned.steps if "layer1.0.conv2" in step.layers]
    assert stream.layers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    mean = sum(scores.keep[layer] for layer in stream.layers) / 3
    weakest = tuple(sorted(np.argsort(mean, kind="stable")[:32].tolist()))
    assert stream.removed == dict.fromkeys(stream.layers, weakest)


@pytest.mark.parametrize(("reduction", "weakest"), [("mean", (2, 3)), ("max", (1, 3)), ("min", (0, 2))])
def test_how_the_scores_of_tied_layers_are_reduced(reduction: str, weakest: tuple[int, ...]) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.a(x) + self.b(x)).mean((2, 3)))

    model = Sum()
    scores = Scores("by hand", {"a": np.array([9.0, 3, 0, 2]), "b": np.array([-1.0, 3, 4, 2.0])})
    pruned = prune(model, scores, 0.5, X, reduction=reduction)
    assert removed_units(pruned) == {"a": weakest, "b": weakest}


def test_scope_inner_leaves_residual_streams_alone() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    steps = prune(model, score(model, scorer="random"), example=X, scope="inner").steps
    left = [step for step in steps if step.left]
    assert len(steps) == 12
    assert [step.left for step in left] == ["coupled by a residual sum"] * 4
    assert all(step.count == 0 for step in left)
    assert all(step.count for step in steps if not step.left)


def test_a_depthwise_convolution_is_no_residual_sum() -> None:
    model = torchvision.models.mobilenet_v2(num_classes=3)
    steps = prune(model, score(model, scorer="random"), example=X, scope="inner").steps
    inner = [step for step in steps if "features.2.conv.0.0" in step.layers]
    assert inner[0].layers == ("features.2.conv.0.0", "features.2.conv.1.0")
    assert inner[0].left is None


def test_the_users_model_is_not_changed_and_keeps_its_mode() -> None:
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    prune(model, score(model, scorer="random"), example=X)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("rounds", [1, 2, "layers"])
def test_the_network_between_the_rounds_has_its_own_weights(rounds: int | str) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())

    def spoil(current: nn.Module, *rest: object) -> None:
        with torch.no_grad():
            for tensor in (*current.parameters(), *current.buffers()):
                tensor.fill_(1)

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        spoil(current)
        return score(current, scorer="random", layers=layers)

    scores = score(model, scorer="random")
    # The first layer keeps all units, so that scores are asked for before anything is cut.
    result = prune(model, scores, {"features.0": 0, "features.7": 0.5}, X, rounds=rounds, rescore=rescore, after=spoil)
    spoil(result.model)
    spoil(prune(model, scores, 0, X).model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors on the CPU that were made in the context and exist at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.alive = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: object, types: object, args: Any = (), kwargs: Any = None) -> Any:
        known = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        output = func(*args, **(kwargs or {}))  # type: ignore[operator]
        for tensor in tensors_in(output):
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage._cdata not in known:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return output


@pytest.mark.parametrize("engine", ["trace", "torch-pruning"])
@pytest.mark.parametrize("side", [32, 160])
def test_no_copy_of_the_whole_network_is_made(side: int, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "torch-pruning":
        pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    # With fewer numbers than usual the pool is as small beside this network as usually beside a large one.
    monkeypatch.setattr(pooled_weights, "PERIOD", 10007)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=4), nn.ReLU(), nn.Conv2d(32, 256, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(4096, 512), nn.Linear(512, 10)),
    )
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    scores = score(model, scorer="random")
    with LiveBytes() as count:
        pruned = prune(model, scores, 0.5, torch.zeros(1, 3, side, side), engine=engine)
    assert 0.4 * weights < sum(weight.numel() * weight.element_size() for weight in pruned.model.parameters())
    assert count.peak <= 1.2 * weights
    with LiveBytes() as count:
        copy.deepcopy(model).double()
    assert count.peak >= 2 * weights


def test_a_frozen_network_is_pruned_and_stays_frozen() -> None:
    model = small().requires_grad_(False)
    model.classifier.requires_grad_(True)
    pruned = prune(model, score(model, scorer="random"), example=X)
    assert all(step.count for step in pruned.steps)
    trained = [name for name, weight in pruned.model.named_parameters() if weight.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]


def test_gradients_reach_every_weight_afterwards() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    pruned = prune(model, score(model, scorer="random"), example=X).model.train()
    pruned(X).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in pruned.parameters())


def test_a_ratio_a_layer() -> None:
    model = small()
    steps = prune(model, score(model, scorer="random"), {"features.3": 0.5}, X).steps
    assert [step.count for step in steps] == [0, 3, 0]
    assert steps[0].left == "ratio 0 removes none of 6 units"


def test_ratio_zero_is_an_explicit_no_op() -> None:
    model = small()
    pruned = prune(model, score(model, scorer="random"), 0, X)
    assert all(step.left for step in pruned.steps)
    with torch.no_grad():
        assert torch.equal(pruned.model(X), model(X))


def test_layers_without_scores_are_left_alone_and_said() -> None:
    model = small()
    steps = prune(model, score(model, scorer="random", layers=["features.3"]), 0.5, X).steps
    assert [step.left for step in steps] == ["not scored", None, "not scored"]


def test_scores_are_asked_for_anew_before_each_layer() -> None:
    model, asked = small(), []

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        asked.append((layers, current.features[0].out_channels))  # type: ignore[index,union-attr]
        return score(current, scorer="l1-filter", layers=layers)

    seen: list[tuple[str, ...]] = []
    scores = score(model, scorer="random")
    prune(
        model,
        scores,
        0.5,
        X,
        rounds="layers",
        rescore=rescore,
        after=lambda current, steps: seen.append(tuple(step.layers[0] for step in steps)),
    )
    assert asked == [(("features.3",), 3), (("features.7",), 3)]
    assert seen == [("features.0",), ("features.3",), ("features.7",)]


def test_rounds_reach_the_same_widths_in_equal_steps() -> None:
    model, widths = small(), []

    def after(current: nn.Module, steps: object) -> None:
        widths.append([module.out_channels for module in current.modules() if isinstance(module, nn.Conv2d)])

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        return score(current, scorer="l1-filter", layers=layers)

    pruned = prune(model, score(model, scorer="l1-filter"), 0.5, X, rounds=2, rescore=rescore, after=after)
    assert widths == [[5, 5, 6], [3, 3, 4]]
    assert [step.asked for step in pruned.steps] == [step.count for step in pruned.steps] == [3, 3, 4]
    found = removed_units(pruned)
    assert all(len(set(numbers)) == len(numbers) for numbers in found.values())
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest


def test_rounds_remove_by_the_scores_of_the_network_so_far_in_numbers_of_the_original() -> None:
    model = small()
    first = Scores("by hand", {"features.7": np.array([0.0, 1, 9, 9, 9, 9, 9, 9])})

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        assert layers == ("features.7",)
        return Scores("by hand", {"features.7": np.array([9.0, 0, 9, 9, 9, 1])})  # of 2 to 7

    pruned = prune(model, first, {"features.7": 0.5}, X, rounds=2, rescore=rescore)
    assert removed_units(pruned)["features.7"] == (0, 1, 3, 7)


class Fixed(nn.Module):
    """Its forward pass knows the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) * torch.ones(8, 1, 1)).mean((2, 3)))


def test_what_cannot_be_cut_is_refused_by_name() -> None:
    model = Fixed()
    reason = "conv: combined with 8 values that no layer with units gave, in the network's code"
    with pytest.raises(InputError, match=f"nothing could be pruned .{reason}"):
        prune(model, score(model, scorer="random"), example=X)
    assert model.conv.out_channels == 8


def test_a_network_with_only_its_output_to_prune_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="nothing could be pruned .no layer but the output's"):
        prune(net, score(net, scorer="random"), example=X)


def test_wrong_arguments_are_refused_by_name() -> None:
    model = small()
    scores = score(model, scorer="random")
    with pytest.raises(InputError, match="prune.. needs example="):
        prune(model, scores)
    with pytest.raises(InputError, match="scope: input should be 'all' or 'inner' .got 'max'."):
        prune(model, scores, example=X, scope="max")
    with pytest.raises(InputError, match="ratio: input should be less than 1 .got 1.5."):
        prune(model, scores, 1.5, X)
    with pytest.raises(
        InputError, match=r"prune\(\): ratio and target_macs were given; a network is pruned by one of them"
    ):
        prune(model, scores, 0.5, X, target_macs=0.5)
    with pytest.raises(InputError, match="targetmacs: unknown key; did you mean 'target_macs'"):
        prune(model, scores, 0.5, X, targetmacs=0.5)
    with pytest.raises(InputError, match="protect: no layer is called 'feature.7'; near it are features.7,"):
        prune(model, scores, example=X, protect=["feature.7"])
    with pytest.raises(InputError, match="ratio: no layer that can be pruned is called 'features.1'; near it are feat"):
        prune(model, scores, {"features.1": 0.5}, X)
    with pytest.raises(
        InputError, match="layer 'features.0': scores of 3 units, the model has 6; they belong to another"
    ):
        prune(model, Scores("other", {"features.0": np.zeros(3)}), 0.5, X)
    with pytest.raises(InputError, match="layer 'conv', unit 1: the score is nan, it must be finite"):
        Scores("bad", {"conv": np.array([1, math.nan])})
    resnet = torchvision.models.resnet18(num_classes=3)
    shares = {"layer1.0.conv2": 0.5, "layer1.1.conv2": 0.25}
    with pytest.raises(
        InputError, match=r"conv1, layer1.0.conv2, layer1.1.conv2 go together, but are asked for \[0.25, 0.5\]"
    ):
        prune(resnet, score(resnet, scorer="random"), shares, X)


class OptionA(nn.Module):
    """A residual sum of 4 and 8 channels: the shortcut is padded with zeros (He et al. 2016, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.out(torch.relu(self.inner(x))) + nn.functional.pad(x, (0, 0, 0, 0, 2, 2))
        return self.head(torch.relu(y).mean((2, 3)))


def test_a_padded_shortcut_keeps_what_stands_beside_the_padding() -> None:
    model = OptionA().eval()
    pruned = prune(model, score(model, scorer="random"), example=X)
    assert [(step.layers, step.units, step.count, step.left) for step in pruned.steps] == [
        (("stem", "out"), 4, 2, None),
        (("inner",), 6, 3, None),
        (("out",), 4, 0, "padded with zeros, or added to values that no layer with units gave"),
    ]
    assert {2 + number for number in removed_units(pruned)["stem"]} == set(removed_units(pruned)["out"])
    with torch.no_grad(), mask(model, find_layers(model, X), removed_units(pruned)):
        torch.testing.assert_close(pruned.model(X), model(X))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.head(torch.relu(self.c(x)).mean((2, 3)))


def test_what_is_tied_to_a_shared_convolution_is_cut_consistently() -> None:
    model = Shared().eval()
    pruned = prune(model, score(model, scorer="random", example=X), example=X)
    assert [(step.layers, step.also, step.count) for step in pruned.steps] == [(("a", "b"), (), 2), (("c",), (), 3)]
    gone = list(removed_units(pruned)["a"])
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for conv in (silent.a, silent.b):
            conv.weight[gone], conv.bias[gone] = 0, 0  # type: ignore[index]
        silent.c.weight[list(removed_units(pruned)["c"])] = 0
        silent.c.bias[list(removed_units(pruned)["c"])] = 0  # type: ignore[index]
        torch.testing.assert_close(pruned.model(X), silent(X))


def test_gates_that_go_with_a_layer_are_named() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=2)
    steps = prune(model, score(model, scorer="random", example=X), example=X).steps
    assert any("fc2" in other for step in steps for other in step.also)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.scale = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x))).mean((2, 3)) * self.scale


def test_a_scale_behind_the_output_layer_does_not_expose_it() -> None:
    model = Scaled()
    assert [step.layers for step in prune(model, score(model, scorer="random"), example=X).steps] == [("a",)]


def test_frozen_weights_are_frozen_while_training_between_layers() -> None:
    model = small()
    model.features[0].requires_grad_(False)  # type: ignore[index]
    seen = []

    def after(current: nn.Module, step: object) -> None:
        seen.append(current.features[0].weight.requires_grad)  # type: ignore[index,union-attr]

    pruned = prune(model, score(model, scorer="random"), example=X, rounds="layers", after=after)
    assert seen == [False] * 3
    assert all(step.count for step in pruned.steps)


def test_what_is_carried_is_cut_with_the_parameters_in_every_round() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=3)
    momentum = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    carried, seen = dict(momentum), []

    def after(current: nn.Module, steps: object) -> None:
        weights = dict(current.named_parameters())
        seen.append(sum(map(torch.numel, weights.values())))
        assert all(torch.equal(carried[name], weight) for name, weight in weights.items())

    pruned = prune(model, score(model, scorer="random"), 0.5, X, rounds=3, after=after, carry=carried)
    assert sorted({*seen}, reverse=True) == seen
    assert len(seen) == 3
    assert all(torch.equal(left, carried[name]) for name, left in pruned.surviving(momentum).items())
    assert all(torch.equal(weight, momentum[name]) for name, weight in model.named_parameters())


def test_what_is_carried_may_be_replaced_between_the_rounds() -> None:
    model, carried = small(), dict[str, Tensor]()

    def after(current: nn.Module, steps: object) -> None:
        carried["features.3.weight"] = 2 * current.get_parameter("features.3.weight").detach()

    scores = score(model, scorer="l1-filter")
    pruned = prune(model, scores, 0.5, X, rounds="layers", after=after, carry=carried).model
    assert torch.equal(carried["features.3.weight"], 2 * pruned.get_parameter("features.3.weight"))

    def spoil(current: nn.Module, steps: object) -> None:
        carried["features.3.weight"] = torch.ones(6, 1)

    before = carried["features.3.weight"] = torch.ones(6, 6, 3, 3)
    with pytest.raises(InputError, match=r"carry of parameter 'features.3.weight' is \(6, 1\), .* \(6, 3, 3, 3\)"):
        prune(model, scores, 0.5, X, rounds="layers", after=spoil, carry=carried)
    assert carried["features.3.weight"] is before


def masked_layer(layer: nn.Module) -> nn.Module:
    return l1_unstructured(l1_unstructured(layer, "weight", 0.5), "bias", 0.5)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (nn.utils.weight_norm, "WeightNorm"),
        (nn.utils.spectral_norm, "SpectralNorm"),
        (masked_layer, "L1Unstructured"),
        (nn.utils.parametrizations.weight_norm, "WeightNorm"),
        (nn.utils.parametrizations.spectral_norm, "SpectralNorm"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_computed_weights_block_only_themselves_and_what_they_read(
    change: Callable[[nn.Module], nn.Module], name: str
) -> None:
    layers = [nn.Conv2d(3 if number == 0 else 8, 8, 3) for number in range(5)]
    model = nn.Sequential(*layers[:2], change(layers[2]), *layers[3:], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    expected = model(X)
    pruned = prune(model, score(model, scorer="l1-filter"), 0.5, X)
    reason = f"layer '2': its weights are computed before each use (by {name}); make them plain weights first"
    assert [(step.count, step.left) for step in pruned.steps] == [(4, None), (0, reason), (0, reason), (4, None)]
    difference, largest = pruned.difference(model, X)
    assert difference < 1e-5 * largest
    torch.testing.assert_close(model(X), expected)


def test_computed_weights_of_other_modules_are_named() -> None:
    model = small_with_head(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)))
    reason = "layer '2.2': its weights are computed before each use .by SpectralNorm."
    with pytest.raises(InputError, match=f"nothing could be pruned .0: {reason}"):
        prune(model, score(model, scorer="random"), example=X)


def small_with_head(layer: nn.Module) -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer, nn.Linear(4, 2))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), head).eval()


def test_a_divisor_is_named_where_another_number_goes_than_asked() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1), nn.Flatten())
    pruned = prune(model, score(model, scorer="random"), 0.3, X)
    assert [(step.count, step.left) for step in pruned.steps] == [(4, None), (2, None)]
    who = "GroupNorm '1' with 4 groups"
    assert pruned.notes == (f"equal parts lose equally many units: '0' 4 of 8 instead of 3 (a multiple of 4: {who})",)
    model[1] = nn.GroupNorm(8, 8)
    pruned = prune(model, score(model, scorer="random"), 0.3, X)
    assert pruned.steps[0].left == "ratio 0.3 removes none of 8 units in 8 blocks (GroupNorm '1' with 8 groups)"
    assert pruned.notes == ()


class Head(nn.Module):
    """Its outputs are counted by `no`, and none of them can go."""

    def __init__(self) -> None:
        super().__init__()
        self.no, self.conv = 6, nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(len(x), self.no, -1).mean(2)


def test_only_sizes_that_changed_are_said_to_have() -> None:
    model = networks.Split()
    model.head = nn.Identity()  # type: ignore[assignment]
    whole = nn.Sequential(Reshaped(model), Head()).eval()
    pruned = prune(whole, score(whole, scorer="random"), 0.5, X)
    assert pruned.model.get_submodule("1").no == 6
    assert pruned.notes == ("sizes in the network's code were changed too: 0.net.width",)


class Reshaped(nn.Module):
    """The features of a network as a map of one pixel."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :, None, None]


def test_scores_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError, match="scores is a dict; prune.. needs what prune_fe.score returns"):
        prune(small(), {}, example=X)  # type: ignore[arg-type]


@pytest.mark.parametrize(("goal", "share"), [("target_macs", 0.5), ("target_macs", 0.31), ("target_params", 0.4)])
@pytest.mark.parametrize("ranking", ["layer", "global"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_budget_is_met_within_one_percent(name: str, ranking: str, goal: str, share: float) -> None:
    model = torchvision.models.get_model(name, num_classes=5)
    pruned = prune(model, score(model, scorer="l1-filter"), example=X[:1], ranking=ranking, **{goal: share})  # type: ignore[arg-type]
    before, after = cost(model, X), cost(pruned.model, X)
    reached = after.macs / before.macs if goal == "target_macs" else after.parameters / before.parameters
    assert abs(reached - share) < 0.01
    assert pruned.notes == ()
    assert all(step.asked == step.count for step in pruned.steps)


def test_a_budget_that_the_widths_do_not_allow_is_met_as_nearly_as_they_do_and_said() -> None:
    model = small()
    pruned = prune(model, score(model, scorer="random"), example=X, target_params=0.01)
    (note,) = pruned.notes
    assert (
        note
        == f"{pruned.parameters:.1%} of the parameters are left, not 1.0%: the network's widths allow nothing closer"
    )
    assert [step.units - step.count for step in pruned.steps] == [1, 1, 1]
    (note,) = prune(model, score(model, scorer="random"), example=X, target_params=0.01, max_ratio=0.5).notes
    assert note.endswith("the network's widths and max_ratio allow nothing closer")


def test_with_the_same_budget_criteria_are_compared_at_the_same_cost() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    first, second = (
        prune(model, score(model, scorer=scorer), example=X[:1], target_macs=0.5) for scorer in ("l1-filter", "random")
    )
    assert first.macs == second.macs


def test_a_global_ranking_takes_the_weakest_of_all_layers_and_ties_do_not_overshoot() -> None:
    model = small()
    flat = Scores("ties", {layer.name: np.zeros(layer.units) for layer in find_layers(model, X)})
    steps = prune(model, flat, 0.25, X, ranking="global").steps
    assert [step.count for step in steps] == [5, 0, 0]  # of 20; at most 90 % of the first
    keep = {"features.0": np.arange(6.0), "features.3": 100 * np.arange(6.0), "features.7": np.array([-9.0] + [0] * 7)}
    steps = prune(model, Scores("by hand", keep), 0.25, X, ranking="global").steps
    assert {layer: numbers for step in steps for layer, numbers in step.removed.items()} == {
        "features.0": (0, 1),
        "features.3": (0, 1),
        "features.7": (0,),
    }


def test_widths_are_rounded_to_a_multiple_and_it_is_said() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    pruned = prune(model, score(model, scorer="random"), 0.3, X[:1], round_to=8)
    widths = [module.out_channels for module in pruned.model.modules() if isinstance(module, nn.Conv2d)]
    assert set(widths) == {48, 96, 184, 360}
    stem = pruned.steps[0]
    assert (stem.asked, stem.count, stem.left) == (20, 16, "widths are multiples of 8")
    near = prune(model, score(model, scorer="random"), example=X[:1], target_macs=0.5, round_to=8)
    assert all(step.count % 8 == 0 for step in near.steps)
    assert abs(near.macs - 0.5) < 0.01


def test_protected_outputs_stay_and_what_changes_at_their_inputs_is_said() -> None:
    model = small()
    pruned = prune(model, score(model, scorer="random"), example=X, protect=["features.3"])
    assert [(step.count, step.left) for step in pruned.steps] == [(3, None), (0, "protected"), (4, None)]
    assert pruned.notes == (
        "layer 'features.3' is protected: its units stay, but 3 of its inputs were removed with the units that made "
        "them",
    )


def test_a_ratio_by_pattern_and_by_name() -> None:
    model = SmallVGG(classes=2, stages=((4, 4), (4, 8), (8, 8)))
    ratio = {"features.1*": 0.5, "features.14": 0.25, "features.0": 0.75}
    steps = prune(model, score(model, scorer="random"), ratio, X).steps
    assert {step.layers[0]: step.count / step.units for step in steps} == {
        "features.0": 0.75,
        "features.3": 0,
        "features.7": 0,
        "features.10": 0.5,
        "features.14": 0.25,
        "features.17": 0.5,
    }


def test_a_finished_cut_can_be_cut_again() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    for _ in range(2):
        model = prune(model, score(model, scorer="l1-filter"), 0.5, X[:1]).model
    assert model.layer4[1].conv2.out_channels == 128
    assert model(X).shape == (2, 5)


class Peeking(nn.Module):
    """Its code reads the last unit of `b` in a way that cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        gate = torch.from_numpy(x.detach().numpy()[:, -1:])
        return self.head(torch.relu(self.c(x * gate)).mean((2, 3)))


def test_after_each_round_nothing_is_explained_where_nothing_is_missing() -> None:
    model, seen = small(), []

    def after(current: nn.Module, steps: tuple[Step, ...]) -> None:
        seen.append([(step.asked, step.count, step.left) for step in steps])

    prune(model, score(model, scorer="random"), 0.5, X, rounds=2, after=after)
    assert seen == [[(1, 1, None), (1, 1, None), (2, 2, None)], [(3, 3, None), (3, 3, None), (4, 4, None)]]


@pytest.mark.parametrize("rounds", ["layers", 2])
def test_a_group_that_fails_in_its_round_stops_no_other_group(rounds: int | str) -> None:
    model = Peeking()
    up, down = np.arange(8.0), np.arange(8.0)[::-1]

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        widths = {layer: len(current.get_parameter(f"{layer}.weight")) for layer in layers}
        return Scores("new", {layer: np.arange(width)[::-1] * 1.0 for layer, width in widths.items()})

    steps = prune(model, Scores("first", {"a": up, "b": up, "c": up}), 0.5, X, rounds=rounds, rescore=rescore).steps
    assert [step.layers for step in steps] == [("a",), ("b",), ("c",)]
    assert [step.count for step in steps] == [4, 0 if rounds == "layers" else 2, 4]
    assert steps[0].left is steps[2].left is None
    assert str(steps[1].left).startswith("removing its units is not masking them")
    with pytest.raises(InputError, match="nothing could be pruned .*; b: removing its units is not masking them"):
        prune(model, Scores("first", {"b": down}), {"b": 0.5}, X)


def test_after_new_scores_the_units_that_are_left_are_compared() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 10, 1),
        nn.ReLU(),
        nn.Conv2d(10, 10, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 2),
    )
    first = Scores("first", {"0": np.array([0.0] * 3 + [10] * 7), "2": np.array([0.0] * 5 + [1] * 5)})

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        assert current[0].out_channels == 7  # type: ignore[index]
        return Scores("second", {"0": np.array([0.0] + [10] * 6), "2": np.array([0.0] * 3 + [1] * 7)})

    pruned = prune(net, first, 0.3, X[:, :, :8, :8], ranking="global", rounds=2, rescore=rescore)
    assert removed_units(pruned) == {"0": (0, 1, 2, 3), "2": (0, 1)}


def test_options_may_be_given_as_one_object_and_keywords_win() -> None:
    model = small()
    scores = score(model, scorer="random")
    options = PruneOptions(ratio=0.5, protect=("features.0",))
    steps = prune(model, scores, example=X, options=options).steps
    assert [step.count for step in steps] == [0, 3, 4]
    assert [step.count for step in prune(model, scores, 0.25, X, options=options, protect=()).steps] == [2, 2, 2]
    assert [step.count for step in prune(model, scores, example=X, options={"ratio": 0.5}).steps] == [3, 3, 4]


def test_rescore_that_returns_something_else_is_refused() -> None:
    model = small()
    scores = score(model, scorer="random")
    with pytest.raises(InputError, match=r"rescore\(\) returned a NoneType; it is asked for Scores of features.3"):
        prune(model, scores, 0.5, X, rounds="layers", rescore=lambda *_: None)  # type: ignore[arg-type]
    few = Scores("few", {"features.0": np.zeros(3)})
    with pytest.raises(InputError, match=r"rescore\(\) returned no scores of 'features.3'; it is asked for"):
        prune(model, scores, 0.5, X, rounds="layers", rescore=lambda *_: few)
    long = Scores("long", {"features.3": np.zeros(7)})
    with pytest.raises(InputError, match="returned 7 scores of layer 'features.3', which has 6 units"):
        prune(model, scores, 0.5, X, rounds="layers", rescore=lambda *_: long)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_cut_as_well(kind: torch.dtype) -> None:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).to(kind)
    x = torch.randn(1, 3, 32, 32, dtype=kind)
    pruned = prune(model, score(model, scorer="random", example=x), 0.5, x)
    assert all(step.count == step.asked for step in pruned.steps)
    assert next(pruned.model.parameters()).dtype == kind


def test_wrong_answers_of_rescore_are_refused() -> None:
    model = networks.Concatenation().eval()
    scores = score(model, scorer="random", example=networks.X)
    with pytest.raises(InputError, match=r"rescore.. returned a NoneType; it is asked for Scores of stem, conv, last"):
        prune(model, scores, 0.5, networks.X, rounds=2, rescore=lambda model, layers: None)  # type: ignore[arg-type, return-value]
    part = Scores("part", {"stem": np.zeros(6)})
    with pytest.raises(InputError, match=r"rescore.. returned no scores of 'conv'"):
        prune(model, scores, 0.5, networks.X, rounds=2, rescore=lambda model, layers: part)


def test_scores_of_another_width_in_a_later_round_are_refused() -> None:
    model = networks.Concatenation().eval()

    def rescore(current: nn.Module, layers: tuple[str, ...]) -> Scores:
        return Scores("wrong", {layer: np.zeros(99) for layer in layers})

    with pytest.raises(InputError, match="returned 99 scores of layer 'stem', which has 6 units"):
        prune(model, score(model, scorer="random", example=networks.X), 0.5, networks.X, rounds=2, rescore=rescore)


def resnext() -> nn.Module:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=32, width_per_group=4)


@pytest.mark.parametrize("build", [resnext, mobilenet_v2])
def test_shares_are_what_the_counters_say(build: Callable[[], nn.Module]) -> None:
    model, x = build().eval(), torch.randn(1, 3, 64, 64)
    pruned = prune(model, score(model, scorer="random", example=x), 0.3, x)
    before, after = cost(model, x), cost(pruned.model, x)
    np.testing.assert_allclose(pruned.parameters, after.parameters / before.parameters, rtol=1e-12)
    np.testing.assert_allclose(pruned.macs, after.macs / before.macs, rtol=1e-12)


def test_a_network_that_writes_into_its_weights_when_it_runs_is_left_as_it_was() -> None:
    class Decaying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.scale.mul_(0.9)
            found: Tensor = self.conv(x) * self.scale
            return found.flatten(1)

    model = nn.Sequential(nn.Conv2d(1, 4, 3), Decaying()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune(model, score(model, scorer="l1-filter"), ratio=0.5, example=torch.randn(1, 1, 8, 8))
    assert len(pruned.model.state_dict()["0.weight"]) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_network_that_keeps_its_last_maps_is_pruned_without_them_and_left_as_it_was() -> None:
    model, x = Keeping(), torch.randn(2, 3, 6, 6)
    model(x).sum().backward()
    before, total = state(model), model.total.clone()
    result = prune(model, score(model, scorer="l1-filter"), 0.5, x)
    difference, scale = result.difference(model, x)
    assert difference <= 1e-5 * scale
    assert all(before[key] is value for key, value in state(model).items())
    assert (len(model.history), torch.equal(model.total, total), model.last.requires_grad) == (1, True, True)
    pruned: Any = result.model
    assert [step.count for step in result.steps] == [2]
    assert (pruned.last, pruned.history, pruned.first.seen, pruned.calls) == (None, [], None, 1)
    assert pruned(x).shape == (2, 2)
    assert pruned.last.shape == (2, 2, 6, 6)


def test_what_cannot_be_copied_is_named() -> None:
    model, x = Keeping(), torch.randn(2, 3, 6, 6)
    model.second.stream = iter(i for i in [1])  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"attribute 'stream' of layer 'second' \(a generator\): remove it"):
        prune(model, score(model, scorer="l1-filter"), 0.5, x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_weights_stay_in_their_memory_format(memory_format: torch.memory_format) -> None:
    model = mobilenet_v2(num_classes=3).to(memory_format=memory_format)
    pruned = prune(model, score(model, scorer="random"), 0.5, X).model
    formats = {name: is_channels_last(weight) for name, weight in model.named_parameters() if weight.ndim == 4}
    assert set(formats.values()) == {memory_format == torch.channels_last}
    assert {name: is_channels_last(pruned.get_parameter(name)) for name in formats} == formats


@pytest.mark.filterwarnings("ignore:left out")
def test_a_layer_that_runs_on_each_of_two_inputs_is_cut() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(12, 2)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.head(torch.cat([self.conv(image).mean((2, 3)) for image in (one, other)], dim=1))

    model, images = Siamese(), (torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8))
    pruned = prune(model, score(model, scorer="l1-filter"), 0.5, images)
    (step,) = pruned.steps
    assert (step.layers, step.count) == (("conv",), 3)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.conv.weight[list(step.removed["conv"])] = 0
        silent.conv.bias[list(step.removed["conv"])] = 0  # type: ignore[index]
        torch.testing.assert_close(pruned.model(*images), silent(*images))


def test_what_a_name_decides_for_layers_that_go_together_is_a_note_and_a_limit_is_a_reason() -> None:
    model = trained_statistics(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4))
    ratio = {"layer1.0.conv2": 0.25, "layer[34].*": 0.5, "layer4.*conv2": 0.25}
    pruned = prune(model, score(model, scorer="random"), ratio, X[:1], max_ratio={"layer3.*": 0.1})
    lost = {step.layers[0]: (step.count / step.units, step.left) for step in pruned.steps if step.count}
    limited = pytest.approx(0.1, abs=0.01), "max_ratio 0.1 allows no more"
    assert lost == {
        "conv1": (0.25, None),
        "layer3.0.conv1": limited,
        "layer3.0.conv2": limited,
        "layer4.0.conv1": (0.5, None),
        "layer4.0.conv2": (0.25, None),
    }
    assert pruned.notes == (
        "ratio: 'layer1.0.conv2' (0.25) decides for conv1, layer1.0.conv2, which go together; nothing matches conv1",
        "ratio: 'layer4.*conv2' (0.25) decides for layer4.0.conv2, layer4.0.downsample.0, which go together, not "
        "'layer[34].*'",
    )


class Stage(nn.Module):
    """A residual stage of two blocks whose outputs are activated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.one, self.one_out = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.two, self.two_out = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.first(x + self.one_out(torch.relu(self.one(x))))
        x = self.second(x + self.two_out(torch.relu(self.two(x))))
        return self.head(x.mean((2, 3)))


def scores_of(**keep: Any) -> Scores:
    return Scores("own", {name: np.asarray(values, float) for name, values in keep.items()}, {}, (), 0, 0.0)


@pytest.mark.parametrize("engine", ["trace", "torch-pruning"])
def test_scores_of_blocks_rank_the_units_that_their_sums_tie_together(engine: str) -> None:
    model, x = Stage().eval(), X[:, :, :8, :8]
    first, second = [3.0, 1, 4, 1, 5, 9, 2, 6], [1.0, 1, 1, 6, 1, 1, 1, 1]
    pruned = prune(model, scores_of(first=first, second=second, two=range(6)), 0.5, x, engine=engine)
    steps = {step.layers: step for step in pruned.steps}
    stream = steps["stem", "one_out", "two_out"]  # the means are 2, 1, 2.5, 3.5, 3, 5, 1.5, 3.5
    assert stream.removed == dict.fromkeys(stream.layers, (0, 1, 2, 6))
    assert steps["two",].removed == {"two": (0, 1, 2)}
    assert steps["one",].left == "not scored"
    assert pruned.notes == ()
    difference, largest = pruned.difference(model, x)
    assert difference < 1e-5 * largest
    largest_wins = prune(model, scores_of(first=first, second=second), 0.5, x, reduction="max", engine=engine)
    assert largest_wins.steps[0].removed["stem"] == (0, 1, 2, 6)


def test_scores_of_layers_come_before_those_of_blocks() -> None:
    model, x = Stage().eval(), X[:, :, :8, :8]
    by_layer = prune(model, scores_of(stem=range(8)), 0.5, x)
    both = prune(model, scores_of(stem=range(8), first=range(80, 0, -10)), 0.5, x)
    assert both.steps[0].removed == by_layer.steps[0].removed == dict.fromkeys(both.steps[0].layers, (0, 1, 2, 3))
    (note,) = both.notes
    assert note.startswith("the scores of 'first' are not used: the units of these outputs have scores of layers")


def test_scores_of_a_block_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match="layer 'first': scores of 7 units, the model has 8; they belong to another"):
        prune(Stage().eval(), scores_of(first=range(7)), 0.5, X[:, :, :8, :8])


def test_blocks_are_scored_anew_in_rounds() -> None:
    model, x = Stage().eval(), X[:, :, :8, :8]
    asked: list[tuple[str, ...]] = []

    def rescore(network: nn.Module, layers: tuple[str, ...]) -> Scores:
        asked.append(layers)
        widths = {"first": len(network.get_parameter("stem.bias")), "two": len(network.get_parameter("two.bias"))}
        # From now on the last units are the weakest.
        return scores_of(**{name: range(widths[name], 0, -1) for name in layers})

    pruned = prune(model, scores_of(first=range(8), two=range(6)), 0.5, x, rescore=rescore, rounds=2)
    assert asked == [("first", "two")]
    steps = {step.layers[0]: step for step in pruned.steps}
    assert steps["stem"].removed["stem"] == (0, 1, 6, 7)
    assert steps["two"].removed["two"] == (0, 4, 5)


RESIDUAL_EXAMPLE = """
import torch
from torchvision.models.resnet import BasicBlock, resnet18
import prune_fe
from prune_fe.scorers.taylor import Taylor

net, data = resnet18(num_classes=8).eval(), [(torch.randn(8, 3, 64, 64), torch.arange(8))]  # yours
blocks = [name for name, module in net.named_modules() if isinstance(module, BasicBlock)]
inner = [f"{name}.conv1" for name in blocks]
scores = prune_fe.score(net, data, Taylor(gates="shared"), layers=[*blocks, *inner])  # or "hrank"
pruned = prune_fe.prune(net, scores, 0.5, example=data[0][0][:1])
"""
"""The example of residual networks in README."""


def test_the_example_of_a_residual_network() -> None:
    found: dict[str, Any] = {}
    exec(RESIDUAL_EXAMPLE, found)
    pruned, scores, net = found["pruned"], found["scores"], found["net"]
    steps = {step.layers: step for step in pruned.steps}
    assert all(2 * step.count == step.units and step.left is None for step in pruned.steps)
    stream = steps["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    weakest = tuple(sorted(np.argsort(scores.keep["layer2.0"], kind="stable")[:64].tolist()))
    assert stream.removed == dict.fromkeys(stream.layers, weakest)
    assert scores.keep["layer2.0"].tolist() == scores.keep["layer2.1"].tolist()
    weakest = tuple(sorted(np.argsort(scores.keep["layer3.1.conv1"], kind="stable")[:128].tolist()))
    assert steps["layer3.1.conv1",].removed["layer3.1.conv1"] == weakest
    difference, largest = pruned.difference(net, found["data"][0][0])
    assert difference < 1e-4 * largest
