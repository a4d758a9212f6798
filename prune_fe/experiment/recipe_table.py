"""The table of all keys of a recipe, made from the classes that check it, and that of the recipes of prune_fe."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prune_fe.experiment.bundled import bundled_recipes
from prune_fe.experiment.recipe import Recipe, _section
from prune_fe.scorers.registry import BUILT_IN

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
"""The lines of recipes/README.md between which the table stands."""

LIST_BEGIN, LIST_END = "<!-- recipes: begin -->", "<!-- recipes: end -->"
"""The lines between which the list of the recipes stands."""

WORDS = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number", "null": "null"}


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        name: Its path, such as "prune.target_macs".
        default: Its default as a recipe would write it; "" where the key must be given.
        allowed: What its value can be.
        help: What it means.
    """

    name: str
    default: str
    allowed: str
    help: str


def recipe_keys() -> Iterator[Key]:
    """Yield every key of a recipe, in the order of the schema."""
    schema = Recipe.model_json_schema()
    yield from _keys(Recipe, "", schema, schema["$defs"])


def _keys(cls: Any, prefix: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Key]:
    helps, hints, needed = option_helps(cls), typing.get_type_hints(cls), schema.get("required", ())
    for name, entry in schema["properties"].items():
        annotation, many = _section(hints[name]), typing.get_origin(_section(hints[name]))
        inner = annotation if many is None else typing.get_args(annotation)[-1]
        path = f"{prefix}{name}"
        is_section = dataclasses.is_dataclass(inner)
        if is_section and many is None:
            reference = next(part["$ref"] for part in _parts(entry) if "$ref" in part).rsplit("/", 1)[1]
            if type(None) in typing.get_args(hints[name]):
                yield Key(path, "null", "a section or null", helps[name])
            yield from _keys(inner, f"{path}.", definitions[reference], definitions)
            continue
        default = "" if name in needed else json.dumps(entry.get("default", {}))
        yield Key(path, default, _allowed(entry, definitions), helps[name])


def _parts(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*entry.get("anyOf", ()), *entry.get("oneOf", ()), *entry.get("allOf", ())] or [entry]


def _allowed(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return what a value can be, from its JSON schema."""
    parts = _parts(entry)
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(_allowed(part, definitions) for part in parts))
    [part] = parts
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[1]
        return {"ScorerEntry": "scorer", "ModelOptions": "model"}.get(name, name)
    if "enum" in part or "const" in part:
        return " or ".join(map(str, part.get("enum", [part.get("const")])))
    kind = part.get("type", "anything")
    if kind == "array":
        items: Any = part.get("items") or next(iter(part.get("prefixItems", ())), {})
        return f"list of {_allowed(items, definitions)}"
    if kind == "object":
        values = part.get("additionalProperties")
        return f"name: {_allowed(values, definitions)}" if isinstance(values, dict) and values else "mapping"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    # Limits that only guard against absurd numbers say nothing to a reader.
    limits = [f"{sign} {part[key]:g}" for key, sign in signs.items() if key in part and abs(part[key]) < 1000]
    return f"{WORDS.get(kind, kind)} {', '.join(limits)}".strip()


def option_helps(cls: Any) -> dict[str, str]:
    """Return option -> help text, of an options class or a pydantic model.

    The help of an option is the text below it or, in a model, its line in the section "Attributes:" of the docstring.

    Args:
        cls: The class.
    """
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] != "prune_fe":
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                helps[field.target.id] = " ".join(str(text.value.value).split())
        attributes = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
            # In a recipe, None is written as null.
            helps.setdefault(name, " ".join(text.split()).replace("None", "null"))
    return helps


def keys_markdown() -> str:
    """Return the table as Markdown, with the lines around it."""
    lines = [BEGIN, "", "| key | default | allowed | meaning |", "|---|---|---|---|"]
    first: dict[str, str] = {}
    for key in recipe_keys():
        default = f"`{key.default}`" if key.default else "**needed**"
        known = first.setdefault(key.help, key.name)
        meaning = escape_cell(key.help) if known == key.name else f"as `{known}`"
        lines.append(f"| `{key.name}` | {default} | {key.allowed} | {meaning} |")
    lines += ["", f"Scorers: {', '.join(f'`{name}`' for name in BUILT_IN)}, and those of installed packages.", "", END]
    return "\n".join(lines)


def escape_cell(text: str) -> str:
    """Return a text as a cell of a Markdown table shows it."""
    return re.sub(r"([|<>])", r"\\\1", text)


def recipes_markdown() -> str:
    """Return a table of the recipes that come with prune_fe, with the lines around it."""
    lines = [LIST_BEGIN, "", "| recipe | what it does |", "|---|---|"]
    for name, path in bundled_recipes().items():
        comment = itertools.takewhile(lambda line: line.startswith("# "), path.read_text().splitlines())
        text = " ".join(line.removeprefix("# ").strip() for line in comment)
        lines.append(f"| `{name}` | {re.split(r'(?<=[^.0-9])[.] |  prune-fe', text)[0].rstrip('.')} |")
    return "\n".join([*lines, "", LIST_END])


def with_tables(text: str) -> str:
    """Return the text of recipes/README.md with the current tables.

    Args:
        text: The text, with the lines that are around each table.
    """
    for begin, end, table in ((LIST_BEGIN, LIST_END, recipes_markdown()), (BEGIN, END, keys_markdown())):
        text = put_between(text, begin, end, table)
    return text


def put_between(text: str, begin: str, end: str, table: str) -> str:
    """Return a text with a table in the place of two lines and what stands between them; the table has both lines."""
    before, _, rest = text.partition(begin)
    return before + table + rest.partition(end)[2]
