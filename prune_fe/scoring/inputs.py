"""The inputs of scorers: a network, its layers and the images, with the provenance that is saved with scores."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
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
from prune_fe.scorers.base import Scorer, split_layers
from prune_fe.scoring.code_identity import describe_code, describe_function
from prune_fe.scoring.fingerprint import hash_architecture, hash_tensors, hash_weights
from prune_fe.scoring.options import ScoreOptions
from prune_fe.tracing.layers import Layer, describe_faults, find_layers_with_units, list_layers
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
        are_named: Whether the user named the layers. A scorer leaves out layers that it cannot score, but no named one.
        linear: Whether linear layers and gates are meant to be scored. Without an example gates cannot be told from
            other convolutions, so that they are scored too.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    example: Inputs | None
    read: Callable[..., Batches] | None
    chosen: ImageList
    logits: Logits | None = None
    are_named: bool = False
    linear: bool = False

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        example: Inputs | None,
        options: ScoreOptions,
        read: Callable[..., Batches] | None,
        chosen: ImageList,
        logits: Logits | None = None,
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

        Raises:
            InputError: A layer does not exist or has no units.
        """
        names, are_named = options.layers, options.layers is not None
        takes_linear = options.linear or are_named
        if example is None:
            layers = list_layers(model, names, linear=options.linear)
            return cls(model, layers, None, read, chosen, None, are_named, takes_linear)
        example = take_rows(move(example, next(model.parameters()).device), 1)
        layers = find_layers_with_units(model, example, names, linear=options.linear)
        return cls(model, layers, example, read, chosen, logits, are_named, takes_linear)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    @property
    def n_images(self) -> int:
        """The number of images; 0 where there are none or it is not known."""
        return len(self.chosen.images) or (count_images(self.read()) if self.read is not None else 0)

    def layers_for(self, scorer: Scorer) -> tuple[Layer, ...]:
        """Return the layers that a scorer scores.

        Raises:
            InputError: It can score none of them, or cannot score one that was named.
        """
        layers, unfit = split_layers(scorer, self.layers)
        if unfit and (self.are_named or not layers):
            raise InputError(f"{scorer_name(scorer)}: {describe_faults(unfit)}")
        return layers

    def provenance(self, scorer: Scorer) -> dict[str, Any]:
        """Return a description of the network, images and layers that the scores of a scorer are computed from.

        Its entry `key` is a hash of everything that the scores depend on, except the order of summation. For a scorer
        of the user's own, `scorer_code` holds the name of its function or class and a hash of its code.

        Args:
            scorer: The scorer.
        """
        source = self._network | (self._sample if scorer.needs_data else {})
        scored, unfit = split_layers(scorer, self.layers)
        layers = {layer.name: {"map_size": layer.map_size, "steps": layer.steps} for layer in scored}
        # A scorer of weights gives the same scores with and without an example.
        depends_on_layers = layers if scorer.needs_data or scorer.needs_example else list(layers)
        parts: list[Any] = [source, depends_on_layers, scorer_name(scorer), scorer.settings]
        own: dict[str, Any] = {"scorer_code": describe_code(scorer)}
        if scorer.needs_gradients and self.logits is not None:
            own["logits_code"] = describe_function(self.logits)
        own = {name: code for name, code in own.items() if code}
        content = json.dumps([*parts, *own.values()], sort_keys=True)
        own |= {"linear": True} if self.linear else {}
        own |= {"left_out": unfit} if unfit else {}
        return source | {"layers": layers, "key": hashlib.sha256(content.encode()).hexdigest()} | own

    def observed_layers(self, scorer: Scorer) -> Sequence[Layer]:
        """Return the layers whose feature maps or gradients `scorer` measures."""
        assert self.example is not None
        return scorer.observed_layers(self.model, self.layers_for(scorer), self.example)

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
