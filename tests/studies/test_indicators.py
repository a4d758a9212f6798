"""Indicators: the paper's columns, each scorer measured once, and the tables that show them."""

from prune_fe.scorers import SCORERS
from prune_fe.studies.indicators import ALL_INDICATORS, RATE, H, tables_like_the_papers


def test_every_indicator_has_a_scorer_and_a_name_of_its_own() -> None:
    assert len({indicator.name for indicator in ALL_INDICATORS}) == len(ALL_INDICATORS)
    assert {indicator.scorer for indicator in ALL_INDICATORS} <= set(SCORERS)
    assert H.key == RATE.key
    assert len({indicator.key for indicator in ALL_INDICATORS}) == len(ALL_INDICATORS) - 1


def test_a_scorer_that_compares_classes_is_told_the_class() -> None:
    comparing = [indicator for indicator in ALL_INDICATORS if indicator.compares_classes]
    assert [indicator.name for indicator in comparing] == [
        "class selectivity, μ_c − μ_rest",
        "class selectivity, index",
    ]
    assert [indicator.build_scorer(7).settings for indicator in comparing] == [
        {"read": "map", "form": "difference", "of": 7, "eps": 0.0},
        {"read": "map", "form": "index", "of": 7, "eps": 0.0},
    ]
    assert "of" not in H.build_scorer(7).settings


def test_a_table_shows_its_own_indicators_that_have_values() -> None:
    rows = {"one": {"accuracy": [0.5], "H": [1.0], "FPGM": [2.0]}}
    tables = tables_like_the_papers("Study", rows, {"accuracy": ".0%"}, "note")
    assert [table.title for table in tables] == [
        "Study: tables 1, 2, 6, 7",
        "Study: tables 9, 10",
        "Study: further criteria",
    ]
    assert [list(table.rows["one"]) for table in tables] == [["accuracy", "H"], ["accuracy", "FPGM", "H"], ["accuracy"]]
