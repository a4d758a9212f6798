"""Wrong arguments of the public functions: one clear error, and the network and torch's random state as before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prune_fe
from prune_fe.errors import DataError, InputError, PruneFEError
from prune_fe.models.small_vgg import SmallVGG
from tests.data.pictures import Labelled

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
EXAMPLE = IMAGES[:1]


class Pictures(Labelled):
    def __init__(self, targets: Any, images: Tensor = IMAGES) -> None:
        super().__init__(targets, ("a", "b", "c"))
        self.images = images

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.targets[index]


GOOD = Pictures([0, 1, 2] * 4)


def network() -> SmallVGG:
    torch.manual_seed(0)
    return SmallVGG(3, 1, [[4], [4]])


def tune(**settings: Any) -> Any:
    return prune_fe.finetune(network(), GOOD, GOOD, **{"epochs": 1} | settings)


def score(scorer: Any = "mean-activation", data: Any = GOOD, **settings: Any) -> Any:
    return prune_fe.score(network(), data, scorer, **settings)


def ablate(layer: Any = "features.0", data: Any = GOOD, **settings: Any) -> Any:
    return prune_fe.ablate(network(), data, score(), layer, **settings)


@pytest.mark.parametrize("label", [7, -1, -100])
def test_a_label_without_an_output_is_refused_in_training(label: int) -> None:
    model = network()
    data = Pictures([0, 1, label] * 4)
    with pytest.raises(DataError, match=rf"label {label}: the model has 3 classes; allowed: 0 to 2"):
        prune_fe.finetune(model, data, GOOD, epochs=1)


@pytest.mark.parametrize("label", [1.5, "a", None, 10**30])
def test_a_label_that_is_no_whole_number_is_refused(label: Any) -> None:
    data = Pictures([0, 1, label] * 4)
    calls: list[Callable[[], Any]] = [
        lambda: prune_fe.finetune(network(), data, GOOD, epochs=1),
        lambda: prune_fe.finetune(network(), GOOD, data, epochs=1),
        lambda: prune_fe.evaluate(network(), data),
        lambda: score(data=data),
        lambda: score(data=data, samples=2),
        lambda: ablate(data=data),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"^image (2|5|8|11): .*(whole number|beyond 64 bits)"):
            call()


WRONG: list[tuple[Callable[[], Any], str]] = [
    *[
        (lambda name=name, value=value: tune(**{name: value}), f"{name}")
        for name, values in dict[str, list[Any]](
            {
                "lr": ["a", 0.0, [1]],  # None is the default
                "epochs": ["a", 1.5, 10**12],
                "batch_size": [0, -1, "a", 10**12],
                "seed": ["a", -1, 1.5, None, 10**30],
                "workers": ["a", -1, 1.5, None, 10**30],
            }
        ).items()
        for value in values
    ],
    *[
        (lambda name=name, value=value: score(**{name: value}), f"{name}")
        for name, values in dict[str, list[Any]](
            {
                "samples": ["a", 0, 1.5],
                "classes": ["a", 0, [1.5], [-1], {"a": 1}],
                "layers": ["features.0", 5, [5]],
                "seed": ["a", None, 10**30],
                "workers": ["a", None, 10**30],
                "example": [5, torch.zeros(0, 1, 8, 8), torch.zeros(1, 1, 8, 8, device="meta"), EXAMPLE.to_sparse()],
                "progress": [5],
            }
        ).items()
        for value in values
    ],
    (lambda: score(scorer=[]), "unknown scorer"),
    (lambda: score(scorer=5), "unknown scorer 5"),
    (lambda: prune_fe.score("net", GOOD, "l1-filter"), "model is a str; it must be an nn.Module"),  # type: ignore
    (lambda: prune_fe.evaluate(None, GOOD), "model is a NoneType"),  # type: ignore[arg-type]
    (lambda: prune_fe.evaluate(nn.Flatten(), GOOD), "model is a Flatten without any parameters"),
    (lambda: prune_fe.evaluate(network(), GOOD, batch_size=0), "batch_size"),
    (lambda: prune_fe.recalibrate(network(), GOOD, samples=1.5), "samples"),  # type: ignore[arg-type]
    (lambda: prune_fe.cost(network(), "a"), "example is a str"),  # type: ignore[arg-type]
    (lambda: prune_fe.cost(network(), torch.zeros(1, 3, 8, 8)), r"SmallVGG does not run on images \(1, 3, 8, 8\)"),
    (lambda: prune_fe.speed(network(), EXAMPLE, 0), "batch_size"),
    (lambda: prune_fe.find_layers(5, EXAMPLE), "model is a int"),  # type: ignore[arg-type]
    (lambda: prune_fe.mask(network(), ["features.0"], {}), "layers holds a str"),  # type: ignore[list-item]
    (lambda: ablate(layer=5), "layers"),
    (lambda: ablate(every=0), "every"),
    (lambda: ablate(classes=["a"]), "classes"),
    (lambda: ablate(memory_gib="a"), "memory_gib"),
    (lambda: prune_fe.save(network(), None), "path is a NoneType; it must be a path"),  # type: ignore[arg-type]
    (lambda: prune_fe.load(5), "path is a int; it must be a path"),  # type: ignore[arg-type]
    (lambda: prune_fe.load_scores(5), "folder is a int"),  # type: ignore[arg-type]
    (lambda: prune_fe.load_results(5), "folder is a int"),  # type: ignore[arg-type]
    (lambda: prune_fe.build(5, 3), "name is a int"),  # type: ignore[arg-type]
    (lambda: prune_fe.build("vgg-small", 0), "classes"),
    (lambda: prune_fe.digits(0), "size"),
    (lambda: prune_fe.digits(8, 7.0), "validation"),
    (lambda: prune_fe.Scores("x", {"a": np.zeros(4, complex)}), "the scores are complex128"),
    (lambda: prune_fe.Scores("x", [1]), "keep is a list"),  # type: ignore[arg-type]
    (lambda: score().weakest("features.0", "a"), "count"),
    (lambda: score().layer_mean("nothing", "features.0"), "layer 'features.0' has no 'nothing'"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_argument_is_named(number: int) -> None:
    call, text = WRONG[number]
    with pytest.raises(InputError, match=text):
        call()


@pytest.mark.parametrize(
    "images",
    [IMAGES * 1j, IMAGES.to_sparse(), IMAGES.to("meta"), IMAGES.expand(-1, 3, -1, -1), IMAGES.long()],
    ids=["complex", "sparse", "meta", "channels", "integers"],
)
def test_images_that_the_network_does_not_run_on_are_refused(images: Tensor) -> None:
    batches, data = [(images, torch.tensor(GOOD.targets))], Pictures(GOOD.targets, images)
    calls: list[Callable[[], Any]] = [
        lambda: prune_fe.evaluate(network(), batches),
        lambda: score(data=batches),
        lambda: ablate(data=batches),
        lambda: prune_fe.recalibrate(network(), batches),
        lambda: prune_fe.finetune(network(), data, GOOD, epochs=1),
    ]
    for call in calls:
        with pytest.raises(PruneFEError):
            call()


def test_after_an_error_mode_and_gradients_are_as_before() -> None:
    model = network()
    model.features[0].eval()
    model(IMAGES).sum().backward()
    modes = [module.training for module in model.modules()]
    gradients = [weight.grad for weight in model.parameters()]
    with pytest.raises(DataError, match="label 7"):
        prune_fe.finetune(model, Pictures([0, 1, 2] * 3 + [0, 1, 7]), GOOD, epochs=1, batch_size=2)
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is before for weight, before in zip(model.parameters(), gradients, strict=True))


def test_score_ablate_and_evaluate_leave_the_random_state_alone() -> None:
    model = network()
    scores = prune_fe.score(model, GOOD, "mean-activation")
    before = torch.get_rng_state()
    prune_fe.score(model, GOOD, "feature-entropy", samples=2)
    prune_fe.ablate(model, GOOD, scores, "features.0")
    prune_fe.evaluate(model, GOOD)
    assert torch.equal(torch.get_rng_state(), before)
