"""Write a recipe as YAML with a comment for each key, which is its help text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from prune_fe.experiment.recipe_table import Key, recipe_keys
from prune_fe.scorers.registry import BUILT_IN

WIDTH = 110

SUGGESTED = {
    "data": ("images_per_class", "skip_bad"),
    "score": ("classes", "layers", "linear", "linear_scorer"),
    "prune": (
        "ratio",
        "target_params",
        "ranking",
        "max_ratio",
        "protect",
        "round_to",
        "scope",
        "engine",
        "recalibrate",
    ),
    "finetune": ("augment", "weight_decay", "only", "distill"),
    "compare": ("target_macs", "scratch"),
}
"""Section -> keys that are written as comments with their defaults where they are not given."""

AFTER = ("workers", "threads")
"""Keys outside of sections that are written as comments."""


def commented_recipe(content: Mapping[str, Any], heading: Sequence[str]) -> str:
    """Return a recipe as YAML, with the help text of each key in front of it.

    Args:
        content: The recipe.
        heading: Lines of a comment at the beginning.
    """
    keys = {key.name: key for key in recipe_keys()}
    lines = [f"# {line}".rstrip() for line in heading]
    for name, value in content.items():
        lines.append("")
        if not isinstance(value, Mapping):
            lines += _entry(keys[name], value, "")
            if name == "scorers":
                lines += _comment(f"Others are {', '.join(BUILT_IN)}.", "")
            continue
        lines.append(f"{name}:")
        for key, entry in value.items():
            lines += _entry(keys[f"{name}.{key}"], entry, "  ")
        others = [key for key in SUGGESTED.get(name, ()) if key not in value]
        lines += _suggested([keys[f"{name}.{key}"] for key in others], "  # ")
    if "compare" not in content:
        lines += ["", "# For prune-fe compare, which tries several amounts:", "# compare:"]
        lines += _suggested([keys[f"compare.{key}"] for key in SUGGESTED["compare"]], "#   ")
    lines += ["", *_suggested([keys[name] for name in AFTER if name not in content], "# ")]
    return "\n".join(lines) + "\n"


def _entry(key: Key, value: Any, indent: str) -> Iterator[str]:
    """Yield the help text of a key, and the key with its value."""
    yield from _comment(key.help, indent)
    # As the item of a list, so that a word gets no line of its own.
    text = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True).strip()
    yield f"{indent}{key.name.rsplit('.', 1)[-1]}: {text[1:-1]}"


def _comment(text: str, indent: str) -> Iterator[str]:
    """Yield a text as a comment."""
    yield from (f"{indent}# {line}" for line in _wrap(text, len(indent)))


def _suggested(keys: Sequence[Key], lead: str) -> Iterator[str]:
    """Yield keys with their defaults as comments, and below each the first sentence of its help text.

    Args:
        keys: The keys.
        lead: The beginning of each line, which makes it a comment.
    """
    for key in keys:
        yield f"{lead}{key.name.rsplit('.', 1)[-1]}: {key.default}"
        yield from (f"{lead}    {line}" for line in _wrap(key.help.partition(". ")[0].rstrip("."), len(lead) + 4))


def _wrap(text: str, taken: int) -> list[str]:
    return textwrap.wrap(text, WIDTH - taken, break_on_hyphens=False)
