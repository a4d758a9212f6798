"""The study of generalisation: which networks it trains, what it measures, and that finished ones stay finished."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from prune_fe.data.digits import digits
from prune_fe.data.labels import image_labels
from prune_fe.data.relabelled import corrupt_labels
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import Recipe
from prune_fe.measure.evaluate import evaluate
from prune_fe.models.saved import load
from prune_fe.scoring.score import score
from prune_fe.studies import generalisation as studied
from prune_fe.studies.generalisation import generalisation_study
from prune_fe.studies.options import GeneralisationStudyOptions

pytestmark = pytest.mark.xdist_group("generalisation")  # so that `done` is made once

TRAIN = {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 64, "keep": "last"}
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "A": {"AA": {}, "AB": {"momentum": 0.0}},
    "B": {"BA": {"momentum": 0.0}, "BB": {"momentum": 0.0, "label_noise": 0.5}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, run_study: Any, recipe_with: Any) -> tuple[Path, list[Any], Any]:
    """A finished study: its folder, its tables and what was said."""
    folder = tmp_path_factory.mktemp("generalisation")
    tables, said = run_study(generalisation_study, folder, recipe_with(train=TRAIN, generalisation={"sets": SETS}))
    return folder, tables, said


def test_each_network_is_trained_once_with_its_own_options(done: Any) -> None:
    folder, _, _ = done
    # BA has the options of AB.
    assert sorted(path.name for path in (folder / "generalisation").iterdir()) == ["AA", "AB", "BB"]
    for label in ("AA", "AB", "BB"):
        assert sorted(path.name for path in (folder / "generalisation" / label).iterdir()) == ["seed-1", "seed-4"]
    networks = [load(folder / "generalisation" / label / "seed-1/trained") for label in ("AA", "AB", "BB")]
    weights = [network.get_parameter("features.0.weight") for network in networks]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_numbers_are_those_of_the_networks(done: Any, read_rows: Any) -> None:
    folder, tables, _ = done
    network = load(folder / "generalisation/BB/seed-4/trained")
    splits = digits(12, seed=4)
    noisy = corrupt_labels(splits.train, 0.5, 4)
    scores = score(network, splits.train, samples=20, seed=4)
    test = evaluate(network, splits.test)
    row, *each = [
        row
        for row in read_rows(folder / "study-generalisation-B.csv")
        if (row["network"], row["seed"], row["layer"]) == ("BB", "4", "features.4")
    ]
    assert (row["scope"], row["label_noise"], len(each)) == ("all classes", "0.5", 10)
    assert float(row["train_accuracy"]) == pytest.approx(evaluate(network, noisy).accuracy)
    assert float(row["train_loss"]) == pytest.approx(evaluate(network, noisy).loss)
    assert float(row["true_train_accuracy"]) == pytest.approx(evaluate(network, splits.train).accuracy)
    assert float(row["test_accuracy"]) == pytest.approx(test.accuracy)
    entropy, rate = (scores.raw[name]["features.4"] for name in ("feature_entropy_nats", "selective_rate"))
    assert float(row["entropy_nats"]) == pytest.approx(entropy.mean())
    assert [float(line["selective_rate"]) for line in each] == pytest.approx(rate.mean(axis=1).tolist())
    threes = [index for index, label in enumerate(image_labels(splits.train)) if label == 3]
    assert float(each[3]["class_train_loss"]) == pytest.approx(evaluate(network, Subset(noisy, threes)).loss)
    assert float(each[3]["class_test_accuracy"]) == pytest.approx(
        int(test.confusion[3, 3]) / int(test.confusion[3].sum())
    )
    networks, ranking = tables[2:]
    assert networks.rows["BB"]["test acc."][1] == pytest.approx(test.accuracy)
    assert len(networks.rows["BA"]["H"]) == 2
    # Of four pairs of networks with different training, those that differ in their accuracy have an order.
    accuracies = {label: networks.rows[label]["test acc."] for label in ("BA", "BB")}
    n_pairs = sum(one != other for one in accuracies["BA"] for other in accuracies["BB"])
    assert {
        sum(int(cells[name]) for name in ("in the order", "against it", "not told apart"))
        for cells in ranking.rows.values()
    } == {n_pairs}


def test_every_set_has_its_files(done: Any) -> None:
    folder, tables, _ = done
    assert len(tables) == 4
    for name in ("A", "B"):
        text = (folder / f"study-generalisation-{name}.md").read_text()
        assert f"### Set {name} (tables 3, 4, 8)" in text
        figure = (folder / f"study-generalisation-{name}.svg").read_text()
        assert all(words in figure for words in ("features.4", "mean of 10 classes", f"{name}A"))
        scatter = (folder / f"study-generalisation-{name}-classes.svg").read_text()
        assert all(words in scatter for words in ("seed 1", "seed 4", "selective rate ε", f"{name}B"))


def test_a_killed_study_loses_only_what_it_was_working_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any
) -> None:
    recipe: Recipe = recipe_with(train=TRAIN, generalisation={"sets": {"A": SETS["A"]}}, seeds=[1])
    measured: list[str] = []
    measure = studied.measure_network

    def killed_at(fatal: str, experiment: Experiment, network: Any) -> dict[str, object]:
        measured.append(experiment.place.name)
        if measured[-1] == fatal:
            raise KeyboardInterrupt
        return measure(experiment, network)

    monkeypatch.setattr(studied, "measure_network", lambda *given: killed_at("AB", *given))
    with pytest.raises(KeyboardInterrupt):
        run_study(generalisation_study, tmp_path, recipe)
    assert measured == ["AA", "AB"]
    measured.clear()
    monkeypatch.setattr(studied, "measure_network", lambda *given: killed_at("", *given))
    trained = (tmp_path / "generalisation/AB/seed-1/trained/model.safetensors").stat().st_mtime_ns
    run_study(generalisation_study, tmp_path, recipe)
    assert measured == ["AB"]
    assert (tmp_path / "generalisation/AB/seed-1/trained/model.safetensors").stat().st_mtime_ns == trained


def test_a_chosen_set_alone_is_trained(tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    recipe = recipe_with(train=TRAIN, generalisation={"sets": SETS}, seeds=[1])
    options = GeneralisationStudyOptions(sets=("B",), layers=("features.0",), class_name="7", samples=10)
    tables, _ = run_study(generalisation_study, tmp_path, recipe, options=options)
    assert [path.name for path in sorted((tmp_path / "generalisation").iterdir())] == ["BA", "BB"]
    assert "10 training images of each class" in tables[0].note
    assert "class 7" in (tmp_path / "study-generalisation-B.svg").read_text()


@pytest.mark.parametrize(
    ("sets", "options", "match"),
    [
        ({}, {}, r"the recipe has no generalisation\.sets"),
        (SETS, {"sets": ("C",)}, "set 'C': allowed are A, B"),
        (SETS, {"class_name": "cat"}, "class 'cat': not among the 10 scored classes"),
        ({"A": SETS["A"], "B": {"AA": {"lr": 0.1}, "BB": {}}}, {}, "'AA' stands for two trainings"),
        ({"A": {"AA": {}, "AB": {"dropout": {"x.*": 0.1}}}}, {}, "dropout: no dropout layer is called 'x"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    sets: Any,
    options: dict[str, Any],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_study: Any,
    recipe_with: Any,
) -> None:
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    recipe = recipe_with(train=TRAIN, generalisation={"sets": sets})
    with pytest.raises(InputError, match=match):
        run_study(generalisation_study, tmp_path, recipe, options=GeneralisationStudyOptions(**options))
