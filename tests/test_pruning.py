"""What is asked is what is removed, and removing is masking."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prune_fe.costs import cost
from prune_fe.errors import InputError
from prune_fe.layers import find_layers, mask
from prune_fe.models import SmallVGG
from prune_fe.pruning import Pruned, kept_units, prune
from prune_fe.scores import Scores
from prune_fe.scoring import score

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
    return {layer: step.removed for step in pruned.steps for layer in step.layers}


@pytest.mark.parametrize(
    ("ratio", "million_parameters", "gflops"),
    # the design's table, which rounds as table 12 of the paper does: multiply-adds counted as two, classifier included
    [(0, 138.358, 30.94), (0.4, 87.783, 11.15), (0.5, 75.943, 7.86), (0.6, 64.163, 5.01)],
)
def test_vgg16_comes_out_as_table_12_says(ratio: float, million_parameters: float, gflops: float) -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg16()
    model = model.to_empty(device="cpu")
    for weight in model.parameters():
        nn.init.constant_(weight, 1e-3)
    x = torch.zeros(1, 3, 224, 224)
    result = cost(prune(model, score(model, scorer="l1-filter"), ratio=ratio, example=x).model, x)
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
    pruned = prune(model, score(model, scorer="random"), ratio=0.4, example=X)
    assert all(step.left is None and len(step.removed) == step.asked > 0 for step in pruned.steps)
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
        assert set(step.removed) == set(scores.weakest(layer, step.asked))
        assert sorted(step.removed + step.kept) == list(range(step.units))
    first = pruned.steps[0]
    assert torch.equal(pruned.model.features[0].weight, model.features[0].weight[list(first.kept)])  # type: ignore[index,union-attr]


def test_steps_run_from_shallow_to_deep() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    order = [layer.name for layer in find_layers(model, X)]
    firsts = [order.index(step.layers[0]) for step in prune(model, score(model, scorer="random"), example=X).steps]
    assert firsts == sorted(firsts)


def test_equal_scores_go_in_the_order_of_their_numbers_and_no_more_than_asked() -> None:
    model = small()
    scores = Scores("ties", {layer.name: np.zeros(layer.units) for layer in find_layers(model, X)})
    assert [step.removed for step in prune(model, scores, ratio=0.5, example=X).steps] == [(0, 1, 2)] * 2 + [
        (0, 1, 2, 3)
    ]


@given(st.integers(1, 3000), st.integers(0, 99))
def test_kept_units_is_the_floor_of_the_decimal(units: int, percent: int) -> None:
    assert kept_units(units, percent / 100) == max((100 - percent) * units // 100, 1)


def test_blocks_lose_the_same_places() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    )
    x = torch.randn(2, 3, 10, 10)
    keep = {"0": np.array([0.0, 9, 9, 9, 0, 9, 1, 9]), "2": np.array([9, 0.0, 9, 9, 9, 0, 9, 9])}
    pruned = prune(net, Scores("by hand", keep), ratio=0.25, example=x)
    assert removed_units(pruned) == {"0": (0, 4), "2": (1, 5)}
    with torch.no_grad(), mask(net, find_layers(net, x), removed_units(pruned)):
        torch.testing.assert_close(pruned.model(x), net(x))


def test_coupled_units_go_by_the_mean_of_their_layers() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    scores = score(model, scorer="l1-filter")
    pruned = prune(model, scores, ratio=0.5, example=X)
    (stream,) = [step for step in pruned.steps if "layer1.0.conv2" in step.layers]
    assert stream.layers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    mean = sum(scores.keep[layer] for layer in stream.layers) / 3
    assert set(stream.removed) == set(np.argsort(mean, kind="stable")[:32].tolist())


def test_coupled_units_are_left_alone_if_asked() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    steps = prune(model, score(model, scorer="random"), example=X, coupled="leave").steps
    left = [step for step in steps if step.left]
    assert len(steps) == 12
    assert [step.left for step in left] == ["coupled by a residual sum"] * 4
    assert all(len(step.kept) == step.units for step in left)
    assert all(step.removed for step in steps if not step.left)


def test_a_depthwise_convolution_is_no_residual_sum() -> None:
    model = torchvision.models.mobilenet_v2(num_classes=3)
    steps = prune(model, score(model, scorer="random"), example=X, coupled="leave").steps
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


def test_a_frozen_network_is_pruned_and_stays_frozen() -> None:
    model = small().requires_grad_(False)
    model.classifier.requires_grad_(True)
    pruned = prune(model, score(model, scorer="random"), example=X)
    assert all(step.removed for step in pruned.steps)
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
    assert [len(step.removed) for step in steps] == [0, 3, 0]
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

    seen: list[int] = []
    scores = score(model, scorer="random")
    prune(model, scores, 0.5, X, rescore=rescore, after=lambda current, step: seen.append(current(X).shape[1]))
    assert asked == [(("features.0",), 6), (("features.3",), 3), (("features.7",), 3)]
    assert seen == [4, 4, 4]


class Fixed(nn.Module):
    """Its forward pass knows the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) * torch.ones(8, 1, 1)).mean((2, 3)))


def test_what_cannot_be_cut_is_refused_by_name() -> None:
    model = Fixed()
    with pytest.raises(InputError, match="the pruned Fixed does not run: "):
        prune(model, score(model, scorer="random"), example=X)
    assert model.conv.out_channels == 8


def test_a_network_with_only_its_output_to_prune_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="nothing could be pruned .no layer but the output's"):
        prune(net, score(net, scorer="random"), example=X)


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan, True, "0.5", {"features.0": 2}])
def test_a_ratio_outside_its_range_is_refused(ratio: object) -> None:
    model = small()
    with pytest.raises(InputError, match=r"must be a number in \[0, 1\), the share removed"):
        prune(model, score(model, scorer="random"), ratio, X)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused_by_name() -> None:
    model = small()
    scores = score(model, scorer="random")
    with pytest.raises(InputError, match="prune.. needs example="):
        prune(model, scores)
    with pytest.raises(InputError, match="coupled is 'max', allowed are mean, leave"):
        prune(model, scores, example=X, coupled="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ratio: 'features.1' is no layer that can be pruned; near it are features.7,"):
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


def test_a_padded_shortcut_leaves_the_stream_alone_and_prunes_inside() -> None:
    model = OptionA().eval()
    pruned = prune(model, score(model, scorer="random"), example=X)
    left = {layer: step.left for step in pruned.steps for layer in step.layers}
    assert left["inner"] is None
    assert left["stem"] == "tied to layer 'out', which has 8 units, by a padding or a split"
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


def test_what_is_tied_to_a_shared_convolution_is_left_alone_and_said() -> None:
    model = Shared().eval()
    with pytest.warns(UserWarning, match="layer 'b' runs 2 times"):
        scores = score(model, scorer="random", example=X)
    with pytest.warns(UserWarning, match="layer 'b' runs 2 times"):
        pruned = prune(model, scores, example=X)
    assert [(step.layers, step.left) for step in pruned.steps] == [
        (("a",), "tied to layer 'b', which runs more than once"),
        (("c",), None),
    ]


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

    pruned = prune(model, score(model, scorer="random"), example=X, after=after)
    assert seen == [False] * 3
    assert all(step.removed for step in pruned.steps)


def test_computed_weights_are_refused_by_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 2, 1), nn.Flatten())
    with pytest.raises(InputError, match="layer '0': its weight is computed .weight_norm or the like"):
        prune(model, score(model, scorer="random"), example=X)
    with pytest.raises(InputError, match="scores is a dict; prune.. needs what prune_fe.score returns"):
        prune(small(), {}, example=X)  # type: ignore[arg-type]
