"""First-order Taylor importance (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning")."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.scorers.base import (
    GradientScorer,
    LayerScore,
    Rows,
    Sums,
    by_filter,
    check_choice,
    check_count,
    to_float64,
    weight_of,
)
from prune_fe.scorers.kept_images import keep_images, kept_images, logits_of, network_input, summed_loss
from prune_fe.tracing.channel_tracer import find_coupled_units
from prune_fe.tracing.copying import copy_sharing_weights
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs

Square = Literal["total", "image", "batch"]
Of = Literal["gates", "weights"]
Gates = Literal["own", "shared"]
BATCH = 32
"""How many images are a batch of `square: batch` by default."""
MAX_IMAGES = 10_000
"""At most this many images have a row of gradients each, as `square: batch` needs them."""


@dataclass(frozen=True)
class Taylor(GradientScorer):
    """Taylor importance: the score is (∂E/∂z)², E the mean cross-entropy and z = 1 a factor on the unit's map (eq. 8).

    Of a linear layer on tokens, z multiplies the unit's value at every token; of a layer that runs several times, its
    output in every run.

    How many images go through the network together makes no difference.

    With `gates="shared"`, units that a residual sum, another gate or a depthwise convolution ties together have one
    factor z, which multiplies all their maps, as in the authors' program (github.com/NVlabs/Taylor_pruning,
    models/resnet.py: the blocks of a stage have one gate). The score is then the square of the signed sum of the
    gradients at the single maps, and the same in all these layers: gradients of opposite signs cancel, which no mean of
    squares does. That program has the gate behind each block of a stage, where the sum is activated, and none at the
    layers in front of the sum: name the blocks as `layers` for its numbers. (For its ResNets on ImageNet it divides the
    square by the number of blocks of the stage. That changes no order within a stage.) Of a single sum, the gate behind
    it has the same gradient as the shared gate of all layers that are added.

    With `of="weights"`, the score is Σ (w · ∂E/∂w)² over the weights of the unit's filter (eq. 8 for weights; method 0
    of the authors' program, and NNI's TaylorFOWeightPruner, github.com/microsoft/nni, v2.5, both with `square:
    batch`). Here the network is in evaluation mode and no step is made between the batches. The images are kept in
    memory until all have been read.

    Attributes:
        square: "total" squares the gradient of E over all images, as in the paper. "image" squares the gradient of each
            image's own loss and takes the mean over the images, which does not vanish on a converged network. "batch"
            squares the gradient of the mean loss of `batch` images and takes the mean over these batches, as the
            authors' program (github.com/NVlabs/Taylor_pruning, pruning_engine.py, method 22) does while it trains. The
            size of the batches is then part of the result: 1 is "image", and all images "total". So is the order of the
            images, and with it the number of processes. A row of gradients is kept for each image, of at most 10,000.
        batch: For "batch", how many images are a batch; the last one may have fewer. It is not the number of images
            that go through the network together.
        shuffle: For "batch", put the images in a random order, the same one in each run, as training does. Otherwise
            they stay in the order in which they are read: sampled images come class by class.
        of: What is differentiated by: "gates", the factor z of each unit, or "weights".
        gates: "own" for a factor of each layer's own, "shared" for one of all layers whose units are tied together, as
            far as they are scored.
    """

    square: Square = "total"
    batch: int = BATCH
    shuffle: bool = True
    of: Of = "gates"
    gates: Gates = "own"
    later_settings: ClassVar[Mapping[str, Any]] = {"batch": BATCH, "shuffle": True, "of": "gates", "gates": "own"}

    def __post_init__(self) -> None:
        check_choice("taylor", "square", self.square, get_args(Square))
        check_count("taylor", "batch", self.batch, least=1)
        if type(self.shuffle) is not bool:
            raise InputError(f"taylor: shuffle is {self.shuffle!r}, allowed are true and false")
        if self.square != "batch" and (self.batch != BATCH or not self.shuffle):
            raise InputError(
                f"taylor: batch and shuffle are of square: batch; leave them out for square: {self.square}"
            )
        check_choice("taylor", "of", self.of, get_args(Of))
        check_choice("taylor", "gates", self.gates, get_args(Gates))
        if self.of == "weights" and self.gates == "shared":
            raise InputError("taylor: gates: shared is of gates; leave it out for of: weights")

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """Whether gradients at gates are measured."""
        return self.of == "gates"

    @property
    def _keeps_rows(self) -> bool:
        """Whether a row is kept for each image: their squares need the images of a batch, or all layers, at once."""
        return self.of == "weights" or self.square == "batch" or (self.gates, self.square) == ("shared", "image")

    def why_unfit(self, layer: Layer) -> str | None:
        """Return why a layer cannot be scored; None for the gradients of weights, which need no map."""
        return None if self.of == "weights" else super().why_unfit(layer)

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise InputError if there are more images than can be kept, or than gradients can be kept of."""
        if self._keeps_rows and images > MAX_IMAGES:
            setting = "of: weights" if self.of == "weights" else f"square: {self.square}"
            raise InputError(
                f"taylor: {setting} keeps a row for each image, at most {MAX_IMAGES}, and there are {images}; "
                "score on fewer samples"
            )

    def observed_layers(self, model: nn.Module, layers: Sequence[Layer], example: Inputs) -> Sequence[Layer]:
        """Return the layers; for the gradients of weights the network itself, whose input is read.

        Raises:
            InputError: For the gradients of weights, a layer has none, or the network's input is not one tensor.
        """
        if self.of == "gates":
            return layers
        for layer in layers:
            weight_of(model.get_submodule(layer.name), layer.name)
        return (network_input(example, "taylor with of: weights"),)

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return the images of the batch and their labels, for the gradients of weights."""
        return keep_images(maps, labels, MAX_IMAGES)

    def measure_gradients(self, gradients: Tensor) -> Sums:
        """Return what one batch adds to the sums.

        Returns:
            `total` and `squares` (units,), the sums of the gradients and of their squares, and `images`; where the
            batches of the sums are not those meant, the `gradients` themselves, a row for each image.
        """
        if self._keeps_rows:
            return {"gradients": Rows(gradients.detach().cpu(), MAX_IMAGES)}
        gradients = to_float64(gradients)
        return {
            "total": gradients.sum(dim=0).cpu(),
            "squares": gradients.square().sum(dim=0).cpu(),
            "images": torch.tensor(len(gradients)),
        }

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return the importance of the units of every layer."""
        if self.of == "weights":
            return self._score_weights(model, layers, sums)
        if self.gates == "shared":
            assert example is not None
            return self._score_shared_gates(_number_sets(model, layers, example), sums)
        return super().score(model, layers, sums, example)

    def score_layer(self, sums: dict[str, Any]) -> LayerScore:
        """Return the importance of each unit."""
        if "gradients" in sums:
            importance = self._mean_over_batches(sums["gradients"].values)
        elif self.square == "total":
            importance = (sums["total"] / sums["images"]).square()
        else:
            importance = sums["squares"] / sums["images"]
        return LayerScore(importance, {"taylor_importance": importance})

    def _batches(self, images: int) -> list[Tensor]:
        """Return the numbers of the images of each batch whose gradient is squared."""
        order = torch.arange(images)
        if self.square == "batch" and self.shuffle:
            order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
        return list(order.split({"batch": self.batch, "image": 1, "total": images}[self.square]))

    def _mean_over_batches(self, gradients: Tensor) -> Tensor:
        """Return the mean over the batches of the squared mean gradient, (units,) float64.

        Args:
            gradients: (images, units).
        """
        squares = [gradients[batch].double().mean(dim=0).square() for batch in self._batches(len(gradients))]
        return torch.stack(squares).mean(dim=0)

    def _score_shared_gates(self, numbers: Mapping[str, Tensor], sums: Mapping[str, Sums]) -> dict[str, LayerScore]:
        """Return the importance of gates that units of several layers share.

        Args:
            numbers: Layer -> (units,) the number of each unit's gate.
            sums: Layer -> the total of `measure_gradients`.
        """
        gates = 1 + max(int(each.max()) for each in numbers.values())
        shared: dict[str, Any] = dict(next(iter(sums.values())))
        key = "gradients" if self._keeps_rows else "total"
        total: Tensor | None = None
        for layer, own in numbers.items():
            entry: Any = sums[layer][key]
            rows = (entry.values if isinstance(entry, Rows) else entry[None]).double()
            total = torch.zeros(len(rows), gates, dtype=torch.float64) if total is None else total
            total.index_add_(1, own, rows)
        assert total is not None
        shared[key] = Rows(total, MAX_IMAGES) if self._keeps_rows else total[0]
        importance = self.score_layer(shared).keep
        return {
            layer: LayerScore(importance[own], {"taylor_importance": importance[own]}) for layer, own in numbers.items()
        }

    def _score_weights(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums]
    ) -> dict[str, LayerScore]:
        """Return Σ (w · ∂E/∂w)² over the weights of each unit's filter."""
        ((_, kept),) = sums.items()
        images, labels = kept_images(kept)
        with torch.inference_mode(False), torch.enable_grad():
            # A copy, because gradients of the network's own weights may be switched off.
            twin = copy_sharing_weights(model).eval().requires_grad_(False)
            modules = {layer.name: twin.get_submodule(layer.name) for layer in layers}
            weights = {name: weight_of(module, name).requires_grad_() for name, module in modules.items()}
            squares = {name: torch.zeros_like(to_float64(weight)) for name, weight in weights.items()}
            batches = self._batches(len(images))
            for batch in batches:
                gradients = _mean_gradients(twin, weights, images[batch], labels[batch])
                for name, gradient in gradients.items():
                    squares[name] += (to_float64(weights[name]) * gradient).square()
        scores = {}
        for name, total in squares.items():
            importance = by_filter(modules[name], total).flatten(1).sum(dim=1).cpu() / len(batches)
            if not importance.isfinite().all():
                raise InputError(f"layer {name!r}: the gradient of its weights is not finite")
            scores[name] = LayerScore(importance, {"taylor_importance": importance})
        return scores


def _number_sets(model: nn.Module, layers: Sequence[Layer], example: Inputs) -> dict[str, Tensor]:
    """Return layer -> (units,) numbers from 0, the same for units that are tied together.

    Raises:
        InputError: It is not known which units of a layer are tied to others.
    """
    sets = find_coupled_units(model, example, [layer.name for layer in layers])
    for layer in layers:
        if layer.name not in sets or len(sets[layer.name]) != layer.units:
            raise InputError(
                f"taylor: gates: shared: layer {layer.name!r}: it is not known which units its own are tied to; leave "
                "it out, or gates: shared"
            )
    _, numbers = np.unique(np.concatenate([sets[layer.name] for layer in layers]), return_inverse=True)
    parts = torch.from_numpy(numbers).split([layer.units for layer in layers])
    return {layer.name: part for layer, part in zip(layers, parts, strict=True)}


def _mean_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Return the gradients of the mean cross-entropy of a batch, in float64.

    Args:
        model: The network.
        weights: Layer -> its weight.
        images: (images, channels, height, width).
        labels: (images,) int64.

    Raises:
        InputError: The network does not return logits for every label, or no gradient reaches a layer.
    """
    total = {name: torch.zeros_like(to_float64(weight)) for name, weight in weights.items()}
    for part, own in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        logits = logits_of(model, part, own, "taylor")
        # In half precision a probability near 1 rounds to 1 and its gradient to zero.
        loss = summed_loss(logits if logits.dtype == torch.float64 else logits.float(), own, "taylor")
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is None:
                raise InputError(f"layer {name!r}: no gradient reaches its weights")
            total[name] += to_float64(gradient)
    return {name: gradient / len(images) for name, gradient in total.items()}
