"""Score the units of a network with one scorer, or with several that share one pass over the images."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prune_fe.data.batches import Batches, Images, first_image
from prune_fe.data.labels import class_names, has_labels
from prune_fe.data.sampling import choose_images, data_set_of, select_batches
from prune_fe.errors import InputError
from prune_fe.options import Seed, Workers, validate_options, validate_value
from prune_fe.scorers import resolve_scorer, scorer_name
from prune_fe.scorers.base import Scorer, explain_faults
from prune_fe.scoring.collection import Progress
from prune_fe.scoring.division import Division, divide_layers
from prune_fe.scoring.execution import score_into, score_pending
from prune_fe.scoring.inputs import ImageList, ScoringInputs
from prune_fe.scoring.layer_scores import check_settings, collect_arrays
from prune_fe.scoring.options import ScoreOptions
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.copying import restoring_state
from prune_fe.tracing.layers import Layer, describe_faults
from prune_fe.tracing.nested import Inputs, Logits
from prune_fe.tracing.quantised import require_float
from prune_fe.tracing.weights import require_example, require_module, require_sound_weights
from prune_fe.tracing.wrappers import unwrap

Criterion = str | Scorer | type[Scorer] | Callable[..., Any]
"""Name of a scorer, a scorer, its class, or a function of (layer, weight)."""

Scorers = Sequence[Criterion] | Mapping[str, Criterion]
"""Scorers, or a label for each."""


def score(
    model: nn.Module,
    data: Images | None = None,
    scorer: Criterion = "feature-entropy",
    *,
    options: ScoreOptions | None = None,
    seed: int = 0,
    workers: int = 0,
    example: Inputs | None = None,
    logits: Logits | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Scores:
    """Score every unit of `model` with one scorer.

    The model is left as it was: weights, mode, hooks, gradients, and what it keeps of its last run. Under
    torch.distributed each process measures its share of the images, and every process returns the same scores.

    Linear layers, and gates, are scored with `linear=True`: scorers that need feature maps leave them out, with a
    warning that names them, or with `linear_scorer="taylor"` another scorer scores them.

    A criterion of one's own is a function of a layer and its filters, (units, channels, height, width) float64, that
    returns one number a unit; units with the lowest scores are pruned first. Of a linear layer the filters are (units,
    inputs, 1, 1). One that reads feature maps or gradients derives from `MapScorer` or `GradientScorer` of
    `prune_fe.scorers.base`, whose documentation says what it gets of each kind of layer.

    >>> def largest_weight(layer, weight, power=1.0):
    ...     return weight.abs().flatten(1).amax(dim=1) ** power
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(Tensor([[[[-3.0]]], [[[2.0]]]]))
    >>> scores = score(net, scorer=largest_weight)
    >>> scores.scorer, scores.settings, scores.keep["0"].tolist()
    ('largest_weight', {'power': 1.0}, [3.0, 2.0])
    >>> score(net, scorer=functools.partial(largest_weight, power=2.0)).keep["0"].tolist()
    [9.0, 4.0]

    Args:
        model: Any network. One in a wrapper, such as DistributedDataParallel or what torch.compile returns, is
            unwrapped; see `prune_fe.tracing.wrappers.unwrap`.
        data: Data set of (image, label), or an iterable of batches (images, labels) such as a DataLoader; None for a
            scorer that reads weights only.
        scorer: Name of a scorer (a key of `SCORERS`), a scorer, its class, or a function of (layer, weight). `layer`
            has a `name`, its number of `units`, whether it `is_linear` and, if `example` is given, the `map_size`.
            Further parameters of the function need defaults, and are recorded as its settings.
        options: Which images and which layers; the default is all.
        seed: Seed with which the classes and images are drawn.
        workers: Processes that read images.
        example: One input that the model runs on; the default is the first image. A tensor (1, channels, height,
            width), a tuple of positional arguments, or a dict of keyword arguments. The images of a batch may be of
            these kinds too.
        logits: Function that takes the logits (images, classes) out of what the model returns, such as
            `lambda out: out["logits"]`. Only scorers of gradients need it, for a model that returns anything else.
        progress: Called with (measured images, all images or 0 when unknown).
        settings: Single options instead of those of `options`, such as `samples=100`; see `ScoreOptions`.

    Returns:
        One score for each unit, and the quantities that it was computed from.

    Raises:
        InputError: An option is out of range, or the scorer cannot score a layer.
        DataError: Images are missing or too few.
    """
    scores = score_all(
        model,
        data,
        [scorer],
        options=options,
        seed=seed,
        workers=workers,
        example=example,
        logits=logits,
        progress=progress,
        **settings,
    )
    return next(iter(scores.values()))


def score_all(
    model: nn.Module,
    data: Images | None,
    scorers: Scorers,
    *,
    options: ScoreOptions | None = None,
    seed: int = 0,
    workers: int = 0,
    example: Inputs | None = None,
    logits: Logits | None = None,
    progress: Progress | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> dict[str, Scores]:
    """Score every unit of `model` with several scorers that share one pass over the images.

    Args:
        model: Any network.
        data: As in `score`.
        scorers: A list of what `score` takes; or label -> that, which tells two settings of one scorer apart.
        options: As in `score`.
        seed: As in `score`.
        workers: As in `score`.
        example: As in `score`.
        logits: As in `score`.
        progress: As in `score`.
        folder: Folder in which the scores are stored, in folder/<label>, with a snapshot of an unfinished pass. A call
            for the same model, images and settings uses the stored scores and continues the unfinished pass, with the
            same result to the bit. Needs a data set.
        settings: As in `score`.

    Returns:
        Label, or name of the scorer -> scores.

    Raises:
        InputError: An option is out of range, a scorer cannot score a layer, or `folder` holds scores of another
            model, other images or other settings.
        DataError: Images are missing or too few.
        CheckpointError: Scores in `folder` are damaged.
    """
    choice = validate_options(ScoreOptions, options, **settings)
    resolved = _resolve_scorers(scorers)
    require_module(model)
    model = unwrap(model, example)
    require_float(model)
    require_sound_weights(model)
    seed = validate_value(Seed, seed, "seed")
    workers = validate_value(Workers, workers, "workers")
    if progress is not None and not callable(progress):
        raise InputError(f"progress is a {type(progress).__name__}; it must be a function")
    if logits is not None and not callable(logits):
        raise InputError(f"logits is a {type(logits).__name__}; it must be a function of what the model returns")
    if example is not None:
        require_example(example)
    linear_scorer = None if choice.linear_scorer is None else resolve_scorer(choice.linear_scorer, seed=seed)
    all_scorers = resolved if linear_scorer is None else resolved | {str(choice.linear_scorer): linear_scorer}
    readers = [label for label, scorer in all_scorers.items() if scorer.needs_data]
    if readers and data is None:
        raise InputError(f"scorer {readers[0]!r} needs images: pass data=")
    data_set = _require_data_set(data, readers if folder is not None else ())
    if isinstance(data, DataLoader) and data.batch_size is not None:
        choice = dataclasses.replace(choice, batch_size=data.batch_size)
    read, chosen = None, ImageList()
    if readers and data is not None:
        sample = (choice.classes, choice.samples, seed)
        read = functools.partial(select_batches, data, *sample, batch_size=choice.batch_size, workers=workers)
        # Without `targets` the labels cost a reading of all images, so they are looked up only if they are needed.
        is_needed = (choice.classes, choice.samples, folder) != (None, None, None)
        if data_set is not None and (has_labels(data_set) or is_needed):
            chosen = ImageList.from_data(data_set, choose_images(data_set, *sample))
    if example is None:
        example = _find_example(all_scorers, data, read)
    with restoring_state(model):
        inputs = ScoringInputs.prepare(model, example, choice, read, chosen, logits, linear_scorer)
        divisions = {label: inputs.divide(scorer) for label, scorer in resolved.items()}
        parts = [part for division in divisions.values() for part in division.parts]
        if any(part.scorer.needs_gradients for part in parts):
            inputs.require_logits()
        for label, division in divisions.items():
            _warn_of(label, division, are_named=inputs.are_named)
        for part in parts:
            with explain_faults(part.scorer):
                part.scorer.check(part.layers, inputs.n_images, chosen.labels)
        if folder is None:
            return score_pending(inputs, resolved, class_names(data), choice.batch_size, None, progress)
        return score_into(Path(folder), inputs, resolved, class_names(data), choice.batch_size, progress)


def _require_data_set(data: Images | None, stored: Sequence[str]) -> Dataset[Any] | None:
    """Return the data set that images come from; None for ready batches, which have no scorers whose scores are stored.

    Raises:
        InputError: Scores on ready batches are to be stored.
    """
    data_set = data_set_of(data)
    if stored and data_set is None:
        raise InputError(
            "folder= needs a data set; ready batches have no names to know them by, but for a DataLoader that reads a "
            "data set in its order"
        )
    return data_set


def _warn_of(label: str, division: Division, *, are_named: bool) -> None:
    """Warn of layers that have no scores, and of scores under a scorer's label of which none are the scorer's."""
    if division.left_out:
        warnings.warn(f"{label} leaves out {describe_faults(division.left_out)}", stacklevel=3)
    if not (division.own.layers or are_named) and division.rest is not None:
        linear = scorer_name(division.rest.scorer)
        warnings.warn(f"{label} can score no layer: all scores under this label are those of {linear}", stacklevel=3)


def check_scorer(
    scorer: Scorer,
    model: nn.Module,
    layers: Sequence[Layer],
    example: Tensor,
    images: int,
    labels: set[int],
    linear_scorer: Scorer | None = None,
    *,
    are_named: bool = False,
) -> None:
    """Raise the error that `scorer` would have for these layers, before any image is read.

    Args:
        scorer: The scorer.
        model: The network.
        layers: The layers to score.
        example: One image (1, channels, height, width).
        images: Number of images.
        labels: Labels that occur.
        linear_scorer: What scores the layers that `scorer` leaves out; None for nothing.
        are_named: Whether the user named the layers, so that none may be left out.

    Raises:
        InputError: The scorer cannot score a layer.
    """
    check_settings(scorer)
    for part in divide_layers(scorer, layers, linear_scorer, are_named=are_named).parts:
        with explain_faults(part.scorer):
            part.scorer.check(part.layers, images, labels)
            if part.scorer.needs_data:
                part.scorer.observed_layers(model, part.layers, example)
                continue
            results = part.scorer.score(model, part.layers, {}, example)
        collect_arrays(part.scorer, part.layers, results, 0)


def _find_example(
    scorers: Mapping[str, Scorer], data: Images | None, read: Callable[..., Batches] | None
) -> Inputs | None:
    """Return the first image that is read; None where no scorer needs to see the network run."""
    if read is not None:
        return first_image(read(batch_size=1, workers=0))
    tracers = [label for label, scorer in scorers.items() if scorer.needs_example]
    if not tracers:
        return None
    if data is None:
        raise InputError(f"scorer {tracers[0]!r} looks at the network as it runs: pass example=, zeros will do")
    return first_image(select_batches(data, batch_size=1))


def _resolve_scorers(scorers: Scorers) -> dict[str, Scorer]:
    """Return label -> scorer; where no labels are given, the names of the scorers are the labels."""
    if not isinstance(scorers, Sequence | Mapping) or isinstance(scorers, str) or not scorers:
        raise InputError(f"scorers is {scorers!r}; it must be a list of scorers, or label -> scorer")
    labelled: dict[str, Scorer] = {}
    if isinstance(scorers, Mapping):
        labelled = {label: resolve_scorer(scorer) for label, scorer in scorers.items()}
    else:
        for scorer in map(resolve_scorer, scorers):
            name = scorer_name(scorer)
            if name in labelled:
                raise InputError(f"scorer {name!r} is given twice: give each a label, {{label: scorer}}")
            labelled[name] = scorer
    for scorer in labelled.values():
        check_settings(scorer)
    return labelled
