"""The update, the epoch that is left, reproducible randomness, momentum, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prune_fe.data.datasets import InMemory
from prune_fe.data.digits import digits
from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.training.loop import best_epoch, finetune
from tests.training.helpers import (
    Recorded,
    by_hand,
    pictures,
    same,
    script_validation,
    small,
    state,
    without_one_and_three,
)

# ---- the update


def test_history_keeps_the_rate_that_each_epoch_ended_with() -> None:
    history = finetune(small(), pictures(), pictures(6), schedule="step")
    assert [epoch.learning_rate for epoch in history] == [0, 1e-3, 1e-4, 1e-5]
    history = finetune(small(), pictures(), pictures(6), schedule="cosine", epochs=2, batch_size=12, lr=0.1)
    assert [epoch.first_learning_rate for epoch in history] == pytest.approx([0, 0.1, 0.05])


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
        script_validation(monkeypatch, [0.1 * number for number in range(epoch + 1)])
        finetune(
            model,
            train,
            train,
            lr=0.003,
            final_lr=0.003,
            schedule="step",
            epochs=epoch,
            momentum=0.8,
            weight_decay=0.01,
        )
        torch.testing.assert_close(model[1].weight.double(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model[1].bias.double(), bias, rtol=1e-5, atol=1e-6)


def test_a_factor_of_the_rate_scales_the_step_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for factors in ({}, {"features*": 0.1, "features.0": 0.5}):
        model, before = small(), small()
        script_validation(monkeypatch, [0.0, 1.0])
        history = finetune(
            model, pictures(), pictures(6), lr=0.1, schedule="step", epochs=1, momentum=0, lr_by_layer=factors
        )
        assert history[1].learning_rate == 0.1
        new, old = dict(model.named_parameters()), dict(before.named_parameters())
        steps.append({name: new[name] - old[name] for name in new})
    for name, factor in {"features.0.weight": 0.5, "features.4.weight": 0.1, "classifier.weight": 1}.items():
        torch.testing.assert_close(steps[1][name], factor * steps[0][name], rtol=1e-3, atol=1e-7)


def test_the_train_loss_is_the_mean_over_images_and_not_over_batches() -> None:
    model, train = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), pictures(10)
    expected = nn.functional.cross_entropy(model(train.tensors[0]), train.tensors[1]).item()
    history = finetune(model, train, train, lr=1e-12, final_lr=1e-12, schedule="step", batch_size=8)
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

    def record(epoch: Any, done: int, total: int) -> None:
        if epoch is not None:
            found.append(state(model))

    finetune(model, pictures(), pictures(6), lr=0.1, schedule="constant", epochs=epochs, progress=record)
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
    script_validation(monkeypatch, accuracies, losses)
    model = small()
    after = states(model, 3)
    assert not same(after[0], after[1])
    assert same(state(model), after[best])
    assert not model.training


def test_the_history_judges_the_weights_that_are_left() -> None:
    model, validation = small(), pictures(30, seed=5)
    history = finetune(model, pictures(), validation, lr=0.5, schedule="constant", epochs=4)
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
            finetune(model, pictures(), pictures(6), seed=seed, lr=0.1, schedule="constant", epochs=2, batch_size=8,
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
    finetune(model, pictures(), [pictures(6).tensors], epochs=1)
    assert torch.equal(torch.rand(3), expected)


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
    assert model.training


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


def test_a_generator_and_a_stream_are_refused() -> None:
    batches = (batch for batch in DataLoader(pictures(), 4))
    with pytest.raises(InputError, match="as a map-style data set or a DataLoader, not as a generator"):
        finetune(small(), batches, pictures(6))


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


# ---- momentum across calls


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
    script_validation(monkeypatch, [0.0, 1.0, 0.5])
    finetune(
        pruned,
        one,
        one,
        lr=0.25,
        schedule="constant",
        epochs=2,
        momentum=0.5,
        weight_decay=0,
        momentum_buffers=momentum,
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
        script_validation(monkeypatch, [0.0, 1.0])
        finetune(network, train, train, lr=0.01, schedule="constant", epochs=1, momentum_buffers=buffers)
    torch.testing.assert_close(dict(pruned.model.named_parameters()), pruned.surviving(dict(model.named_parameters())))
    torch.testing.assert_close(carried, pruned.surviving(momentum))


def test_training_in_two_calls_is_training_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves, empty = small(), small(), dict[str, Tensor]()
    settings: dict[str, Any] = {"lr": 0.1, "schedule": "constant"}
    train = pictures(2)  # one step of the same two images an epoch
    script_validation(monkeypatch, [0.0, 0.1, 0.2])
    finetune(whole, train, train, epochs=2, **settings)
    for _ in range(2):
        script_validation(monkeypatch, [0.0, 0.1])
        finetune(halves, train, train, epochs=1, momentum_buffers=empty, **settings)
    assert empty.keys() == dict(halves.named_parameters()).keys()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_momentum_that_is_kept_is_that_of_the_epoch_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Tensor]] = []
    for epochs in (1, 2, 3):
        script_validation(monkeypatch, [0.1, 0.5, 0.9, 0.3][: epochs + 1])
        found.append({})
        finetune(
            small(), pictures(), pictures(6), lr=0.1, schedule="constant", epochs=epochs, momentum_buffers=found[-1]
        )
    assert not same(found[0], found[1])
    assert same(found[1], found[2])


def test_no_better_epoch_leaves_the_momentum_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    momentum = {"classifier.bias": torch.ones(3)}
    script_validation(monkeypatch, [0.9, 0.1])
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
