"""prune-fe finetune: train a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prune_fe.cli.inputs import new_output, require_data, require_new
from prune_fe.cli.networks import Loaded, is_saved, load, read_notes
from prune_fe.cli.output import reporter, say_next
from prune_fe.cli.parameters import Device, ModelFlags, NewFolder, RequiredDataFlags, Seed, Workers
from prune_fe.errors import InputError, PruneFEError
from prune_fe.io import claimed, explain_disk_errors, new_folder
from prune_fe.signals import ignore_signals
from prune_fe.training.options import TrainOptions

if TYPE_CHECKING:
    from torch import nn

    from prune_fe.data.splits import Splits
    from prune_fe.training.loop import Epoch


MARKER = ".unfinished"
"""A file in the folder of the checkpoints that says that the training has not ended."""


def finetune(
    *,
    model: ModelFlags,
    data: RequiredDataFlags,
    options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),
    workers: Workers = 0,
    device: Device = "auto",
    seed: Seed = 0,
    output: NewFolder = Path("finetuned"),
    checkpoints: Path | None = None,
    teacher: str | None = None,
) -> None:
    """Train a network on train/ and keep its best epoch on images held out from train/.

    The same command continues a training that was interrupted after its last epoch: the file OUTPUT.unfinished holds it
    until the network is saved.

    Args:
        seed: Seed with which the held-out images, and the order of the others in each epoch, are drawn.
        checkpoints: A new folder for the weights before training and after each epoch, to score with
            `prune-fe score --from-checkpoints`.
        teacher: Learn from this network too, such as the unpruned one: a folder that prune_fe saved, or a name, whose
            trained weights are downloaded. See --distill-weight.
    """
    if options.distill is not None and teacher is None:
        raise InputError("--distill-weight and --distill-temperature need --teacher")
    require_data(data.data)
    unfinished = output.with_name(f"{output.name}.unfinished")
    with new_output(output), _checkpoint_folder(checkpoints, unfinished):
        if unfinished.exists():
            reporter.say(f"{unfinished} holds an unfinished training; it goes on if nothing has changed")
        loaded = load(model, data, device, seed, new_classifier=True)
        epoch = _train(loaded, options, workers, seed, checkpoints, teacher, unfinished)
        ignore_signals()
        _save(loaded, output)
        unfinished.unlink(missing_ok=True)
    reporter.say(f"epoch {epoch.number} is kept: {output}")
    say_next("evaluate", "--model", output, "--data", data.data)


@contextmanager
def _checkpoint_folder(folder: Path | None, unfinished: Path) -> Iterator[None]:
    """Claim the folder of the checkpoints until the block ends: a new one, or that of an unfinished training.

    Args:
        folder: The folder; None for no checkpoints.
        unfinished: The file of the unfinished training, which may exist.

    Raises:
        InputError: The folder exists, or is not that of the unfinished training.
    """
    if folder is None:
        yield
        return
    marker = folder / MARKER
    if unfinished.exists() and not marker.exists():
        raise InputError(
            f"--checkpoints {folder}: the unfinished training in {unfinished} wrote none there; name its folder, or "
            f"delete {unfinished} to begin again"
        )
    if not marker.exists():
        require_new(folder)
    with claimed(folder):
        with explain_disk_errors(folder):
            if not folder.exists():
                with new_folder(folder) as new:
                    (new / MARKER).touch()
        try:
            yield
        except PruneFEError:
            if not unfinished.exists():  # no epoch has been finished
                shutil.rmtree(folder)
            raise
        marker.unlink()


def _save(loaded: Loaded, output: Path) -> None:
    from prune_fe.models.saved import save

    assert loaded.splits is not None
    save(loaded.network, output, loaded.notes | loaded.splits.about)


def _train(
    loaded: Loaded,
    options: TrainOptions,
    workers: int,
    seed: int,
    checkpoints: Path | None,
    teacher: str | None,
    unfinished: Path,
) -> Epoch:
    """Train the network in place, write its checkpoints and print its epochs, and return the best one."""
    from prune_fe.models.checkpoints import save_weights
    from prune_fe.training.loop import finetune as train
    from prune_fe.training.loop import kept_epoch

    network, splits = loaded.network, loaded.splits
    assert splits is not None
    taught_by = None if teacher is None else _load_teacher(teacher, splits).to(next(network.parameters()).device)
    if checkpoints is not None and not unfinished.exists():
        save_weights(network, checkpoints / "epoch-000.pth")
    with reporter.showing():
        update_bar = reporter.progress("fine-tuning")

        def show(epoch: Epoch | None, step: int, total: int) -> None:
            update_bar(step, total)
            if epoch is None:
                return
            reporter.say(
                f"epoch {epoch.number}: lr {epoch.learning_rate:.2g}, training loss {epoch.train_loss:.4f}, "
                f"validation accuracy {epoch.validation_accuracy:.2%}, {epoch.seconds:.1f} s"
            )
            if checkpoints is not None:
                save_weights(network, checkpoints / f"epoch-{epoch.number:03}.pth")

        history = train(
            network,
            splits.train,
            splits.validation,
            options=options,
            workers=workers,
            seed=seed,
            progress=show,
            teacher=taught_by,
            unfinished=unfinished,
        )
    return kept_epoch(history, options)


def _load_teacher(teacher: str, splits: Splits) -> nn.Module:
    """Return the network of --teacher: a saved one, or one built by name with the library's trained weights."""
    from prune_fe.models.build import build_pretrained
    from prune_fe.models.saved import load as load_saved

    classes = list(splits.classes)
    if is_saved(teacher):
        known = read_notes(teacher).get("classes", classes)
        if list(known) != classes:
            raise InputError(f"--teacher {teacher} has the classes {', '.join(known[:5])}, … and not those of the data")
        return load_saved(teacher)
    network, renewed = build_pretrained(teacher, len(classes), in_channels=splits.channels)
    if renewed:
        raise InputError(
            f"--teacher {teacher}: its trained weights are for other classes than the {len(classes)} of the data; "
            "fine-tune it first, and give the folder"
        )
    return network
