"""The network, and the images if there are any, that a command without a recipe works on."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_fe.cli.images import choose_images, describe_images
from prune_fe.cli.output import reporter
from prune_fe.cli.parameters import ModelFlags, RequiredDataFlags
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.io import shorten
from prune_fe.models.manifest import is_saved

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prune_fe.data.options import DataOptions
    from prune_fe.data.splits import Splits
    from prune_fe.models.checkpoints import Checkpoint

DEFAULT_SIZE = 224
"""Height and width of the images where neither the user nor a saved model nor the data says them."""

RECALIBRATED = 500
"""Training images that the printed commands recalibrate batch norms on."""

DEFAULT_OUTPUTS = 1000
"""Outputs of a network built by name without data."""


@dataclass(frozen=True)
class Loaded:
    """The network and the images that a command's flags name.

    Attributes:
        network: The network, on its device.
        splits: The images; None without --data.
        example: One image (1, channels, height, width) that the network runs on; zeros without --data.
        notes: Notes that were saved with a saved model, such as its classes; for a model built by name, the classes
            that its checkpoint names, otherwise nothing.
        images: The section `data` of a recipe that reads the same images; None without --data.
    """

    network: nn.Module
    splits: Splits | None
    example: Tensor
    notes: dict[str, Any]
    images: DataOptions | None = None

    @property
    def transform(self) -> dict[str, Any]:
        """The entry `transform` of what scores depend on; there is none where images are resized to a square."""
        steps = None if self.splits is None else self.splits.steps
        if steps is None or not steps.keeps_shape:
            return {}
        return {"transform": json.loads(json.dumps(steps.about))}  # with lists, as it is read from a file


def load(model: ModelFlags, data: RequiredDataFlags, device: str, seed: int, *, new_classifier: bool = False) -> Loaded:
    """Build or load the network, read the images, and check that the network runs on them.

    Args:
        model: Which network.
        data: Which images; none without `data.data`.
        device: The device of the network.
        seed: Seed of the held-out images, and of the weights of a network that is built without a checkpoint.
        new_classifier: Whether layers of the classifier that trained weights do not fit are made anew, which makes
            sense for a command that trains.

    Raises:
        InputError: The flags contradict each other, or the network does not run on the images.
        DataError: Images are missing or unreadable, or of other classes than those that a saved model was trained on.
        CheckpointError: A saved model or state dict is damaged or belongs to another network or other classes.
    """
    from prune_fe.experiment.device import prepare_device, to_device
    from prune_fe.models.classifier import describe_renewed
    from prune_fe.models.preprocessing import known_preprocessing

    chosen, saved = prepare_device(device, None), is_saved(model.model)
    if saved and model.num_classes is not None:
        raise InputError(f"--num-classes is for a model built by name; {model.model} is a saved one")
    if Path(model.model).is_file():
        raise InputError(
            f"{model.model} is a file: say which network it is of with --model, and --checkpoint {model.model}"
        )
    notes = read_notes(model.model)
    renewed: list[str] = []
    network = _load_saved(model.model) if saved else None  # A damaged one is reported before images are read.
    checkpoint = _read_checkpoint(model, network)
    known = known_preprocessing(model.model, pretrained=model.pretrained)
    images = choose_images(model, data, notes, known)
    splits = None if images is None else _read_images(images, seed)
    if splits is not None:
        describe_images(splits, model, notes, known)
    elif known is not None and not saved:
        notes["preprocessing"] = known.at_size(model.size or DEFAULT_SIZE).about
    if network is None:
        network, renewed = _build(model, splits, seed, checkpoint)
    elif model.pretrained:
        raise InputError(f"--pretrained is for a model built by name; {model.model} is a saved one")
    if checkpoint is not None:
        renewed, summary = put_weights(network, checkpoint, model, splits, new_classifier=new_classifier)
        if summary:
            reporter.say(f"note: {summary}")
        if checkpoint.classes:
            notes["classes"] = list(splits.classes if splits else checkpoint.classes)
    if renewed:
        message = describe_renewed(str(model.checkpoint or f"the weights of {model.model}"), renewed)
        if not new_classifier:
            raise CheckpointError(f"{message}; prune-fe finetune trains them")
        reporter.say(f"note: {message}")
    network = to_device(network, chosen)
    size = model.size or int(notes.get("size", DEFAULT_SIZE))
    example = splits.test[0][0][None] if splits else _zeros(network, size)
    require_forward(network, example.to(chosen), model.model)
    if saved and splits is not None:
        _compare_classes(model, data, notes, splits, new_classifier)
    return Loaded(network, splits, example, notes, images)


def use_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; None leaves its choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def read_notes(model: str) -> dict[str, Any]:
    """Return the notes that were saved with a model; empty for one that is built by name."""
    from prune_fe.models.manifest import read_manifest

    notes = read_manifest(model).get("about") if is_saved(model) else None
    return notes if isinstance(notes, dict) else {}


def data_words(data: RequiredDataFlags) -> list[str]:
    """Return the flags that let another command read the same images."""
    return ["--data", data.data, *([] if data.source is None else ["--source", data.source])]


def recalibration_words(loaded: Loaded, data: RequiredDataFlags) -> list[str | int]:
    """Return the flags that let `prune-fe prune` recalibrate batch norms; [] for a network without, or no images."""
    from prune_fe.training.recalibration import has_batch_norms

    if data.data is None or loaded.splits is None or not has_batch_norms(loaded.network):
        return []
    # The number of training images depends on which are held out.
    own = ["--validation", data.validation] if isinstance(data.validation, str) else []
    n_images = min(RECALIBRATED, len(loaded.splits.train))  # type: ignore[arg-type]
    return [*data_words(data), *own, "--recalibrate", n_images]


def require_forward(network: nn.Module, example: Tensor, name: str) -> None:
    """Raise InputError, naming the network, if it does not run on `example`."""
    import torch

    from prune_fe.tracing.watching import evaluating

    try:
        with evaluating(network), torch.no_grad():
            network(example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # A network's own code raises anything on a wrong input.
        shape = "×".join(map(str, example.shape[1:]))
        raise InputError(f"{name} does not run on images of {shape}: {error}") from error


def layers_except(
    loaded: Loaded, layers: Sequence[str] | None, patterns: Sequence[str], *, linear: bool = False
) -> list[str]:
    """Return the names of the network's layers that match none of the patterns.

    Args:
        loaded: The network.
        layers: The names to choose from; None stands for every convolution.
        patterns: Shell patterns; each must match a layer.
        linear: Whether None stands for the linear layers too.
    """
    from prune_fe.tracing.layers import find_layers_with_units

    example = loaded.example.to(next(loaded.network.parameters()).device)
    names = [layer.name for layer in find_layers_with_units(loaded.network, example, layers, linear=linear)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"--except {pattern}: no layer has such a name; there are {', '.join(names)}")
    kept = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not kept:
        raise InputError("--except: no layer is left")
    return kept


def put_weights(
    network: nn.Module,
    source: Path | Checkpoint,
    model: ModelFlags,
    splits: Splits | None,
    *,
    new_classifier: bool = False,
) -> tuple[list[str], str | None]:
    """Read weights into a network, with its outputs in the order of the classes of the images.

    Args:
        network: The network.
        source: A file of weights, or what was read from it.
        model: Which network it is.
        splits: The images; None without --data.
        new_classifier: Whether layers of the classifier that the weights do not fit keep those that they have.

    Returns:
        The keys of the layers that the weights do not fit, and a line about what was left out (`Checkpoint.summary`).

    Raises:
        CheckpointError: The file is damaged, or belongs to another network or other classes.
    """
    from prune_fe.models.checkpoints import load_weights, read_checkpoint
    from prune_fe.models.outputs import find_output_keys, match_classes

    def find_keys() -> list[str]:
        # In a saved network, it is not known which layers depend on the classes.
        channels = splits.channels if splits else 3
        return [] if is_saved(model.model) else find_output_keys(model.model, in_channels=channels)

    checkpoint = read_checkpoint(source, network.state_dict().keys()) if isinstance(source, Path) else source
    if splits is not None:
        checkpoint = match_classes(checkpoint, splits.classes, find_keys, new_classifier=new_classifier)
    return load_weights(network, checkpoint, new_classifier=new_classifier), checkpoint.summary


def _read_checkpoint(model: ModelFlags, saved: nn.Module | None) -> Checkpoint | None:
    """Return what the file --checkpoint holds of the network; None without that flag."""
    if model.checkpoint is None:
        return None
    from prune_fe.models.checkpoints import read_checkpoint
    from prune_fe.models.outputs import build_weightless

    network = build_weightless(model.model) if saved is None else saved
    return read_checkpoint(model.checkpoint, network.state_dict().keys())


def _compare_classes(
    model: ModelFlags, data: RequiredDataFlags, notes: dict[str, Any], splits: Splits, new_classifier: bool
) -> None:
    """Compare the classes of the images with those of a saved model; others are refused, or noted in training.

    Raises:
        DataError: They are not.
    """
    from prune_fe.models.outputs import compare_classes

    known = list(notes.get("classes", splits.classes))
    if known == list(splits.classes):
        return
    message = (
        f"{data.data}: its classes are not those that {model.model} was trained on ({shorten(known, 5)}): "
        f"{compare_classes(known, splits.classes)}"
    )
    if not new_classifier:
        raise DataError(message)
    reporter.say(f"note: {message}")


def _load_saved(folder: str) -> nn.Module:
    from prune_fe.models.saved import load as load_saved

    return load_saved(folder)


def _read_images(images: DataOptions, seed: int) -> Splits:
    from prune_fe.data.registry import load_data

    return load_data(images, seed=seed, progress=reporter.progress("reading images"))


def _build(
    model: ModelFlags, splits: Splits | None, seed: int, checkpoint: Checkpoint | None
) -> tuple[nn.Module, list[str]]:
    """Return a network built by name, and the keys of its classifier that the library's weights do not fit.

    It has the outputs and input channels of the images, or else of the checkpoint.
    """
    import torch

    from prune_fe.models.build import build, build_pretrained
    from prune_fe.models.outputs import read_sizes

    told: tuple[int | None, int | None] = (len(splits.classes), splits.channels) if splits else (None, None)
    if splits is None and checkpoint is not None:
        told = read_sizes(model.model, checkpoint.state)
    outputs, channels = model.num_classes or told[0] or DEFAULT_OUTPUTS, told[1] or 3
    torch.manual_seed(seed)  # So that `score` and `prune` see the same weights where there is no checkpoint.
    if model.pretrained:
        return build_pretrained(model.model, outputs, in_channels=channels)
    network = build(model.model, outputs, in_channels=channels)
    if model.checkpoint is None:
        reporter.say(
            f"note: {model.model} starts with random weights; --checkpoint FILE or --pretrained read trained ones"
        )
    return network, []


def _zeros(network: nn.Module, size: int) -> Tensor:
    """Return an image of zeros with as many channels as the first convolution reads."""
    import torch

    first = next((m for m in network.modules() if isinstance(m, torch.nn.Conv2d)), None)
    if first is None:
        raise InputError(
            f"{type(network).__name__} has no nn.Conv2d that says how many channels its images have; pass images with "
            "--data, where the command takes it"
        )
    return torch.zeros(1, first.in_channels, size, size)
