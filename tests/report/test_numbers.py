"""Numbers as text."""

import math

import pytest

from prune_fe.report.numbers import counted, format_count, format_number, format_spread


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1.00k"), (34616, "34.62k"), (5e9, "5.00G"), (2.5e6, "2.50M")]
)
def test_counts_have_prefixes(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(0.125, True, "12.50 %"), (-0.5, True, "-50.00 %"), (1234567.0, False, "1.23457e+06"), (None, False, "–"),
     (math.nan, True, "–"), (-math.inf, False, "–")],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_a_dash(value, percent, text):
    assert format_number(value, percent) == text


def test_several_values_have_a_standard_deviation():
    assert format_spread([0.9, 0.8], ".2%") == "85.00 ±7.07%"
    assert format_spread([0.9, None], ".2%") == "90.00%"
    assert format_spread([None], ".2%") == ""


def test_nouns_follow_their_count():
    assert [counted(n, "class", "classes") for n in (0, 1, 1234)] == ["0 classes", "1 class", "1,234 classes"]
