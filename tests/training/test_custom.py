"""An optimizer, a scheduler, a loss and functions of one's own, and batches and outputs of other kinds."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, TensorDataset

from prune_fe.errors import InputError
from prune_fe.training import unfinished
from prune_fe.training.custom import Epoch, Step, take_custom
from prune_fe.training.loop import finetune
from tests.training.helpers import pictures, same, script_validation, small, state

SETTINGS: dict[str, Any] = {"lr": 0.05, "schedule": "constant", "epochs": 2, "batch_size": 12}


def trained(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    finetune(model, pictures(30), pictures(12, seed=1), **SETTINGS | settings)
    return state(model)


def test_an_optimizer_by_name_and_one_of_ones_own_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_fe.training.epochs.best_epoch", lambda history: history[-1])
    by_name = trained(small(), opt="AdamW", lr=0.01, weight_decay=0.1, opt_args={"betas": [0.8, 0.9]})
    model = small()
    instance = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    given = trained(model, optimizer=instance)
    made = trained(small(), optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)))
    assert same(by_name, given)
    assert same(by_name, made)
    assert not same(by_name, trained(small(), opt="adamw", lr=0.01))


def test_the_groups_of_an_own_optimizer_follow_the_schedule_from_where_they_are() -> None:
    model, seen = small(), list[tuple[float, ...]]()
    groups = [{"params": model.features.parameters(), "lr": 0.2}, {"params": model.classifier.parameters(), "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    finetune(
        model, pictures(24), pictures(6), optimizer=optimizer, schedule="cosine", epochs=2, batch_size=12,
        on_step=lambda _: seen.append(tuple(group["lr"] for group in optimizer.param_groups)),
    )  # fmt: skip
    factors = [1.0, 0.8535534, 0.5, 0.1464466]
    assert seen == [pytest.approx((0.2 * factor, 0.4 * factor)) for factor in factors]


def rates(**settings: Any) -> list[float]:
    found: list[float] = []
    finetune(
        small(), pictures(24), pictures(6), on_step=lambda step: found.append(step.learning_rate), **SETTINGS | settings
    )
    return found


def test_a_scheduler_of_ones_own_goes_by_epochs_or_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    by_epoch = rates(scheduler=lambda optimizer: ExponentialLR(optimizer, 0.5))
    assert by_epoch == pytest.approx([0.05, 0.05, 0.025, 0.025])
    by_step = rates(scheduler=lambda optimizer: ExponentialLR(optimizer, 0.5), scheduler_interval="step")
    assert by_step == pytest.approx([0.05, 0.025, 0.0125, 0.00625])
    script_validation(monkeypatch, [0.0, 0.1, 0.2, 0.3], [1.0, 1.0, 2.0, 3.0])
    plateau = rates(scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.1, patience=0), epochs=3)
    assert plateau == pytest.approx([0.05] * 4 + [0.005] * 2)


def test_a_loss_of_ones_own_is_what_is_minimised() -> None:
    def smooth(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.2)

    model = small()
    history = finetune(model, pictures(30), pictures(12, seed=1), loss=smooth, **SETTINGS)
    other = small()
    expected = finetune(other, pictures(30), pictures(12, seed=1), label_smoothing=0.2, **SETTINGS)
    assert [epoch.train_loss for epoch in history[1:]] == [epoch.train_loss for epoch in expected[1:]]
    assert same(state(model), state(other))
    assert not same(state(model), trained(small()))
    with pytest.raises(InputError, match="loss= must return a tensor with one number"):
        trained(small(), loss=lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"))


def test_functions_are_called_after_each_step_and_each_epoch() -> None:
    steps, epochs, others = list[Step](), list[tuple[Epoch, nn.Module]](), list[int]()
    model = small()
    finetune(
        model, pictures(24), pictures(6), **SETTINGS, on_step=[steps.append, lambda step: others.append(step.number)],
        on_epoch=lambda epoch, network: epochs.append((epoch, network)),
    )  # fmt: skip
    assert [(step.number, step.epoch, step.learning_rate) for step in steps] == [
        (1, 1, 0.05), (2, 1, 0.05), (3, 2, 0.05), (4, 2, 0.05),
    ]  # fmt: skip
    assert others == [1, 2, 3, 4]
    assert [epoch.number for epoch, _ in epochs] == [1, 2]
    assert all(network is model for _, network in epochs)
    losses = [float(step.loss) for step in steps]
    assert epochs[0][0].train_loss == pytest.approx(sum(losses[:2]) / 2)


def test_a_true_answer_ends_training_also_when_it_is_started_again(tmp_path: Path) -> None:
    def train(model: nn.Module) -> list[int]:
        history = finetune(
            model, pictures(24), pictures(6), **SETTINGS | {"epochs": 5}, unfinished=tmp_path / "file",
            on_epoch=lambda epoch, _: epoch.number == 2,
        )  # fmt: skip
        return [epoch.number for epoch in history]

    first, again = small(), small()
    assert train(first) == train(again) == [0, 1, 2]
    assert same(state(first), state(again))


@pytest.mark.parametrize("settings", [
    {"opt": "adamw", "lr": 0.01}, {"ema": 0.7}, {"opt": "sgd", "opt_args": {"nesterov": True}},
    {"scheduler": lambda optimizer: ExponentialLR(optimizer, 0.5)}, {"mixup": 0.4, "cutmix": 1.0},
])  # fmt: skip
def test_what_is_interrupted_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(unfinished, "WRITING_SHARE", 1e9)

    def stop(step: Step) -> None:
        if step.epoch == 3:
            raise KeyboardInterrupt

    settings = settings | {"epochs": 4}
    expected, file = trained(small(), **settings), tmp_path / "file"
    with pytest.raises(KeyboardInterrupt):
        trained(small(), **settings, unfinished=file, on_step=stop)
    numbers: list[int] = []
    resumed = trained(small(), **settings, unfinished=file, on_epoch=lambda epoch, _: numbers.append(epoch.number))
    assert numbers == [3, 4]
    assert same(resumed, expected)


def test_an_unfinished_training_with_another_loss_is_refused(tmp_path: Path) -> None:
    trained(small(), loss=F.cross_entropy, unfinished=tmp_path / "file")
    with pytest.raises(InputError, match="an unfinished training of other .* or objects of your own"):
        trained(small(), unfinished=tmp_path / "file")


# ---- batches and dicts


def test_a_loader_trains_as_its_batches_say() -> None:
    data = pictures(30)
    by_set, by_loader = small(), small()
    one: dict[str, Any] = SETTINGS | {"batch_size": 30}
    finetune(by_set, data, pictures(12, seed=1), **one)
    finetune(by_loader, DataLoader(data, 30), pictures(12, seed=1), **one)
    torch.testing.assert_close(state(by_loader), state(by_set))
    listed = small()
    finetune(listed, list(DataLoader(data, 30)), DataLoader(pictures(12, seed=1), 5), **one)
    assert same(state(listed), state(by_loader))


def test_the_order_of_a_loader_depends_on_the_seed_alone() -> None:
    def run(seed: int, before: int) -> dict[str, Tensor]:
        torch.rand(before)
        model = small()
        finetune(model, DataLoader(pictures(30), 12, shuffle=True), pictures(12), **SETTINGS, seed=seed)
        return state(model)

    assert same(run(3, 0), run(3, 5))
    assert not same(run(3, 0), run(4, 0))


def test_a_loader_is_refused_without_a_length_and_without_batches() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(pictures(6))

    class NoLength:
        def __iter__(self) -> Any:
            return iter(DataLoader(pictures(6), 2))

    with pytest.raises(InputError, match="NoLength has no length, which the schedule"):
        finetune(small(), NoLength(), pictures(6), **SETTINGS)
    with pytest.raises(InputError, match="no length|as a map-style data set or a DataLoader"):
        finetune(small(), Stream(), pictures(6), **SETTINGS)


class Named(Dataset[Any]):
    """Samples that are dicts."""

    def __init__(self, inner: TensorDataset) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.inner[index]
        return {"image": image, "label": label}


class TakesNames(nn.Module):
    """Takes keywords and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(image)}


def test_dicts_train_as_pairs_do() -> None:
    def unpack(batch: Any) -> Any:
        return batch["image"], batch["label"]

    expected = small()
    finetune(expected, pictures(30), pictures(12, seed=1), **SETTINGS)
    sets = small()
    finetune(sets, Named(pictures(30)), Named(pictures(12, seed=1)), unpack=unpack, **SETTINGS)
    assert same(state(sets), state(expected))
    named = TakesNames()
    finetune(
        named, Named(pictures(30)), Named(pictures(12, seed=1)), logits=lambda output: output["logits"],
        unpack=lambda batch: ({"image": batch["image"]}, batch["label"]), **SETTINGS,
    )  # fmt: skip
    assert same(state(named.net), state(expected))
    loaders = small()
    finetune(loaders, DataLoader(Named(pictures(30)), 30), DataLoader(Named(pictures(12, seed=1)), 5), unpack=unpack,
             **SETTINGS)  # fmt: skip
    assert not same(state(loaders), state(small()))
    with pytest.raises(InputError, match="unpack= fails on a dict: KeyError"):
        finetune(small(), Named(pictures(30)), Named(pictures(6)), unpack=lambda batch: batch["pixels"], **SETTINGS)
    with pytest.raises(InputError, match="a batch is a dict; unpack=FUNCTION takes both out of it"):
        finetune(small(), DataLoader(Named(pictures(30)), 30), pictures(6), **SETTINGS)


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"opt": "adamx"}, "opt: unknown optimizer 'adamx'; did you mean"),
        ({"opt": "lbfgs"}, "opt: unknown optimizer 'lbfgs'"),
        ({"opt_args": {"beta": 1}}, "opt_args: SGD has no argument 'beta'"),
        ({"opt": "adamw", "opt_args": {"betas": [2.0, 0.9]}}, "opt: AdamW refuses its arguments: Invalid beta"),
        ({"optimizer": 3}, "optimizer is a int; it must be an optimizer"),
        ({"optimizer": lambda _: 3}, "optimizer returns a int, not an optimizer"),
        ({"optimizer": torch.optim.SGD(small().parameters(), lr=1)}, "none of its weights are trained ones"),
        ({"optimizer": lambda weights: torch.optim.SGD(weights[:1], lr=1)}, "it does not have 'features.1.weight'"),
        ({"optimizer": partial(torch.optim.SGD, lr=1), "lr_by_layer": {"*": 0.1}}, "lr_by_layer has no effect"),
        ({"opt": "adamw", "momentum_buffers": {"classifier.bias": torch.ones(3)}}, "momentum_buffers are SGD's"),
        ({"scheduler": LambdaLR(torch.optim.SGD(small().parameters(), lr=1), float)}, "pass that one as optimizer="),
        ({"scheduler": 3}, "scheduler is a int"),
        ({"scheduler_interval": "batch"}, "scheduler_interval='batch'; it must be 'epoch' or 'step'"),
        ({"loss": 3}, "loss is a int; it must be a function"),
        ({"on_step": [3]}, "on_step must be a function, or a list of functions"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(settings: dict[str, Any], text: str) -> None:
    model = small()
    with pytest.raises(InputError, match=text):
        finetune(model, pictures(30), pictures(6), **SETTINGS | settings)
    assert same(state(model), state(small()))


def test_objects_are_told_from_options() -> None:
    custom, rest = take_custom({"lr": 0.1, "loss": F.cross_entropy})
    assert (custom.loss, rest) == (F.cross_entropy, {"lr": 0.1})
    assert custom.describe() == ["loss: cross_entropy"]
