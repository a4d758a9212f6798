"""Score the units of a network with one scorer, or with several that share one pass over the images."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.data.images import (
    Batches,
    Images,
    choose,
    class_names,
    first_images,
    has_targets,
    image_names,
    images_in,
    select,
    targets_of,
)
from prune_fe.distributed import all_gather, rank, world_size
from prune_fe.errors import CheckpointError, InputError, PruneFEError
from prune_fe.measure.meter import Meter
from prune_fe.scorers import resolve_scorer, scorer_name
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.collection import Collection, Progress, State
from prune_fe.scoring.scores import Scores, architecture, load_scores
from prune_fe.tracing.feature_maps import Layer, convolutions, evaluating, find_layers

LABEL = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What a scorer may be called where its label names a folder."""

Scorers = Sequence[str | Scorer] | Mapping[str, str | Scorer]


def score(
    model: nn.Module,
    data: Images | None = None,
    scorer: str | Scorer = "feature-entropy",
    *,
    layers: Sequence[str] | None = None,
    classes: int | Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    example: Tensor | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score every unit of `model` (any nn.Module) with one scorer.

    data: a data set of (image, label), or an iterable of batches (images, labels) such as a DataLoader; None for a
    scorer that reads weights only. From a data set, `samples` images of each class are drawn with `seed`, of
    `classes` (how many, or which; default all). layers: names of modules; default every convolution with a map.
    example: one image (1, channels, height, width) that the model runs on; default the first one to score with.

    The model is left as it was: weights, mode, hooks and gradients. Under torch.distributed each process measures
    its share of the images, and every process returns the same scores.
    """
    found = score_all(
        model, data, [scorer], layers=layers, classes=classes, samples=samples, seed=seed, batch_size=batch_size,
        workers=workers, example=example, progress=progress,
    )  # fmt: skip
    return next(iter(found.values()))


def score_all(
    model: nn.Module,
    data: Images | None,
    scorers: Scorers,
    *,
    layers: Sequence[str] | None = None,
    classes: int | Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    example: Tensor | None = None,
    progress: Progress | None = None,
    folder: str | Path | None = None,
) -> dict[str, Scores]:
    """What score() does, with several scorers that share one pass over the images: label -> scores.

    scorers: names or scorers; or label -> one of these, to tell two settings of one scorer apart.

    folder: keeps what is finished in folder/<label>, and what an interruption leaves. A call for the same model,
    images and settings reuses the one and goes on with the other, to the same bits; InputError where it holds
    scores of something else. Needs a data set: ready batches have no names to know them by.
    """
    judges = _labelled(scorers)
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {model!r}; it must be an nn.Module")
    readers = {label: judge for label, judge in judges.items() if judge.needs_data}
    if readers and data is None:
        raise InputError(f"scorer {next(iter(readers))!r} needs images: pass data=")
    if readers and folder is not None and not isinstance(data, Dataset):
        raise InputError("folder= needs a data set; ready batches have no names to know them by")
    read, chosen = None, _Chosen()
    if readers and data is not None:
        options = {"batch_size": batch_size, "workers": workers}
        read = functools.partial(select, data, classes, samples, seed, **options)
        # Labels that are nowhere written down cost a reading of all images: only if they are needed.
        if isinstance(data, Dataset) and (has_targets(data) or (classes, samples, folder) != (None, None, None)):
            chosen = _Chosen.of(data, choose(data, classes, samples, seed))
    if example is None:
        example = _example(judges, data, read)
    task = _Task.of(model, example, layers, read, chosen)
    for judge in judges.values():
        judge.check(task.layers, task.images, chosen.labels)
    place = Path(folder) if folder is not None else None
    return _scored(task, judges, class_names(data), batch_size, place, progress)


def _scored(
    task: _Task,
    judges: Mapping[str, Scorer],
    names: tuple[str, ...],
    batch_size: int,
    folder: Path | None,
    progress: Progress | None,
) -> dict[str, Scores]:
    """Label -> scores: what is finished from `folder`, the rest from one pass; what can be judged is kept first."""
    for label in judges if folder is not None else ():
        if not (isinstance(label, str) and re.fullmatch(LABEL, label)):
            raise InputError(f"label {label!r}: it names a folder; allowed are letters, digits, '_', '.' and '-'")
    keys = {label: task.provenance(judge)["key"] for label, judge in judges.items()}
    found = _finished(folder, keys) if folder is not None else {}
    pending = {label: judge for label, judge in judges.items() if label not in found}
    readers = {label: judge for label, judge in pending.items() if judge.needs_data}
    names = (names or task.outputs()) if readers else ()
    collection = Collection(readers, {label: task.observed(readers[label]) for label in readers}, names, task.device)
    work = json.dumps([batch_size, world_size(), names, {label: keys[label] for label in readers}])
    state = State(folder, work) if folder is not None else None
    if task.read is not None and readers:
        collection.run(task.model, task.read, progress, state)
    faults = []
    for label, result in _judged(task, pending, collection):
        if isinstance(result, InputError):
            faults.append(result)
            continue
        found[label] = result
        if folder is not None and rank() == 0:
            result.save(folder / label)
    if faults:
        raise faults[0]
    if state is not None:
        state.remove()
    return {label: found[label] for label in judges}


def check_judge(
    judge: Scorer, model: nn.Module, layers: Sequence[Layer], example: Tensor, images: int, labels: set[int]
) -> None:
    """Raise the InputError that `judge` has for these layers, before any image is read. images: how many there will be,
    labels: of which classes."""
    judge.check(layers, images, labels)
    if judge.needs_data:
        judge.observed(model, layers, example)
    else:
        judge.score(model, layers, {}, example)


def _example(judges: Mapping[str, Scorer], data: Images | None, read: Callable[..., Batches] | None) -> Tensor | None:
    """The first image that is read; None where no scorer wants to see the network run."""
    if read is not None:
        return first_images(read(batch_size=1, workers=0))
    unseen = [label for label, judge in judges.items() if judge.needs_example]
    if unseen and data is None:
        raise InputError(f"scorer {unseen[0]!r} looks at the network as it runs: pass example=, zeros will do")
    return first_images(select(data, batch_size=1)) if unseen and data is not None else None


def _labelled(scorers: Scorers) -> dict[str, Scorer]:
    if isinstance(scorers, str) or not scorers:
        raise InputError(f"scorers is {scorers!r}; it must be a list of scorers, or label -> scorer")
    if isinstance(scorers, Mapping):
        return {label: resolve_scorer(scorer) for label, scorer in scorers.items()}
    judges = [resolve_scorer(scorer) for scorer in scorers]
    pairs = [(scorer_name(judge), judge) for judge in judges]
    if twice := [name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number])]:
        raise InputError(f"scorer {twice[0]!r} stands twice: give each a label, {{label: scorer}}")
    return dict(pairs)


@dataclass(frozen=True)
class _Chosen:
    """The images that are read: (name, class) of each, and the labels that occur; empty when they are not known."""

    images: Sequence[tuple[str, str]] = ()
    labels: frozenset[int] = frozenset()

    @classmethod
    def of(cls, data: Dataset[Any], numbers: Sequence[int]) -> Self:
        targets, names = targets_of(data), class_names(data)
        labels = [targets[number] for number in numbers]
        of_class = (names[label] if 0 <= label < len(names) else str(label) for label in labels)
        return cls(list(zip(image_names(data, numbers), of_class, strict=True)), frozenset(labels))


@dataclass(frozen=True)
class _Task:
    """What is to be scored, and on which images: all but the scorers.

    read(skip=n): the batches without their first n images; None when no scorer reads any. example: one image, None
    without any.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    example: Tensor | None
    read: Callable[..., Batches] | None
    chosen: _Chosen

    @classmethod
    def of(
        cls, model: nn.Module, example: Tensor | None, layers: Sequence[str] | None,
        read: Callable[..., Batches] | None, chosen: _Chosen,
    ) -> Self:  # fmt: skip
        if example is None:
            return cls(model, convolutions(model, layers), None, read, chosen)
        example = example[:1].to(next(model.parameters()).device)
        return cls(model, find_layers(model, example, layers), example, read, chosen)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def images(self) -> int:
        """How many images there are, 0 when there are none or it is not known."""
        return len(self.chosen.images) or (images_in(self.read()) if self.read is not None else 0)

    @functools.cached_property
    def network(self) -> dict[str, Any]:
        return {
            "version": metadata.version("prune-fe"),
            "model": type(self.model).__name__,
            "model_sha256": weights_hash(self.model),
            "architecture_sha256": architecture(self.model),
        }

    @functools.cached_property
    def sample(self) -> dict[str, Any]:
        """The images. Names alone do not tell how they were resized; the example's pixels do."""
        example = {} if self.example is None else {"example": self.example}
        return {"images": self.chosen.images, "example_sha256": _hash(example)}

    def provenance(self, judge: Scorer) -> dict[str, Any]:
        """What the scores come from, and `key`, which tells in one word all that they depend on."""
        sees = judge.needs_data or judge.needs_example
        about = self.network | (self.sample if judge.needs_data else {})
        layers = {layer.name: {"map_size": layer.map_size, "steps": layer.steps} for layer in self.layers}
        whole = [about, layers if sees else list(layers), scorer_name(judge), judge.settings]
        said = json.dumps(whole, sort_keys=True)
        return about | {"layers": layers, "key": hashlib.sha256(said.encode()).hexdigest()}

    def observed(self, judge: Scorer) -> Sequence[Layer]:
        assert self.example is not None
        return judge.observed(self.model, self.layers, self.example)

    def outputs(self) -> tuple[str, ...]:
        """Names for the classes that the model tells apart, where the data has none: their numbers."""
        with evaluating(self.model), torch.no_grad():
            output = self.model(self.example)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise InputError("the model does not return logits (images, classes): pass a data set that has `classes`")
        return tuple(map(str, range(output.shape[1])))


def _judged(
    task: _Task, judges: Mapping[str, Scorer], collection: Collection
) -> Iterator[tuple[str, Scores | InputError]]:
    """(label, scores, or why there are none) of every scorer from what was collected."""
    sums, counts = collection.gathered()
    network_seconds = collection.network_seconds  # before the scorers' meters go on to measure score()
    for label, judge in judges.items():
        meter = collection.meters.get(label) or Meter(task.device)
        of_class = dict(zip(collection.classes, counts.tolist(), strict=True)) if judge.needs_data else {}
        try:
            with meter.measuring():
                results = judge.score(task.model, task.layers, sums.get(label, {}), task.example)
            scores = Scores(
                scorer=scorer_name(judge),
                keep={name: result.keep.cpu().numpy() + 0.0 for name, result in results.items()},  # no −0
                raw=_by_quantity({name: result.raw for name, result in results.items()}),
                classes=tuple(name for name, count in of_class.items() if count),
                images=sum(of_class.values()),
                seconds=meter.seconds + (network_seconds if judge.needs_data else 0.0),
                settings=judge.settings,
                own_seconds=meter.seconds,
                peak_bytes=meter.peak_bytes,
                provenance=task.provenance(judge),
            )
        except InputError as error:
            yield label, error
        else:
            yield label, scores


def _finished(folder: Path, keys: Mapping[str, str]) -> dict[str, Scores]:
    """The scores that `folder` holds of these labels, as the first process sees it; InputError when they are of
    something else, CheckpointError when they are damaged."""
    found: dict[str, Scores] = {}
    fault: PruneFEError | None = None
    for label, key in keys.items():
        path = folder / label
        try:
            if rank() == 0 and (path / "scores.npz").exists():
                found[label] = load_scores(path)
                if found[label].provenance.get("key") != key:
                    raise InputError(
                        f"{path} holds scores of another model, other images or other settings; choose another folder"
                    )
        except CheckpointError as error:  # which all processes must hear of
            fault = fault or CheckpointError(f"{error}; delete {path}, and it is made again")
        except PruneFEError as error:
            fault = fault or error
    found, fault = all_gather((found, fault))[0]
    if fault is not None:
        raise fault
    return found


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the state dict."""
    return _hash(model.state_dict())


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _by_quantity(raw: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    quantities: dict[str, dict[str, Any]] = {}
    for layer, values in raw.items():
        for quantity, value in values.items():
            quantities.setdefault(quantity, {})[layer] = value.cpu().numpy()
    return quantities
