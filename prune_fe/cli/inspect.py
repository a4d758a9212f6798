"""prune-fe inspect: what can be removed from a network, before anything is scored."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from prune_fe.cli.inputs import new_output
from prune_fe.cli.networks import load, use_threads
from prune_fe.cli.output import console, print_json, reporter, text_to_stderr
from prune_fe.cli.parameters import DataFlags, Device, Json, ModelFlags, Threads
from prune_fe.errors import InputError
from prune_fe.io import write_json

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SUFFIXES = (".csv", ".json")


def inspect(
    model: Annotated[str, Parameter(name=["model", "--model"])],
    *,
    checkpoint: Path | None = None,
    num_classes: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=10**6))] = None,
    size: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=2**13))] = None,
    output: Path | None = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Print the layers of a network, what can be removed of each, what not and why, and what each costs.

    Nothing is scored, no images are needed, and the values of the weights do not matter. Units of tied layers are
    removed together or not at all; those of linear layers and gates only if they are scored (prune-fe score --linear).

    Args:
        model: vgg-small, a torchvision or timm name, or a folder that prune_fe saved.
        checkpoint: A file of weights for the model.
        num_classes: Outputs of a model built by name; default: the outputs of --checkpoint, or 1000.
        size: Height and width of the images; default: the saved model's, or 224.
        output: Write the table to this new file as well, .csv or .json, with all columns of prune_fe.inspect.
    """
    text_to_stderr(json)
    if output is not None and output.suffix not in SUFFIXES:
        raise InputError(f"--output {output}: allowed are names that end in {' or '.join(SUFFIXES)}")
    with ExitStack() as stack:
        if output is not None:
            stack.enter_context(new_output(output))
        from prune_fe.pruning.inspection import inspect as inspect_network
        from prune_fe.report.console import inspection_table, list_reasons

        flags = ModelFlags(model=model, checkpoint=checkpoint, num_classes=num_classes, size=size)
        use_threads(threads)
        loaded = load(flags, DataFlags(), device, seed=0)
        table = inspect_network(loaded.network, loaded.example)
        if output is not None:
            _write(output, table, model, loaded.example)
    reporter.say(f"{model} on images of {'×'.join(map(str, loaded.example.shape[1:]))}")
    console.print(inspection_table(table))
    for line in list_reasons(table):
        reporter.say(line)
    if output is not None:
        reporter.say(f"table: {output}")
    if json:
        print_json(_content(table, model, loaded.example) | {"output": None if output is None else str(output)})


def _write(output: Path, table: pd.DataFrame, model: str, example: Tensor) -> None:
    """Write the table, whole or not at all."""
    from prune_fe.report.tables import write_frame

    if output.suffix == ".csv":
        write_frame(output, table)
        return
    write_json(output, _content(table, model, example))


def _content(table: pd.DataFrame, model: str, example: Tensor) -> dict[str, Any]:
    """Return the table as the content of a JSON file."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return {"model": model, "image": list(example.shape[1:]), "layers": rows}
