"""Count what a network predicts under each mask."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prune_fe.ablation.curves import Result
from prune_fe.errors import DataError
from prune_fe.measure.evaluate import float64_logits


class Tally:
    """Counts what the network predicts under each mask, for the images of each half and class.

    The columns of its counts are the classes for the first half, and then those for the second half.

    Args:
        n_masks: Number of masks.
        names: Names of all classes; may be empty.
        chosen: Indices of the classes that the result is for; None for all that have images.

    Attributes:
        images: Images of each half and class, shape (2, classes); no classes before the first outputs.
        hits: Images that are predicted as their class, shape (masks, 2 · classes).
        called: Images that are predicted as a class, by half, shape (masks, 2 · classes).
        loss: Sum of their cross-entropy in nats, shape (masks, 2 · classes).
    """

    def __init__(self, n_masks: int, names: tuple[str, ...], chosen: Sequence[int] | None) -> None:
        self.n_masks, self.names, self.chosen = n_masks, names, chosen
        self.images = torch.zeros(2, 0, dtype=torch.int64)

    def add(self, masks: slice, output: Any, labels: Tensor, halves: Tensor, indices: range) -> None:
        """Count the outputs for some masks and images.

        Args:
            masks: Which masks.
            output: Outputs of the network, shape (masks · images, classes).
            labels: Labels of the images.
            halves: Halves of the images.
            indices: Indices of the images, for error messages.
        """
        expected = labels.expand(len(range(self.n_masks)[masks]), -1)
        logits = float64_logits(output, expected.flatten(), indices)
        classes = logits.shape[1]
        if self.images.shape[1] == 0:
            self.images = torch.zeros(2, classes, dtype=torch.int64)
            self.hits, self.called = torch.zeros(2, self.n_masks, 2 * classes, dtype=torch.int64)
            self.loss = torch.zeros(self.n_masks, 2 * classes, dtype=torch.float64)
        logits = logits.view(*expected.shape, classes)
        predicted = logits.argmax(dim=2)
        columns = halves * classes + labels
        if masks.start == 0:
            self.images.view(-1).scatter_add_(0, columns, torch.ones_like(columns))
        self.called[masks].scatter_add_(1, halves * classes + predicted, torch.ones_like(predicted))
        self.hits[masks].scatter_add_(1, columns.expand_as(predicted), (predicted == expected).long())
        # The loss takes most of the time, so only the images of the chosen classes have one.
        wanted = slice(None) if self.chosen is None else torch.isin(labels, torch.tensor(self.chosen))
        targets = expected[:, wanted]
        losses = cross_entropy(logits[:, wanted].flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        self.loss[masks].scatter_add_(1, columns[wanted].expand_as(targets), losses)

    def result(self, kind: Callable[..., Result], **common: Any) -> Result:
        """Return the result for all images, with those of its halves.

        Raises a DataError where one of the chosen classes has no images.

        Args:
            kind: Class of the result.
            common: Further fields of the result and its halves.
        """
        outputs = self.images.shape[1]
        names = self.names or tuple(map(str, range(outputs)))
        present = self.images.sum(dim=0).nonzero()[:, 0].tolist()
        chosen = present if self.chosen is None else list(self.chosen)
        require_images(chosen, present, names)
        common |= {"classes": tuple(names[number] for number in chosen), "outputs": outputs}

        def make(images: Tensor, counts: Sequence[Tensor], halves: tuple[Result, ...] = ()) -> Result:
            hits, called, loss = (count[:, chosen].numpy() for count in counts)
            return kind(
                images=images[chosen].numpy(),
                all_images=int(images.sum()),
                hits=hits,
                called=called,
                loss=loss / images[chosen].clamp(min=1).numpy(),
                halves=halves,
                **common,
            )

        counts = [count.view(-1, 2, outputs) for count in (self.hits, self.called, self.loss)]
        halves = tuple(make(self.images[half], [count[:, half] for count in counts]) for half in (0, 1))
        return make(self.images.sum(dim=0), [count.sum(dim=1) for count in counts], halves)


def require_images(classes: Iterable[int], present: Container[int], names: Sequence[str]) -> None:
    """Raise an error for a class without images.

    Args:
        classes: Indices of classes.
        present: Indices of the classes that have images.
        names: Names of all classes, for the message; may be empty.

    Raises:
        DataError: One of the classes has no images.
    """
    for number in classes:
        if number not in present:
            name = repr(names[number]) if 0 <= number < len(names) else number
            raise DataError(f"class {name}: there are no images of it to ablate on")
