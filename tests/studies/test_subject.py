"""Subjects: the unit that is chosen, the indicators that cannot score a layer, and errors before training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.data.datasets import Rescaled
from prune_fe.data.digits import digits
from prune_fe.data.sampling import choose_images
from prune_fe.data.splits import Splits
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.scoring.score import score
from prune_fe.studies.characterisation import characterisation_study
from prune_fe.studies.options import SubjectOptions
from prune_fe.studies.randomness import randomness_study
from prune_fe.studies.rescaling import rescale, rescaling_study
from prune_fe.studies.subject import Subject, choose_compared
from prune_fe.tracing.layers import find_layers
from tests.data.pictures import Labelled


class Three(Rescaled):
    """Grey images as three channels."""

    def __init__(self, images: Dataset[Any]) -> None:
        super().__init__(images, 1.0)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image.expand(3, -1, -1), label


def test_indicators_that_cannot_score_the_layer_are_named_and_left_out(block: Callable[[], nn.Module]) -> None:
    network = nn.Sequential(block(), nn.Flatten(), nn.Linear(3 * 64, 10))
    grey = digits(8)
    colour = Rescaled(Three(grey.train), 1.0)
    splits = Splits(colour, colour, colour, grey.classes, 3, 8)
    layer = find_layers(network, splits.test[0][0][None], ["0"])[0]
    subject = Subject(network, splits, layer, 0, 3, samples=4)
    assert sorted(subject.unavailable) == ["BN scale", "FPGM", "filter L1"]
    assert "'0' is a Block and has no filters of its own" in subject.unavailable["FPGM"]
    tables = rescale(subject)
    assert "FPGM" not in tables[1].rows["×, ×"].keys() | tables[1].forms.keys()
    assert tables[1].rows["×, half scale"]["NISP, α = 1, r = 1e-6"]


def test_the_unit_by_default_has_the_least_ratio_of_those_that_are_often_active(subject: Subject) -> None:
    values = subject.indicator_values()
    ratio = np.where(values["ε"] >= 0.5, values["H"] / values["ε"], np.inf)
    assert subject.with_unit(None).unit == int(np.argmin(ratio))
    assert subject.with_unit(2).unit == 2
    with pytest.raises(InputError, match=f"no unit {subject.layer.units}, it has {subject.layer.units}"):
        subject.with_unit(subject.layer.units)


def test_every_subject_of_a_run_has_a_file_of_its_own(subject: Subject) -> None:
    others = [
        replace(subject, unit=9),
        replace(subject, label=4),
        replace(subject, samples=7),
        replace(subject, seed=3),
    ]
    assert len({each.file_name("rescaling") for each in (subject, *others)}) == 5


@pytest.mark.parametrize(
    ("study", "options", "error", "match"),
    [
        (rescaling_study, {"layer": "nope"}, InputError, "no such module"),
        (rescaling_study, {"unit": 8}, InputError, "no unit 8, it has 8"),
        (rescaling_study, {"class_name": "x"}, InputError, "class 'x': no such class"),
        (rescaling_study, {"seed": 5}, InputError, "seed 5: the recipe has 1, 4"),
        (rescaling_study, {"samples": 9999}, DataError, "the smallest compared class has 1.. training images"),
        (randomness_study, {}, InputError, "layer 'features.4' has 8 units, 10 of each network are drawn"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    study: Any,
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_study: Any,
    recipe_with: Any,
) -> None:
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    with pytest.raises(error, match=match):
        run_study(study, tmp_path, recipe_with(), options=SubjectOptions(**options))


def test_the_files_hold_the_tables_and_the_recipes_scorers_are_not_checked(
    tmp_path: Path, run_study: Any, recipe_with: Any, read_rows: Any
) -> None:
    recipe = recipe_with(scorers=[{"name": "class-selectivity", "of": 7}], score={"samples": 5, "classes": [1, 2]})
    options = SubjectOptions(class_name="3", unit=1, seed=4)
    tables, said = run_study(characterisation_study, tmp_path, recipe, options=options)
    assert "layer (3 classes)" in tables[0].rows
    name = "study-characterisation-seed-4-features.4-unit-1-class-3-samples-5-compared-3"
    rows = read_rows(tmp_path / f"{name}.csv")
    assert {row["table"] for row in rows} == {table.title for table in tables}
    assert (tmp_path / f"{name}.md").read_text().startswith("## characterisation: seed 4, unit 1 of 'features.4'")
    assert any("studying unit 1 of 'features.4'" in text for text in said)


def test_the_option_of_compared_classes_replaces_the_recipes(tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    recipe = recipe_with(score={"samples": 5, "classes": [1, 2]})
    options = SubjectOptions(class_name="3", unit=1, seed=4, compared=2)
    run_study(characterisation_study, tmp_path, recipe, options=options)
    text = (tmp_path / "study-characterisation-seed-4-features.4-unit-1-class-3-samples-5-compared-2.md").read_text()
    assert "2 of 10 classes are compared" in text


@pytest.mark.parametrize(
    ("classes", "expected"), [(None, (0, 1, 2, 3, 4, 5)), (6, (0, 1, 2, 3, 4, 5)), (1, (3,)), ((5, 1), (1, 3, 5))]
)
def test_the_compared_classes_are_those_of_the_recipe_with_the_subjects_own(classes: Any, expected: Any) -> None:
    assert choose_compared(classes, 3, 6, 0) == expected


def test_a_number_of_classes_draws_those_that_scoring_draws_with_the_subjects_own_among_them() -> None:
    labels = [label for label in range(9) for _ in range(3)]
    for seed in range(6):
        chosen = {labels[index] for index in choose_images(Labelled(labels), 4, None, seed)}
        compared = choose_compared(4, 2, 9, seed)
        assert len(compared) == 4
        assert 2 in compared
        assert set(compared) == chosen if 2 in chosen else len(chosen & {*compared}) == 3
    with pytest.raises(InputError, match="7 classes are to be compared, the data has 6"):
        choose_compared(7, 3, 6, 0)


def test_selectivity_is_measured_on_the_compared_classes_and_the_text_says_on_how_many(subject: Subject) -> None:
    few = replace(subject, compared=(1, 3, 8), samples=10)
    assert "3 of 10 classes are compared" in few.text
    assert "10 of 10 classes are compared" in subject.text
    expected = score(
        few.network, few.splits.train, ClassSelectivity(of=3), layers=[few.layer.name], classes=[1, 3, 8], samples=10
    )
    values = few.indicator_values()
    index = values["class selectivity, index"]
    assert index.tolist() == expected.raw["class_selectivity"][few.layer.name].tolist()
    every = replace(subject, samples=10).indicator_values()
    assert index.tolist() != every["class selectivity, index"].tolist()
    assert values["H"].tolist() == every["H"].tolist()


def test_with_one_class_selectivity_is_left_out(subject: Subject) -> None:
    alone = replace(subject, compared=(3,), samples=5)
    assert sorted(alone.unavailable) == ["class selectivity, index", "class selectivity, μ_c − μ_rest"]
    assert "H" in alone.indicator_values()


def test_scores_that_are_saved_are_read_and_the_same_to_the_bit(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(subject, samples=6)
    saving = replace(small, folder=tmp_path / "units")
    values, first = small.indicator_values(), saving.indicator_values()
    monkeypatch.setattr("prune_fe.scoring.collection.Collection.run", lambda *_: pytest.fail("measured again"))
    again = saving.indicator_values()
    for name in values:
        assert values[name].tolist() == first[name].tolist() == again[name].tolist()
