"""Gradient descent: the schedules, the update, what is left in the model, and what is refused."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune_fe.data.batches import make_loader
from prune_fe.data.datasets import InMemory
from prune_fe.data.digits import digits
from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning.prune import prune
from prune_fe.pruning.records import Pruned
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.training import loop as training
from prune_fe.training.loop import best_epoch, carry_over, finetune, recalibrate, shifted


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


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step that SGD takes."""
    used: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *args: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    return used


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float] | None = None) -> None:
    """Let the validation images say this, epoch by epoch."""
    story = iter(zip(accuracies, losses or [1.0] * len(accuracies), strict=True))

    def told(model: nn.Module, validation: Any, workers: int, number: int, rate: float, loss: float, s: float) -> Any:
        return training.Epoch(number, rate, loss, *next(story), s)

    monkeypatch.setattr(training, "_epoch", told)


# ---- schedules


def test_the_step_schedule_is_the_papers_to_the_bit_and_then_stops(rates: list[float]) -> None:
    finetune(small(), pictures(24), pictures(6), batch_size=12)
    assert rates == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]


def test_the_step_schedule_is_exact_where_dividing_twice_is_not(rates: list[float]) -> None:
    assert 3e-3 / 10 / 10 != 3e-5
    finetune(small(), pictures(), pictures(6), lr=3e-3, final_lr=3e-5)
    assert rates == [3e-3, 3e-3 / 10, 3e-5]


def test_the_step_schedule_goes_on_at_the_last_rate_when_epochs_are_asked_for(rates: list[float]) -> None:
    finetune(small(), pictures(), pictures(6), epochs=5)
    assert rates == [1e-3, 1e-4, 1e-5, 1e-5, 1e-5]


def test_the_step_schedule_ends_early_when_fewer_epochs_are_asked_for(rates: list[float]) -> None:
    finetune(small(), pictures(), pictures(6), epochs=2)
    assert rates == [1e-3, 1e-4]


def test_the_cosine_schedule_falls_with_every_step(rates: list[float]) -> None:
    finetune(small(), pictures(24), pictures(6), batch_size=6, lr=0.1, schedule="cosine", epochs=3)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)], rel=1e-12)


def test_history_keeps_the_rate_that_each_epoch_ended_with() -> None:
    history = finetune(small(), pictures(), pictures(6))
    assert [epoch.learning_rate for epoch in history] == [0, 1e-3, 1e-4, 1e-5]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lr": 0.0}, "lr is 0.0, it must be positive"),
        ({"lr": math.nan}, "lr is nan, it must be positive"),
        ({"lr": math.inf}, "lr is inf, it must be positive"),
        ({"final_lr": 0.0}, "final_lr is 0.0, it must be positive"),
        ({"epochs": 0}, "epochs is 0, it must be positive"),
        ({"epochs": -1}, "epochs is -1, it must be positive"),
        ({"schedule": "cosine"}, "the cosine schedule needs epochs"),
        ({"schedule": "linear"}, "schedule is 'linear', allowed are step, cosine"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        finetune(small(), pictures(), pictures(6), **arguments)


# ---- the update


def test_a_step_is_momentum_and_weight_decay_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    train = pictures(24)
    images, labels = train.tensors
    weight, bias = (w.detach().clone().double() for w in model.parameters())
    speed_w, speed_b = torch.zeros_like(weight), torch.zeros_like(bias)
    flat, truth = images.flatten(1).double(), nn.functional.one_hot(labels, 3).double()
    first = state(model)
    for epoch in range(1, 4):  # of one step each, so that the order of the images does not matter
        error = (torch.softmax(flat @ weight.T + bias, dim=1) - truth) / len(labels)
        speed_w = 0.8 * speed_w + error.T @ flat + 0.01 * weight
        speed_b = 0.8 * speed_b + error.sum(dim=0) + 0.01 * bias
        weight, bias = weight - 0.003 * speed_w, bias - 0.003 * speed_b
        model.load_state_dict(first)
        scripted(monkeypatch, [0.1 * number for number in range(epoch + 1)])
        finetune(model, train, train, lr=0.003, final_lr=0.003, epochs=epoch, momentum=0.8, weight_decay=0.01)
        torch.testing.assert_close(model[1].weight.double(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model[1].bias.double(), bias, rtol=1e-5, atol=1e-6)


def test_the_train_loss_is_the_mean_over_images_and_not_over_batches() -> None:
    model, train = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), pictures(10)
    expected = nn.functional.cross_entropy(model(train.tensors[0]), train.tensors[1]).item()
    history = finetune(model, train, train, lr=1e-12, final_lr=1e-12, batch_size=8)
    assert history[1].train_loss == pytest.approx(expected, rel=1e-5)


def test_training_learns() -> None:
    model = small()
    history = finetune(model, pictures(60), pictures(30, seed=1), lr=0.1, schedule="cosine", epochs=8, batch_size=12)
    assert history[0].validation_accuracy < 0.5
    assert best_epoch(history).validation_accuracy > 0.8


@pytest.mark.parametrize(("count", "used"), [(25, 24), (26, 26), (1, 1), (24, 24)])
def test_only_a_last_batch_of_a_single_image_is_left_out(count: int, used: int) -> None:
    seen: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])) if module.training else None)
    finetune(model, pictures(count), pictures(6), batch_size=12, epochs=1)
    assert sum(seen) == used


# ---- which epoch is left


def states(model: nn.Module, epochs: int) -> list[dict[str, Tensor]]:
    """The states of the model after 0, 1, 2 … epochs."""
    found = [state(model)]

    def keep(epoch: Any, done: int, total: int) -> None:
        if epoch is not None:
            found.append(state(model))

    finetune(model, pictures(), pictures(6), lr=0.1, final_lr=0.1, epochs=epochs, progress=keep)
    return found


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ([0.1, 0.2, 0.9, 0.3], None, 2),
        ([0.1, 0.2, 0.3, 0.4], None, 3),
        ([0.9, 0.2, 0.8, 0.3], None, 0),
        ([0.5, 0.5, 0.5, 0.5], None, 0),
        ([0.1, 0.9, 0.9, 0.9], [1.0, 0.5, 0.4, 0.6], 2),
    ],
)
def test_the_best_epoch_on_the_validation_images_is_what_is_left(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: list[float] | None, best: int
) -> None:
    scripted(monkeypatch, accuracies, losses)
    model = small()
    after = states(model, 3)
    assert not same(after[0], after[1])
    assert same(state(model), after[best])
    assert not model.training


def test_the_history_judges_the_weights_that_are_left() -> None:
    model, validation = small(), pictures(30, seed=5)
    history = finetune(model, pictures(), validation, lr=0.5, final_lr=0.5, epochs=4)
    from prune_fe.measure.evaluate import evaluate

    assert evaluate(model, validation).loss == pytest.approx(best_epoch(history).validation_loss, abs=1e-6)


# ---- the same numbers again


@pytest.mark.parametrize("augment", [False, True])
def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(augment: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results: list[dict[str, Tensor]] = []
        for seed in (3, 3, 4):
            model = nn.Sequential(small(), nn.Dropout(0.5))
            torch.rand(len(results) + 1)
            finetune(model, pictures(), pictures(6), seed=seed, lr=0.1, final_lr=0.1, epochs=2, batch_size=8,
                     augment=augment)  # fmt: skip
            results.append(state(model))
    finally:
        torch.set_num_threads(threads)
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_what_a_network_draws_depends_on_seed_and_epoch_alone() -> None:
    def draws(seed: int, before: int = 0) -> list[float]:
        model, found = small(), list[float]()
        model.register_forward_hook(lambda module, *_: found.append(torch.rand(()).item()) if module.training else None)
        torch.rand(before)
        finetune(model, pictures(), pictures(6), seed=seed, epochs=3)
        return found

    assert draws(1) == draws(1, before=5)
    assert len({*draws(1), *draws(2)}) == 6


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    model = nn.Sequential(small(), nn.Dropout(0.5))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    finetune(model, pictures(), [pictures(6).tensors], epochs=1)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)


class Recorded(Dataset[Any]):
    """Remembers which images were read."""

    def __init__(self, inner: TensorDataset) -> None:
        self.inner, self.read = inner, list[int]()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.inner[index]


def orders(seed: int, batch_size: int) -> list[list[int]]:
    train = Recorded(pictures(24))
    finetune(small(), train, pictures(6), seed=seed, batch_size=batch_size, epochs=2)
    return [train.read[:24], train.read[24:]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = orders(seed=1, batch_size=4)
    assert orders(seed=1, batch_size=12) == first
    assert first[0] != first[1]
    assert orders(seed=2, batch_size=4)[0] != first[0]
    assert [sorted(order) for order in first] == [list(range(24))] * 2


def test_training_reads_no_test_image(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[InMemory] = []
    getitem = InMemory.__getitem__

    def recorded(self: InMemory, index: int) -> Any:
        read.append(self)
        return getitem(self, index)

    monkeypatch.setattr(InMemory, "__getitem__", recorded)
    splits = digits(size=8)
    finetune(SmallVGG(10, 1, [[2]]), splits.train, splits.validation, epochs=1)
    assert len(read) > len(splits.train)  # type: ignore[arg-type]
    assert not any(dataset is splits.test for dataset in read)


# ---- frozen, diverging and pruned networks


def test_a_frozen_network_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="SmallVGG is frozen: no weight has requires_grad"):
        finetune(small().requires_grad_(False), pictures(), pictures(6))


def test_frozen_weights_keep_their_values() -> None:
    model = small()
    model.features[0].weight.requires_grad_(False)
    before = state(model)
    finetune(model, pictures(60), pictures(30), lr=0.1, schedule="cosine", epochs=3)
    after = state(model)
    assert torch.equal(before["features.0.weight"], after["features.0.weight"])
    assert not torch.equal(before["features.4.weight"], after["features.4.weight"])
    assert not model.features[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_not_finite_is_refused_and_the_best_weights_are_left() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    before = state(model)
    with pytest.raises(InputError, match=r"the loss is (nan|inf) in epoch 1: lower lr \(it is 1e\+30\)"):
        finetune(model, pictures(), pictures(6), lr=1e30, batch_size=4)
    assert same(before, state(model))


def test_an_interrupt_leaves_the_best_epoch_until_then() -> None:
    model = small().train()
    found: list[dict[str, Tensor]] = []

    def stop(epoch: Any, done: int, total: int) -> None:
        if epoch is not None:
            found.append(state(model))
        elif found:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(model, pictures(60), pictures(60), lr=0.1, schedule="cosine", epochs=4, batch_size=12, progress=stop)
    assert same(state(model), found[0])
    assert not model.training


def test_every_weight_of_a_pruned_network_is_trained() -> None:
    original = small()
    example = torch.rand(1, 1, 8, 8)
    pruned = prune(original, score(original, None, "l1-filter", example=example), 0.5, example).model
    before = {name: weight.detach().clone() for name, weight in pruned.named_parameters()}
    finetune(pruned, pictures(60), pictures(60), lr=0.1, schedule="cosine", epochs=3)
    assert before["features.0.weight"].shape[0] == 2
    assert all(not torch.equal(weight, before[name]) for name, weight in pruned.named_parameters())


def test_a_network_that_returns_a_tuple_in_training_is_refused() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, images: Tensor) -> Any:
            logits = self.net(images)
            return (logits, logits) if self.training else logits

    with pytest.raises(InputError, match=r"Heads returns a tuple in training.*aux_logits=False"):
        finetune(Heads(), pictures(), pictures(6))


def test_batches_instead_of_a_data_set_are_refused() -> None:
    loader = make_loader(pictures(), 4)
    with pytest.raises(InputError, match="as a map-style data set, not as a DataLoader"):
        finetune(small(), loader, pictures(6))  # type: ignore[arg-type]


def test_no_training_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images to train on"):
        finetune(small(), pictures(0), pictures(6))


def test_progress_counts_steps_to_the_end() -> None:
    seen: list[tuple[bool, int, int]] = []
    finetune(
        small(), pictures(24), pictures(6), batch_size=12, epochs=2,
        progress=lambda epoch, done, total: seen.append((epoch is None, done, total)),
    )  # fmt: skip
    assert seen == [(True, 1, 4), (True, 2, 4), (False, 2, 4), (True, 3, 4), (True, 4, 4), (False, 4, 4)]


# ---- flips and shifts


def reflected(index: int, size: int) -> int:
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


def moves(image: Tensor) -> Iterator[Tensor]:
    """Slow twin: every flip of an image (channels, height, width), moved by up to an eighth, the border reflected."""
    _, height, width = image.shape
    up, left = (0 if size == 1 else max(size // 8, 1) for size in (height, width))
    for flip in (False, True):
        for down in range(-up, up + 1):
            for right in range(-left, left + 1):
                out = torch.empty_like(image)
                for y in range(height):
                    for x in range(width):
                        source = reflected(((width - 1 - x) if flip else x) + right, width)
                        out[:, y, x] = image[:, reflected(y + down, height), source]
                yield out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17), st.integers(0, 2**31))
def test_shifted_images_are_flips_and_small_shifts_and_nothing_else(
    channels: int, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, channels, height, width, generator=generator)
    out = shifted(images, generator)
    assert out.shape == images.shape
    for image, moved in zip(images, out, strict=True):
        assert any(torch.equal(moved, candidate) for candidate in moves(image))


def test_every_flip_and_shift_occurs() -> None:
    image = torch.rand(1, 8, 8)
    out = shifted(image.expand(2000, 1, 8, 8), torch.Generator().manual_seed(0))
    found = {tuple(moved.flatten().tolist()) for moved in out}
    assert found == {tuple(candidate.flatten().tolist()) for candidate in moves(image)}


def test_images_are_shifted_each_in_its_own_way() -> None:
    out = shifted(torch.rand(1, 1, 16, 16).expand(50, 1, 16, 16), torch.Generator().manual_seed(0))
    assert len({tuple(moved.flatten().tolist()) for moved in out}) > 10


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_shifted_only_when_asked(monkeypatch: pytest.MonkeyPatch, augment: bool) -> None:
    calls: list[int] = []
    real: Callable[..., Tensor] = training.shifted

    def counted(images: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(images))
        return real(images, generator)

    monkeypatch.setattr(training, "shifted", counted)
    finetune(small(), pictures(24), pictures(6), batch_size=12, epochs=1, augment=augment)
    assert calls == ([12, 12] if augment else [])


# ---- what the optimizer knew


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


def test_momentum_is_cut_with_the_weights() -> None:
    model, momentum = by_hand()
    carried = dict(momentum)
    pruned = without_one_and_three(model, carry=carried)
    assert carried.keys() == momentum.keys()
    assert carried["0.weight"].flatten().tolist() == [20, 40]
    assert carried["2.weight"].flatten(1).tolist() == [[10, 30], [50, 70]]
    assert carried["2.bias"].tolist() == [100, 200]
    assert momentum["0.weight"].flatten().tolist() == [20, 30, 40, 50]
    assert all(torch.equal(carried[name], 10 * weight) for name, weight in pruned.model.named_parameters())


def test_without_a_gradient_a_step_is_the_carried_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    model, momentum = by_hand(classes=1)  # whose loss is 0, and its gradient, whatever the weights are
    pruned = without_one_and_three(model, carry=momentum).model
    one = TensorDataset(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    scripted(monkeypatch, [0.0, 1.0, 0.5])
    finetune(
        pruned, one, one, lr=0.25, final_lr=0.25, epochs=2, momentum=0.5, weight_decay=0, momentum_buffers=momentum
    )
    # epoch 1, which is left: the momentum (20, 40) is halved, and the weights (2, 4) lose a quarter of it
    assert momentum["0.weight"].flatten().tolist() == [10, 20]
    assert pruned.get_parameter("0.weight").flatten().tolist() == [2 - 2.5, 4 - 5]
    assert momentum["2.weight"].flatten().tolist() == [5, 15]
    assert pruned.get_parameter("2.weight").flatten().tolist() == [1 - 1.25, 3 - 3.75]


def test_a_step_after_the_prune_is_the_step_of_the_masked_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, momentum = by_hand()
    model.get_parameter("2.weight").data[:, [1, 3]] = 0
    train = pictures(12, classes=2)
    carried = dict(momentum)
    pruned = without_one_and_three(model, carry=carried)
    for network, buffers in ((model, momentum), (pruned.model, carried)):
        scripted(monkeypatch, [0.0, 1.0])
        finetune(network, train, train, lr=0.01, final_lr=0.01, epochs=1, momentum_buffers=buffers)
    torch.testing.assert_close(dict(pruned.model.named_parameters()), pruned.surviving(dict(model.named_parameters())))
    torch.testing.assert_close(carried, pruned.surviving(momentum))


def test_training_in_two_calls_is_training_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves, empty = small(), small(), dict[str, Tensor]()
    settings: dict[str, Any] = {"lr": 0.1, "final_lr": 0.1}
    train = pictures(2)  # one step of the same two images an epoch
    scripted(monkeypatch, [0.0, 0.1, 0.2])
    finetune(whole, train, train, epochs=2, **settings)
    for _ in range(2):
        scripted(monkeypatch, [0.0, 0.1])
        finetune(halves, train, train, epochs=1, momentum_buffers=empty, **settings)
    assert empty.keys() == dict(halves.named_parameters()).keys()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_momentum_that_is_kept_is_that_of_the_epoch_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Tensor]] = []
    for epochs in (1, 2, 3):
        scripted(monkeypatch, [0.1, 0.5, 0.9, 0.3][: epochs + 1])
        found.append({})
        finetune(small(), pictures(), pictures(6), lr=0.1, final_lr=0.1, epochs=epochs, momentum_buffers=found[-1])
    assert not same(found[0], found[1])
    assert same(found[1], found[2])


def test_no_better_epoch_leaves_the_momentum_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    momentum = {"classifier.bias": torch.ones(3)}
    scripted(monkeypatch, [0.9, 0.1])
    finetune(model, pictures(), pictures(6), epochs=1, momentum_buffers=momentum)
    assert list(momentum) == ["classifier.bias"]
    assert momentum["classifier.bias"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("momentum", "text"),
    [
        ({"features.9.weight": torch.ones(4)}, "SmallVGG has no parameter 'features.9.weight'"),
        ({"classifier.bias": torch.ones(4)}, r"of parameter 'classifier.bias' is \(4,\), the parameter \(3,\)"),
        ({"classifier.bias": [1, 2, 3]}, r"of parameter 'classifier.bias' is list, the parameter \(3,\)"),
    ],
)
def test_momentum_of_another_network_is_refused_by_name(momentum: Any, text: str) -> None:
    model = small()
    before = state(model)
    with pytest.raises(InputError, match="momentum_buffers.*" + text):
        finetune(model, pictures(), pictures(6), momentum_buffers=momentum)
    with pytest.raises(InputError, match="carry.*" + text):
        prune(model, Scores("none", {}), 0, torch.rand(1, 1, 8, 8), carry=momentum)
    assert same(before, state(model))


def test_momentum_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(InputError, match="momentum_buffers were given, but momentum is 0"):
        finetune(small(), pictures(), pictures(6), momentum=0, momentum_buffers={"classifier.bias": torch.ones(3)})
    unused: dict[str, Tensor] = {}
    finetune(small(), pictures(), pictures(6), epochs=1, momentum=0, momentum_buffers=unused)
    assert unused == {}


# ---- an optimizer of the user's own

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
}


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    biases = [weight for name, weight in named if name.endswith("bias")]
    return [
        {"params": [weight for name, weight in named if not name.endswith("bias")], "weight_decay": 0.1},
        {"params": biases, "lr": 0.05},
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images, labels = pictures(12, classes=2).tensors
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_carried_over_goes_on_as_that_of_the_masked_network(kind: str) -> None:
    model, _ = by_hand()
    optimizer = OPTIMIZERS[kind](two_groups(model))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        step(model, optimizer)
        schedule.step()
    model.get_parameter("2.weight").data[:, [1, 3]] = 0
    pruned = without_one_and_three(model)
    before = copy.deepcopy(optimizer.state_dict())
    new = carry_over(optimizer, model, pruned)

    assert type(new) is type(optimizer)
    names = {id(weight): name for name, weight in pruned.model.named_parameters()}
    assert [[names[id(w)] for w in group["params"]] for group in new.param_groups] == [
        ["0.weight", "2.weight"],
        ["2.bias"],
    ]
    for group, old in zip(new.param_groups, optimizer.param_groups, strict=True):
        assert {key: value for key, value in group.items() if key != "params"} == {
            key: value for key, value in old.items() if key != "params"
        }
    assert new.param_groups[1]["lr"] == pytest.approx(0.05 / 8)
    cut = next(value for key, value in new.state[pruned.model.get_parameter("0.weight")].items() if key != "step")
    assert cut.shape == (2, 1, 1, 1)

    step(pruned.model, new)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    step(model, optimizer)
    torch.testing.assert_close(dict(pruned.model.named_parameters()), pruned.surviving(dict(model.named_parameters())))
    step(pruned.model, new)  # the old schedule does not reach it


def test_an_optimizer_that_has_not_stepped_is_carried_over() -> None:
    model, _ = by_hand()
    pruned = without_one_and_three(model)
    new = carry_over(torch.optim.Adam([model.get_parameter("2.bias")], lr=0.5), model, pruned)
    assert [group["params"] for group in new.param_groups] == [[pruned.model.get_parameter("2.bias")]]
    assert not new.state


def test_what_cannot_be_carried_over_is_refused_by_name() -> None:
    model, _ = by_hand()
    pruned = without_one_and_three(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(7))], lr=1)
    with pytest.raises(InputError, match=r"optimizer: a parameter of shape \(7,\) is none of this Sequential's"):
        carry_over(stranger, model, pruned)
    with pytest.raises(InputError, match="layer '0': 2 units, the model that was pruned had 4"):
        carry_over(optimizer, pruned.model, pruned)
    optimizer.state[model.get_parameter("0.weight")]["rows"] = torch.ones(4)
    with pytest.raises(
        InputError, match=r"'rows' of parameter '0.weight' has shape \(4,\), the parameter \(4, 1, 1, 1"
    ):
        carry_over(optimizer, model, pruned)
    optimizer.state.clear()
    pruned.model.get_submodule("2").bias = nn.Parameter(torch.ones(5))
    with pytest.raises(InputError, match=r"parameter '2.bias': \(2,\) is left of \(2,\), the pruned model has \(5,\)"):
        carry_over(optimizer, model, pruned)
    pruned.model.add_module("6", nn.Linear(1, 1))
    with pytest.raises(InputError, match="parameter '6.bias': only the pruned model has it"):
        carry_over(optimizer, model, pruned)


# ---- batch norms


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
