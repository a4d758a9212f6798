"""prune-fe finetune: train a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prune_fe.cli.inputs import require_data, require_new
from prune_fe.cli.networks import is_saved, load, read_notes
from prune_fe.cli.output import reporter, say_next
from prune_fe.cli.parameters import Device, ModelFlags, NewFolder, RequiredDataFlags, Seed, Workers
from prune_fe.errors import InputError
from prune_fe.training.options import TrainOptions

if TYPE_CHECKING:
    from torch import nn

    from prune_fe.data.splits import Splits
    from prune_fe.training.loop import Epoch


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

    Args:
        seed: Seed with which the held-out images, and the order of the others in each epoch, are drawn.
        checkpoints: A new folder for the weights before training and after each epoch, to score with
            `prune-fe score --from-checkpoints`.
        teacher: Learn from this network too, such as the unpruned one: a folder that prune_fe saved, or a name, whose
            trained weights are downloaded. See --distill-weight.
    """
    if options.distill is not None and teacher is None:
        raise InputError("--distill-weight and --distill-temperature need --teacher")
    require_new(output)
    if checkpoints is not None:
        require_new(checkpoints)
    require_data(data.data)
    from prune_fe.models.checkpoints import save_weights
    from prune_fe.models.saved import save
    from prune_fe.training.loop import best_epoch
    from prune_fe.training.loop import finetune as train

    loaded = load(model, data, device, seed, new_classifier=True)
    network, splits = loaded.network, loaded.splits
    assert splits is not None
    taught_by = None if teacher is None else _load_teacher(teacher, splits).to(next(network.parameters()).device)
    if checkpoints is not None:
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
        )
    save(network, output, loaded.notes | splits.about)
    reporter.say(f"epoch {best_epoch(history).number} is kept: {output}")
    say_next("evaluate", "--model", output, "--data", data.data)


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
