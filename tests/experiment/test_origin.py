"""What the folder of a pruned network says about how it came about."""

from pathlib import Path

from prune_fe.experiment.recipe import load_recipe
from prune_fe.experiment.results import load_result
from prune_fe.experiment.run import run
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.models.manifest import read_manifest
from tests.experiment.helpers import Silent

RECIPE = """
name: small
data: {source: digits, size: 12, validation: 0.5}
model: {name: vgg-small, arguments: {stages: [[4], [8]]}}
train: {lr: 0.05, schedule: cosine, epochs: 1, batch_size: 64}
scorers: [l1-filter]
prune: {target_macs: 0.6}
finetune: {lr: 0.01, schedule: cosine, epochs: 1, batch_size: 64, unpruned: false}
threads: 1
"""


def test_the_manifest_holds_settings_epochs_accuracies_and_costs_and_no_seen_image(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml")
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run", recipe.model_dump(mode="json"))
    silent = Silent()
    run(recipe, folder, silent)
    folder.close()
    about = read_manifest(tmp_path / "run" / "seed-0" / "l1-filter" / "pruned")["about"]
    result = load_result(tmp_path / "run" / "cells" / "seed-0.l1-filter.json")
    assert about["prune"]["target_macs"] == 0.6
    assert about["finetune"]["epochs"] == 1
    assert [epoch["number"] for epoch in about["epochs"]] == [0, 1]
    accuracy = about["accuracy"]
    assert accuracy["test_images"] == 360
    assert (accuracy["before"], accuracy["finetuned"]) == (result.row.accuracy_before, result.row.accuracy)
    assert about["cost"]["macs"]["after"] == result.row.macs < about["cost"]["macs"]["before"]
    assert about["held_out"] == {"from": "train", "share": 0.5, "images_per_class": None, "seed": 0}
    assert about["scores"]["scorer"] == "l1-filter"
    assert any("% of the multiply-adds left (asked for: 60 %)" in line for line in silent.said)
    assert any("of 360 test images (95 % interval" in line for line in silent.said)
