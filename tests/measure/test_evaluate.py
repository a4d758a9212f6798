"""Accuracy, balanced accuracy and loss, against scikit-learn and torch."""

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prune_fe.errors import DataError, InputError
from prune_fe.measure.evaluate import evaluate, float64_logits

CLASSES = 5


class Outputs(nn.Module):
    """Returns the first row of its one-channel images as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return images[:, 0, 0] * self.scale


def some(count: int = 203, present: tuple[int, ...] = (0, 1, 3, 4)) -> tuple[Tensor, Tensor]:
    """logits (count, classes) and labels (count,); the classes that are not in `present` have no images."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, CLASSES, generator=generator) * 3
    chosen = torch.randint(0, len(present), (count,), generator=generator) ** 2 // (len(present) - 1)
    return logits, torch.tensor(present)[chosen]


def dataset(logits: Tensor, labels: Tensor) -> TensorDataset:
    return TensorDataset(logits[:, None, None], labels)


def test_accuracy_is_correct_images_by_images() -> None:
    logits, labels = some()
    result = evaluate(Outputs(), dataset(logits, labels))
    assert result.images == len(labels)
    assert result.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1)), abs=1e-15)


def test_the_confusion_has_true_classes_as_rows() -> None:
    logits = torch.eye(CLASSES)[[2, 2, 0]]
    confusion = evaluate(Outputs(), dataset(logits, torch.tensor([1, 2, 0]))).confusion
    assert confusion.nonzero().tolist() == [[0, 0], [1, 2], [2, 2]]
    assert confusion.dtype == torch.int64


@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4), (0, 1, 3, 4), (2, 4)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_is_scikit_learns_also_when_a_class_has_no_images(present: tuple[int, ...]) -> None:
    logits, labels = some(present=present)
    expected = balanced_accuracy_score(labels, logits.argmax(1))
    assert evaluate(Outputs(), dataset(logits, labels)).balanced_accuracy == pytest.approx(expected, abs=1e-12)


def test_the_loss_is_the_mean_cross_entropy_in_float64() -> None:
    logits, labels = some()
    expected = nn.functional.cross_entropy(logits.double(), labels).item()
    assert evaluate(Outputs(), dataset(logits, labels)).loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    data = dataset(*some())
    one, other = evaluate(Outputs(), data), evaluate(Outputs(), data, batch_size=batch_size)
    assert torch.equal(one.confusion, other.confusion)
    assert one.loss == pytest.approx(other.loss, rel=1e-12)


def test_a_list_of_batches_serves_as_data() -> None:
    logits, labels = some()
    batches = [(logits[:50, None, None], labels[:50].int()), (logits[50:, None, None], labels[50:].int())]
    assert torch.equal(evaluate(Outputs(), batches).confusion, evaluate(Outputs(), dataset(logits, labels)).confusion)


def test_it_runs_in_evaluation_mode_and_gives_the_mode_back() -> None:
    model = Outputs().train()
    evaluate(model, dataset(*some()))
    assert model.modes == [False]
    assert model.training


def test_the_mode_comes_back_after_an_error() -> None:
    model = Outputs().train()
    with pytest.raises(InputError):
        evaluate(model, dataset(torch.full((2, CLASSES), torch.nan), torch.tensor([0, 1])))
    assert model.training


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    logits, labels = some()
    logits[17, 2] = value
    match = rf"image 17 \(of class {labels[17]}\): the model's outputs hold NaN or infinite values"
    with pytest.raises(InputError, match=match):
        evaluate(Outputs(), dataset(logits, labels), batch_size=8)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(Outputs(), [])


@pytest.mark.parametrize("label", [CLASSES, -1, -100])
def test_a_label_without_a_logit_is_refused(label: int) -> None:
    logits, labels = some()
    labels[3] = label
    with pytest.raises(DataError, match=rf"label {label}: the model has 5 classes; allowed: 0 to 4"):
        evaluate(Outputs(), dataset(logits, labels))


def test_maps_instead_of_logits_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"returns \(2, 3, 4, 4\), a classifier returns logits \(images, classes\); logits=FUNCTION"
    ):
        evaluate(nn.Conv2d(1, 3, 1), TensorDataset(torch.rand(2, 1, 4, 4), torch.tensor([0, 1])))


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Outputs(), dataset(*some(10)), batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_the_image_at_fault_is_named_also_where_images_repeat() -> None:
    output, labels = torch.zeros(6, CLASSES), torch.arange(6) % CLASSES
    assert float64_logits(output, labels, range(10, 13)).dtype == torch.float64
    output[4, 0] = torch.inf
    with pytest.raises(InputError, match=r"image 11 \(of class 4\)"):
        float64_logits(output, labels, range(10, 13))


class Given(nn.Module):
    """Returns logits that are given as images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) + 0 * self.weight


def test_top_5_calibration_and_classes_against_plain_counting() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(200, 8, generator=generator)
    labels = torch.randint(8, (200,), generator=generator)
    batches = [(logits[:70, :, None, None], labels[:70]), (logits[70:, :, None, None], labels[70:])]
    found = evaluate(Given(), batches)
    order = logits.argsort(dim=1, descending=True)
    assert found.top_5_accuracy == sum(int(label in row[:5]) for label, row in zip(labels, order, strict=True)) / 200
    confidence = logits.double().softmax(1).amax(1)
    right = order[:, 0] == labels
    error = 0.0
    for number in range(15):
        chosen = (confidence >= number / 15) & (confidence < (number + 1) / 15)
        if chosen.any():
            error += (
                abs(float(confidence[chosen].mean()) - float(right[chosen].double().mean())) * int(chosen.sum()) / 200
            )
    assert found.calibration_error == pytest.approx(error)
    rows = found.by_class([f"c{number}" for number in range(8)])
    third = rows[2]
    assert third["images"] == int((labels == 2).sum())
    assert third["recall"] == pytest.approx(float(right[labels == 2].double().mean()))
    assert third["precision"] == pytest.approx(float(right[order[:, 0] == 2].double().mean()))
    wrong = order[:, 0][(labels == 2) & ~right].tolist()
    most = max(set(wrong), key=lambda other: (wrong.count(other), -other))
    assert (third["confused_with"], third["confused"]) == (f"c{most}", wrong.count(most))


def test_fewer_than_five_classes_are_all_in_the_top_5() -> None:
    found = evaluate(Given(), [(torch.eye(3)[:, :, None, None], torch.tensor([1, 1, 2]))])
    assert (found.in_top_5, found.accuracy) == (3, pytest.approx(2 / 3))
