"""The sections of a report: every number of the results, and what is said where there is none."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest

from prune_fe.experiment.results import UNPRUNED
from prune_fe.report import sections
from prune_fe.report.findings import Findings
from prune_fe.report.page import Block, Charts, Checklist, Figures, Fold, PageTable, Row, Section, Text
from prune_fe.report.sections import report_sections


@pytest.fixture(scope="module")
def whole(findings: Findings) -> list[Section]:
    return list(report_sections(findings))


def blocks_of(sections: Iterable[Section], title: str) -> list[Block]:
    blocks = next(section.blocks for section in sections if section.title == title)
    return [inner for block in blocks for inner in (block.blocks if isinstance(block, Fold | Row) else [block])]


def table(sections: Iterable[Section], section: str, title: str) -> PageTable:
    for block in blocks_of(sections, section):
        known = block.numbers if isinstance(block, Charts) else block
        if isinstance(known, PageTable) and known.title == title:
            return known
    raise KeyError(title)


def test_the_sections_come_in_order(whole: list[Section]) -> None:
    titles = [section.title for section in whole]
    each = ["Trade-off", "Accuracy", "Which classes pay", "Layers", "Scores", "Agreement", "Cost of each criterion"]
    assert titles == [
        "What came out", *(f"{title}: one" for title in each), *(f"{title}: two" for title in each),
        "What a comparison must report", "Settings and environment",
    ]  # fmt: skip


def test_three_numbers_of_each_network_come_first(whole: list[Section], findings: Findings) -> None:
    one, two = (block for block in blocks_of(whole, "What came out") if isinstance(block, Figures))
    best = findings.best("two", 0.75)
    assert two.title == f"two, share removed 0.75: {best}, the best of 4 criteria"
    cost, speed, accuracy = two.figures
    assert cost == ("25 %", "of the multiply-adds left (4.00M to 1.00M; parameters 50.00k to 12.50k)")
    assert speed == ("2.00×", "as fast, measured (667 to 1,333 images/s; batch 64, cpu)")
    unpruned, pruned = (100 * np.mean(findings.accuracies("two", *key)) for key in ((UNPRUNED,), (best, 0.75)))
    assert accuracy[0] == f"{unpruned:.0f} → {pruned:.0f} %"  # 80 images give steps of more than a point
    assert accuracy[1].startswith(f"test accuracy: −{unpruned - pruned:.0f} ± ")
    assert accuracy[1].endswith("(95 % over 80 test images, 2 seeds)")
    assert one.title.startswith("one, ")


@pytest.mark.parametrize(
    ("steady", "number", "text"),
    [
        (True, "1.50×", "as fast, both networks measured in turn (3 to 2 ms, medians; batch 1, 2 threads)"),
        (False, "–", "times not comparable: the machine did other work too (3 to 2 ms, medians; batch 1, 2 threads)"),
    ],
)
def test_the_time_of_both_networks_in_turn_comes_before_other_times(
    findings: Findings, steady: bool, number: str, text: str
) -> None:
    setting = {"batch_size": 1, "threads": 2, "device": "cpu"}
    times = {"original": {"median_ms": 3.0}, "pruned": {"median_ms": 2.0}}
    timed = {"setting": setting, **times, "ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6, "steady": steady}
    part = dataclasses.replace(findings, latency=timed)
    figures = next(b for b in blocks_of(report_sections(part), "What came out") if isinstance(b, Figures))
    assert figures.figures[1] == (number, text)


def test_timings_on_a_busy_machine_are_no_speed_up(findings: Findings) -> None:
    results = [
        dataclasses.replace(r, row=dataclasses.replace(r.row, processor_share=0.5 if r.point == 0.75 else 1.0))
        for r in findings.results
    ]
    sections = list(report_sections(dataclasses.replace(findings, results=results)))
    figures = next(b for b in blocks_of(sections, "What came out") if isinstance(b, Figures))
    number, text = figures.figures[1]
    assert number == "–"
    assert text.startswith("times not comparable: the machine did other work too (")


def test_one_criterion_alone_is_compared_with_nothing(findings: Findings) -> None:
    recipe = findings.recipe.model_copy(update={"scorers": [findings.recipe.scorers[1]]})
    results = [r for r in findings.results if r.row.scorer in (UNPRUNED, "zeros")]
    part = dataclasses.replace(findings, recipe=recipe, results=results, is_comparison=False)
    sections = list(report_sections(part))
    assert [block.kind for block in next(iter(sections)).blocks] == ["figures", "figures"]
    known = table(sections, "Accuracy: one", "At share removed 0.25")
    assert "minus the best" not in known.columns
    assert "minus random" not in known.columns
    assert "columns" not in known.note
    assert not any(section.title.startswith("Agreement") for section in sections)
    [checklist] = next(section for section in sections if section.title == "What must be reported").blocks
    assert isinstance(checklist, Checklist)
    assert not any("every operating point" in requirement for requirement, *_ in checklist.entries)
    assert any(requirement == "Accuracy before and after pruning" for requirement, *_ in checklist.entries)


def test_classes_are_in_the_order_of_their_loss(
    whole: list[Section], findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = "Change of each class's accuracy at share removed 0.75"
    known = table(whole, "Which classes pay: one", title)
    changes = [float(row[2]) for row in known.rows]
    assert changes == sorted(changes)
    assert len(known.rows) == 3  # the fourth class has no test image
    monkeypatch.setattr(sections, "SHOWN_CLASSES", 2)
    short = table(report_sections(findings), "Which classes pay: one", title)
    assert short.rows == [known.rows[0], known.rows[-1]]
    assert "Shown are the 1 that lose most and the 1 that lose least" in short.note


def test_the_classes_pay_unevenly(whole: list[Section], findings: Findings) -> None:
    known = table(whole, "Which classes pay: one", "How unevenly the classes pay at share removed 0.75")
    classes = findings.class_accuracies("one", "zeros", 0.75)
    assert classes is not None
    change = 100 * (classes["after"] - classes["before"]).to_numpy()
    row = next(row for row in known.rows if row[0] == "zeros")
    assert row[1:] == [f"{np.nanstd(change):.1f}", f"{-np.nanmin(change):.1f}"]


def test_profiles_are_those_of_the_layers(whole: list[Section], findings: Findings) -> None:
    known = table(whole, "Layers: one", "H, nats by depth")
    assert [row[2] for row in known.rows] == ["features.0", "features.4", "features.8"]
    means = [findings.scores["one", seed, "feature-entropy"].layer_mean("feature_entropy_nats", "features.4")
             for seed in findings.seeds]  # fmt: skip
    assert [float(text) for text in known.rows[1][3:]] == pytest.approx(
        [np.mean(means), min(means), max(means)], rel=1e-5
    )


def test_the_removed_shares_are_a_chart_only_where_they_differ(whole: list[Section], findings: Findings) -> None:
    texts = [block.text for block in blocks_of(whole, "Layers: one") if isinstance(block, Text)]
    assert "Every criterion removes 75% of the units of each layer." in texts
    first, *others = [each for each in findings.results if each.point == 0.75]
    fewer = dataclasses.replace(first, removed={**first.removed, "features.0": [0]})
    part = dataclasses.replace(findings, results=[fewer, *others])
    shares = table(report_sections(part), "Layers: one", "Removed share of each layer at share removed 0.75")
    share = {(row[0], row[2]): row[3] for row in shares.rows}
    assert share[first.row.scorer, "features.0"] == f"{100 * np.mean([1, 6]) / 8:.2f} %"
    assert share[first.row.scorer, "features.4"] == "75.00 %"


def test_histograms_count_every_unit(whole: list[Section], findings: Findings) -> None:
    known = table(whole, "Scores: one", "Distribution of the scores")
    assert [row[0] for row in known.rows] == findings.scorers
    assert all(row[1] == "36" and sum(map(int, row[5:])) == 36 for row in known.rows)
    block = blocks_of(whole, "Scores: one")[0]
    assert isinstance(block, Charts)
    assert next(iter(block.charts)) == "feature-entropy: 36 units"


def test_agreement_is_shaded_and_by_layer(whole: list[Section], findings: Findings) -> None:
    known = table(whole, "Agreement: one", "Spearman's ρ of the scores")
    assert [row[number] for number, row in enumerate(known.rows, 1)] == ["1.00"] * 4
    assert known.shades[0][0] == 1
    by_layer = table(whole, "Agreement: one", "Spearman's ρ of the scores: feature-entropy and others, by layer")
    agreement = findings.agreement("one", "feature-entropy", "zeros")
    values = {row[2]: float(row[3]) for row in by_layer.rows if row[0] == "zeros"}
    assert values == pytest.approx(agreement, rel=1e-5)


def test_what_is_missing_is_said_in_words(findings: Findings) -> None:
    unpruned = [r for r in findings.results if r.row.scorer == UNPRUNED]
    bare = dataclasses.replace(findings, results=unpruned, scores={}, is_comparison=False)
    texts = [b.text for section in report_sections(bare) for b in section.blocks if isinstance(b, Text)]
    for words in ("No network has been pruned yet.", "No network has been pruned.",
                  "There is no profile of H and ε: the folder holds no scores.",
                  "There are no two criteria whose agreement could be measured."):  # fmt: skip
        assert any(words in text for text in texts), words


def test_a_comparison_without_feature_entropy_has_no_profile_of_it(findings: Findings) -> None:
    scores = {key: value for key, value in findings.scores.items() if "selective_rate" not in value.raw}
    assert 0 < len(scores) < len(findings.scores)
    sections = report_sections(dataclasses.replace(findings, scores=scores))
    texts = [block.text for section in sections for block in section.blocks if isinstance(block, Text)]
    assert "There is no profile of H and ε: feature-entropy is not among the criteria." in texts


def test_why_fewer_units_were_removed_is_said(findings: Findings) -> None:
    first, *others = findings.results
    part = dataclasses.replace(findings, results=[dataclasses.replace(first, left={"features.0": "a reason"}), *others])
    texts = [block.text for block in blocks_of(report_sections(part), "Layers: one") if isinstance(block, Text)]
    assert texts[-1] == "Fewer units were removed than requested: features.0: a reason"


def test_settings_and_environment_have_every_key(whole: list[Section]) -> None:
    recipe, environment = (block for block in blocks_of(whole, "Settings and environment"))
    assert isinstance(recipe, PageTable)
    assert isinstance(environment, PageTable)
    keys = {row[0]: row[1] for row in recipe.rows}
    assert (keys["data.source"], keys["scorers[1].label"], keys["seeds"]) == ("digits", "zeros", "[0, 3]")
    assert environment.rows == [["torch", "2.14"], ["gpu", "None"], ["list[0].a", "1"]]
    assert "Commits of the results: abc. Measured on: a processor, no GPU." in environment.note
