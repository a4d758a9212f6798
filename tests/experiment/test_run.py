"""The whole method on a small network: every step leaves its trace, and the same seed gives the same numbers."""

import csv
import json
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import prune_fe
from prune_fe.data.digits import digits
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment.recipe import load_recipe
from prune_fe.experiment.results import TUNED, Row, load_result
from prune_fe.experiment.run import run
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.records import read_record
from tests.experiment.helpers import Silent, logged

RECIPE = """
name: small
data: {source: digits, size: 32}
model: {name: vgg-small, arguments: {stages: [[6], [6, 8]]}}
train: {lr: 0.05, schedule: cosine, epochs: 1, batch_size: 64}
score: {samples: 6}
scorers: [feature-entropy, l1-filter, {name: random, label: chance}]
prune: {ratio: 0.5}
finetune: {lr: 0.01, schedule: cosine, epochs: 1, batch_size: 128}
threads: 1
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def go(parent: Path, overrides: dict[str, Any] | None = None) -> tuple[list[Row], RunFolder]:
    (parent / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(parent / "recipe.yaml", overrides)
    folder = RunFolder.create(parent / "runs", recipe.name, recipe.model_dump(mode="json"))
    with closing(folder):
        return run(recipe, folder, Silent()), folder


def numbers(rows: list[Row]) -> list[tuple[Any, ...]]:
    """What must be the same each time: everything but the clock."""
    return [
        (r.scorer, r.seed, r.accuracy_before, r.accuracy_pruned, r.accuracy_finetuned, r.loss, r.parameters, r.macs)
        for r in rows
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], RunFolder]:
    return go(tmp_path_factory.mktemp("run"))


def test_every_scorer_starts_from_the_same_network_and_ends_with_the_same_size(
    finished: tuple[list[Row], RunFolder],
) -> None:
    unpruned, tuned, *pruned = finished[0]
    assert tuned.scorer == TUNED
    assert (tuned.parameters, tuned.accuracy_before) == (unpruned.parameters, unpruned.accuracy_before)
    assert [row.scorer for row in pruned] == ["feature-entropy", "l1-filter", "chance"]
    assert {row.accuracy_before for row in pruned} == {unpruned.accuracy_before}
    assert len({(row.parameters, row.macs) for row in pruned}) == 1
    assert pruned[0].parameters < unpruned.parameters / 2


def test_the_table_is_in_the_folder_and_its_numbers_are_those_of_the_saved_models(
    finished: tuple[list[Row], RunFolder],
) -> None:
    rows, folder = finished
    with (folder.path / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    splits = digits(32)
    assert [line["scorer"] for line in table] == [row.scorer for row in rows]
    for row, line in zip(rows[2:], table[2:], strict=True):
        model = prune_fe.load(folder.path / "seed-0" / row.scorer / "pruned")
        result = prune_fe.evaluate(model, splits.test)
        assert result.accuracy == row.accuracy_finetuned
        assert line["accuracy_finetuned"] == f"{result.accuracy:.9g}"
        price = prune_fe.cost(model, splits.test[0][0][None])
        assert (price.parameters, price.macs) == (row.parameters, row.macs)


def test_what_each_network_tells_right_is_in_its_cell(finished: tuple[list[Row], RunFolder]) -> None:
    rows, folder = finished
    for row in rows:
        cell = load_result(folder.path / "cells" / f"seed-0.{row.scorer.replace(', ', '-')}.json")
        assert cell.row == row
        assert cell.correct.mean() == pytest.approx(row.accuracy)
        assert (cell.goal, cell.point) == (("ratio", 0.5) if row not in rows[:2] else (None, None))
        assert [len(units) for units in cell.removed.values()] == ([3, 3, 4] if row not in rows[:2] else [])
        assert len(cell.epochs) == (2 if row is not rows[0] else 0)
    with pytest.raises(CheckpointError, match="damaged.*; delete .*, and the next run makes it again"):
        load_result(folder.path / "recipe.yaml")


def test_every_step_is_in_the_log(finished: tuple[list[Row], RunFolder]) -> None:
    rows, folder = finished
    events = [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("row") == len(rows) == 5
    assert kinds.count("prune") == 3 * 3  # scorers × layers
    assert kinds.count("epoch") == 2 + 4 * 2  # before and after one epoch
    assert events[0]["packages"]["torch"] == metadata.version("torch")
    environment = read_record(folder.path / "env.json")
    assert {key: events[0][key] for key in environment} == environment
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert rows[1].timed_with == "batch 64, float32, cpu, 1 thread"
    for event in logged(folder, "prune"):
        assert {len(numbers) for numbers in event["removed"].values()} == {event["asked"]} == {event["count"]}
    scores = prune_fe.load_scores(folder.path / "seed-0" / "feature-entropy")
    assert scores.images == 60
    assert scores.raw["selective_rate"]["features.0"].shape == (10, 6)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(
    finished: tuple[list[Row], RunFolder], tmp_path: Path
) -> None:
    again, _ = go(tmp_path, {"seeds": [0, 1]})
    assert numbers(again[:5]) == numbers(finished[0])
    assert numbers(again[5:])[0][2:6] != numbers(again[:5])[0][2:6]


def test_a_run_that_was_killed_goes_on_and_repeats_nothing(
    finished: tuple[list[Row], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prune_fe.experiment.run as module

    real = module.compress

    def killed(experiment: Any, entry: Any, *arguments: Any) -> Any:
        if entry.label == "l1-filter":
            raise KeyboardInterrupt
        return real(experiment, entry, *arguments)

    monkeypatch.setattr(module, "compress", killed)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    folder = tmp_path / "runs" / "small-1"
    trained_at = (folder / "seed-0" / "trained" / "manifest.json").stat().st_mtime_ns
    done: list[str] = []

    def noted(experiment: Any, entry: Any, *arguments: Any) -> Any:
        done.append(entry.label)
        return real(experiment, entry, *arguments)

    monkeypatch.setattr(module, "compress", noted)
    recipe = load_recipe(folder / "recipe.yaml")
    with closing(RunFolder.resume(folder, recipe.model_dump(mode="json"))) as resumed:
        rows = run(recipe, resumed, Silent())
    assert done == ["l1-filter", "chance"]
    assert (folder / "seed-0" / "trained" / "manifest.json").stat().st_mtime_ns == trained_at
    assert numbers(rows) == numbers(finished[0])


def test_a_scorer_that_fails_stops_no_other_and_is_tried_again(
    finished: tuple[list[Row], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prune_fe.experiment.run as module

    real = module.compress

    def diverge(experiment: Any, entry: Any, *arguments: Any) -> Any:
        if entry.label == "l1-filter":
            raise InputError("the loss is nan in epoch 1")
        return real(experiment, entry, *arguments)

    monkeypatch.setattr(module, "compress", diverge)
    with pytest.raises(InputError, match="1 task failed; the first is cells.seed-0.l1-filter: the loss is nan"):
        go(tmp_path)
    folder = tmp_path / "runs" / "small-1"
    with (folder / "summary.csv").open() as file:
        scorers = [line["scorer"] for line in csv.DictReader(file)]
    assert scorers == [
        "(unpruned)",
        TUNED,
        "feature-entropy",
        "chance",
    ]
    monkeypatch.undo()
    recipe = load_recipe(folder / "recipe.yaml")
    with closing(RunFolder.resume(folder, recipe.model_dump(mode="json"))) as resumed:
        assert [event["task"] for event in logged(resumed, "failed")] == ["cells.seed-0.l1-filter"]
        assert numbers(run(recipe, resumed, Silent())) == numbers(finished[0])


def test_a_network_that_needs_its_arguments_is_rebuilt_with_them(tmp_path: Path) -> None:
    overrides = {"model": {"name": "timm/test_resnet", "arguments": {"global_pool": "max"}}, "data.size": 64}
    _, folder = go(tmp_path, overrides | {"scorers": ["l1-filter"]})
    recipe = load_recipe(folder.path / "recipe.yaml", {"scorers": ["l1-filter"]})
    for result in (folder.path / "cells").iterdir():
        result.unlink()
    with closing(RunFolder.resume(folder.path, recipe.model_dump(mode="json"))) as resumed:
        assert [row.scorer for row in run(recipe, resumed, Silent())] == ["(unpruned)", TUNED, "l1-filter"]


def test_rescoring_and_fine_tuning_after_each_layer(tmp_path: Path) -> None:
    overrides = {
        "prune.rounds": "layers",
        "prune.rescore": "each_round",
        "finetune.when": "each_round",
        "scorers": ["feature-entropy"],
    }
    rows, folder = go(tmp_path, overrides)
    phases = [event["phase"] for event in logged(folder, "epoch") if event["phase"] != "training"]
    # The unpruned network has as many epochs.
    assert phases[:6:2] == [f"{TUNED}: fine-tuning, {number} of 3" for number in (1, 2, 3)]
    assert phases[6::2] == [f"feature-entropy: fine-tuning after features.{i}" for i in (0, 4, 7)]
    assert rows[2].scoring_seconds is not None


def test_a_budget_in_rounds_with_recalibrated_norms(tmp_path: Path) -> None:
    overrides = {
        "prune.ratio": None,
        "prune.target_macs": 0.5,
        "prune.rounds": 2,
        "prune.recalibrate": 64,
        "finetune.when": "each_round",
        "finetune.epochs": 1,
        "scorers": ["l1-filter"],
    }
    rows, folder = go(tmp_path, overrides)
    assert abs(rows[2].macs / rows[0].macs - 0.5) < 0.03  # the layers have 6 and 8 units
    assert rows[2].accuracy_pruned is None
    phases = dict.fromkeys(event["phase"] for event in logged(folder, "epoch"))
    assert list(phases) == [
        "training",
        *(f"{TUNED}: fine-tuning, {n} of 2" for n in (1, 2)),
        *(f"l1-filter: fine-tuning after round {n} of 2" for n in (1, 2)),
    ]
    assert [(event["norms"], event["images"]) for event in logged(folder, "recalibrate")] == [(3, 64)] * 2


def test_gates_are_scored_by_the_linear_scorer_in_each_round(tmp_path: Path) -> None:
    overrides = {
        "model": {"name": "timm/lcnet_035"},
        "train": None,
        "finetune": None,
        "scorers": ["hrank"],
        "score": {"samples": 2, "linear": True, "linear_scorer": "taylor"},
        "prune": {"ratio": 0.5, "rounds": 2, "rescore": "each_round"},
    }
    _, folder = go(tmp_path, overrides)
    scores = prune_fe.load_scores(folder.path / "seed-0/hrank")
    gates = [f"blocks.5.{block}.se.conv_{part}" for block in (0, 1) for part in ("reduce", "expand")]
    assert scores.other_scorers == dict.fromkeys([*gates, "conv_head", "classifier"], "taylor")
    pruned = prune_fe.load(folder.path / "seed-0/hrank/pruned")
    for name in (*gates, "conv_head"):
        units = pruned.get_parameter(f"{name}.weight").shape[0]
        assert units == len(scores.keep[name]) // 2


def test_a_linear_scorer_that_does_not_exist_or_has_no_layers_is_refused_with_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="score: linear_scorer: unknown scorer 'tailor'; did you mean 'taylor'"):
        go(tmp_path, {"score.linear": True, "score.linear_scorer": "tailor"})
    with pytest.raises(InputError, match="score: linear_scorer: taylor scores linear layers, set linear: true too"):
        go(tmp_path, {"score.linear_scorer": "taylor"})


def test_a_wrong_scorer_setting_or_layer_is_said_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scorer 'feature-entropy' has no setting 'q'; it has rank, normalise, p"):
        go(tmp_path, {"scorers": [{"name": "feature-entropy", "q": 1}]})
    with pytest.raises(InputError, match="layer 'features.99': the model has no such module"):
        go(tmp_path, {"score.layers": ["features.99"]})
    with pytest.raises(InputError, match="layers? .*'features.4'.*: maps are .*, a hole needs at least 4×4"):
        go(tmp_path, {"data.size": 4, "score.strict": True})
    with pytest.raises(DataError, match=r"prune.recalibrate: 5000 training images asked for, there are \d+"):
        go(tmp_path, {"prune.recalibrate": 5000})
    with pytest.raises(InputError, match="only: no module or parameter is called 'head'"):
        go(tmp_path, {"finetune.only": "head"})
    with pytest.raises(InputError, match="lr_by_layer: 'features' matches no weight that is trained"):
        go(tmp_path, {"train.only": "classifier", "train.lr_by_layer": {"features": 0.1}})
    with pytest.raises(DataError, match=r"class '0': \d+ images, 500 asked for"):
        go(tmp_path, {"score.samples": 500})
    assert not list((tmp_path / "runs").glob("*/seed-*"))


def test_the_shipped_quickstart_scores_maps_of_eight_and_more() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
    model = prune_fe.build(recipe.model.name, 10, in_channels=1, **recipe.model.arguments)
    sizes = [
        layer.map_size for layer in prune_fe.find_layers(model, torch.zeros(1, 1, recipe.data.size, recipe.data.size))
    ]
    assert min(sizes) >= (8, 8)
