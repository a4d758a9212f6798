"""A recipe is read and checked to its last key, and nothing in it can do harm."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prune_fe.errors import InputError
from prune_fe.experiment.recipe import Recipe, as_begun, load_recipe, parse_value
from prune_fe.experiment.strict_yaml import MAX_BYTES
from prune_fe.io import nearest
from prune_fe.training.options import PaperTrainOptions

MINIMAL = """
name: mini
data: {source: digits, size: 16}
model: {name: vgg-small}
scorers: [random]
"""
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def replaced(key, value):
    """MINIMAL with another value for one of its keys."""
    return yaml.safe_dump(yaml.safe_load(MINIMAL) | {key: value})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    assert load_recipe(path).name == path.stem


def test_a_resolved_recipe_loads_as_the_same_recipe(tmp_path):
    first = load_recipe(write(tmp_path, MINIMAL + "prune: {ratio: {features.0: 0.25}}\nscore: {classes: [1, 2]}\n"))
    text = yaml.safe_dump(first.model_dump(mode="json"), sort_keys=False)
    assert load_recipe(write(tmp_path, text)) == first


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("finetun: {}", "finetun: unknown key; did you mean 'finetune'?"),
        ("train: {weight-decay: 1}", "train.weight-decay: unknown key; did you mean 'weight_decay'?"),
        ("finetune: {whn: after}", "finetune.whn: unknown key; did you mean 'when'?"),
        ("finetune: {distill: {temp: 4}}", "finetune.distill.temp: unknown key; allowed are weight, temperature"),
        (
            "finetune: {distill: {weight: 1.5}}",
            "finetune.distill.weight: input should be less than or equal to 1 (got 1.5)",
        ),
        ("finetune: {lr_by_layer: {a: 0}}", "finetune.lr_by_layer.a: input should be greater than 0 (got 0)"),
        ("train: {only: 3}", "train.only: input should be a valid list (got 3)"),
        (
            "train: {distill: {}}",
            "recipe: train.distill: the unpruned network is the teacher, and nothing teaches it; finetune.distill is "
            "for the pruned ones",
        ),
        ("score: {sample: 3}", "score.sample: unknown key; did you mean 'samples'?"),
        ("prune: {ratios: 0.5}", "prune.ratios: unknown key; did you mean 'ratio' or 'max_ratio'?"),
        (
            "score: {zzz: 0.5}",
            "score.zzz: unknown key; allowed are classes, samples, layers, exclude, strict, linear, linear_scorer, "
            "batch_size",
        ),
        ("prune: {coupled: mean}", "prune.coupled: unknown key; did you mean 'scope'?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path, lines, message):
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, MINIMAL + lines))
    assert str(caught.value) == f"{tmp_path / 'recipe.yaml'}: {message}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "prune: {ratio: 0.5, target_macs: 0.5}",
            "prune: ratio and target_macs were given; a network is pruned by one of them",
        ),
        ("prune: {target_params: 0}", "prune.target_params: input should be greater than 0 (got 0)"),
        (
            "prune: {rounds: 2}",
            "recipe: prune.rounds: 2 does the same as 1 without prune.rescore: each_round or finetune.when: each_round",
        ),
        (
            "finetune: {when: each_round}",
            "recipe: finetune.when: each_round needs more rounds than one; prune.rounds: layers takes one a layer",
        ),
        ("prune: {recalibrate: 1}", "prune.recalibrate: input should be greater than or equal to 2 (got 1)"),
        ("prune: {rounds: 0}", "prune.rounds: input should be greater than or equal to 1 (got 0)"),
        (
            "prune: {rescore: each_round}",
            "prune: rescore: each_round needs more rounds than one; rounds: layers takes one a layer",
        ),
        (
            "prune: {ratio: {a: 0.5}, ranking: global}",
            "prune: ranking: global takes one ratio for all layers, not one for each",
        ),
        ("train: {lr: 0}", "train.lr: input should be greater than 0 (got 0)"),
        ("train: {lr: .nan}", "train.lr: input should be a finite number (got nan)"),
        ("train: {lr: .inf}", "train.lr: input should be a finite number (got inf)"),
        ("train: {lr: true}", "train.lr: input should be a valid number (got True)"),
        ("train: {momentum: 1}", "train.momentum: input should be less than 1 (got 1)"),
        ("train: {momentum: false}", "train.momentum: input should be a valid number (got False)"),
        ("train: {epochs: true}", "train.epochs: input should be a valid integer (got True)"),
        ("train: {epochs: 2.0}", "train.epochs: input should be a valid integer (got 2.0)"),
        ("train: {epochs: 0}", "train.epochs: input should be greater than or equal to 1 (got 0)"),
        (
            "train: {epochs: 1000000000000}",
            "train.epochs: input should be less than or equal to 100000 (got 1000000000000)",
        ),
        (
            "train: {batch_size: 10000000}",
            "train.batch_size: input should be less than or equal to 1048576 (got 10000000)",
        ),
        ("threads: 100000", "threads: input should be less than or equal to 1024 (got 100000)"),
        ("workers: 100000", "workers: input should be less than or equal to 1024 (got 100000)"),
        (
            "ablate: {control_seeds: 100000000}",
            "ablate.control_seeds: input should be less than or equal to 10000 (got 100000000)",
        ),
        ("prune: {rounds: 100000000}", "prune.rounds: input should be less than or equal to 10000 (got 100000000)"),
        ("score: {samples: 100000000000}", "score.samples: input should be less than 2147483648 (got 100000000000)"),
        ("train: {amp: 1}", "train.amp: input should be a valid boolean (got 1)"),
        ("train: {schedule: cosine}", "train: the cosine schedule needs epochs"),
        ("train: {schedule: cosin}", "train.schedule: input should be 'step', 'cosine' or 'constant' (got 'cosin')"),
        ("prune: {ratio: 1}", "prune.ratio: input should be less than 1 (got 1)"),
        ("prune: {ratio: -0.1}", "prune.ratio: input should be greater than or equal to 0 (got -0.1)"),
        ("prune: {ratio: .nan}", "prune.ratio: input should be a finite number (got nan)"),
        ("prune: {ratio: {features.0: 2}}", "prune.ratio.features.0: input should be less than 1 (got 2)"),
        ("score: {classes: 0}", "score.classes: input should be greater than or equal to 1 (got 0)"),
        ("score: {classes: [a]}", "score.classes.0: input should be a valid integer (got 'a')"),
        ("seeds: 3", "seeds: input should be a valid list (got 3)"),
        ("seeds: [1, 1]", "recipe: seeds: one of them is given twice"),
        ("seeds: [-1]", "seeds.0: input should be greater than or equal to 0 (got -1)"),
        ("threads: 0", "threads: input should be greater than or equal to 1 (got 0)"),
        ("1: 2", "1: keys should be strings (got 1)"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_is_allowed(tmp_path, lines, message):
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, MINIMAL + lines))
    assert str(caught.value) == f"{tmp_path / 'recipe.yaml'}: {message}"


def test_every_fault_is_said_at_once(tmp_path):
    with pytest.raises(InputError, match=r"train\.lr: .*; prune\.ratio: "):
        load_recipe(write(tmp_path, MINIMAL + "train: {lr: 0}\nprune: {ratio: 3}\n"))


def test_of_very_many_faults_the_first_are_said(tmp_path):
    with pytest.raises(InputError, match="key8: .*; and 5 more$") as caught:
        load_recipe(write(tmp_path, MINIMAL + "".join(f"key{number}: 1\n" for number in range(15))))
    assert "key12" not in str(caught.value)


def test_1e_3_without_a_dot_is_a_number(tmp_path):
    recipe: Any = load_recipe(write(tmp_path, MINIMAL + "train: {lr: 1e-3, weight_decay: 5E-4, epochs: 1}"))
    assert (recipe.train.lr, recipe.train.weight_decay) == (1e-3, 5e-4)
    assert parse_value("-2e+1") == -20.0


@pytest.mark.parametrize(
    ("scorers", "message"),
    [
        (["feature-entrpy"], "scorers.0: unknown scorer 'feature-entrpy'; did you mean 'feature-entropy'?"),
        (["random", "random"], "scorers: 'random' is given twice; give one of them another label"),
        ([{"name": "random", "label": "x"}, {"name": "l1-filter", "label": "x"}], "scorers: 'x' is given twice"),
        ([{"name": "random", "label": "../x"}], "scorers.0.label: string should match pattern"),
        ([{"name": "random", "label": "trained"}], "the label 'trained' is taken"),
        ([{"label": "x"}], "scorers.0.name: field required"),
        ([], "scorers: list should have at least 1 item"),
    ],
)
def test_a_wrong_scorer_is_refused(tmp_path, scorers, message):
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, replaced("scorers", scorers)))
    assert message in str(caught.value)


def test_one_scorer_may_stand_twice_under_two_labels_and_keeps_its_settings(tmp_path):
    scorers = ["feature-entropy", {"name": "feature-entropy", "label": "edges", "rank": "edges"}]
    recipe: Any = load_recipe(write(tmp_path, replaced("scorers", scorers)))
    assert [(scorer.label, scorer.settings) for scorer in recipe.scorers] == [
        ("feature-entropy", {}),
        ("edges", {"rank": "edges"}),
    ]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "a\nb", "=cmd", "<script>"])
def test_a_name_cannot_leave_the_output_folder(tmp_path, name):
    with pytest.raises(InputError, match="name: string should match pattern"):
        load_recipe(write(tmp_path, replaced("name", name)))


def test_digits_with_a_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="source digits needs no path, but path is 'photos'"):
        load_recipe(write(tmp_path, MINIMAL), {"data.path": "photos"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x: !!python/object/apply:os.system [touch hacked]", r"line 6: tags are not allowed \(.*os\.system\)"),
        ("x: !!timestamp nonsense", "line 6: tags are not allowed"),
        ("x: &a [1]\ny: [*a, *a]", "line 7: aliases are not allowed"),
        ("name: other", "line 6: 'name' is given twice"),
        ("train: {lr: 1, <<: {lr: 2}}", r"line 6: merge keys \(<<\) are not allowed"),
        ("train: {lr: 1, lr: 2}", "line 6: 'lr' is given twice"),
        ("x: " + "[" * 5000, "not readable as YAML"),
        ("x: " + "{a: " * 5000, "not readable as YAML"),
        ("x: 2020-99-99", "not readable as YAML"),
        ("x: " + "9" * 5000, "not readable as YAML"),
        ("? [1]\n: 2", "line 6: found unhashable key"),
        ("x: [1", "line 7: .*expected"),
        ("x: \x01", "not readable as YAML"),
    ],
)
def test_hostile_yaml_is_refused_with_its_line(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path, MINIMAL + line + "\n"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "a recipe is a mapping, this is a list"),
        (b"", "a recipe is a mapping, this is a NoneType"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"#" * (MAX_BYTES + 1), "larger than 64 KiB, so it is not a recipe"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path, content))


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(InputError, match="none.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        load_recipe(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match=r"pipe\.yaml: not a regular file"):
        load_recipe(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(
    "model",
    [
        "model: {name: timm/resnet18, arguments: {checkpoint_path: evil.pth}}",
        "model: {name: timm/resnet18, arguments: {pretrained_cfg_overlay: {file: evil.pth}}}",
        "compare: {networks: {one: {name: timm/resnet18, arguments: {checkpoint_path: evil}}}}",
    ],
)
def test_a_recipe_cannot_choose_a_file_through_arguments(tmp_path, model):
    minimal = yaml.safe_load(MINIMAL) | yaml.safe_load(model)
    with pytest.raises(InputError, match=r"arguments: '\w+' is not an argument that a file may give"):
        load_recipe(write(tmp_path, yaml.safe_dump(minimal)))


def test_overrides_win_over_the_file_at_any_depth(tmp_path):
    path = write(tmp_path, MINIMAL + "train: {lr: 0.5}\n")
    recipe: Any = load_recipe(path, {"train.lr": 0.25, "finetune.epochs": 2, "seeds": [4]})
    assert (recipe.train.lr, recipe.finetune.epochs, recipe.seeds) == (0.25, 2, [4])


def test_overrides_are_checked_like_the_file(tmp_path):
    path = write(tmp_path, MINIMAL)
    with pytest.raises(InputError, match="trian: unknown key; did you mean 'train'"):
        load_recipe(path, {"trian.lr": 0.1})
    with pytest.raises(InputError, match=r"scorers\.0 cannot be set, scorers is no mapping"):
        load_recipe(path, {"scorers.0": "random"})


def test_a_value_is_parsed_as_strictly_as_a_file():
    assert parse_value("[1, a]") == [1, "a"]
    for text in ("[", "!!python/name:os.system", "2020-99-99"):
        with pytest.raises(InputError):
            parse_value(text)


def test_the_hint_lists_all_when_none_is_near():
    assert nearest("zzz", ["ab", "cd"]) == "allowed are ab, cd"


def test_a_bad_recipe_is_refused_without_loading_torch(tmp_path):
    path = write(tmp_path, MINIMAL + "prune: {ratio: 2}\n")
    code = f"""
import sys
from prune_fe.experiment.recipe import load_recipe
try:
    load_recipe({str(path)!r})
except ValueError:
    sys.exit(3 if "torch" in sys.modules else 7)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


def test_a_goal_given_with_the_command_takes_the_place_of_the_recipes(tmp_path):
    path = write(tmp_path, MINIMAL + "prune: {ratio: 0.5, scope: inner}\n")
    found = load_recipe(path, {"prune.target_macs": 0.4}).prune
    assert (found.ratio, found.target_macs, found.scope) == (None, 0.4, "inner")
    path = write(tmp_path, MINIMAL + "prune: {target_params: 0.5}\n")
    assert load_recipe(path, {"prune.ratio": 0.7}).prune.target_params is None


def test_the_ratio_auto_stays_beside_a_target_of_the_command(tmp_path):
    path = write(tmp_path, MINIMAL + "prune: {ratio: auto, target_macs: 0.5}\n")
    for changes, expected in (
        ({}, ("auto", 0.5, None)),
        ({"prune.target_macs": 0.3}, ("auto", 0.3, None)),
        ({"prune.target_params": 0.3}, ("auto", None, 0.3)),
        ({"prune.ratio": 0.3}, (0.3, None, None)),
        ({"prune.ratio": 0.3, "prune.max_ratio": 0.2}, (0.3, None, None)),
        ({"prune.ratio": "auto"}, ("auto", 0.5, None)),
    ):
        found = load_recipe(path, changes).prune
        assert (found.ratio, found.target_macs, found.target_params) == expected, changes
    plain = write(tmp_path, MINIMAL + "prune: {target_params: 0.5}\n")
    found = load_recipe(plain, {"prune.ratio": "auto"}).prune
    assert (found.ratio, found.target_params) == ("auto", 0.5)
    with pytest.raises(InputError, match="prune: ratio: auto needs a target"):
        load_recipe(write(tmp_path, MINIMAL + "prune: {ratio: auto}\n"))


def test_a_misspelt_key_of_a_compared_network_is_answered_with_the_keys_of_a_model(tmp_path):
    lines = "compare: {networks: {mine: {name: vgg-small, chekpoint: x}}}"
    with pytest.raises(InputError, match=r"compare\.networks\.mine\.chekpoint: unknown key; did you mean 'checkpoint'"):
        load_recipe(write(tmp_path, MINIMAL + lines))
    with pytest.raises(InputError, match=r"compare\.ratio: unknown key; did you mean 'ratios'"):
        load_recipe(write(tmp_path, MINIMAL + "compare: {ratio: [0.5]}"))


def test_operating_points_given_with_the_command_take_the_place_of_the_recipes(tmp_path):
    path = write(tmp_path, MINIMAL + "compare: {ratios: [0.3, 0.5], scratch: []}\n")
    found = load_recipe(path, {"compare.target_macs": [0.4]}).compare
    assert (found.ratios, found.target_macs, found.scratch) == (None, (0.4,), ())
    assert found.points == ("target_macs", [0.4])
    path = write(tmp_path, MINIMAL + "compare: {target_params: [0.5]}\n")
    assert load_recipe(path, {"compare.ratios": [0.7]}).compare.points == ("ratio", [0.7])


def test_the_first_entry_of_a_scorer_is_the_recipes_or_the_default(tmp_path):
    scorers = ["random", {"name": "taylor", "label": "one"}, {"name": "taylor", "label": "two"}]
    recipe = load_recipe(write(tmp_path, replaced("scorers", scorers)))
    assert recipe.first_entry("taylor").label == "one"
    assert recipe.first_entry("apoz").model_dump() == {"name": "apoz", "label": "apoz"}


def test_the_networks_of_a_set_have_their_own_options_of_training(tmp_path):
    sets = {"A": {"AA": {}, "AB": {"momentum": 0.0, "dropout": {"classifier.*": 0.3}}}}
    content = yaml.safe_load(MINIMAL) | {"train": {"lr": 0.1}, "generalisation": {"sets": sets}}
    recipe = load_recipe(write(tmp_path, yaml.safe_dump(content)))
    changed: Any = recipe.with_training(recipe.generalisation.sets["A"]["AB"]).train
    assert (changed.lr, changed.momentum, changed.dropout) == (0.1, 0.0, {"classifier.*": 0.3})
    assert changed != recipe.train == PaperTrainOptions(lr=0.1)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    assert load_recipe(write(tmp_path, text)) == recipe


@pytest.mark.parametrize(
    ("sets", "match"),
    [
        (
            {"A": {"AA": {}, "AB": {"momentun": 0.0}}},
            r"generalisation\.sets\.A\.AB: momentun: unknown key; did you mean",
        ),
        ({"A": {"AA": {}, "AB": {"label_noise": 1.5}}}, r"A\.AB: label_noise: input should be less than or equal to 1"),
        ({"A": {"AA": {}, "AB": {"distill": {"weight": 0.5}}}}, "distill: nothing teaches the unpruned network"),
        ({"A": {"AA": {}}}, r"generalisation\.sets\.A: .*at least 2 items"),
        ({"A": {"a/b": {}, "AB": {}}}, "string should match pattern"),
    ],
)
def test_a_wrong_network_of_a_set_is_named(tmp_path, sets, match):
    content = yaml.safe_load(MINIMAL) | {"train": {}, "generalisation": {"sets": sets}}
    with pytest.raises(InputError, match=match):
        load_recipe(write(tmp_path, yaml.safe_dump(content)))


def test_a_set_needs_a_recipe_that_trains(tmp_path):
    content = yaml.safe_load(MINIMAL) | {"generalisation": {"sets": {"A": {"AA": {}, "AB": {}}}}}
    with pytest.raises(InputError, match="AA: the recipe has no section train, whose options this would change"):
        load_recipe(write(tmp_path, yaml.safe_dump(content)))


def test_an_override_that_takes_the_place_of_a_key_says_so(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("prune: {target_macs: 0.5}\n")
    said: list[str] = []
    with pytest.raises(InputError):  # the other sections are missing
        load_recipe(tmp_path / "r.yaml", {"prune.ratio": 0.7}, said.append)
    assert said == [f"note: prune.target_macs: 0.5 of {tmp_path}/r.yaml has no effect, prune.ratio stands in its place"]


def test_a_run_of_an_earlier_version_keeps_its_factors_and_a_new_one_has_none() -> None:
    content = {
        "name": "a", "data": {"source": "digits", "size": 8}, "model": {"name": "vgg-small"}, "scorers": ["random"]
    }  # fmt: skip
    recipe = Recipe.model_validate(content)
    assert recipe.ablate.rescale is None
    assert as_begun(recipe, {"ablate": {"rescale": [0.5, 1.5]}, "finetune": None}).ablate.rescale == (0.5, 1.5)
    assert as_begun(recipe, {"ablate": {"rescale": None}}).ablate.rescale is None
