"""The pruners of torch-pruning remove the channels with the lowest scores of prune_fe."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

from prune_fe import prune, score
from prune_fe.errors import InputError
from prune_fe.scoring.scores import Scores
from prune_fe.torch_pruning import Importance, break_ties

IMAGE = torch.randn(1, 3, 32, 32)


def vgg16_bn() -> nn.Module:
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512, 10))


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=10)


def resnet50() -> nn.Module:
    return torchvision.models.resnet50(num_classes=10)


def plain(widths: tuple[int, ...] = (8, 8, 8)) -> nn.Sequential:
    """Convolutions one after the other, and a classifier."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def classifier_of(model: nn.Module) -> list[nn.Module]:
    """What a script of torch-pruning excepts: the layer of the outputs."""
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 10]


def make_pruner(model: nn.Module, importance: Importance, **options: Any) -> Any:
    options = {"ignored_layers": classifier_of(model), "in_channel_groups": {}, "out_channel_groups": {}} | options
    return tp.pruner.MagnitudePruner(model, IMAGE, importance=importance, **options)


def made_up(keep: dict[str, Any]) -> Scores:
    return Scores("made up", {layer: np.asarray(values, float) for layer, values in keep.items()})


def removed_by(importance: Importance, model: nn.Module, scores: Scores) -> dict[str, list[int]]:
    return {
        layer: sorted({*range(len(scores.keep[layer]))} - {*kept}) for layer, kept in importance.kept(model).items()
    }


@pytest.mark.parametrize("build", [resnet50, vgg16_bn, densenet])
def test_one_step_removes_what_prune_removes(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    scores = score(model, scorer="l1-filter")
    ours = prune(model, scores, 0.4, IMAGE)
    importance = Importance(scores)
    make_pruner(model, importance, pruning_ratio=0.4).step()
    removed = removed_by(importance, model, scores)
    expected = {layer: sorted(units) for step in ours.steps for layer, units in step.removed.items()}
    assert removed == {layer: expected.get(layer, []) for layer in removed}
    assert any(expected.values())
    theirs = model.state_dict()
    assert theirs.keys() == ours.model.state_dict().keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.model.state_dict().items())


@pytest.mark.parametrize("steps", [1, 3])
def test_the_resnet50_script_of_torch_pruning(steps: int) -> None:
    model = resnet50()
    widths = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    scores = made_up({name: np.random.default_rng(width).random(width) for name, width in widths.items()})
    importance = Importance(scores)
    pruner = make_pruner(model, importance, global_pruning=True, iterative_steps=steps, pruning_ratio=0.5)
    for _ in range(steps):
        for group in pruner.step(interactive=True):
            group.prune()
        assert model(IMAGE).shape == (1, 10)
        with torch.no_grad():  # fine-tuning changes the weights
            for weight in model.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
    kept = importance.kept(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert len(kept[name]) == module.out_channels == len(set(kept[name]))
    means = group_means(resnet50(), scores)
    removed = [value for layer, values in means.items() for unit, value in enumerate(values) if unit not in kept[layer]]
    remaining = [values[unit] for layer, values in means.items() for unit in kept[layer]]
    assert len(removed) == len(remaining) == sum(map(len, means.values())) // 2
    assert max(removed) <= min(remaining) + 1e-9  # layers of one width have the same scores: many are equal


def group_means(model: nn.Module, scores: Scores) -> dict[str, Any]:
    """The mean score over the layers of each group, by the layer that torch-pruning begins it with."""
    graph = tp.DependencyGraph().build_dependency(model, (IMAGE,), verbose=False)
    names = {module: name for name, module in model.named_modules()}
    means = {}
    for group in graph.get_all_groups(ignored_layers=classifier_of(model)):
        parts = [item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)]
        layers = [names[part] for part in parts if isinstance(part, nn.Conv2d)]
        means[layers[0]] = np.mean([scores.keep[layer] for layer in layers], axis=0)
    return means


def test_steps_remove_what_one_step_removes() -> None:
    """The scores follow their channels: without that, later steps would take the scores of removed ones."""
    kept = []
    for steps in (1, 3, 4):
        torch.manual_seed(0)
        model = plain((24, 16, 12))
        importance = Importance(score(model, scorer="random"))
        pruner = make_pruner(model, importance, pruning_ratio=0.5, iterative_steps=steps, global_pruning=True)
        for _ in range(steps):
            pruner.step()
        kept.append(importance.kept(model))
    assert kept[0] == kept[1] == kept[2]
    assert sum(map(len, kept[0].values())) == 26


def test_isomorphic_groups_are_ranked_among_themselves() -> None:
    model = plain((8, 8, 8))  # the first two groups are alike, the last one is read by the classifier
    keep = {"0": np.arange(8), "2": np.arange(8) + 4, "4": np.arange(8) + 100}
    importance = Importance(made_up(keep))
    make_pruner(model, importance, pruning_ratio=0.5, global_pruning=True, isomorphic=True).step()
    # 0, 1, 2, 3, 4, 4, 5, 5 are the lowest of the first two
    assert importance.kept(model) == {"0": [6, 7], "2": [2, 3, 4, 5, 6, 7], "4": [4, 5, 6, 7]}


@pytest.mark.parametrize("is_global", [False, True])
def test_equal_scores_are_removed_in_the_order_of_their_numbers(is_global: bool) -> None:
    model = plain((8, 8, 8))
    importance = Importance(made_up({"0": [1, 0] * 4, "2": [0] * 8, "4": [5.0] * 8}))
    make_pruner(model, importance, pruning_ratio=0.25, global_pruning=is_global).step()
    # torch-pruning alone would remove all twelve that are 0, or none
    expected = {"0": [0, 2, 4, 6], "2": [2, 3, 4, 5, 6, 7], "4": [*range(8)]}
    if not is_global:
        expected = {"0": [0, 2, 4, 5, 6, 7], "2": [2, 3, 4, 5, 6, 7], "4": [2, 3, 4, 5, 6, 7]}
    assert importance.kept(model) == expected


def test_ties_break_in_order_and_keep_different_scores_in_order() -> None:
    scores = np.array([0.0, -0.0, 1.0, np.nextafter(1, 2), 1.0, -1.0, -1.0, 1e300, 5e-324])
    numbers = np.array([8, 7, 6, 1, 4, 3, 2, 5, 0])
    lifted = break_ties(scores, numbers)
    order = np.lexsort((numbers, scores))
    assert np.all(np.diff(lifted[order]) > 0)
    np.testing.assert_allclose(lifted, scores, rtol=1e-11, atol=1e-300)
    other = break_ties(np.ones(9), numbers + 9)
    assert lifted[[2, 4]].max() < other.min()


@pytest.mark.parametrize("reduction", ["mean", "max", "min"])
def test_layers_that_are_summed_have_one_score(reduction: Any) -> None:
    model = torchvision.models.resnet18(num_classes=10)
    scores = score(model, scorer="random")
    importance = Importance(scores, reduction)
    ours = prune(model, scores, 0.5, IMAGE, reduction=reduction)
    make_pruner(model, importance, pruning_ratio=0.5).step()
    removed = {layer: sorted(units) for step in ours.steps for layer, units in step.removed.items()}
    assert removed_by(importance, model, scores) == removed


class Concatenated(nn.Module):
    """Two convolutions that are concatenated, normed and added to a third: their units have other numbers there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 10, 1)
        self.last = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(torch.cat([self.a(x), self.b(x)], 1) + self.c(x)))


def test_units_of_a_concatenation_are_found_in_their_layers() -> None:
    model = Concatenated()
    scores = made_up({"a": [4, 3, 2, 1], "b": [6, 5, 4, 3, 2, 1], "c": [0] * 10})
    graph = tp.DependencyGraph().build_dependency(model, (IMAGE,), verbose=False)
    group = graph.get_pruning_group(model.c, tp.prune_conv_out_channels, list(range(10)))
    values = Importance(scores, "max")(group)
    assert values is not None
    np.testing.assert_allclose(values, [4, 3, 2, 1, 6, 5, 4, 3, 2, 1], rtol=1e-9)
    some = graph.get_pruning_group(model.c, tp.prune_conv_out_channels, [9, 2, 5])
    values = Importance(scores, "max")(some)
    assert values is not None
    np.testing.assert_allclose(values, [1, 2, 5], rtol=1e-9)


@pytest.mark.parametrize("kind", ["group norm", "grouped convolution"])
def test_channel_groups_lose_the_same_channels(kind: str) -> None:
    middle = nn.GroupNorm(2, 8) if kind == "group norm" else nn.Conv2d(8, 8, 3, padding=1, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), middle, nn.ReLU(), nn.Conv2d(8, 10, 3))
    # torch-pruning takes the mean over the two groups: 0 + 7, 1 + 1, 2 + 2, 3 + 3
    importance = Importance(made_up({"0": [0, 1, 2, 3, 7, 1, 2, 3]}))
    kept_layers = [model[3]] if kind == "group norm" else [model[1], model[3]]
    make_pruner(model, importance, pruning_ratio=0.25, ignored_layers=kept_layers).step()
    assert importance.kept(model)["0"] == [0, 2, 3, 4, 6, 7]


def test_rescore_is_called_once_a_step_with_the_network_so_far() -> None:
    model, widths = plain((16, 12)), []

    def rescore(network: nn.Module) -> Scores:
        assert torch.is_grad_enabled()
        widths.append([network.get_submodule(name).out_channels for name in ("0", "2")])
        return score(network, scorer="l1-filter")

    importance = Importance(rescore=rescore)
    pruner = make_pruner(model, importance, pruning_ratio=0.5, iterative_steps=2)
    pruner.step()
    assert widths == [[16, 12]]
    first = importance.kept(model)
    with torch.no_grad():  # what remains changes its order
        model[0].weight.copy_(model[0].weight * torch.rand(12, 1, 1, 1))  # type: ignore[operator]
    norms = model[0].weight.detach().abs().sum((1, 2, 3))  # type: ignore[operator]
    pruner.step()
    assert widths == [[16, 12], [12, 9]]
    lowest = norms.argsort()[:4].tolist()
    assert importance.kept(model)["0"] == [unit for place, unit in enumerate(first["0"]) if place not in lowest]
    assert len(importance.kept(model)["2"]) == 6


def test_scores_are_normalised_where_asked() -> None:
    keep = {"0": np.arange(8.0), "2": 100 + np.arange(8.0), "4": 1000 + np.arange(8.0)}
    for normalise, expected in ((True, [4, 4, 4]), (False, [1, 3, 8])):
        model = plain((8, 8, 8))
        importance = Importance(made_up(keep), normalise=normalise)
        make_pruner(
            model, importance, pruning_ratio=0.5, global_pruning=True, max_pruning_ratio=0.9, ignored_layers=[model[-1]]
        ).step()
        widths = [model[index].out_channels for index in (0, 2, 4)]
        assert widths == expected or not normalise
    assert widths[2] == 8


def test_groups_without_scores_are_kept_and_named_or_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 10))
    scores = made_up({"0": np.arange(8)})
    with pytest.warns(UserWarning, match="no scores of '3': all their channels are kept"):
        make_pruner(model, Importance(scores), pruning_ratio=0.5).step()
    assert (model[0].out_channels, model[3].out_features) == (4, 6)
    with pytest.raises(
        InputError, match=r"no scores of '3': score them \(linear=True takes linear layers\), name them"
    ):
        make_pruner(model, Importance(made_up({"0": [0] * 4}), unscored="error"), pruning_ratio=0.5).step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pruner(model, Importance(made_up({"0": [0] * 4, "3": [0] * 6})), pruning_ratio=0.5).step()
    assert (model[0].out_channels, model[3].out_features) == (2, 3)


def test_layers_that_were_pruned_unseen_are_an_error() -> None:
    model = plain((8, 8))
    importance = Importance(made_up({"0": np.arange(8), "2": np.arange(8)}))
    pruner = make_pruner(model, importance, pruning_ratio=0.5, iterative_steps=2)
    unseen = pruner.DG.get_pruning_group(model[0], tp.prune_conv_out_channels, [0])
    pruner.step()
    unseen.prune()
    with pytest.raises(InputError, match="layer '0' has 5 channels, 6 were expected: it was pruned in a way that"):
        pruner.step()


def test_every_way_to_prune_is_followed() -> None:
    model = plain((8, 8))
    importance = Importance(made_up({"0": np.arange(8), "2": np.arange(8)}))
    graph = tp.DependencyGraph().build_dependency(model, (IMAGE,), verbose=False)
    for group in graph.get_all_groups(ignored_layers=classifier_of(model)):
        lowest = importance(group).argsort()[:2].tolist()  # type: ignore[union-attr]
        group.prune(idxs=lowest)
    graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1, 4])()
    assert importance.kept(model) == {"0": [2, 4, 5, 7], "2": [2, 3, 4, 5, 6, 7]}
    values = importance(graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(4))))
    assert values is not None
    np.testing.assert_allclose(values, [2, 4, 5, 7], rtol=1e-9)


def test_two_importances_of_a_pruner_and_two_networks_of_an_importance() -> None:
    model = plain((8, 8))
    scores = made_up({"0": np.arange(8), "2": np.arange(8)})
    one, other = Importance(scores), Importance(scores, "max")
    pruner = make_pruner(model, one, pruning_ratio=0.5, iterative_steps=2)
    other(next(iter(pruner.DG.get_all_groups(ignored_layers=classifier_of(model)))))
    pruner.step()
    assert one.kept(model) == other.kept(model) == {"0": [*range(2, 8)], "2": [*range(2, 8)]}
    another = plain((8, 8))  # the same scores for another network
    make_pruner(another, one, pruning_ratio=0.25).step()
    assert one.kept(another) == {"0": [*range(2, 8)], "2": [*range(2, 8)]}
    pruner.step()
    assert one.kept(model)["0"] == [4, 5, 6, 7]


class Wrapper(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_the_network_that_was_scored_may_be_a_part() -> None:
    body = plain((8, 8))
    scores = score(body, scorer="l1-filter")
    with pytest.raises(InputError, match="the scores are of 0, 2, and Wrapper runs no layer of such a name; where it"):
        make_pruner(Wrapper(body), Importance(scores), pruning_ratio=0.5).step()
    make_pruner(Wrapper(body), Importance(scores, model=body), pruning_ratio=0.5).step()
    assert body[0].out_channels == 4


def test_scores_of_another_model_are_refused_before_anything_is_removed() -> None:
    model = plain((8, 8))
    with pytest.raises(InputError, match="layer '2': scores of 7 units, the model has 8; they belong to another model"):
        make_pruner(model, Importance(made_up({"0": np.arange(8), "2": np.arange(7)})), pruning_ratio=0.5).step()
    assert model[0].out_channels == 8


def test_a_rescore_that_returns_the_wrong_thing() -> None:
    cases: tuple[tuple[Any, str], ...] = (
        (lambda _: None, r"rescore\(\) returned a NoneType; it must return what prune_fe.score returns"),
        (lambda _: made_up({"0": np.arange(8)}), r"rescore\(\) returned 8 scores of layer '0', which has 6 units"),
    )
    for wrong, match in cases:
        model = plain((8,))
        pruner = make_pruner(
            model, Importance(made_up({"0": np.arange(8)}), rescore=wrong), pruning_ratio=0.5, iterative_steps=2
        )
        pruner.step()
        with pytest.raises(InputError, match=match):
            pruner.step()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "Importance needs scores, which prune_fe.score returns, or rescore="),
        ({"scores": {"0": [1]}}, "scores is a dict; Importance needs what prune_fe.score returns"),
        ({"rescore": 1}, "rescore is a int; it must be a function of the model"),
        ({"scores": made_up({}), "reduction": "sum"}, "reduction is 'sum', allowed are 'mean', 'max', 'min'"),
        ({"scores": made_up({}), "unscored": "zero"}, "unscored is 'zero', allowed are 'keep', 'error'"),
        ({"scores": made_up({}), "normalise": "mean"}, "normalise is 'mean', allowed are False, True"),
        ({"scores": made_up({}), "model": "vgg"}, "model is a str; it must be the network that was scored"),
    ],
)
def test_arguments_that_are_not_allowed(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Importance(**arguments)
