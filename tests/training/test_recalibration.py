"""Recalibrated batch norms have the statistics of the images, and nothing else changes."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prune_fe.data.digits import digits
from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.models.build import build
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning.prune import prune
from prune_fe.pruning.sensitivity import sensitivity
from prune_fe.scoring.score import score
from prune_fe.training.loop import finetune
from prune_fe.training.recalibration import recalibrate, recalibrating
from tests.training.helpers import Recorded, pictures, same, state


def normed(*more: nn.Module) -> nn.Sequential:
    """A batch norm, a convolution, a batch norm: what the second sees depends on how the first normalises."""
    torch.manual_seed(1)
    norms = nn.BatchNorm2d(1, momentum=0.3), nn.BatchNorm2d(4)
    for norm in norms:
        nn.init.uniform_(norm.get_buffer("running_mean"), 2, 3)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return nn.Sequential(norms[0], nn.Conv2d(1, 4, 3), norms[1], *more, nn.Flatten(), nn.Linear(144, 3))


def written_out(model: nn.Sequential, parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Slow twin: (mean, variance) of both norms, each the mean over the parts, weighted by their images."""
    found, total = [], sum(map(len, parts))
    with torch.no_grad():
        for norm, after in ((model[0], model[1]), (model[2], nn.Identity())):
            parts = [part.double() for part in parts]
            mean = torch.stack([len(part) * part.mean((0, 2, 3)) for part in parts]).sum(0) / total
            var = torch.stack([len(part) * part.var((0, 2, 3)) for part in parts]).sum(0) / total
            found.append((mean, var))
            parts = [copy.deepcopy(nn.Sequential(norm, after)).double().train()(part) for part in parts]
    return found


def check_statistics(model: nn.Sequential, parts: list[Tensor]) -> None:
    for norm, (mean, var) in zip((model[0], model[2]), written_out(model, parts), strict=True):
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == len(parts)


def test_recalibrated_statistics_are_those_of_the_images() -> None:
    model, images = normed(), pictures(20)
    assert recalibrate(model, images, batch_size=20) == 2
    check_statistics(model, [images.tensors[0]])


def test_batches_count_by_their_images() -> None:
    model, (images, labels) = normed(), pictures(20).tensors
    numbers = slice(0, 13), slice(13, 18), slice(18, 19)  # and a batch of one, which is left out
    assert recalibrate(model, [(images[part], labels[part]) for part in numbers]) == 2
    check_statistics(model, [images[:13], images[13:18]])


def test_samples_are_drawn_with_the_seed_and_none_twice() -> None:
    read: list[list[int]] = []
    for seed in (1, 1, 2):
        images = Recorded(pictures(24))
        recalibrate(normed(), images, samples=17, seed=seed, batch_size=8)
        read.append(images.read)
    assert read[0] == read[1] != read[2]
    assert [len(set(numbers)) for numbers in read] == [17] * 3
    assert read[0] != sorted(read[0])
    model = normed()
    recalibrate(model, pictures(24), samples=17, seed=1, batch_size=8)  # 8, 8 and 1
    x = pictures(24).tensors[0]
    check_statistics(model, [x[read[0][:8]], x[read[0][8:16]]])


def test_only_the_statistics_change() -> None:
    model = normed(nn.Dropout(0.9)).train()
    model[2].eval()
    model.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: None)
    before, modes = state(model), [module.training for module in model.modules()]
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    torch.manual_seed(3)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert recalibrate(model, pictures(20), batch_size=8) == 2
    assert torch.equal(torch.rand(2), drawn)
    after = state(model)
    changed = {name.split(".", 1)[1] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert [module.training for module in model.modules()] == modes
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert (model[0].momentum, model[2].momentum) == (0.3, 0.1)
    assert not any(weight.requires_grad for weight in model.parameters())


def interrupted(done: int, total: int) -> None:
    if done > 8:
        raise KeyboardInterrupt


def test_after_an_error_the_old_statistics_are_back() -> None:
    model = normed().train()
    model[2].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, pictures(24), batch_size=8, progress=interrupted)
    assert same(state(model), before)
    assert [module.training for module in model.modules()] == modes
    assert (model[0].momentum, model[2].momentum) == (0.3, 0.1)


def test_statistics_that_are_not_finite_are_refused_by_layer() -> None:
    model, (images, labels) = normed(), pictures(20).tensors
    before = state(model)
    images[7, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="layer '0': its mean or variance on these images is NaN or infinite"):
        recalibrate(model, TensorDataset(images, labels), batch_size=8)
    assert same(state(model), before)
    model.get_parameter("1.bias").data[2] = math.inf
    before = state(model)
    with pytest.raises(InputError, match="layer '2': its mean or variance"):
        recalibrate(model, pictures(20), batch_size=8)
    assert same(state(model), before)


def test_statistics_that_were_broken_are_mended() -> None:
    model = normed()
    model.get_buffer("0.running_mean").fill_(math.nan)
    recalibrate(model, pictures(20), batch_size=20)
    check_statistics(model, [pictures(20).tensors[0]])


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (3,)),
        (nn.BatchNorm1d(3), (3, 5)),
        (nn.BatchNorm2d(3, momentum=None), (3, 4, 4)),
        (nn.BatchNorm3d(3, affine=False), (3, 2, 2, 2)),
        (nn.SyncBatchNorm(3), (3, 4, 4)),
        (nn.BatchNorm2d(3).double(), (3, 4, 4)),
        (timm.layers.BatchNormAct2d(3, drop_layer=nn.Dropout), (3, 4, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_batch_norm_is_recalibrated(norm: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(16, *shape).to(norm.get_buffer("running_mean").dtype)
    inside: list[bool] = []
    for part in norm.children():  # timm's dropout and activation
        part.register_forward_hook(lambda module, *_: inside.append(module.training))
    kinds = [module.training for module in norm.modules()]
    assert recalibrate(norm, TensorDataset(x, torch.zeros(16, dtype=torch.long)), batch_size=16) == 1
    dims = [dim for dim in range(x.ndim) if dim != 1]
    torch.testing.assert_close(norm.running_mean, x.mean(dims))
    torch.testing.assert_close(norm.running_var, x.var(dims))
    assert [module.training for module in norm.modules()] == kinds
    assert not any(inside)


class Twice(nn.Module):
    """A batch norm that runs twice, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.never = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.often(x) + self.often(3 * x + 1)


def test_a_batch_norm_that_runs_twice_has_the_mean_of_both_and_one_that_never_runs_stays() -> None:
    model, images = Twice(), pictures(20).tensors[0]
    model.get_buffer("never.running_mean").fill_(7)
    assert recalibrate(model, pictures(20), batch_size=20) == 1
    torch.testing.assert_close(model.often.running_mean, (4 * images.mean() + 1).view(1) / 2)
    torch.testing.assert_close(model.often.running_var, (10 * images.var()).view(1) / 2)
    assert model.never.running_mean == 7


def test_a_network_without_batch_norm_has_none_recalibrated() -> None:
    untracked = nn.BatchNorm2d(1, track_running_stats=False)
    model = nn.Sequential(nn.GroupNorm(1, 1), nn.InstanceNorm2d(1, track_running_stats=True), untracked)
    before = state(model)
    assert recalibrate(model, pictures(4)) == 0
    assert same(state(model), before)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"batch_size": 1}, InputError, "batch_size=1: a batch norm needs at least 2 images at once"),
        ({"samples": 1}, InputError, "samples=1: a batch norm needs at least 2 images"),
        ({"samples": 25}, DataError, "24 images, 25 asked for"),
        ({"data": pictures(1)}, DataError, "1 images, none in a batch of at least 2"),
        ({"data": pictures(0)}, DataError, "0 images, none in a batch of at least 2"),
        ({"data": [], "samples": 3}, InputError, "samples= need a data set"),
    ],
)
def test_too_few_images_are_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    model = normed()
    before = state(model)
    with pytest.raises(error, match=text):
        recalibrate(model, **{"data": pictures(24)} | arguments)
    assert same(state(model), before)


def test_recalibration_tells_its_progress() -> None:
    seen: list[tuple[int, int]] = []
    recalibrate(normed(), pictures(24), samples=20, batch_size=8, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(8, 20), (16, 20), (20, 20)]


def test_a_pruned_network_recovers_by_recalibration() -> None:
    splits = digits(size=8)
    torch.manual_seed(0)
    model = SmallVGG(10, 1, [[8, 8], [16]])
    finetune(model, splits.train, splits.validation, lr=0.1, schedule="cosine", epochs=4, batch_size=64)
    example = torch.rand(1, 1, 8, 8)
    pruned = prune(model, score(model, None, "random", example=example), 0.25, example).model
    before = evaluate(pruned, splits.validation)
    assert recalibrate(pruned, splits.train, samples=256) == 3
    after = evaluate(pruned, splits.validation)
    assert after.accuracy > before.accuracy + 0.1
    assert after.loss < before.loss


def test_a_sensitivity_is_measured_after_recalibration_and_leaves_the_network_as_it_is():
    splits = digits(12, validation=0.3)
    model = build("vgg-small", 10, in_channels=1, stages=[[6], [8]])
    model.eval()
    before, scores, example = state(model), score(model, scorer="l1-filter"), splits.test[0][0][None]
    recovery = recalibrating(splits.train, 64, seed=3)
    found = sensitivity(model, scores, splits.validation, example, ratios=[0.5], recovery=recovery)
    assert same(state(model), before)
    for curve in found.curves:
        pruned = prune(model, scores, {curve.layers[0]: 0.5}, example).model
        recalibrate(pruned, splits.train, samples=64, seed=3)
        assert curve.points[0].loss == pytest.approx(evaluate(pruned, splits.validation).loss, abs=1e-6)
    whole = copy.deepcopy(model)
    recalibrate(whole, splits.train, samples=64, seed=3)
    assert found.loss == pytest.approx(evaluate(whole, splits.validation).loss, abs=1e-6)
    assert recovery.description != recalibrating(splits.train, 65, seed=3).description
    assert recovery.description != recalibrating(splits.test, 64, seed=3).description
