"""Readable names of ImageNet's classes."""

from prune_fe.report.class_names import readable_class_names


def test_numbers_of_wordnet_have_names_and_others_stay() -> None:
    names = ["n04540053", "n99999999", "cat", "n07873807"]
    assert readable_class_names(names) == ["volleyball", "n99999999", "cat", "pizza"]
