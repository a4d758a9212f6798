"""One experiment: a recipe's network for one seed, with its images and the folder for its results."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from prune_fe.data.labels import image_labels
from prune_fe.data.options import DataOptions
from prune_fe.data.preprocessing import Preprocessing, describe_sizes
from prune_fe.data.registry import load_data
from prune_fe.data.sampling import choose_images
from prune_fe.data.splits import Splits, hold_out, with_all_training_images
from prune_fe.distributed import all_gather, from_rank_0, rank
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment.device import prepare_device, to_device
from prune_fe.experiment.recipe import (
    MAY_HAVE_SEEN,
    TRAINED,
    Recipe,
    ScorerEntry,
    as_begun,
    held_out_images,
    seen_elsewhere,
)
from prune_fe.experiment.results import BY_LAYER, TUNED, UNPRUNED, Result, Row, load_result
from prune_fe.experiment.run_folder import NETWORKS, RunFolder, environment
from prune_fe.experiment.start import copy_start
from prune_fe.experiment.teacher import saved_logits
from prune_fe.measure.cost import cost, speed
from prune_fe.measure.evaluate import evaluate
from prune_fe.models.build import build, build_pretrained, draw_weights
from prune_fe.models.checkpoints import load_weights, read_checkpoint
from prune_fe.models.classifier import describe_renewed
from prune_fe.models.manifest import read_manifest
from prune_fe.models.outputs import find_output_keys, match_classes
from prune_fe.models.preprocessing import known_preprocessing
from prune_fe.models.saved import load, save
from prune_fe.pruning.records import Step
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import explain_faults
from prune_fe.scoring.options import ScoreOptions
from prune_fe.scoring.score import check_scorer, score_all
from prune_fe.scoring.score_folder import describe_unfinished
from prune_fe.scoring.scores import Scores
from prune_fe.scoring.snapshot import PREFIX
from prune_fe.tracing.layers import exclude_layers, find_layers_with_units
from prune_fe.training.features import is_constant
from prune_fe.training.loop import Epoch, finetune, kept_epoch
from prune_fe.training.options import TrainOptions
from prune_fe.training.part import check_part

Built = TypeVar("Built")


class Reporter(Protocol):
    """Shows the user messages and progress; the command line's prints them to the console."""

    def say(self, text: str) -> None:
        """Show one message."""

    def progress(self, task: str) -> Callable[[int, int], None]:
        """Begin a progress bar and return the function that moves it: (steps done, steps in all)."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """One network of a recipe for one seed, with everything that training, scoring, pruning and measuring need.

    The network, its measurement and its scores are computed, or read from the run folder, when they are first used.

    Attributes:
        recipe: What to do; its `model` is the network of this experiment.
        splits: The images; the seed decides which of them are held out for validation.
        seed: Seed of the weights, the images and the random numbers.
        device: Where the network runs.
        folder: The run folder.
        place: The folder for this network's files: the run folder itself, or networks/NAME in the folder of a
            comparison.
        reporter: Where messages and progress go.
        given: A trained network that stands in the place of the recipe's model; None builds that.
    """

    recipe: Recipe
    splits: Splits
    seed: int
    device: torch.device
    folder: RunFolder
    place: Path
    reporter: Reporter
    given: nn.Module | None = None

    @cached_property
    def example(self) -> Tensor:
        """One test image, (1, channels, height, width), as the input for tracing the network."""
        image: Tensor = self.splits.test[0][0]
        return image[None]

    @property
    def seed_folder(self) -> Path:
        """The folder of this network and seed."""
        return self.place / f"seed-{self.seed}"

    def pruned_folder(self, label: str) -> Path:
        """Return the folder of the network that a scorer has pruned.

        Args:
            label: Label of the scorer.
        """
        return self.seed_folder / label / "pruned"

    @property
    def network_name(self) -> str:
        """The network's label in a comparison, otherwise the name of its model."""
        return self.recipe.model.name if self.place == self.folder.path else self.place.name

    @cached_property
    def network(self) -> nn.Module:
        """The unpruned network: read from `seed_folder`, or trained and saved there."""
        return _load_or_train(self)

    @cached_property
    def unpruned(self) -> Row:
        """Accuracy, cost and speed of `network`: read from its result, or measured."""
        path = self.result_path(UNPRUNED)
        return load_result(path).row if from_rank_0(path.exists) else measure(self, self.network, UNPRUNED).row

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Label -> scores of `network`, from one pass over the images; finished scores are read from the disk."""
        folder = self.seed_folder if self.place == self.folder.path else self.seed_folder / "scores"
        return score_units(self, self.recipe.scorers, folder=folder)

    @cached_property
    def teacher(self) -> nn.Module | Tensor | None:
        """The teacher of fine-tuning: the unpruned network, or its logits; None without `finetune.distill`.

        Where the training images are the same in each epoch, it is the logits of `network` for them: read from
        `seed_folder`, or computed and saved there.
        """
        finetune = self.recipe.finetune
        if finetune is None or finetune.distill is None:
            return None
        if finetune.augment or not is_constant(self.splits.train):
            return self.network
        return saved_logits(
            self.seed_folder / "teacher.npz",
            self.network,
            self.splits.train,
            workers=self.recipe.workers,
            begin_bar=lambda: self.reporter.progress("logits of the unpruned network"),
        )

    def result_path(self, scorer: str, amount: float | None = None) -> Path:
        """Return the file that the result of a scorer is saved in.

        Args:
            scorer: A scorer's label, `UNPRUNED` or `TUNED`.
            amount: In a comparison the operating point: a ratio, or the share of the cost that is left.
        """
        scorer = scorer.replace(", ", "-")
        if self.place == self.folder.path:
            name = f"seed-{self.seed}.{scorer}"
        else:
            suffix = "" if amount is None else f".{self.recipe.compare.points[0]}-{amount!r}"
            name = f"{self.place.name}.seed-{self.seed}.{scorer.strip('()')}{suffix}"
        return self.folder.path / "cells" / f"{name}.json"

    def log(self, event: str, **values: Any) -> None:
        """Append an event to the log of the run folder, with the network's label in a comparison."""
        label = {} if self.place == self.folder.path else {"network": self.place.name}
        self.folder.log(event, **label, **values)

    def log_environment(self) -> None:
        """Log versions and hardware, and say what has changed since the run folder was begun."""
        if changed := self.folder.log_environment():
            self.reporter.say(
                f"note: {', '.join(changed)} differ from when this run began; numbers may differ in the last bits"
            )

    def build_network(self) -> nn.Module:
        """Return a new network of the recipe with random weights, as the images need it, on the CPU."""
        begun = self.copy_start()
        return self.build_by(build) if begun is None else draw_weights(begun)

    def build_any(self) -> nn.Module:
        """Return a network of the recipe's architecture whose weights do not matter, on the CPU."""
        begun = self.copy_start()
        return self.build_by(build) if begun is None else begun

    def copy_start(self) -> nn.Module | None:
        """Return a copy of the trained network that the experiment starts from; None for a model that has a name.

        Raises:
            InputError: The recipe has options for a model that is built by name.
            DataError: The images have other classes than a saved model.
        """
        return copy_start(self.given, self.recipe.model, self.splits.classes)

    def build_by(self, builder: Callable[..., Built]) -> Built:
        """Return what `build` or `build_pretrained` makes of the recipe's model for these images."""
        model = self.recipe.model
        return builder(
            model.name,
            len(self.splits.classes),
            in_channels=self.splits.channels,
            classifier_width=model.classifier_width,
            **model.arguments,
        )

    def with_recipe(self, recipe: Recipe) -> Self:
        """Return this experiment with another recipe for the same network.

        The copy shares the network, its measurement and, if both recipes score in the same way, its scores, as far as
        they have been computed.

        Args:
            recipe: A recipe with the same images, model and training.
        """
        other, shared = dataclasses.replace(self, recipe=recipe), ["example", "network", "unpruned"]
        if (recipe.score, recipe.scorers) == (self.recipe.score, self.recipe.scorers):
            shared.append("scores")
        if recipe.finetune == self.recipe.finetune:
            shared.append("teacher")
        # cached_property stores its value in the instance's dictionary, which replace() does not copy.
        vars(other).update({name: vars(self)[name] for name in shared if name in vars(self)})
        return other

    def with_seed(self, seed: int) -> Self:
        """Return the experiment for another seed, with other validation images and another network."""
        data = self.recipe.data
        if data.validation_from == "test":
            splits = with_all_training_images(self.splits, seed)
        else:
            splits = hold_out(self.splits, data.validation, seed, data.images_per_class)
        return dataclasses.replace(self, seed=seed, splits=splits)

    def with_network(self, label: str) -> Self:
        """Return the experiment of one network of a comparison.

        Args:
            label: A key of the recipe's `compare.networks`.
        """
        recipe = self.recipe.model_copy(update={"model": self.recipe.compare.networks[label]})
        return dataclasses.replace(self, recipe=recipe, place=self.folder.path / NETWORKS / label)


@dataclass(frozen=True)
class Outcome:
    """A measured network.

    Attributes:
        model: The network.
        row: Its accuracy, cost and speed.
        correct: (images,) bool, whether each test image is classified correctly.
        steps: What was removed from each group of layers.
        epochs: The epochs of its fine-tuning.
    """

    model: nn.Module
    row: Row
    correct: Tensor
    steps: Sequence[Step] = ()
    epochs: Sequence[Epoch] = ()


def begin(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    seed: int | None = None,
    *,
    splits: Splits | None = None,
    given: nn.Module | None = None,
) -> Experiment:
    """Set up torch, read the images and return the recipe's experiment.

    Args:
        recipe: What to do.
        folder: The run folder.
        reporter: Where messages and progress go.
        seed: One of the recipe's seeds; default the first.
        splits: The recipe's images, if they have been read already.
        given: A trained network that stands in the place of the recipe's model.

    Raises:
        InputError: The recipe does not have the seed, or the device cannot be used.
        DataError: Images are missing or unreadable.
    """
    recipe = as_begun(recipe, folder.saved_recipe)
    device = prepare_device(recipe.device, recipe.threads)
    seed = recipe.seeds[0] if seed is None else seed
    if seed not in recipe.seeds:
        raise InputError(f"seed {seed}: the recipe has {', '.join(map(str, recipe.seeds))}")
    # The bar appears with the first image, because most sources read none here and need no bar.
    begin_bar = functools.cache(lambda: reporter.progress("reading images"))

    def progress(done: int, total: int) -> None:
        begin_bar()(done, total)

    if splits is None:
        splits = load_data(with_known_weights(recipe), seed=seed, progress=progress)
        if splits.stored_sizes:
            steps = splits.steps or Preprocessing(splits.size)
            reporter.say(f"images: {describe_sizes(splits.stored_sizes, steps)}")
    if splits.skipped:
        folder.log("skipped_images", images=list(splits.skipped))
        folder.write_table("skipped_images.csv", [{"image": name} for name in splits.skipped])
    is_trained = recipe.train is not None or recipe.finetune is not None
    if is_trained and (origin := seen_elsewhere(recipe)) is not None:
        reporter.say(f"note: {origin} {MAY_HAVE_SEEN}: data.validation_from: test takes them out of val/ instead")
    return Experiment(recipe, splits, seed, device, folder, folder.path, reporter, given)


def with_known_weights(recipe: Recipe) -> DataOptions:
    """Return a recipe's options of images, with what the networks' weights ask for where it says `transform: weights`.

    Raises:
        InputError: That is not known, or the networks of a comparison ask for different things.
    """
    if recipe.data.transform != "weights":
        return recipe.data
    models = recipe.compare.networks or {recipe.model.name: recipe.model}
    asked = {label: known_preprocessing(each.name, pretrained=each.pretrained) for label, each in models.items()}
    first, *others = asked
    for other in others:
        if asked[other] != asked[first]:
            raise InputError(
                f"data.transform: the weights of {first} and of {other} ask for different images; write paper, crop or "
                "imagenet"
            )
    return recipe.data.with_weights(asked[first])


def check(experiment: Experiment, network: nn.Module | None = None, *, same_layers: bool = False) -> None:
    """Check the recipe's layers, scorers, trained parts and numbers of images, without training.

    Args:
        experiment: The experiment.
        network: Its network, which need not be trained; by default a new one.
        same_layers: Whether every scorer must be able to score every layer with a map, as in a comparison, where all
            criteria have the same widths.

    Raises:
        InputError: A layer or a part to train does not exist, a scorer cannot score a layer, or a setting is wrong.
        DataError: There are fewer training images than asked for.
    """
    recipe, splits, seed = experiment.recipe, experiment.splits, experiment.seed
    if network is None:
        network = to_device(experiment.build_any(), experiment.device)
    example = experiment.example.to(next(network.parameters()).device)
    layers = find_layers_with_units(network, example, recipe.score.layers, linear=recipe.score.linear)
    layers = exclude_layers(layers, recipe.score.exclude)
    labels = image_labels(splits.train)
    n_wanted = recipe.prune.recalibrate or 0
    if n_wanted > len(labels):
        raise DataError(f"prune.recalibrate: {n_wanted} training images asked for, there are {len(labels)}")
    for options in (recipe.train, recipe.finetune):
        if options is not None:
            check_part(network, options)
    score = recipe.score
    linear_scorer = None if score.linear_scorer is None else resolve_scorer(score.linear_scorer, seed=seed)
    for entry in recipe.scorers:
        scorer = resolve_scorer(entry.name, entry.settings, seed)
        chosen: list[int] = []
        if scorer.needs_data or (linear_scorer is not None and linear_scorer.needs_data):
            chosen = choose_images(splits.train, score.classes, score.samples, seed)
        occurring, are_named = {labels[index] for index in chosen}, score.names_layers or score.strict
        if same_layers:
            with explain_faults(scorer):
                scorer.check([each for each in layers if each.has_map and each.runs == 1], len(chosen), occurring)
        check_scorer(scorer, network, layers, example, len(chosen), occurring, linear_scorer, are_named=are_named)


def fit(
    experiment: Experiment,
    model: nn.Module,
    options: TrainOptions,
    description: str,
    momentum_buffers: dict[str, Tensor] | None = None,
    teacher: nn.Module | Tensor | None = None,
    unfinished: Path | None = None,
    after_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a network in place on the training images and keep the best epoch on the validation images, or the last.

    Args:
        experiment: The experiment whose images, seed and reporter are used.
        model: The network.
        options: How to train it.
        description: Name of the training in messages and progress bars.
        momentum_buffers: Parameter name -> momentum to start with; afterwards the momentum of the best epoch.
        teacher: What the network learns from beside the labels; see `prune_fe.training.loop.finetune`.
        unfinished: File from which an interrupted training goes on; by default one of the task that is worked on, which
            is removed with the task's end.
        after_epoch: Called after each epoch, while the network has that epoch's weights.

    Returns:
        The epochs; the first describes the network before training.
    """
    splits, progress = experiment.splits, experiment.reporter.progress(description)

    def report(epoch: Epoch | None, done: int, total: int) -> None:
        progress(done, total)
        if epoch is not None and after_epoch is not None:
            after_epoch(epoch)

    unfinished = unfinished or experiment.folder.next_unfinished("training")
    history = finetune(
        model,
        splits.train,
        splits.validation,
        options,
        workers=experiment.recipe.workers,
        seed=experiment.seed,
        momentum_buffers=momentum_buffers,
        teacher=teacher,
        unfinished=unfinished,
        progress=report,
    )
    kept = kept_epoch(history, options)
    if options.keep == "last":
        what = f"the last one is kept; accuracy {kept.train_accuracy:.2%} on the training images as it was trained, "
        what += f"{kept.validation_accuracy:.2%} on the validation images"
    else:
        what = f"epoch {kept.number} is best on the validation images ({kept.validation_accuracy:.2%})"
    experiment.reporter.say(f"{description}: {len(history) - 1} epochs, {what}")
    return history


def score_units(
    experiment: Experiment,
    entries: Sequence[ScorerEntry],
    *,
    folder: Path | None = None,
    network: nn.Module | None = None,
    layers: Sequence[str] | None = None,
) -> dict[str, Scores]:
    """Score a network with several scorers in one pass over the training images.

    Args:
        experiment: The experiment whose images and options of scoring are used.
        entries: The scorers.
        folder: Where scores are saved, and read from if they are finished; None saves nothing.
        network: The network; by default the experiment's.
        layers: Names of the layers; by default those of the recipe.

    Returns:
        Label -> scores.
    """
    recipe, seed = experiment.recipe, experiment.seed
    options = {option.name: getattr(recipe.score, option.name) for option in dataclasses.fields(ScoreOptions)}
    for unfinished in sorted(folder.glob(f"{PREFIX}*")) if folder is not None else ():
        experiment.reporter.say(describe_unfinished(unfinished))
    return score_all(
        experiment.network if network is None else network,
        experiment.splits.train,
        {entry.label: resolve_scorer(entry.name, entry.settings, seed) for entry in entries},
        seed=seed,
        workers=recipe.workers,
        example=experiment.example,
        progress=experiment.reporter.progress("scoring"),
        folder=folder,
        **options | ({} if layers is None else {"layers": layers, "exclude": ()}),
    )


def measure(experiment: Experiment, model: nn.Module, label: str) -> Outcome:
    """Measure a network's accuracy on the test images, its cost and its speed.

    Args:
        experiment: The experiment whose test images are used.
        model: The network.
        label: Label of the scorer that chose the removed units, `UNPRUNED` or `TUNED`.

    Returns:
        The measurements; the accuracy is in `row.accuracy_before`, whatever was done to the network.
    """
    result = evaluate(model, experiment.splits.test, workers=experiment.recipe.workers)
    price, pace = cost(model, experiment.example), from_rank_0(lambda: speed(model, experiment.example))
    row = Row(
        scorer=label,
        seed=experiment.seed,
        accuracy_before=result.accuracy,
        accuracy_pruned=None,
        accuracy_finetuned=None,
        balanced_accuracy=result.balanced_accuracy,
        loss=result.loss,
        parameters=price.parameters,
        macs=price.macs,
        images_per_second=pace.images_per_second,
        images_per_second_low=pace.low,
        images_per_second_high=pace.high,
        timed_with=str(pace),
        scoring_seconds=None,
    )
    return Outcome(model, row, result.correct)


def save_result(experiment: Experiment, outcome: Outcome, path: Path, began: float) -> None:
    """Save the measurements of a network as a result.

    Args:
        experiment: The experiment; its recipe says how much was to be removed.
        outcome: The measurements.
        path: The file.
        began: `time.perf_counter()` when the work on it began.
    """
    options, is_pruned = experiment.recipe.prune, outcome.row.scorer not in (UNPRUNED, TUNED)
    goal, amount = options.amount
    if isinstance(amount, dict):
        goal, amount = BY_LAYER, 0.0
    removed: dict[str, list[int]] = {}
    for step in outcome.steps:
        for layer, units in step.removed.items():
            removed[layer] = sorted([*removed.get(layer, []), *units])
    result = Result(
        network=experiment.network_name,
        row=outcome.row,
        correct=outcome.correct.numpy(),
        goal=goal if is_pruned else None,
        point=amount if is_pruned else None,
        removed=removed,
        left={", ".join(step.layers): step.left for step in outcome.steps if step.left},
        epochs=[dataclasses.asdict(epoch) for epoch in outcome.epochs],
        seconds=time.perf_counter() - began,
        environment=environment(),
    )
    if rank() == 0:
        result.save(path)
    all_gather(None)  # a barrier: no process looks for the file before it is written


def _load_or_train(experiment: Experiment) -> nn.Module:
    """Return the network from the experiment's folder, or train it and save it there."""
    path, seed = experiment.seed_folder / TRAINED, experiment.seed
    if from_rank_0(path.exists):
        try:
            # Without a factory in the manifest, load() needs a network, which the recipe's arguments can build.
            is_known = read_manifest(path)["factory"] is not None
            network = load(path, None if is_known else experiment.build_any())
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {path}, and the next run makes it again") from error
        return to_device(network, experiment.device)
    network, origin = initialise(experiment)
    unfinished = path.with_name(f"{TRAINED}.unfinished")
    if experiment.recipe.train is not None:
        for epoch in fit(experiment, network, experiment.recipe.train, "training", unfinished=unfinished):
            experiment.log("epoch", phase="training", seed=seed, **dataclasses.asdict(epoch))
    save_trained(experiment, network, origin)
    return network


def initialise(experiment: Experiment) -> tuple[nn.Module, dict[str, str]]:
    """Return the network before training, on its device and checked, and where its weights come from."""
    model, seed = experiment.recipe.model, experiment.seed
    torch.manual_seed(seed)  # it decides the first weights
    network, renewed = _initial_network(experiment)
    origin = {}
    if model.checkpoint is not None:
        with open(model.checkpoint, "rb") as file:
            origin = {"checkpoint_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        experiment.log("checkpoint", seed=seed, file=Path(model.checkpoint).name, **origin)
    if renewed:
        message = describe_renewed(model.checkpoint or f"the weights of {model.name}", renewed)
        if experiment.recipe.train is None:
            raise CheckpointError(f"{message}: a recipe without train: leaves them so")
        experiment.reporter.say(f"note: {message}")
        experiment.log("new_classifier", seed=seed, keys=renewed)
    network = to_device(network, experiment.device)
    check(experiment, network)
    return network, origin


def save_trained(experiment: Experiment, network: nn.Module, origin: Mapping[str, str]) -> None:
    """Save the trained network in the experiment's folder, where every command looks for it.

    Args:
        experiment: The experiment.
        network: Its network.
        origin: Where its first weights came from, as `initialise` returned it.
    """
    path = experiment.seed_folder / TRAINED
    if rank() == 0:
        about = {"recipe": experiment.recipe.name, "seed": experiment.seed, **origin} | experiment.splits.about
        if seen_elsewhere(experiment.recipe) is None:
            about["held_out"] = held_out_images(experiment.recipe.data, experiment.seed)
        save(network, path, about, overwrite=True)
        path.with_name(f"{TRAINED}.unfinished").unlink(missing_ok=True)
    all_gather(None)  # a barrier: no process looks for the network before it is saved


def _initial_network(experiment: Experiment) -> tuple[nn.Module, list[str]]:
    """Return the network before training, and the keys of its classifier that trained weights do not fit."""
    model, renewed = experiment.recipe.model, list[str]()
    begun = experiment.copy_start()
    if begun is not None:
        network = begun
    elif model.pretrained:
        network, renewed = experiment.build_by(build_pretrained)
    else:
        network = experiment.build_network()
    if model.checkpoint is not None:
        checkpoint = match_classes(
            read_checkpoint(model.checkpoint, network.state_dict().keys()),
            experiment.splits.classes,
            # In a saved network, it is not known which layers depend on the classes.
            lambda: (
                [] if begun is not None else experiment.build_by(lambda name, _, **kept: find_output_keys(name, **kept))
            ),
            new_classifier=True,
        )
        renewed = load_weights(network, checkpoint, new_classifier=True)
        if checkpoint.summary:
            experiment.reporter.say(f"note: {checkpoint.summary}")
    return network, renewed
