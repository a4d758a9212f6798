"""The recipe: a YAML file that says what to do. All of its keys and values are checked before any work begins."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter, Token
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from prune_fe.data.options import DataOptions
from prune_fe.errors import InputError
from prune_fe.experiment.strict_yaml import parse_yaml, read_mapping
from prune_fe.io import nearest
from prune_fe.models.arguments import check_arguments
from prune_fe.models.manifest import is_saved, read_manifest
from prune_fe.options import (
    BatchSize,
    Count,
    Positive,
    Repeats,
    Seed,
    Share,
    ShareLeft,
    Threads,
    Workers,
    explain_errors,
    option_names,
    options,
    validate_options,
)
from prune_fe.pruning.options import AMOUNTS, AUTO, PruneOptions, Rounds
from prune_fe.scorers import SCORERS
from prune_fe.scoring.options import ScoreOptions
from prune_fe.training.options import PaperTrainOptions


def _require_scorer(name: str) -> str:
    """Return the name of a scorer; pydantic calls this."""
    if name not in SCORERS:
        raise ValueError(f"unknown scorer {name!r}; {nearest(name, SCORERS)}")
    return name


CONTROLS = ("random", "l1-filter")
"""The scorers that are part of every comparison."""

DEFAULT_RATIOS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""The ratios of a comparison that names none; the highest are chosen so that accuracy collapses."""

POINT_AMOUNTS = {"ratios": "ratio", "target_macs": "target_macs", "target_params": "target_params"}
"""Key of `compare` that lists operating points -> the option of pruning that takes each of them as its value."""

ALTERNATIVES = {"prune": AMOUNTS, "compare": tuple(POINT_AMOUNTS)}
"""Section -> keys that exclude each other."""

EARLIER_RESCALE = (0.5, 1.5)
"""The default of `ablate.rescale` in earlier versions: that of the paper."""

LABEL = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Pattern of a name that becomes a file name."""

TRAINED = "trained"
"""The folder of the network that every scorer starts from; no scorer can have this label."""

Label = Annotated[str, Field(pattern=LABEL)]


@options
class ModelOptions:
    """Which network: the section `model` of a recipe, and each of `compare.networks`."""

    name: str
    """Name of the network, such as vgg-small, vgg16_bn or timm/resnet18, or a folder that prune_fe saved."""

    pretrained: StrictBool = False
    """Start from the library's trained weights. Layers of the classifier that they do not fit are made anew."""

    checkpoint: str | None = None
    """File of trained weights to start from: a state dict of torch.save, alone or beside other entries, a .safetensors
    file, or the .index.json of several. Layers of the classifier that it does not fit are made anew, also if it names
    other classes than the data's."""

    classifier_width: Count | None = None
    """Width of the hidden linear layers of the classifier, for data with few classes; by default the network's own."""

    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the network's constructor: numbers, words and lists of them. Paths and names of code are refused."""

    def __post_init__(self) -> None:
        try:
            check_arguments(self.arguments)
        except InputError as error:
            raise InputError(f"arguments: {error}") from None


def _parse_rounds(_: Any, tokens: Sequence[Token]) -> int | str:
    """Return the value of `--rounds`."""
    text = tokens[0].value
    return int(text) if text.isdigit() else text


@options
class PruneSection(PruneOptions):
    """How units are removed: the section `prune` of a recipe."""

    rounds: Annotated[Rounds, Parameter(converter=_parse_rounds, n_tokens=1)] = 1
    """Number of steps in which the units are removed, or "layers" for one step for each group of layers, from the
    first layer to the last."""

    rescore: Literal["once", "each_round"] = "once"
    """Score the units once, or the remaining units again before each round."""

    recalibrate: Annotated[StrictInt, Field(ge=2)] | None = None
    """Training images on which the statistics of batch norms are computed anew after each round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds == 1 and self.rescore == "each_round":
            raise InputError("rescore: each_round needs more rounds than one; rounds: layers takes one a layer")


@options
class FinetuneSection(PaperTrainOptions):
    """How pruned networks are fine-tuned: the section `finetune` of a recipe. Its defaults are the paper's."""

    when: Literal["after", "each_round"] = "after"
    """Fine-tune once after pruning, or after each round."""

    unpruned: StrictBool = True
    """Fine-tune the unpruned network in the same way and for as many epochs, as a control: what of the difference to
    the unpruned network is due to fine-tuning. It is one more network for each seed, of the unpruned one's cost."""


@options
class AblateOptions:
    """How units are masked one after the other: the section `ablate` of a recipe."""

    every: Count = 1
    """Measure the test images each time that this many further units are masked."""

    rescale: tuple[Positive, Positive] | None = None
    """Multiply the values of each test image by a random factor from this range, as the paper does for figure 12 with
    [0.5, 1.5]. The curves then begin at the accuracy on such images. By default the images stay as they are."""

    control_seeds: Repeats = 5
    """Number of random orders of the units that serve as the control."""

    memory_gib: Positive = 1.0
    """Memory for a layer's feature maps and their masked copies."""

    def __post_init__(self) -> None:
        if self.rescale is not None and self.rescale[0] > self.rescale[1]:
            raise InputError(f"rescale: {self.rescale[0]} is above {self.rescale[1]}; write the smaller one first")


@options
class CompareOptions:
    """What is compared: the section `compare` of a recipe.

    Every scorer is tried at every operating point (a ratio, or a target) for each network and each seed.
    """

    ratios: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    """Operating points: shares of the units that are removed."""

    target_macs: Annotated[tuple[ShareLeft, ...], Field(min_length=1)] | None = None
    """Instead of ratios: shares of the multiply-adds that are left."""

    target_params: Annotated[tuple[ShareLeft, ...], Field(min_length=1)] | None = None
    """Instead of ratios: shares of the parameters that are left."""

    networks: dict[Label, ModelOptions] = dataclasses.field(default_factory=dict)
    """Label -> network; by default the recipe's `model`."""

    scratch: tuple[Repeats, ...] = (1, 2)
    """Budgets of the architectures that are trained from scratch, as multiples of the epochs of the pruned networks."""

    def __post_init__(self) -> None:
        given = [name for name in POINT_AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} were given; a comparison has one of them")
        for name in (*POINT_AMOUNTS, "scratch"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise InputError(f"{name}: one of them is given twice")

    @property
    def points(self) -> tuple[str, list[float]]:
        """The option of pruning that differs between the operating points, and its values."""
        for name, option in POINT_AMOUNTS.items():
            values = getattr(self, name)
            if values is not None:
                return option, list(values)
        return AMOUNTS[0], list(DEFAULT_RATIOS)


@options
class GeneralisationOptions:
    """Networks that differ in their training only: the section `generalisation`, for the study of that name."""

    sets: dict[Label, Annotated[dict[Label, dict[str, Any]], Field(min_length=2)]] = dataclasses.field(
        default_factory=dict
    )
    """Name of a set -> label of each of its networks -> options of training in place of those of `train`, such as
    {momentum: 0.0, augment: false} or {label_noise: 0.4}. Networks with the same options are trained once."""


@options
class CompressOptions:
    """How `prune-fe compress` compresses a trained network; from it a recipe is made."""

    scorer: Annotated[str, AfterValidator(_require_scorer)] = "taylor"
    """The scorer that chooses the units."""

    samples: Count | None = None
    """Training images of each class that units are scored on. By default all, of many about 2,000 in all."""

    linear: StrictBool = False
    """Prune hidden linear layers, attention and the gates of squeeze-and-excite blocks too."""

    linear_scorer: str | None = None
    """Name of a scorer for the layers that the scorer leaves out; see `prune-fe score`. Implies `linear`."""

    epochs: Annotated[StrictInt, Field(ge=0, le=100_000)] | None = None
    """Epochs of fine-tuning; 0 leaves it out. By default as many as give about 600 steps, from 3 to 30."""

    lr: Positive | None = None
    """Learning rate of fine-tuning. By default 0.02 for a network with batch norms and 0.002 for one without, less for
    batches smaller than 64."""

    batch_size: Annotated[BatchSize, Parameter(name=["--batch-size", "-b"])] | None = None
    """Images of one step of fine-tuning. By default 64, and fewer for less than 640 training images."""

    augment: StrictBool = False
    """Flip and shift the training images at random in fine-tuning."""

    control: StrictBool = False
    """Fine-tune the unpruned network in the same way too, which shows what of the difference is due to fine-tuning."""


class ScorerEntry(BaseModel):
    """One scorer with its settings: an entry of the list `scorers` of a recipe. A name alone is an entry as well.

    Attributes:
        name: Name of the scorer.
        label: Name of its results, which tells two settings of one scorer apart; by default the scorer's name.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str
    label: Label

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """Turn a name alone into a mapping, and use the name as the default label."""
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
        """The scorer's settings: all keys but name and label."""
        return dict(self.model_extra or {})


class Recipe(BaseModel):
    """What to do: the content of a recipe file.

    Attributes:
        name: Name of the recipe and of its run folders.
        data: Which images.
        model: Which network.
        train: How it is trained; None uses it as it is built or loaded.
        score: Which images and layers are scored.
        scorers: The scorers that are compared.
        prune: How much is removed, and which units.
        finetune: How pruned networks are fine-tuned; None leaves them as they are.
        ablate: How units are masked by `prune-fe ablate`.
        compare: What `prune-fe compare` compares.
        generalisation: Which networks `prune-fe study generalisation` trains and compares.
        seeds: A network is trained for each of them.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        threads: Number of CPU threads; None takes what torch chooses.
        workers: Number of processes that load images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: Label
    data: DataOptions
    model: ModelOptions
    train: PaperTrainOptions | None = None
    score: ScoreOptions = ScoreOptions()
    scorers: Annotated[list[ScorerEntry], Field(min_length=1)]
    prune: PruneSection = PruneSection()
    finetune: FinetuneSection | None = None
    ablate: AblateOptions = AblateOptions()
    compare: CompareOptions = CompareOptions()
    generalisation: GeneralisationOptions = GeneralisationOptions()
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    threads: Threads | None = None
    workers: Workers = 0

    @model_validator(mode="after")
    def _check_rounds(self) -> Recipe:
        is_tuned_each_round = self.finetune is not None and self.finetune.when == "each_round"
        if self.prune.rounds != 1 and self.prune.rescore == "once" and not is_tuned_each_round:
            raise ValueError(
                f"prune.rounds: {self.prune.rounds} does the same as 1 without prune.rescore: each_round or "
                "finetune.when: each_round"
            )
        if self.prune.rounds == 1 and is_tuned_each_round:
            raise ValueError(
                "finetune.when: each_round needs more rounds than one; prune.rounds: layers takes one a layer"
            )
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Recipe:
        if self.train is not None and self.train.distill is not None:
            raise ValueError(
                "train.distill: the unpruned network is the teacher, and nothing teaches it; finetune.distill is for "
                "the pruned ones"
            )
        return self

    @model_validator(mode="after")
    def _check_sets(self) -> Recipe:
        for name, networks in self.generalisation.sets.items():
            for label, changes in networks.items():
                try:
                    self.with_training(changes)
                except InputError as error:
                    raise ValueError(f"generalisation.sets.{name}.{label}: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Recipe:
        repeated = [label for label, count in Counter(scorer.label for scorer in self.scorers).items() if count > 1]
        if repeated:
            raise ValueError(f"scorers: {repeated[0]!r} is given twice; give one of them another label")
        if any(scorer.label == TRAINED for scorer in self.scorers):
            raise ValueError(f"scorers: the label {TRAINED!r} is taken by the network that all of them start from")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them is given twice")
        return self

    def with_options(self, section: str, **changes: Any) -> Recipe:
        """Return the recipe with other values for some options of a section.

        Args:
            section: Name of the section, such as "prune".
            changes: Options of the section and their values.
        """
        return self.model_copy(update={section: dataclasses.replace(getattr(self, section), **changes)})

    def with_training(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other values for some options of `train`, checked.

        Args:
            changes: Options of training and their values.

        Raises:
            InputError: The recipe does not train, or an option is unknown or out of range.
        """
        if self.train is None:
            raise InputError("the recipe has no section train, whose options this would change")
        if changes.get("distill") is not None:
            raise InputError("distill: nothing teaches the unpruned network")
        return self.model_copy(update={"train": validate_options(type(self.train), self.train, **changes)})

    def first_entry(self, name: str) -> ScorerEntry:
        """Return the first of the recipe's scorers with a name; without any, the scorer with its default settings.

        Args:
            name: Name of a scorer.
        """
        return next((entry for entry in self.scorers if entry.name == name), ScorerEntry.model_validate(name))

    def with_scorers(self, entries: Sequence[ScorerEntry]) -> Recipe:
        """Return the recipe with other scorers."""
        return self.model_copy(update={"scorers": list(entries)})


MAY_HAVE_SEEN = "may have been trained on the images that are held out for validation, which then are no test of it"
"""What is said of weights that were trained elsewhere."""


def seen_elsewhere(recipe: Recipe) -> str | None:
    """Return what brings weights that may have been trained on all images of train/, the validation images included.

    None where the recipe trains its networks itself, or its validation images come from elsewhere.
    """
    if not recipe.data.holds_out_of_train:
        return None
    for model in recipe.compare.networks.values() or [recipe.model]:
        if model.checkpoint is not None:
            return f"the checkpoint {Path(model.checkpoint).name}"
        if is_saved(model.name) and not _has_held_out(model.name, recipe):
            return f"the network {model.name}"
    return None


def _has_held_out(path: str, recipe: Recipe) -> bool:
    """Return whether a saved network was trained without the validation images of a recipe's seeds."""
    held_out = read_manifest(path)["about"].get("held_out")
    return all(held_out == held_out_images(recipe.data, seed) for seed in recipe.seeds)


def held_out_images(data: DataOptions, seed: int) -> dict[str, Any]:
    """Return which images are held out for validation, as a saved network keeps it.

    Args:
        data: The images.
        seed: Seed of the draw.
    """
    if data.validation_path is not None:
        return {"from": "path", "images_per_class": data.images_per_class, "seed": seed}
    return {
        "from": data.validation_from,
        "share": data.validation,
        "images_per_class": data.images_per_class,
        "seed": seed,
    }


def with_controls(recipe: Recipe) -> Recipe:
    """Return the recipe of a comparison: with all of `CONTROLS` among its scorers, and with labelled networks.

    Raises:
        InputError: A scorer has the label of a control.
    """
    for entry in recipe.scorers:
        if entry.label in CONTROLS and entry.label != entry.name:
            raise InputError(f"scorers: the label {entry.label!r} is a control's, give {entry.name!r} another one")
    names = {entry.name for entry in recipe.scorers}
    missing = [ScorerEntry.model_validate(name) for name in CONTROLS if name not in names]
    networks = recipe.compare.networks or {recipe.model.name.replace("/", "-"): recipe.model}
    return recipe.with_options("compare", networks=networks).with_scorers([*recipe.scorers, *missing])


def load_recipe(
    path: str | Path, overrides: Mapping[str, Any] | None = None, say: Callable[[str], None] | None = None
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The YAML file.
        overrides: Dotted key -> value, such as {"data.path": "photos", "finetune.lr": 1e-3}; they replace the file's.
        say: Called with a line about each key of the file that has no effect because an override excludes it.

    Raises:
        InputError: The file cannot be read, or keys or values are wrong; the message lists each of them with the
            section that it is in.
    """
    return resolve_recipe(read_mapping(Path(path)), overrides, str(path), say)


def resolve_recipe(
    content: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    where: str = "recipe",
    say: Callable[[str], None] | None = None,
) -> Recipe:
    """Check the content of a recipe.

    Args:
        content: What a recipe's file holds; it stays as it is.
        overrides: Dotted key -> value; they replace those of the content.
        where: Where the content comes from, for errors.
        say: Called with a line about each key of the content that has no effect because an override excludes it.

    Raises:
        InputError: Keys or values are wrong.
    """
    changes, resolved = dict(overrides or {}), copy.deepcopy(dict(content))
    for section, names in ALTERNATIVES.items():
        # An override such as prune.target_macs replaces the file's prune.ratio, which it could not stand beside.
        given = {name: changes[key] for name in names if (key := f"{section}.{name}") in changes}
        if given and isinstance(resolved.get(section), dict):
            kept = {
                key: value
                for key, value in resolved[section].items()
                if key not in names or (key not in given and _is_auto_with_target(given | {key: value}))
            }
            for key in resolved[section].keys() - kept.keys() - given.keys():
                if say is not None and resolved[section][key] is not None:
                    say(
                        f"note: {section}.{key}: {resolved[section][key]} of {where} has no effect, "
                        f"{section}.{next(iter(given))} stands in its place"
                    )
            resolved[section] = kept
    for key, value in changes.items():
        mapping = resolved
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(mapping.setdefault(parent, {}), dict):
                raise InputError(f"{where}: {key} cannot be set, {parent} is no mapping")
            mapping = mapping[parent]
        mapping[last] = value
    try:
        return Recipe.model_validate(resolved)
    except ValidationError as error:
        raise InputError(f"{where}: {explain_errors(error, keys_at, 'recipe')}") from None


def _is_auto_with_target(amounts: Mapping[str, Any]) -> bool:
    """Return whether these are the ratio "auto" and one target, which stand beside each other."""
    return len(amounts) == 2 and amounts.get("ratio") == AUTO


def as_begun(recipe: Recipe, saved: Mapping[str, Any]) -> Recipe:
    """Return a recipe with what it meant when its run began, so that a finished run stays finished.

    A run folder's recipe has every key. Without `finetune.unpruned` the run is of an earlier version, which did not
    fine-tune the unpruned network. A recipe that does not speak of `ablate.rescale` was begun with factors in an
    earlier version.

    Args:
        recipe: The recipe.
        saved: The content of the run folder's recipe.yaml.
    """
    recipe, finetune = with_earlier_rescale(recipe, saved), saved.get("finetune")
    if recipe.finetune is not None and isinstance(finetune, Mapping) and "unpruned" not in finetune:
        return recipe.with_options("finetune", unpruned=False)
    return recipe


def with_earlier_rescale(recipe: Recipe, saved: Mapping[str, Any]) -> Recipe:
    """Return a recipe that does not speak of `ablate.rescale` with the factors that its run was begun with.

    Args:
        recipe: The recipe.
        saved: The content of the run folder's recipe.yaml.
    """
    ablate = saved.get("ablate")
    factors = ablate.get("rescale") if isinstance(ablate, Mapping) else None
    if recipe.ablate.rescale is None and isinstance(factors, list) and tuple(factors) == EARLIER_RESCALE:
        return recipe.with_options("ablate", rescale=EARLIER_RESCALE)
    return recipe


def parse_value(text: str) -> Any:
    """Return the value of a text as a recipe would read it, such as 0.7 for "0.7".

    Raises:
        InputError: The text is not YAML, or uses tags or aliases.
    """
    return parse_yaml(text, text)


def keys_at(path: Sequence[str | int]) -> list[str]:
    """Return the keys that a section of a recipe can have.

    Args:
        path: Keys and list indices that lead to the section; () for the recipe itself.

    >>> keys_at(("compare", "networks", "mine"))
    ['name', 'pretrained', 'checkpoint', 'classifier_width', 'arguments']
    """
    annotation: Any = Recipe
    for key in path:
        section = _section(annotation)
        if get_origin(section) is None:
            annotation = typing.get_type_hints(section)[str(key)]
        else:  # go on with the values of a mapping, or the items of a list
            annotation = get_args(section)[1 if get_origin(section) is dict else 0]
    return option_names(_section(annotation))


def _section(annotation: Any) -> Any:
    """Return the annotation of a section without its alternative None."""
    if get_origin(annotation) in (Union, UnionType):
        return next(alternative for alternative in get_args(annotation) if alternative is not type(None))
    return annotation
