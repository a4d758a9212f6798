"""prune-fe export: write a network as one file that runs without prune_fe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prune_fe.cli.inputs import new_output
from prune_fe.cli.networks import load, use_threads
from prune_fe.cli.output import print_json, reporter, text_to_stderr
from prune_fe.cli.parameters import DataFlags, Json, ModelFlags, Threads

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


def export(
    *,
    model: ModelFlags,
    format: Literal["onnx", "torch-export"] = "onnx",
    output: Path | None = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write a network as one file that runs without prune_fe, for batches of any size, and check it.

    The file is read back, and the largest difference between its outputs and the network's on random images is printed.

    Args:
        format: onnx: for onnxruntime and others (pip install 'prune-fe[export]'); torch-export: for torch.export.load.
        output: A new file; default: the model's name with .onnx or .pt2, in this folder.
    """
    text_to_stderr(json)
    output = output or Path(Path(model.model).resolve().name + SUFFIXES[format])
    with new_output(output):
        from prune_fe.models.export import export as export_network

        use_threads(threads)
        loaded = load(model, DataFlags(), "cpu", seed=0)
        size = loaded.example.shape[-1]
        exported = export_network(loaded.network, output, loaded.example, format, about=loaded.notes | {"size": size})
    beside = f" (weights in {exported.weights})" if exported.weights else ""
    *few, most = exported.batches
    reporter.say(
        f"{output}{beside}: {exported.bytes / 2**20:.2f} MiB, batches of {', '.join(map(str, few))} and {most} images: "
        f"maximum difference {exported.max_difference:.2g}, {exported.relative_difference:.2g} of the largest logit"
    )
    if json:
        differences = {name: getattr(exported, name) for name in ("max_difference", "relative_difference")}
        print_json(
            {"model": model.model, "output": str(output), "format": format, "bytes": exported.bytes} | differences
        )
