"""The study of explanation: damage against networks that are masked by hand, scores, files, and going on."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from prune_fe.ablation.trial import Trial
from prune_fe.data.labels import image_labels
from prune_fe.errors import DataError, InputError
from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.report.tables import Table
from prune_fe.scoring.score import score
from prune_fe.studies import explanation
from prune_fe.studies.explanation import explanation_study
from prune_fe.studies.explanation_tables import ENTROPY, EXPLAINED, LEFT, MEAN, RATE, RATIO, LayerDamage
from prune_fe.studies.options import ExplanationOptions
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers

LAYERS = ("features.0", "features.4")
PER_CLASS = 6


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, run_study: Any, recipe_with: Any
) -> tuple[Path, list[Table], list[LayerDamage]]:
    """A finished study of two layers: its folder, its tables, and what they are made of."""
    folder, kept = tmp_path_factory.mktemp("explanation"), []
    tables = explanation.explanation_tables

    def keep(layers: list[LayerDamage], about: str) -> list[Table]:
        kept.extend(layers)
        return tables(layers, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explanation, "explanation_tables", keep)
        options = ExplanationOptions(layers=LAYERS, images_per_class=PER_CLASS)
        return folder, run_study(explanation_study, folder, recipe_with(), options=options)[0], kept


@pytest.fixture
def experiment(done: Any, recipe_with: Any, listener: Any) -> Any:
    """The experiment of the study, whose network is the one on the disk."""
    folder = RunFolder(done[0], recipe_with().model_dump(mode="json"))
    yield begin(recipe_with(), folder, listener())
    folder.close()


def test_damage_is_that_of_the_network_masked_by_hand(done: Any, experiment: Experiment) -> None:
    network = experiment.network.eval()
    test: Any = experiment.splits.test
    layer = find_layers(network, experiment.example, [LAYERS[1]])[0]
    chosen: Any = explanation._choose_images(experiment, PER_CLASS)
    images, labels = (torch.stack([torch.as_tensor(item[i]) for item in chosen]) for i in (0, 1))
    assert set(Counter(labels.tolist()).values()) == {PER_CLASS}
    assert len(test) > len(chosen)

    def by_class(units: list[int]) -> Any:
        with mask(network, [layer], {layer.name: units}), torch.no_grad():
            logits = network(images)
        wrong = (logits.argmax(1) != labels).double()
        loss = cross_entropy(logits, labels, reduction="none")
        return [np.array([float(values[labels == c].mean()) for c in range(10)]) for values in (loss, wrong)]

    whole = by_class([])
    found = done[2][1]
    assert found.images.tolist() == [PER_CLASS] * 10
    for unit in range(layer.units):
        loss, error = (masked - unmasked for masked, unmasked in zip(by_class([unit]), whole, strict=True))
        np.testing.assert_allclose(found.damage["loss"][:, unit], loss, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.damage["error"][:, unit], error, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_scores_of_a_class_are_of_its_own_training_images(done: Any, experiment: Experiment, number: int) -> None:
    found, train = done[2][number], experiment.splits.train
    for label in (2, 9):
        of_class: dict[str, Any] = {
            "classes": [label],
            "samples": 20,
            "seed": experiment.seed,
            "layers": [LAYERS[number]],
        }
        entropy = score(experiment.network, train, "feature-entropy", **of_class).raw
        expected = {
            RATIO: -entropy["entropy_per_rate_nats"][LAYERS[number]][0],
            ENTROPY: -entropy["feature_entropy_nats"][LAYERS[number]][0],
            RATE: entropy["selective_rate"][LAYERS[number]][0],
            MEAN: score(experiment.network, train, "mean-activation", **of_class).keep[LAYERS[number]],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(found.scores[name][label], values, rtol=1e-6)
    weights = experiment.network.get_submodule(LAYERS[number]).weight
    norms = weights.detach().abs().sum(dim=(1, 2, 3)).numpy()  # type: ignore[operator]
    assert (np.argsort(found.scores["L1 of the filter"][0]) == np.argsort(norms)).all()


def test_files_have_every_class_and_layer(done: Any, read_rows: Any) -> None:
    folder, tables, layers = done
    name = next(path.stem for path in folder.glob("study-explanation-*.csv"))
    rows = read_rows(folder / f"{name}.csv")
    assert len(rows) == 2 * 2 * 10
    rho = [float(row[f"rho {LEFT}"]) for row in rows if (row["layer"], row["damage"]) == (LAYERS[0], "loss")]
    assert tables[1].rows[f"{LAYERS[0]}, loss"][LEFT].mean == pytest.approx(np.mean(rho))
    assert {row["test_images"] for row in rows} == {str(PER_CLASS)}
    text = (folder / f"{name}.md").read_text()
    assert EXPLAINED in text
    assert f"10 classes with {PER_CLASS} test images each" in text
    assert "at equal" in (folder / f"{name}.svg").read_text()
    assert [layer.layer for layer in layers] == list(LAYERS)


def test_a_layer_that_is_done_is_not_masked_again(
    done: Any, tmp_path: Path, run_study: Any, recipe_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = done[1]
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    options = ExplanationOptions(layers=LAYERS, images_per_class=PER_CLASS)
    run, masked = Trial.run_single_units, []

    def dies(trial: Trial, **keywords: Any) -> Any:
        masked.append(trial.layers[0].name)
        if len(masked) == 2:
            raise KeyboardInterrupt
        return run(trial, **keywords)

    monkeypatch.setattr(Trial, "run_single_units", dies)
    with pytest.raises(KeyboardInterrupt):
        run_study(explanation_study, tmp_path, recipe_with(), options=options)
    tables, _ = run_study(explanation_study, tmp_path, recipe_with(), options=options)
    assert masked == [LAYERS[0], LAYERS[1], LAYERS[1]]
    assert [table.markdown() for table in tables] == [table.markdown() for table in whole]


def test_other_images_are_masked_anew_and_the_last_layer_is_the_default(
    done: Any, run_study: Any, recipe_with: Any
) -> None:
    tables, _ = run_study(explanation_study, done[0], recipe_with())
    assert list(tables[0].rows) == [f"{LAYERS[1]}, loss", f"{LAYERS[1]}, error"]
    assert f"{PER_CLASS} test images" not in tables[0].note


def test_a_block_has_no_filters(done: Any, experiment: Experiment, block: Any, listener: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), block(), torch.nn.Flatten(), torch.nn.Linear(3 * 144, 10))
    layers = find_layers(network, experiment.example, ["1"])
    entries = explanation._able_entries(experiment, network, layers)
    assert [entry.name for entry in entries] == ["feature-entropy", "mean-activation"]
    assert any("l1-filter is left out" in text for text in experiment.reporter.said)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"images_per_class": 900}, DataError, "class '0': .. images, 900 asked for"),
        ({"layers": ("features.9",)}, InputError, "'features.9': the model has no such module"),
        ({"seed": 2}, InputError, "seed 2: the recipe has 1, 4"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
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
        run_study(explanation_study, tmp_path, recipe_with(), options=ExplanationOptions(**options))


def test_a_class_without_test_images_is_an_error(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    present = [label for label in image_labels(experiment.splits.test) if label != 4]
    monkeypatch.setattr(explanation, "image_labels", lambda _: present)
    with pytest.raises(DataError, match="class '4': there are no images of it to ablate on"):
        explanation._choose_images(experiment, None)
