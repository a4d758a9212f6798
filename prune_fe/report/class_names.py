"""Readable names of the classes of ImageNet and its parts, whose folders are named by numbers of WordNet."""

from __future__ import annotations

import re
from collections.abc import Sequence

SYNSET = re.compile(r"n\d{8}")


def readable_class_names(names: Sequence[str]) -> list[str]:
    """Return the first English name of each class whose name is a number of WordNet; other names stay as they are.

    Args:
        names: Names of the classes, such as "n04540053".

    Returns:
        A name for each class, such as "volleyball". The list of names is timm's (21,841 synsets).
    """
    if not any(map(SYNSET.fullmatch, names)):
        return list(names)
    # timm takes a second to load, and few reports need it.
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-22k")
    return [_first_lemma(known, name) if SYNSET.fullmatch(name) else name for name in names]


def _first_lemma(known: object, name: str) -> str:
    try:
        lemmas: str = known.label_name_to_description(name, detailed=False)  # type: ignore[attr-defined]
    except KeyError:
        return name
    return lemmas.partition(",")[0]
