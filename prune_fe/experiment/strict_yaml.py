"""Read a safe subset of YAML: no tags, no aliases, no repeated keys. Unlike in YAML 1.1, 1e-3 is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from prune_fe.errors import InputError
from prune_fe.file_types import open_regular_file

MAX_BYTES = 2**16
"""Size of the largest file that is read."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses tags, which can name code, aliases, which can make a small file huge, and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases are not allowed", event)
        if getattr(event, "tag", None) is not None:
            raise _error(f"tags are not allowed ({event.tag})", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.tag == "tag:yaml.org,2002:merge":
                    # A merged key would come beside one that is given, and the later one would win.
                    raise _error("merge keys (<<) are not allowed", key)
                if key.value in seen:
                    raise _error(f"{key.value!r} is given twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as a string, unlike every program that prints it.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: The text.
        where: Name of its source for error messages.

    Raises:
        InputError: The text is not YAML, or uses tags, aliases or a key twice.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: no such date, or 5,000 digits
        raise InputError(f"{where}: not readable as YAML") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        InputError: The file cannot be read, is too large, or holds something else.
    """
    try:
        # One byte more than is allowed shows that a file is too large, without reading all of it.
        with open_regular_file(path) as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 10} KiB, so it is not a recipe")
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a mapping, this is a {type(content).__name__}")
    return content


def _error(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
