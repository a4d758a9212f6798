"""The recipe: what to do, in a YAML file whose every key is checked before anything is done."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    ValidationError,
    model_validator,
)

from prune_fe.errors import InputError
from prune_fe.io import nearest
from prune_fe.scorers import SCORERS

MAX_BYTES = 2**16
MAX_FAULTS = 10
GOALS = ("ratio", "target_macs", "target_params")
"""The keys of `prune` that say how much; a recipe has one of them."""

CONTROLS = ("random", "l1-filter")
"""The scorers that a comparison always has."""

POINTS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Ratios into the region where accuracy collapses."""

LABEL = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What names a folder."""

TRAINED = "trained"
"""The folder of the network that every scorer starts from, so no scorer's label."""

Count = Annotated[StrictInt, Field(ge=1)]
Share = Annotated[StrictFloat, Field(ge=0, lt=1)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Amount = Annotated[StrictFloat, Field(ge=0)]
Positive = Annotated[StrictFloat, Field(gt=0)]
LeftShare = Annotated[StrictFloat, Field(gt=0, le=1)]


def _kind(value: Any) -> str:
    return "[many]" if isinstance(value, list | dict) else "[one]"


def _word(value: Any) -> str:
    return "[many]" if isinstance(value, str) else "[one]"


Numbers = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]
One, Many, ByKind, ByWord = Tag("[one]"), Tag("[many]"), Discriminator(_kind), Discriminator(_word)
"""A value that may be one or many, a number or a word, is checked as what it is, so that a fault is said once."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Part):
    """Which images. `folder` and `cifar10` need a path: in the recipe, or as --data."""

    source: Literal["digits", "folder", "cifar10"]
    path: str | None = None
    size: Annotated[StrictInt, Field(ge=4)]
    validation: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.1
    memory_gib: Amount = 4.0

    @model_validator(mode="after")
    def _digits_are_embedded(self) -> Data:
        if self.source == "digits" and self.path is not None:
            raise ValueError(f"source digits reads no folder, but path is {self.path!r}; source: folder does")
        return self


class Model(_Part):
    """Which network; `arguments` go to its constructor, `checkpoint` is a state dict to start from."""

    name: str
    pretrained: StrictBool = False
    checkpoint: str | None = None
    arguments: dict[str, Any] = {}


class Train(_Part):
    """Stochastic gradient descent. `epochs` may be left out for the step schedule."""

    lr: Positive = 1e-3
    schedule: Literal["step", "cosine"] = "step"
    epochs: Count | None = None
    final_lr: Positive = 1e-5
    momentum: Share = 0.9
    weight_decay: Amount = 5e-4
    batch_size: Count = 512
    augment: StrictBool = False
    amp: StrictBool = False

    @model_validator(mode="after")
    def _cosine_has_an_end(self) -> Train:
        if self.schedule == "cosine" and self.epochs is None:
            raise ValueError("the cosine schedule needs epochs")
        return self


class Finetune(Train):
    when: Literal["after", "each_round"] = "after"


class Score(_Part):
    """Which images the units are scored on: `samples` training images of each of `classes`; null: all there are."""

    classes: Annotated[Annotated[Count, One] | Annotated[Numbers, Many], ByKind] | None = None
    samples: Count | None = None
    layers: Annotated[list[str], Field(min_length=1)] | None = None
    batch_size: Count = 64


class ScorerEntry(_Part):
    """One scorer with its settings; `label` tells two settings of one scorer apart."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str
    label: Annotated[str, Field(pattern=LABEL)]

    @model_validator(mode="before")
    @classmethod
    def _by_name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping):
            name = value.get("name")
            if isinstance(name, str) and name not in SCORERS:
                raise ValueError(f"unknown scorer {name!r}; {nearest(name, SCORERS)}")
            value = {"label": name} | dict(value)
        return value

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Prune(_Part):
    """How much (`ratio`, the share removed, for all layers or by name or pattern; or a target, the share that is
    left), which, and in how many `rounds`. recalibrate: training images that the batch norms see after a cut."""

    ratio: Annotated[Annotated[Share, One] | Annotated[dict[str, Share], Many], ByKind] | None = None
    target_macs: LeftShare | None = None
    target_params: LeftShare | None = None
    ranking: Literal["layer", "global"] = "layer"
    scope: Literal["all", "inner"] = "all"
    reduction: Literal["mean", "max", "min"] = "mean"
    round_to: Count = 1
    protect: list[str] = []
    rounds: Annotated[Annotated[Count, One] | Annotated[Literal["layers"], Many], ByWord] = 1
    rescore: Literal["once", "each_round"] = "once"
    recalibrate: Annotated[StrictInt, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _one_goal(self) -> Prune:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; a network is pruned by one of them")
        if isinstance(self.ratio, dict) and self.ranking == "global":
            raise ValueError("ranking: global takes one ratio for all layers, not one for each")
        if self.rounds == 1 and self.rescore == "each_round":
            raise ValueError("rescore: each_round needs more rounds than one; rounds: layers takes one a layer")
        return self


class Ablate(_Part):
    """How one layer's units are taken away one after the other: `every` so many there is a look at the test images,
    whose values are multiplied by random factors from `rescale` (null: left as they are). control_seeds: as many random
    orders are the control. memory_gib: for the layer's maps and their masked copies."""

    every: Count = 1
    rescale: tuple[Positive, Positive] | None = (0.5, 1.5)
    control_seeds: Count = 5
    memory_gib: Positive = 1.0

    @model_validator(mode="after")
    def _rescale_is_a_range(self) -> Ablate:
        if self.rescale is not None and self.rescale[0] > self.rescale[1]:
            raise ValueError(f"rescale: from {self.rescale[0]} to {self.rescale[1]} is no range")
        return self


class Compare(_Part):
    """A grid: every scorer at every one of `ratios` (or of the targets), for each of `networks` (label -> network, in
    the place of the recipe's) and each seed. scratch: the budgets of the pruned architectures that are trained from
    scratch, as multiples of the epochs that the pruned networks had in all."""

    ratios: Annotated[list[Share], Field(min_length=1)] | None = None
    target_macs: Annotated[list[LeftShare], Field(min_length=1)] | None = None
    target_params: Annotated[list[LeftShare], Field(min_length=1)] | None = None
    networks: dict[Annotated[str, Field(pattern=LABEL)], Model] = {}
    scratch: list[Count] = [1, 2]

    @model_validator(mode="after")
    def _one_goal(self) -> Compare:
        given = [name for name in ("ratios", *GOALS[1:]) if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; a comparison has one of them")
        for name in ("ratios", *GOALS[1:], "scratch"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one of them stands twice")
        return self

    @property
    def points(self) -> tuple[str, list[float]]:
        """The key of `prune` that the grid goes through, and its values."""
        for goal in GOALS[1:]:
            if (given := getattr(self, goal)) is not None:
                return goal, list(given)
        return GOALS[0], list(self.ratios or POINTS)


class Recipe(_Part):
    """train: null takes the network as it is built or loaded. threads: null takes what torch chooses."""

    name: Annotated[str, Field(pattern=LABEL)]
    data: Data
    model: Model
    train: Train | None = None
    score: Score = Score()
    scorers: Annotated[list[ScorerEntry], Field(min_length=1)]
    prune: Prune = Prune()
    finetune: Finetune | None = None
    ablate: Ablate = Ablate()
    compare: Compare = Compare()
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    threads: Count | None = None
    workers: Annotated[StrictInt, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _rounds_do_something(self) -> Recipe:
        tuned = self.finetune is not None and self.finetune.when == "each_round"
        if self.prune.rounds != 1 and self.prune.rescore == "once" and not tuned:
            raise ValueError(
                f"prune.rounds: {self.prune.rounds} does the same as 1 without prune.rescore: each_round or "
                "finetune.when: each_round"
            )
        if self.prune.rounds == 1 and tuned:
            raise ValueError(
                "finetune.when: each_round needs more rounds than one; prune.rounds: layers takes one a layer"
            )
        return self

    @model_validator(mode="after")
    def _nothing_twice(self) -> Recipe:
        repeated = [label for label, count in Counter(scorer.label for scorer in self.scorers).items() if count > 1]
        if repeated:
            raise ValueError(f"scorers: {repeated[0]!r} stands twice; give one of them another label")
        if any(scorer.label == TRAINED for scorer in self.scorers):
            raise ValueError(f"scorers: the label {TRAINED!r} is taken by the network that all of them start from")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them stands twice")
        return self


def with_controls(recipe: Recipe) -> Recipe:
    """The recipe with random units and filter L1 among its scorers, and networks that have labels."""
    for entry in recipe.scorers:
        if entry.label in CONTROLS and entry.label != entry.name:
            raise InputError(f"scorers: the label {entry.label!r} is a control's, give {entry.name!r} another one")
    there = {entry.name for entry in recipe.scorers}
    missing = [ScorerEntry.model_validate(name) for name in CONTROLS if name not in there]
    networks = recipe.compare.networks or {recipe.model.name.replace("/", "-"): recipe.model}
    about = recipe.compare.model_copy(update={"networks": networks})
    return recipe.model_copy(update={"scorers": [*recipe.scorers, *missing], "compare": about})


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe. overrides: dotted key -> value, such as {"data.path": "photos", "finetune.lr": 1e-3};
    they win over the file. InputError names every wrong key with its place."""
    path = Path(path)
    content = _read(path)
    goals = {f"prune.{goal}" for goal in GOALS}
    if not goals.isdisjoint(overrides or {}) and isinstance(content.get("prune"), dict):
        for goal in GOALS:  # one that is given with the command takes the place of the file's
            content["prune"].pop(goal, None)
    for key, value in (overrides or {}).items():
        place = content
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(place.setdefault(parent, {}), dict):
                raise InputError(f"{path}: {key} cannot be set, {parent} is no mapping")
            place = place[parent]
        place[last] = value
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise InputError(f"{path}: " + "; ".join(faults[:MAX_FAULTS] + more)) from None


def parse_value(text: str) -> Any:
    """A value as it would stand in the file."""
    return _parse(text, text)


class _Strict(yaml.SafeLoader):
    """YAML without tags (which can name code), aliases (which can make a small file huge) and keys that stand twice;
    1e-3 is a number, as it is everywhere but in YAML 1.1."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _fault("aliases are not allowed", event)
        if getattr(event, "tag", None) is not None:
            raise _fault(f"tags are not allowed ({event.tag})", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _fault(f"{key.value!r} stands twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _fault(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 10} KiB, no recipe")
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a mapping, this is a {type(content).__name__}")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Strict)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that is none, 5,000 digits
        raise InputError(f"{where}: not YAML that can be read") from error


def _explain(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part not in (One.tag, Many.tag)) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; {nearest(str(fault['loc'][-1]), _keys_at(fault['loc'][:-1]))}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    got = (
        f" (got {reprlib.repr(given)})"
        if isinstance(given, str | int | float) and fault["type"] != "value_error"
        else ""
    )
    return f"{where}: {message[0].lower()}{message[1:]}{got}"


def _keys_at(place: Sequence[Any]) -> list[str]:
    parts = {
        "data": Data, "model": Model, "train": Train, "score": Score, "prune": Prune, "finetune": Finetune,
        "ablate": Ablate, "compare": Compare,
    }  # fmt: skip
    part: Any = parts[place[0]] if place else Recipe
    return list(part.model_fields)
