"""Gradient descent: the schedules, the update, what is left in the model, and what is refused."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune_fe import data, training
from prune_fe.errors import DataError, InputError
from prune_fe.models import SmallVGG
from prune_fe.pruning import prune
from prune_fe.scoring import score
from prune_fe.training import best_epoch, finetune, shifted


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
    from prune_fe.evaluation import evaluate

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
    read: list[data.InMemory] = []
    getitem = data.InMemory.__getitem__

    def recorded(self: data.InMemory, index: int) -> Any:
        read.append(self)
        return getitem(self, index)

    monkeypatch.setattr(data.InMemory, "__getitem__", recorded)
    splits = data.digits(size=8)
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
    loader = data.loader(pictures(), 4)
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
