"""The study of layers: what it computes, what it leaves out and says so, and that finished networks stay finished."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from prune_fe.data.digits import digits
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.models.build import build
from prune_fe.models.saved import load
from prune_fe.report.tables import Table
from prune_fe.scoring.score import score
from prune_fe.studies import layers as studied
from prune_fe.studies.layers import initialise_alive, layers_study, set_zero_scales_to_one
from prune_fe.studies.options import LayersOptions
from prune_fe.studies.subject import initialise_network

LAYERS = ["features.0", "features.4"]
RESNET = {"name": "timm/resnet18", "arguments": {"channels": [4, 4, 8, 8], "output_stride": 8}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, run_study: Any, recipe_with: Any) -> tuple[Path, list[Table], Any]:
    """A finished study: its folder, its tables and what was said."""
    folder = tmp_path_factory.mktemp("layers")
    options = LayersOptions(class_name="3", random_seeds=2)
    tables, said = run_study(layers_study, folder, recipe_with(), options=options)
    return folder, tables, said


def rows_of(folder: Path, read_rows: Any) -> list[dict[str, str]]:
    (path,) = folder.glob("study-layers-*.csv")
    return read_rows(path)


def test_the_numbers_are_those_of_scoring_each_network(done: Any, read_rows: Any) -> None:
    folder, tables, _ = done
    images = digits(12, seed=1).train
    networks = {"trained": load(folder / "seed-1/trained")}
    for seed in range(2):
        torch.manual_seed(seed)
        networks[f"random {seed}"] = build("vgg-small", 10, in_channels=1, stages=[[6], [8]])
    rows = rows_of(folder, read_rows)
    assert len(rows) == 3 * 2 * (2 + 10)
    for name, network in networks.items():
        scores = score(network, images, samples=20, seed=1)
        for depth, layer in enumerate(LAYERS, 1):
            entropy, rate = (scores.raw[quantity][layer] for quantity in ("feature_entropy_nats", "selective_rate"))
            mine = [row for row in rows if (row["network"], row["layer"]) == (name, layer)]
            assert {row["depth"] for row in mine} == {str(depth)}
            every, one, *each = mine
            assert (every["scope"], every["class"], every["classes"]) == ("all classes", "", "10")
            assert float(every["entropy_nats"]) == pytest.approx(scores.layer_mean("feature_entropy_nats", layer))
            assert float(every["entropy_deviation_nats"]) == pytest.approx(entropy.mean(axis=0).std(ddof=1))
            assert float(every["selective_rate"]) == pytest.approx(rate.mean())
            assert (one["scope"], one["class"], one["classes"]) == ("one class", "3", "1")
            assert float(one["entropy_nats"]) == pytest.approx(entropy[3].mean())
            assert float(one["selective_rate_deviation"]) == pytest.approx(rate[3].std(ddof=1))
            assert int(one["units_without_hole"]) == (rate[3] == 0).sum()
            assert [row["class"] for row in each] == list(scores.classes)
            assert [float(row["entropy_nats"]) for row in each] == pytest.approx(entropy.mean(axis=1).tolist())
            if name == "trained":
                assert tables[0].rows[layer]["H"] == pytest.approx(entropy[3].tolist())
                assert tables[1].rows[layer]["ε"] == pytest.approx(rate.mean(axis=0).tolist())


def test_the_tables_and_the_figure_are_files_too(done: Any) -> None:
    folder, tables, said = done
    (text,) = folder.glob("study-layers-seed-1-2-layers-*-class-3-samples-20.md")
    for table in tables:
        assert table.markdown() in text.read_text()
    assert tables[0].rows["features.4"]["maps"] == "6×6, activated"
    assert "20 training images of each class." in tables[0].note
    figure = text.with_suffix(".svg").read_text()
    for words in ("class 3", "mean of 10 classes", "features.4", "random-initialised", "selective rate ε"):
        assert words in figure
    assert not any("left out" in text.lower() or "scale 0" in text for text in said)


def test_a_killed_study_loses_only_the_network_that_it_was_working_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any
) -> None:
    scored = []
    score_units = studied.score_units

    def killed_at(fatal: str, experiment: Any, entries: Any, *, folder: Path, network: Any) -> Any:
        scored.append(folder.name.rpartition("-")[0])
        if scored[-1] == fatal:
            raise KeyboardInterrupt
        return score_units(experiment, entries, folder=folder, network=network)

    monkeypatch.setattr(studied, "score_units", lambda *given, **named: killed_at("random-1", *given, **named))
    with pytest.raises(KeyboardInterrupt):
        run_study(layers_study, tmp_path, recipe_with())
    assert scored == ["trained", "random-0", "random-1"]
    scored.clear()
    monkeypatch.setattr(studied, "score_units", lambda *given, **named: killed_at("", *given, **named))
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("the trained network was needed again")))
    tables, _ = run_study(layers_study, tmp_path, recipe_with())
    assert scored == ["random-1", "random-2"]
    scored.clear()
    again, _ = run_study(layers_study, tmp_path, recipe_with())
    assert scored == []
    assert [table.markdown() for table in again] == [table.markdown() for table in tables]
    damaged = next((tmp_path / "seed-1/study-layers").glob("random-0-*/feature-entropy/scores.npz"))
    damaged.write_bytes(b"no scores")
    with pytest.raises(CheckpointError, match=r"random-0-.*delete .*, and the next run makes it again"):
        run_study(layers_study, tmp_path, recipe_with())


def test_layers_that_cannot_be_scored_are_named(tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    recipe = recipe_with(model={"name": "vgg-small", "arguments": {"stages": [[4], [4], [4]]}}, train=None)
    tables, said = run_study(layers_study, tmp_path, recipe, options=LayersOptions(random_seeds=1))
    assert list(tables[0].rows) == ["features.0", "features.4"]
    reason = "Left out: 'features.8' (maps are 3×3, a hole needs at least 4×4)."
    assert reason in said
    assert reason in tables[0].note
    # Nothing trains this network, which its name would hide.
    assert any("has random weights: the recipe neither trains nor loads it" in text for text in said)
    with pytest.raises(InputError, match="feature-entropy can score none of the layers: 'features.8' .maps are"):
        run_study(layers_study, tmp_path, recipe, options=LayersOptions(layers=("features.8",)))


def test_convolutions_without_a_map_are_named(tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    model = {"name": "timm/mobilenetv3_small_050"}  # with squeeze-and-excite
    recipe = recipe_with(data={"source": "digits", "size": 32}, model=model, train=None, score={"samples": 2})
    _, said = run_study(layers_study, tmp_path, recipe, options=LayersOptions(random_seeds=1))
    (mapless,) = [text for text in said if "(no feature map: behind a global pooling" in text]
    for name in ("blocks.0.0.se.conv_reduce", "blocks.4.2.se.conv_expand", "conv_head"):
        assert repr(name) in mapless
    (smallest,) = [text for text in said if "(maps are 1×1, a hole needs at least 4×4)" in text]
    assert "'blocks.4.2.conv_dw', 'blocks.4.2.conv_pwl', 'blocks.5.0.conv' (maps" in smallest


def test_norms_that_begin_with_zero_do_not_kill_random_units(
    tmp_path: Path, run_study: Any, recipe_with: Any, listener: Any
) -> None:
    recipe = recipe_with(data={"source": "digits", "size": 32}, model=RESNET, train=None, score={"samples": 5})
    folder = RunFolder(tmp_path, recipe.model_dump(mode="json"))
    experiment = begin(recipe, folder, listener())
    images = experiment.splits.train

    def dead(network: Any) -> int:
        rate = score(network, images, samples=5, layers=["layer1.0.conv2"]).raw["selective_rate"]["layer1.0.conv2"]
        return int((rate.mean(axis=0) == 0).sum())

    folder.close()
    assert dead(initialise_network(experiment, 0)) == 4
    alive = initialise_alive(experiment, 0)
    assert dead(alive) == 0
    assert set_zero_scales_to_one(alive) == []
    before, after = initialise_network(experiment, 0).state_dict(), alive.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed
    assert all(re.fullmatch(r"layer\d\.\d\.bn2\.weight", key) for key in changed)
    options = LayersOptions(blocks=("layer1.0",), random_seeds=1, random_classes=2, class_name="7")
    tables, said = run_study(layers_study, tmp_path, recipe, options=options)
    norms = "8 norms (layer1.0.bn2, layer1.1.bn2, layer2.0.bn2, …)"
    assert any(norms in text for text in said)
    assert norms in tables[1].note
    assert [tables[1].rows[name]["maps"].split(", ")[1] for name in tables[1].rows] == [
        "activated",
        "not activated",
        "not activated",  # the convolution of the shortcut
        "output",
    ]
    (figure,) = tmp_path.glob("*.svg")
    text = figure.read_text()
    assert figure.name.endswith("-random-classes-2.svg")
    for words in (">layer1.0<", ">conv1<", ">conv2<", ">output<"):
        assert words in text
    assert "The random-initialised networks were scored on 2 of the classes." in tables[1].note


def test_random_networks_on_fewer_classes_are_scored_on_the_one_class(
    done: Any, tmp_path: Path, run_study: Any, recipe_with: Any, read_rows: Any
) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    for class_name, classes in (("0", {"0", "1"}), ("9", {"0", "9"})):
        options = LayersOptions(class_name=class_name, random_seeds=1, random_classes=2)
        tables, _ = run_study(layers_study, tmp_path, recipe_with(), options=options)
        (path,) = tmp_path.glob(f"study-layers-*-class-{class_name}-samples-20-random-classes-2.csv")
        rows = [row for row in read_rows(path) if row["scope"] == "each class"]
        assert {row["class"] for row in rows if row["network"] == "random 0"} == classes
        assert len({row["class"] for row in rows if row["network"] == "trained"}) == 10
        if class_name == "0":
            # The images of a class do not depend on the other classes.
            whole = {row["class"]: row for row in rows_of(done[0], read_rows) if row["scope"] == "each class"
                     and (row["network"], row["layer"]) == ("random 0", "features.4")}  # fmt: skip
            part = next(
                row for row in rows if (row["network"], row["layer"], row["class"]) == ("random 0", "features.4", "1")
            )
            assert float(part["entropy_nats"]) == pytest.approx(float(whole["1"]["entropy_nats"]))
        assert len(tables) == 2


def test_one_scored_class_has_one_table(done: Any, tmp_path: Path, run_study: Any, recipe_with: Any) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    tables, _ = run_study(layers_study, tmp_path, recipe_with(score={"classes": [5], "samples": 20}))
    assert [table.title for table in tables] == ["Layers: class 5 (figure 5A 1, 2)"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"class_name": "cat"}, InputError, "class 'cat': not among the 10 scored classes; allowed are 0, 1"),
        ({"random_classes": 11}, InputError, "random_classes=11: allowed are numbers from 1 to 10"),
        ({"samples": 900}, DataError, "900 samples asked for, the smallest class has 1.. training images"),
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
        run_study(layers_study, tmp_path, recipe_with(), options=LayersOptions(**options))
