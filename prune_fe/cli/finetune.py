"""prune-fe finetune: train a network."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from prune_fe.cli.inputs import new_output, require_data, require_new
from prune_fe.cli.networks import Loaded, data_words, is_saved, load, read_notes, use_threads
from prune_fe.cli.output import console, noting_warnings, print_json, reporter, say_next, text_to_stderr
from prune_fe.cli.parameters import (
    Device,
    Json,
    ModelFlags,
    NewFolder,
    RequiredDataFlags,
    Seed,
    Several,
    Threads,
    Workers,
)
from prune_fe.errors import InputError, PruneFEError
from prune_fe.experiment.recipe import MAY_HAVE_SEEN, held_out_images
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
    threads: Threads = None,
    seed: Seed = 0,
    output: NewFolder = Path("finetuned"),
    checkpoints: Path | None = None,
    teacher: str | None = None,
    log: Annotated[list[Literal["tensorboard", "wandb"]] | None, Several] = None,
    json: Json = False,
) -> None:
    """Train a network on train/ and keep its best epoch on images held out from train/ (or on --validation PATH).

    The same command continues a training that was interrupted after its last epoch: the file OUTPUT.unfinished holds it
    until the network is saved. With torchrun (torchrun --nproc-per-node=8 -m prune_fe finetune ...) or accelerate
    launch, each process has a GPU of its own, or a share of the CPUs, and a share of each batch.

    Args:
        seed: Seed with which the held-out images, and the order of the others in each epoch, are drawn.
        checkpoints: A new folder for the weights before training and after each epoch, to score with
            `prune-fe score --from-checkpoints`.
        teacher: Learn from this network too, such as the unpruned one: a folder that prune_fe saved, or a name, whose
            trained weights are downloaded. See --distill-weight.
        log: Write the epochs for TensorBoard too, to OUTPUT.tensorboard, or send them to Weights & Biases. They are
            always in OUTPUT/epochs.csv.
    """
    text_to_stderr(json)
    if options.distill is not None and teacher is None:
        raise InputError("--distill-weight and --distill-temperature need --teacher")
    require_data(data.data)
    from prune_fe.distributed import from_rank_0, process_group, rank

    unfinished = output.with_name(f"{output.name}.unfinished")
    use_threads(threads)
    with process_group(), ExitStack() as stack:
        is_first = rank() == 0
        console.quiet = console.quiet or not is_first
        # Process 0 alone writes; an error of it ends the others too.
        from_rank_0(lambda: _claim(stack, output, checkpoints, unfinished))
        loaded = load(model, data, device, seed, new_classifier=True)
        assert loaded.images is not None
        if model.checkpoint is not None and loaded.images.holds_out_of_train:
            reporter.say(
                f"note: {model.checkpoint} {MAY_HAVE_SEEN}; --validation PATH reads others, and --validation-from test "
                "takes them out of val/"
            )
        history = _train(
            loaded,
            options,
            workers,
            seed,
            checkpoints if is_first else None,
            teacher,
            unfinished,
            log if is_first else [],
        )
        ignore_signals()
        from_rank_0(lambda: _save(loaded, model, seed, output, history, unfinished))
    reporter.say(f"epoch {_kept(history, options).number} is kept: {output}   (its epochs: {output / 'epochs.csv'})")
    say_next("evaluate", "--model", output, *data_words(data))
    if json and is_first:
        epochs = [dataclasses.asdict(epoch) for epoch in history]
        print_json({"output": str(output), "kept": _kept(history, options).number, "epochs": epochs})


def _claim(stack: ExitStack, output: Path, checkpoints: Path | None, unfinished: Path) -> None:
    """Claim what is written until the stack is closed."""
    stack.enter_context(new_output(output))
    stack.enter_context(_checkpoint_folder(checkpoints, unfinished))
    if unfinished.exists():
        reporter.say(f"{unfinished} holds an unfinished training; it goes on if nothing has changed")


def _kept(history: Sequence[Epoch], options: TrainOptions) -> Epoch:
    from prune_fe.training.loop import kept_epoch

    return kept_epoch(history, options)


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


def _save(
    loaded: Loaded, model: ModelFlags, seed: int, output: Path, history: Sequence[Epoch], unfinished: Path
) -> None:
    """Save the network with the classes and the preprocessing of its images, and which of them it has not seen."""
    from prune_fe.models.saved import save
    from prune_fe.training.loggers import write_epochs

    assert loaded.splits is not None
    assert loaded.images is not None
    held_out = held_out_images(loaded.images, seed)
    has_held_out = model.checkpoint is None and loaded.notes.get("held_out", held_out) == held_out
    if is_saved(model.model):
        has_held_out = has_held_out and "held_out" in loaded.notes
    notes = {key: value for key, value in loaded.notes.items() if key != "held_out"} | loaded.splits.about
    save(loaded.network, output, notes | ({"held_out": held_out} if has_held_out else {}))
    write_epochs(output / "epochs.csv", history)
    unfinished.unlink(missing_ok=True)


def _train(
    loaded: Loaded,
    options: TrainOptions,
    workers: int,
    seed: int,
    checkpoints: Path | None,
    teacher: str | None,
    unfinished: Path,
    log: Sequence[str] | None,
) -> list[Epoch]:
    """Train the network in place, write its checkpoints and print its epochs, and return these."""
    from prune_fe.models.checkpoints import save_weights
    from prune_fe.training.loggers import make_logger
    from prune_fe.training.loop import finetune as train
    from prune_fe.training.recalibration import has_batch_norms
    from prune_fe.training.schedule import complete

    network, splits = loaded.network, loaded.splits
    assert splits is not None
    taught_by = None if teacher is None else _load_teacher(teacher, splits).to(next(network.parameters()).device)
    if checkpoints is not None and not unfinished.exists():
        save_weights(network, checkpoints / "epoch-000.pth")
    n_steps = math.ceil(len(splits.train) / options.batch_size)  # type: ignore[arg-type]
    output = unfinished.with_name(unfinished.name.removesuffix(".unfinished"))
    settings = dataclasses.asdict(complete(options, n_steps, has_batch_norms(network)))
    reporter.say(_describe(settings, n_steps))
    with reporter.showing(), noting_warnings(reporter.say), ExitStack() as stack:
        logs = [make_logger(kind, output, settings) for kind in log or ()]
        for each in logs:
            stack.callback(each.close)
        update_bar = reporter.progress("fine-tuning")

        def show(epoch: Epoch | None, step: int, total: int) -> None:
            update_bar(step, total)
            if epoch is None:
                return
            first, last = f"{epoch.first_learning_rate:.2g}", f"{epoch.learning_rate:.2g}"
            reporter.say(
                f"epoch {epoch.number}: lr {first if first == last else f'{first} to {last}'}, training loss "
                f"{epoch.train_loss:.4f}, validation accuracy {epoch.validation_accuracy:.2%}, {epoch.seconds:.1f} s"
            )
            if checkpoints is not None:
                save_weights(network, checkpoints / f"epoch-{epoch.number:03}.pth")

        return train(
            network,
            splits.train,
            splits.validation,
            options=options,
            workers=workers,
            seed=seed,
            progress=show,
            teacher=taught_by,
            unfinished=unfinished,
            on_epoch=logs,
        )


def _describe(settings: Mapping[str, Any], n_steps: int) -> str:
    """Return how a network is trained, with the values that the number of images decides.

    Args:
        settings: The options of training.
        n_steps: Steps of an epoch.
    """
    n_epochs = settings["epochs"]
    epochs = "epochs until the final learning rate" if n_epochs is None else f"{n_epochs} epoch{'s' * (n_epochs > 1)}"
    warmup = f", warm-up {settings['warmup']:.0%}" if settings["warmup"] else ""
    return (
        f"{epochs}, each of {n_steps} steps of {settings['batch_size']} images; {settings['opt']}, learning rate "
        f"{settings['lr']:g} ({settings['schedule']}{warmup})"
    )


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
