"""Class selectivity against the definition, unit by unit and class by class."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore
from prune_fe.scorers.class_selectivity import ClassSelectivity, Form
from prune_fe.scoring.score import score


def scored(maps: Tensor, labels: Tensor, classes: int, form: Form = "index", of: int | None = None) -> LayerScore:
    scorer = ClassSelectivity(form, of)
    sums: Any = scorer.measure(maps, labels, classes)
    return scorer.score_layer(sums)


def by_definition(maps: Tensor, labels: list[int], unit: int, form: str, of: int | None) -> float:
    means = {}
    for c in sorted(set(labels)):
        values = [maps[i, unit].mean().item() for i in range(len(labels)) if labels[i] == c]
        means[c] = sum(values) / len(values)
    best = max(means, key=lambda c: means[c]) if of is None else of
    rest = sum(mean for c, mean in means.items() if c != best) / (len(means) - 1)
    top, size = means[best], abs(means[best]) + abs(rest)
    if form == "difference":
        return top - rest
    return (top - rest) / size if size > 0 else 0.0


@given(st.integers(0, 2**32 - 1), st.sampled_from(["index", "difference"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_the_definition(awkward_maps: Callable[[int], Any], seed: int, form: Form, last: bool) -> None:
    maps, labels, classes = awkward_maps(seed)
    of = classes - 1 if last else None
    keep = scored(maps, labels, classes, form, of).keep
    for unit in range(maps.shape[1]):
        expected = by_definition(maps, labels.tolist(), unit, form, of)
        assert keep[unit].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert form == "difference" or -1 - 1e-12 <= keep[unit] <= 1 + 1e-12


MAPS = torch.tensor([4.0, 8.0, 3.0, 0.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)  # class means 6, 3, none, 0
LABELS = torch.tensor([0, 0, 1, 3])


@pytest.mark.parametrize(
    ("form", "of", "keep"),
    [
        ("index", None, (6 - 1.5) / (6 + 1.5)),
        ("difference", None, 6 - 1.5),
        ("index", 0, (6 - 1.5) / (6 + 1.5)),
        ("index", 1, (3 - 3) / (3 + 3)),
        ("difference", 3, 0 - 4.5),
        ("index", 3, -1.0),
    ],
)
def test_by_hand(form: Form, of: int | None, keep: float) -> None:
    score = scored(MAPS, LABELS, 4, form, of)
    assert score.keep.tolist() == [keep]
    assert score.raw["class_mean_activation"].tolist() == [[6], [3], [0]]


@pytest.mark.parametrize("form", ["index", "difference"])
def test_a_dead_unit_has_selectivity_0(form: Form) -> None:
    assert scored(torch.zeros(4, 2, 3, 3), LABELS, 4, form).keep.tolist() == [0, 0]


def test_of_two_classes_that_tie_for_the_maximum_either_gives_the_same() -> None:
    maps, labels = torch.tensor([5.0, 5.0, 2.0]).view(3, 1, 1, 1), torch.tensor([0, 1, 2])
    expected = (5 - 3.5) / (5 + 3.5)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        assert scored(maps[order], labels, 3).keep.tolist() == [expected]


def test_only_the_difference_follows_the_scale() -> None:
    assert scored(MAPS / 2, LABELS, 4).keep.equal(scored(MAPS, LABELS, 4).keep)
    assert scored(MAPS / 2, LABELS, 4, "difference").keep.equal(scored(MAPS, LABELS, 4, "difference").keep / 2)


class Unread(Dataset[Any]):
    """Two classes; reading an image fails."""

    classes, targets = ("cat", "dog"), (0, 0, 1, 1)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an image was read")


def test_one_class_is_refused_before_images_are_read() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    for classes in (1, [1]):
        with pytest.raises(InputError, match="compares classes: the images are of 1 class, at least 2 are needed"):
            score(net, Unread(), "class-selectivity", classes=classes, samples=2, example=torch.zeros(1, 1, 4, 4))


def test_one_class_in_ready_batches_is_refused_after_them() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(InputError, match="compares classes: the images are of 1 class, at least 2 are needed"):
        score(net, [(torch.randn(3, 1, 4, 4), torch.tensor([1, 1, 1]))], "class-selectivity")


def test_a_class_without_images_cannot_be_studied() -> None:
    for of in (2, 4):
        with pytest.raises(InputError, match=f"no images of class {of}; choose one of those scored on"):
            scored(MAPS, LABELS, 4, "index", of)


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="class-selectivity: form is 'ratio', allowed are index, difference"):
        ClassSelectivity(form="ratio")  # type: ignore[arg-type]
    for of in (-1, 1.0, True, "cat"):
        with pytest.raises(InputError, match=f"class-selectivity: of is {of!r}, allowed are numbers of classes from 0"):
            ClassSelectivity(of=of)  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [1e-7, 0.5])
def test_eps_is_added_to_the_divisor(eps: float) -> None:
    maps = torch.randn(12, 5, 3, 3, dtype=torch.float64).relu()
    maps[:, 3] = 0
    maps[:, 4] = 1e-14 * torch.tensor([1.0] + [0.0] * 11)[:, None, None]  # rounding errors in one image of class 0
    labels = torch.arange(12) % 3
    scorer = ClassSelectivity(eps=eps)
    keep = scorer.score_layer(scorer.measure(maps, labels, 3)).keep  # type: ignore[arg-type]
    for unit in range(5):
        means = sorted(maps[labels == c, unit].mean().item() for c in range(3))
        rest = (means[0] + means[1]) / 2
        assert keep[unit].item() == pytest.approx((means[2] - rest) / (means[2] + rest + eps), rel=1e-12)
    assert keep[4] < 1e-6 < keep[:3].min()
    assert scored(maps, labels, 3).keep[4] == 1  # without it, the rounding errors make the best unit of the layer


def test_eps_that_cannot_be_used_is_refused() -> None:
    for eps in (-1e-7, float("inf"), float("nan"), True, "small"):
        with pytest.raises(InputError, match=f"class-selectivity: eps is {eps!r}, allowed are numbers from 0"):
            ClassSelectivity(eps=eps)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="form: difference divides by nothing; leave out eps"):
        ClassSelectivity("difference", eps=1e-7)
