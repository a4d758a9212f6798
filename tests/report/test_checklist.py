"""What a comparison must report is filled in from the results."""

import dataclasses

import pytest

from prune_fe.experiment.recipe import ModelOptions
from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.report import checklist
from prune_fe.report.checklist import comparison_checklist
from prune_fe.report.findings import Findings
from prune_fe.report.wording import describe_point


def states(findings: Findings) -> dict[str, bool | None]:
    return {requirement: is_met for requirement, is_met, _ in comparison_checklist(findings).entries}


def details(findings: Findings) -> dict[str, str]:
    return {requirement: detail for requirement, _, detail in comparison_checklist(findings).entries}


def without(findings: Findings, *scorers: str) -> Findings:
    return dataclasses.replace(findings, results=[r for r in findings.results if r.row.scorer not in scorers])


def test_a_whole_comparison(findings: Findings) -> None:
    known = states(findings)
    missing = [requirement for requirement, is_met in known.items() if is_met is False]
    assert missing == [
        "At least 5 operating points, with every criterion",
        "At least 3 seeds of every result",
    ]
    assert known["Top-5 accuracy where there are many classes"] is None
    assert details(findings)["At least 5 operating points, with every criterion"] == "0.25, 0.75"


@pytest.mark.parametrize(
    ("scorer", "requirements"),
    [
        ("random", ["Random units of the same widths, at every operating point", "The same cost for every criterion"]),
        ("l1-filter", ["Filter L1 norm, at every operating point"]),
        ("scratch#1", ["The pruned architecture trained from scratch with the same budget"]),
        ("scratch#2", ["The same with twice the budget"]),
        (TUNED, ["The unpruned network with the same fine-tuning"]),
        (UNPRUNED, ["Accuracy before and after pruning"]),
    ],
)
def test_what_is_missing_is_marked(findings: Findings, scorer: str, requirements: list[str]) -> None:
    whole, part = states(findings), states(without(findings, scorer))
    for requirement in [*requirements, "Everything that the recipe asks for"]:
        assert (whole[requirement], part[requirement]) == (True, False)


def test_the_thresholds_count(findings: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checklist, "FEW_POINTS", 2)
    monkeypatch.setattr(checklist, "FEW_SEEDS", 2)
    monkeypatch.setattr(checklist, "MANY_CLASSES", 4)
    known = states(findings)
    assert known["At least 2 operating points, with every criterion"]
    assert known["At least 2 seeds of every result"]
    assert known["Top-5 accuracy where there are many classes"] is False
    assert not states(without(findings, "zeros"))["At least 2 operating points, with every criterion"]


def test_a_collapse_is_half_of_the_accuracy(findings: Findings) -> None:
    def last_point(accuracy: float) -> Findings:
        results = [
            dataclasses.replace(r, row=dataclasses.replace(r.row, accuracy_finetuned=accuracy))
            if r.point == 0.75
            else r
            for r in findings.results
        ]
        return dataclasses.replace(findings, results=results)

    name = "Operating points up to the collapse of the network"
    assert (states(last_point(0.1))[name], states(last_point(0.8))[name]) == (True, False)


def test_machines_and_commits_are_counted(findings: Findings) -> None:
    first, *others = findings.results
    other = dataclasses.replace(first, environment={"commit": "def+changes", "processor": "another", "gpu": None})
    part = dataclasses.replace(findings, results=[other, *others])
    known, whole = states(part), states(findings)
    for requirement in (
        "Parameters, multiply-adds and measured time, on one machine",
        "The same data, training budget and settings for every criterion",
        "The source code of the results",
    ):
        assert (whole[requirement], known[requirement]) == (True, False)
    assert details(part)["The source code of the results"] == "abc, def+changes"


def test_failed_tasks_are_listed_and_long_lists_are_cut(findings: Findings) -> None:
    failed = dataclasses.replace(without(findings, "zeros", "random"), failed={"train one": "out of memory"})
    assert details(failed)["Failed: train one"] == "out of memory"
    assert states(failed)["Failed: train one"] is False
    assert details(failed)["Everything that the recipe asks for"].endswith("; and 2 more")


def test_criteria_that_depart_from_their_papers_are_named(findings: Findings) -> None:
    requirement = "Every criterion as its paper defines it"
    assert requirement not in states(findings)
    content = findings.recipe.model_dump(mode="json")
    content["scorers"] += ["tp-random", {"name": "tp-hessian", "label": "second-order"}]
    theirs = dataclasses.replace(findings, recipe=type(findings.recipe).model_validate(content))
    assert states(theirs)[requirement] is False
    assert details(theirs)[requirement] == (
        "second-order: torch-pruning keeps the squared gradient of the last image only, and no second derivative"
    )


def with_targets(findings: Findings) -> Findings:
    """The same results as if 75 and 50 % of the multiply-adds had been asked for, of which 75 and 25 % are left."""
    recipe = findings.recipe.with_options("compare", ratios=None, target_macs=(0.75, 0.5))
    asked = {None: None, 0.25: 0.75, 0.75: 0.5}
    results = [
        dataclasses.replace(each, goal=each.goal and "target_macs", point=asked[each.point])
        for each in findings.results
    ]
    return dataclasses.replace(findings, recipe=recipe, results=results)


def test_what_was_reached_stands_beside_what_was_asked_for(findings: Findings) -> None:
    targets, requirement = with_targets(findings), "The cost that was asked for was reached"
    assert requirement not in states(findings)  # a ratio is no target
    assert (targets.reached(0.75), targets.reached(0.5)) == ((0.75, 0.75), (0.25, 0.25))
    assert states(targets)[requirement] is False
    assert details(targets)[requirement] == "asked for 0.5, reached 0.25"
    assert describe_point(targets, 0.75) == "multiply-adds left 0.75"
    assert describe_point(targets, 0.5) == "multiply-adds left 0.5 (reached: 0.25)"


def test_weights_from_elsewhere_may_have_seen_the_validation_images(findings: Findings) -> None:
    requirement = "The epoch chosen on validation data"
    assert states(findings)[requirement] is True
    networks = {name: ModelOptions(name="vgg-small", checkpoint="dir/a.pth") for name in ("one", "two")}
    recipe = findings.recipe.with_options("compare", networks=networks)
    assert states(dataclasses.replace(findings, recipe=recipe))[requirement] is False
    detail = details(dataclasses.replace(findings, recipe=recipe))[requirement]
    assert "the checkpoint a.pth may have been trained on them (others: data.validation_path, or" in detail
    own = recipe.with_options("data", source="folder", validation_path="photos/held-out")
    assert states(dataclasses.replace(findings, recipe=own))[requirement] is True
    assert details(dataclasses.replace(findings, recipe=own))[requirement].endswith("of their own, held-out")
    other = recipe.with_options("data", validation_from="test")
    assert states(dataclasses.replace(findings, recipe=other))[requirement] is True
