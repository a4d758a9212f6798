"""The inputs of scorers: a network, its layers and the images, with the provenance that is saved with scores."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.data.batches import Batches, count_images, validate_batches
from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.distributed import all_gather
from prune_fe.errors import InputError
from prune_fe.scorers import scorer_name
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.code_identity import describe_code, describe_function
from prune_fe.scoring.division import Division, Part, divide_layers
from prune_fe.scoring.fingerprint import hash_architecture, hash_tensors, hash_weights
from prune_fe.scoring.options import ScoreOptions
from prune_fe.tracing.layers import Layer, exclude_layers, find_layers_with_units, list_layers
from prune_fe.tracing.nested import Inputs, Logits, leaves, move, run, take_logits, take_rows
from prune_fe.tracing.watching import evaluating
from prune_fe.tracing.weights import require_trainable


@dataclass(frozen=True)
class ImageList:
    """The images that are read; empty where their labels are not known in advance.

    Attributes:
        images: Name and class of each image.
        labels: The labels that occur.
    """

    images: Sequence[tuple[str, str]] = ()
    labels: frozenset[int] = frozenset()

    @classmethod
    def from_data(cls, data: Dataset[Any], indices: Sequence[int]) -> Self:
        """Return the list of the images with these indices."""
        all_labels, classes = image_labels(data), class_names(data)
        labels = [all_labels[index] for index in indices]
        names_of_classes = [classes[label] if 0 <= label < len(classes) else str(label) for label in labels]
        return cls(list(zip(image_names(data, indices), names_of_classes, strict=True)), frozenset(labels))


@dataclass(frozen=True)
class ScoringInputs:
    """Everything that scores depend on, except the scorers.

    Attributes:
        model: The network.
        layers: The layers that are scored.
        example: One image (1, channels, height, width), or other inputs, on the device of the network; None where the
            network does not run.
        read: read(skip=n) returns the batches without their first n images; None where no scorer reads images.
        chosen: The images, as far as they are known in advance.
        logits: Function that takes the logits out of what the network returns; None where it returns them.
        are_named: Whether the user named the layers, or asked for all (`strict`): none of them may be left out.
        linear: Whether linear layers and gates are meant to be scored. Without an example gates cannot be told from
            other convolutions, so that they are scored too.
        linear_scorer: What scores the layers that a scorer leaves out; None for nothing.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    example: Inputs | None
    read: Callable[..., Batches] | None
    chosen: ImageList
    logits: Logits | None = None
    are_named: bool = False
    linear: bool = False
    linear_scorer: Scorer | None = None

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        example: Inputs | None,
        options: ScoreOptions,
        read: Callable[..., Batches] | None,
        chosen: ImageList,
        logits: Logits | None = None,
        linear_scorer: Scorer | None = None,
    ) -> Self:
        """Find the layers and return the inputs.

        Args:
            model: The network.
            example: Images (images, channels, height, width) or other inputs, of which the first image is run; None
                finds layers among the modules without running the network.
            options: Which layers are scored.
            read: Function that returns the batches, as in the attribute.
            chosen: The images, as far as they are known in advance.
            logits: As in the attribute.
            linear_scorer: As in the attribute.

        Raises:
            InputError: A layer does not exist or has no units.
        """
        names, is_strict = options.layers, options.names_layers or options.strict
        takes_linear = options.linear or names is not None
        if example is None:
            layers = exclude_layers(list_layers(model, names, linear=options.linear), options.exclude)
            return cls(model, layers, None, read, chosen, None, is_strict, takes_linear, linear_scorer)
        example = take_rows(move(example, next(model.parameters()).device), 1)
        layers = exclude_layers(_find_layers(model, example, options, read_images=read is not None), options.exclude)
        return cls(model, layers, example, read, chosen, logits, is_strict, takes_linear, linear_scorer)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    @property
    def n_images(self) -> int:
        """The number of images; 0 where there are none or it is not known."""
        return len(self.chosen.images) or (count_images(self.read()) if self.read is not None else 0)

    def divide(self, scorer: Scorer) -> Division:
        """Return which layers a scorer scores itself, and which the linear scorer scores in its place.

        Raises:
            InputError: No layer can be scored, or one that was named cannot.
        """
        return divide_layers(scorer, self.layers, self.linear_scorer, are_named=self.are_named)

    def provenance(self, scorer: Scorer) -> dict[str, Any]:
        """Return a description of the network, images and layers that the scores of a scorer are computed from.

        Its entry `key` is a hash of everything that the scores depend on, except the order of summation. For a scorer
        of the user's own, `scorer_code` holds the name of its function or class and a hash of its code. `linear_scorer`
        holds the name and the settings of the linear scorer and the names of the layers that it scores, if there are
        any, and `left_out` the layers that neither scores.

        Args:
            scorer: The scorer.
        """
        division = self.divide(scorer)
        content = self._identity(division.own)
        found = self._network | (self._sample if division.needs_data else {})
        found["layers"] = _describe_layers([layer for part in division.parts for layer in part.layers])
        own = self._code(scorer)
        if division.rest is not None:
            linear, names = division.rest.scorer, [layer.name for layer in division.rest.layers]
            content = [content, self._identity(division.rest)]
            about = {"scorer": scorer_name(linear), "settings": linear.settings, "layers": names}
            own = own | {"linear_scorer": about | self._code(linear)}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        left_out = {"left_out": dict(division.left_out)} if division.left_out else {}
        return found | {"key": key} | own | ({"linear": True} if self.linear else {}) | left_out

    def _identity(self, part: Part) -> list[Any]:
        """Return everything that the scores of a part depend on."""
        scorer, layers = part.scorer, _describe_layers(part.layers)
        source = self._network | (self._sample if scorer.needs_data else {})
        # A scorer of weights gives the same scores with and without an example.
        depends_on_layers = layers if scorer.needs_data or scorer.needs_example else list(layers)
        later = scorer.later_settings
        settings = {name: value for name, value in scorer.settings.items() if name not in later or value != later[name]}
        return [source, depends_on_layers, scorer_name(scorer), settings, *self._code(scorer).values()]

    def _code(self, scorer: Scorer) -> dict[str, Any]:
        """Return the code of the user's own that the scores of a scorer depend on; empty where there is none."""
        own = {"scorer_code": describe_code(scorer)}
        if scorer.needs_gradients and self.logits is not None:
            own["logits_code"] = describe_function(self.logits)
        return {name: code for name, code in own.items() if code}

    def observed_layers(self, part: Part) -> Sequence[Layer]:
        """Return the layers whose feature maps or gradients are measured for a part."""
        assert self.example is not None
        return part.scorer.observed_layers(self.model, part.layers, self.example)

    def output_names(self) -> tuple[str, ...]:
        """Return "0", "1", … for the outputs of the network: names of classes for data without any.

        For a network that does not return logits, the largest label says how many classes there are.
        """
        try:
            classes = self._run_classifier().shape[1]
        except InputError:
            labels = list(self.chosen.labels)
            if not labels and self.read is not None:
                labels = [int(batch.max()) for _, batch in validate_batches(self.read())]
            classes = max(all_gather(max(labels, default=-1))) + 1
        return tuple(map(str, range(classes)))

    def require_logits(self) -> None:
        """Check that the network has gradients, and returns logits, (images, classes), as scorers of gradients need.

        Raises:
            InputError: It does not; the message says how to pass `logits`.
        """
        require_trainable(self.model)
        self._run_classifier()

    def _run_classifier(self) -> Tensor:
        """Return the network's logits for the example."""
        assert self.example is not None
        with evaluating(self.model), torch.no_grad():
            return take_logits(run(self.model, self.example), self.logits, "gradients need")

    @functools.cached_property
    def _network(self) -> dict[str, Any]:
        """The part of the provenance that describes the network."""
        return {
            "version": metadata.version("prune-fe"),
            "model": type(self.model).__name__,
            "model_sha256": hash_weights(self.model),
            "architecture_sha256": hash_architecture(self.model),
        }

    @functools.cached_property
    def _sample(self) -> dict[str, Any]:
        """The part of the provenance that describes the images."""
        # Names do not say how the images were resized, but the pixels of one of them do.
        example = {f"example{path}": leaf for path, leaf in leaves(self.example) if isinstance(leaf, Tensor)}
        return {"images": self.chosen.images, "example_sha256": hash_tensors(example)}


def _describe_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    return {layer.name: {"map_size": layer.map_size, "steps": layer.steps} for layer in layers}


def _find_layers(model: nn.Module, example: Inputs, options: ScoreOptions, *, read_images: bool) -> tuple[Layer, ...]:
    """Return the layers with units."""
    if read_images and (options.linear or options.layers is not None):
        # A row of a linear layer's output may be that of the image, or of a table that is the same for all images; two
        # images tell. (If the network runs on a single one only, no batch has more, and the rows are the images'.)
        with suppress(InputError):
            return find_layers_with_units(model, take_rows(example, 2), options.layers, linear=options.linear)
    return find_layers_with_units(model, example, options.layers, linear=options.linear)
