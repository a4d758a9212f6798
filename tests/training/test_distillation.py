"""The loss of distillation, the teacher's logits, and training with a teacher."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from prune_fe.errors import InputError
from prune_fe.training import distillation
from prune_fe.training.distillation import distillation_loss, teacher_logits
from prune_fe.training.loop import Epoch, finetune
from prune_fe.training.options import DistillOptions
from tests.training.helpers import Recorded, pictures, same, small, state

TRAINING: dict[str, Any] = {"lr": 0.1, "schedule": "cosine", "epochs": 3, "batch_size": 16}


def train(model: nn.Module, images: Dataset[Any] | None = None, **settings: Any) -> list[Epoch]:
    return finetune(model, images or pictures(50), pictures(30, seed=5), seed=3, **TRAINING | settings)


def test_the_loss_is_that_of_the_paper_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    labels, weight, temperature = torch.tensor([0, 1, 2, 3, 1]), 0.3, 2.5
    expected = 0.0
    for row, other, label in zip(logits, teacher, labels, strict=True):
        hard = -torch.log(row.exp()[label] / row.exp().sum())
        p, q = ((values / temperature).exp() / (values / temperature).exp().sum() for values in (other, row))
        expected += (1 - weight) * hard + weight * temperature**2 * (p * (p / q).log()).sum()
    options = DistillOptions(weight=weight, temperature=temperature)
    torch.testing.assert_close(distillation_loss(logits, labels, teacher, options), expected / 5)


def test_at_a_high_temperature_the_gradient_is_that_of_matched_logits() -> None:
    """Section 2.1 of the paper: for zero-mean logits the gradient tends to (network - teacher) / (classes T²) · T²."""
    logits, teacher = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits, teacher = (values - values.mean(1, keepdim=True) for values in (logits, teacher))
    logits.requires_grad_()
    options = DistillOptions(weight=1.0, temperature=1e4)
    distillation_loss(logits, torch.zeros(3, dtype=torch.long), teacher, options).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (logits.detach() - teacher) / 4 / 3, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch_size", [64, 7])
def test_the_logits_come_in_the_order_of_the_images(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "BATCH_SIZE", batch_size)
    teacher, images, steps = small(1).train(), pictures(20), list[tuple[int, int]]()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    logits = teacher_logits(teacher, images, progress=lambda done, total: steps.append((done, total)))
    assert torch.equal(torch.rand(3), expected)
    assert teacher.training
    teacher.eval()
    torch.testing.assert_close(logits, teacher(images.tensors[0]).detach())
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]


def test_a_network_learns_from_its_teacher() -> None:
    """With labels that say nothing, only a network with a teacher learns the classes."""
    teacher = small(1)
    train(teacher, epochs=8)
    images = pictures(50).tensors[0]
    nonsense = TensorDataset(images, torch.zeros(50, dtype=torch.long))
    # The validation images choose the epoch, so their accuracy after the last one is compared.
    alone = train(small(), nonsense, epochs=8)[-1].validation_accuracy
    taught = train(small(), nonsense, epochs=8, teacher=teacher, distill={"weight": 1.0})[-1].validation_accuracy
    assert alone < 0.5
    assert taught > 0.7


@pytest.mark.parametrize("only", [(), ("classifier",)])
def test_kept_logits_train_as_the_teacher_on_every_batch_does(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = small(1)
    before = state(teacher)
    logits = teacher_logits(teacher, pictures(50))
    models = [small(), small(), small()]
    histories = [train(model, only=only, teacher=each) for model, each in zip(models, (teacher, logits), strict=False)]
    monkeypatch.setattr("prune_fe.training.loop.is_constant", lambda _: False)
    histories.append(train(models[2], only=only, cache_gib=0.0, teacher=teacher))
    for model, history in zip(models[1:], histories[1:], strict=True):
        for name, value in state(models[0]).items():
            torch.testing.assert_close(value, state(model)[name], rtol=1e-4, atol=1e-5)
        assert history[-1].train_loss == pytest.approx(histories[0][-1].train_loss, abs=1e-4)
    assert same(before, state(teacher))


def test_the_train_loss_is_the_weighted_sum() -> None:
    model, teacher, images = small(), small(1), pictures(16)
    model.eval()
    frozen = train(
        model, images, teacher=teacher, lr=1e-30, epochs=1, momentum=0, distill={"weight": 0.25, "temperature": 2.0}
    )
    model.train()  # as in training, where batch norms use the statistics of the batch
    logits, labels = model(images.tensors[0]), images.tensors[1]
    expected = distillation_loss(
        logits, labels, teacher.eval()(images.tensors[0]), DistillOptions(weight=0.25, temperature=2.0)
    )
    assert frozen[1].train_loss == pytest.approx(expected.item(), abs=1e-5)


def test_the_teacher_sees_the_augmented_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[bool, Tensor]]] = {"teacher": [], "network": []}
    model, teacher = small(), small(1)
    for name, network in (("teacher", teacher), ("network", model)):
        network.register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append((module.training, args[0].clone()))
        )
    train(model, pictures(16), teacher=teacher, augment=True, epochs=2)
    in_training = [images for training, images in seen["network"] if training]
    batches = [images for training, images in seen["teacher"] if len(images) == 16]
    assert not any(training for training, _ in seen["teacher"])
    assert len(in_training) == 2
    assert all(torch.equal(one, other) for one, other in zip(in_training, batches, strict=True))


def test_the_teacher_reads_each_image_once_for_all_epochs() -> None:
    teacher, images = small(1), Recorded(pictures(50))
    count = 0

    def add(_: nn.Module, args: Any) -> None:
        nonlocal count
        count += len(args[0])

    teacher.register_forward_pre_hook(add)
    train(small(), images, teacher=teacher)
    assert count == 50 + 1  # one image tells the number of outputs


def test_progress_counts_the_teachers_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "BATCH_SIZE", 20)
    seen: list[tuple[bool, int, int]] = []
    train(
        small(), epochs=1, teacher=small(1),
        progress=lambda epoch, done, total: seen.append((epoch is None, done, total)),
    )  # fmt: skip
    assert seen == [(True, step, 7) for step in range(1, 8)] + [(False, 7, 7)]


MODEL = small()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"distill": {"weight": 0.5}}, r"distill needs a teacher: finetune\(..., teacher=network\)"),
        ({"teacher": MODEL}, r"teacher is the network that is trained; give a copy of it, copy.deepcopy\(model\)"),
        ({"teacher": torch.rand(49, 3)}, r"logits of shape \(49, 3\), there are 50 training images"),
        ({"teacher": torch.rand(50)}, r"logits of shape \(50,\), there are 50 training images"),
        ({"teacher": torch.rand(50, 4)}, "the teacher has 4 outputs, the network 3; both need the same classes"),
        (
            {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 5))},
            "the teacher has 5 outputs, the network 3; both need the same classes",
        ),
        (
            {"teacher": torch.rand(50, 3), "augment": True},
            "a tensor of logits, but the images change from epoch to epoch",
        ),
        ({"teacher": nn.Conv2d(1, 2, 3)}, r"Conv2d does not return \(images, classes\)"),
        ({"teacher": MODEL, "distill": {"weight": 0.0}}, r"distill.weight: input should be greater than 0 \(got 0.0\)"),
        ({"teacher": MODEL, "distill": {"temp": 4}}, "distill.temp: unknown key; allowed are weight, temperature"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(settings: dict[str, Any], text: str) -> None:
    before = state(MODEL)
    with pytest.raises(InputError, match=text):
        train(MODEL, **settings)
    assert same(before, state(MODEL))


def test_a_teacher_with_infinite_outputs_is_refused() -> None:
    teacher = copy.deepcopy(MODEL)
    bias = teacher.get_parameter("classifier.bias")
    torch.nn.init.constant_(bias, torch.inf)
    with pytest.raises(InputError, match="NaN or infinite"):
        train(small(), teacher=teacher)
