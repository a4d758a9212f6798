"""The types of the files of a run folder that the report reads: an edited file is refused before it is used.

Only types and ranges are checked. What was read is used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError, model_validator

from prune_fe.errors import InputError
from prune_fe.options import explain_errors

Whole = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Number = Annotated[StrictFloat, Field(ge=-1e300, le=1e300)]
Quantity = Number | None
"""A number; null stands for NaN, which JSON cannot express."""

MAX_DEPTH = 5
"""Depth of lists and mappings in each other."""


class _File(BaseModel):
    """Base class: strict types, and no other keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EnvironmentFile(BaseModel):
    """Versions and hardware; see `prune_fe.experiment.run_folder.environment`. Other keys may hold anything flat."""

    model_config = ConfigDict(extra="allow", strict=True)
    python: StrictStr | None = None
    system: StrictStr | None = None
    packages: dict[str, StrictStr] = {}
    commit: StrictStr | None = None
    processor: StrictStr | None = None
    cores: Whole | None = None
    threads: Whole | None = None
    gpu: StrictStr | None = None
    processes: Whole | None = None

    @model_validator(mode="after")
    def _check_depth(self) -> EnvironmentFile:
        level = list((self.model_extra or {}).values())
        for _ in range(MAX_DEPTH):
            level = [value for node in level for value in _inner(node)]
        if level:
            raise ValueError(f"values are nested more than {MAX_DEPTH} deep")
        return self


def _inner(node: Any) -> list[Any]:
    """Return what a list or a mapping holds."""
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


class RowFile(_File):
    """`prune_fe.experiment.results.Row` in a file; see there."""

    scorer: StrictStr
    seed: Whole
    accuracy_before: Number
    accuracy_pruned: Quantity
    accuracy_finetuned: Quantity
    balanced_accuracy: Quantity
    loss: Quantity
    parameters: Whole
    macs: Whole
    images_per_second: Number
    images_per_second_low: Number
    images_per_second_high: Number
    timed_with: StrictStr
    scoring_seconds: Quantity
    processor_share: Quantity = None


class CorrectFile(_File):
    """Whether each test image is classified correctly, eight images a byte.

    Attributes:
        images: Number of images.
        bits: The bytes in base64.
    """

    images: Annotated[Whole, Field(ge=1, lt=2**40)]
    bits: StrictStr


class ResultFile(_File):
    """`prune_fe.experiment.results.Result` in a file; see there."""

    network: StrictStr
    row: RowFile
    correct: CorrectFile
    goal: StrictStr | None = None
    point: Quantity = None
    removed: dict[str, list[Whole]] = {}
    left: dict[str, StrictStr] = {}
    epochs: list[dict[str, Quantity]] = []
    seconds: Quantity = 0.0
    environment: EnvironmentFile = EnvironmentFile()


class LabelsFile(BaseModel):
    """The test images of a run.

    Attributes:
        classes: The name of each class.
        labels: The label of each image, an index into `classes`.
    """

    model_config = ConfigDict(strict=True)
    classes: Annotated[list[StrictStr], Field(min_length=1)]
    labels: Annotated[list[Whole], Field(min_length=1)]


def check_content(kind: type[BaseModel], content: Mapping[str, Any]) -> None:
    """Check the content of a file.

    Args:
        kind: The class that describes it.
        content: What was read.

    Raises:
        ValueError: A value is missing, of a wrong type or beyond reason; the text names it.
    """
    try:
        kind.model_validate(content)
    except ValidationError as error:
        raise InputError(explain_errors(error, lambda _: (), kind.__name__)) from None
    except RecursionError:
        raise InputError("values are nested too deeply") from None
    if kind is LabelsFile and (outside := [label for label in content["labels"] if label >= len(content["classes"])]):
        raise InputError(f"label {outside[0]}: there are {len(content['classes'])} classes")
