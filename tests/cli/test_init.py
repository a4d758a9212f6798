"""prune-fe init."""

from pathlib import Path

import torch

from prune_fe.cli.app import main
from prune_fe.experiment.recipe import load_recipe
from prune_fe.models.saved import save
from prune_fe.models.small_vgg import SmallVGG
from tests.cli.helpers import refused


def test_it_writes_a_recipe_that_can_be_run(capsys):
    torch.manual_seed(0)
    save(SmallVGG(10, 1, stages=[[4], [4]]), "net", {"size": 12})
    words = ["init", "--model", "./net", "--data", "digits", "--target-params", "0.4", "--output", "mine.yaml"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: prune-fe run mine.yaml"
    recipe = load_recipe("mine.yaml")
    assert (recipe.model.name, recipe.data.size, recipe.prune.target_params) == ("./net", 12, 0.4)
    assert "# Share of the multiply-adds" not in Path("mine.yaml").read_text()
    assert "mine.yaml exists already" in refused(capsys, 2, *words)
    assert main(["run", "mine.yaml", "--set", "finetune.epochs=1", "--set", "score.samples=4", "--device", "cpu"]) == 0


def test_a_wrong_name_and_an_untrained_network_are_refused(capsys):
    words = ("init", "--data", "digits", "--model")
    assert "--output a.txt: a recipe is a file that ends in .yaml" in refused(
        capsys, 2, *words, "x", "--output", "a.txt"
    )
    assert "vgg-small has no trained weights" in refused(capsys, 2, *words, "vgg-small")
    assert not Path("recipe.yaml").exists()
