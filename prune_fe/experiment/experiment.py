"""One experiment: a recipe's network for one seed, with its images and the folder for its results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from prune_fe.data.options import DataOptions
from prune_fe.data.preprocessing import Preprocessing, describe_sizes
from prune_fe.data.registry import load_data
from prune_fe.data.splits import Splits, hold_out, with_all_training_images
from prune_fe.distributed import from_rank_0
from prune_fe.errors import InputError
from prune_fe.experiment.device import prepare_device
from prune_fe.experiment.recipe import (
    MAY_HAVE_SEEN,
    Recipe,
    as_begun,
    seen_elsewhere,
)
from prune_fe.experiment.results import UNPRUNED, Row, load_result
from prune_fe.experiment.run_folder import NETWORKS, RunFolder
from prune_fe.experiment.start import copy_start
from prune_fe.experiment.steps import measure, score_units
from prune_fe.experiment.teacher import saved_logits
from prune_fe.experiment.trained import load_or_train
from prune_fe.models.build import build, draw_weights
from prune_fe.models.preprocessing import known_preprocessing
from prune_fe.scoring.scores import Scores
from prune_fe.training.features import is_constant

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
        return load_or_train(self)

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
        if not data.holds_out_of_train:
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
        reporter.say(
            f"note: {origin} {MAY_HAVE_SEEN}: --validation PATH (data.validation_path) reads others, and "
            "data.validation_from: test takes them out of val/"
        )
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
