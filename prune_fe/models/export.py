"""A network as one file that runs without prune_fe: ONNX for onnxruntime and others, .pt2 for plain torch."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prune_fe.errors import InputError, first_line
from prune_fe.file_types import require_path
from prune_fe.io import new_files
from prune_fe.options import Threads, validate_value
from prune_fe.tracing.copying import convert, copy_model
from prune_fe.tracing.nested import (
    Inputs,
    as_arguments,
    compare_outputs,
    count_rows,
    describe,
    draw_like,
    has_rows,
    leaves,
    run,
    take_rows,
    tensors_in,
)
from prune_fe.tracing.weights import require_example, require_sound_weights

Format = Literal["onnx", "torch-export"]

SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
"""The suffix that a file of each format must have."""

TOLERANCES: Mapping[Format, float] = {"onnx": 1e-3, "torch-export": 1e-5}
"""Largest allowed difference between the file's logits and the model's, as a share of the largest absolute logit."""

BATCHES = (1, 2, 5)
"""The batch sizes that an exported file is tried with."""

ONE_FILE = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold: protobuf ends at 2 GiB, and the graph needs some of it."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and how far its outputs are from the model's on random inputs.

    Where there are several outputs, the one that differs most counts.

    Attributes:
        path: The file.
        format: Its format.
        max_difference: The largest absolute difference of a logit or other output, over all batch sizes in `batches`.
        largest_logit: The largest absolute value of this output that the model returns for the same inputs.
        batches: The batch sizes that were tried. Only one, if the example is a list of images, and the file is for as
            many images, or if its tensors have different first sizes, and the file is for these sizes.
        bytes: Size on the disk, of all files.
        opset: The version of ONNX's operators; None for other formats.
        weights: The file beside `path` that holds the weights, if one ONNX file cannot hold them.
    """

    path: Path
    format: Format
    max_difference: float
    largest_logit: float
    batches: tuple[int, ...]
    bytes: int
    opset: int | None = None
    weights: Path | None = None

    @property
    def relative_difference(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.max_difference / self.largest_logit if self.largest_logit else 0.0


def export(
    model: nn.Module,
    path: str | Path,
    example: Inputs,
    format: Format = "onnx",
    *,
    about: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> Exported:
    """Write a float32 CPU copy of a network, in evaluation mode and for batches of any size, to a new file.

    The file is read back, by onnxruntime or torch.export.load, and run beside the copy on seeded random images. No
    file remains if it is refused.

    Args:
        model: The network; it is not changed.
        path: The file, which must not exist, ending in .onnx or .pt2.
        example: (images, channels, height, width), a tuple of positional arguments, or a dict of keyword arguments. Of
            floating-point tensors only the shape is used: the file is for images of this size. In an ONNX file the
            inputs are named "images" or after the arguments, and the outputs "logits" or after their keys. If the
            network returns anything else than a tensor, the file returns a tuple of the tensors in it.
        format: "onnx", or "torch-export" for plain torch.
        about: Anything worth keeping that JSON can express: metadata "about" of an ONNX file, extra file about.json
            of a .pt2 file.
        threads: Threads of onnxruntime.

    Raises:
        InputError: The network cannot be traced, its outputs are not finite, or the file's outputs differ from them
            by more than TOLERANCES allows.
        EnvironmentFault: The file cannot be written.
    """
    path = require_path(path)
    require_sound_weights(model)
    threads = validate_value(Threads, threads, "threads")
    _require_valid(path, example, format)
    facts = {"producer": f"prune_fe {metadata.version('prune-fe')}", "input": _describe_shapes(example)}
    notes = json.dumps(facts | dict(about or {}))
    twin = convert(copy_model(model), "cpu", torch.float32).eval().requires_grad_(False)
    batches = BATCHES if _has_batch(example) else (count_rows(example),)
    random = torch.Generator().manual_seed(0)
    inputs = [draw_like(take_rows(example, batch), random, torch.float32) for batch in batches]
    expected = [_run_checked(twin, batch) for batch in inputs]
    traced = twin if isinstance(expected[0], Tensor) else _TupleOfTensors(twin)
    signature = _Signature.of(twin, traced, example, expected[0])
    program = _trace(traced, signature, example)
    with new_files(path, sum(weight.nbytes for weight in program.state_dict.values())) as file:
        opset = None
        if format == "onnx":
            opset = _write_onnx(program, file, notes, signature)
        else:
            _write_pt2(program, file, notes)
        try:
            call = _load_onnx(file, threads, signature) if format == "onnx" else partial(run, _load_pt2(file))
            outputs = [call(batch) for batch in inputs]
        except Exception as error:  # Each runtime has errors of its own.
            raise InputError(f"{path}: the exported graph does not run ({first_line(error)})") from error
        difference, largest = _max_difference(outputs, expected)
        if not difference <= TOLERANCES[format] * largest:
            raise InputError(
                f"{path}: the exported graph is not the model: logits differ by {difference:.2g}, allowed are "
                f"{TOLERANCES[format]:g} of the largest, {largest:.2g}"
            )
        written = sorted(file.parent.iterdir())
        size = sum(part.stat().st_size for part in written)
    weights = next((path.with_name(part.name) for part in written if part != file), None)
    return Exported(path, format, difference, largest, batches, size, opset, weights)


def _require_valid(path: Path, example: Inputs, format: Format) -> None:
    """Refuse a wrong path, format or example, and a package that is missing, before any work is done."""
    if format not in SUFFIXES:
        raise InputError(f"format is {format!r}, allowed are {', '.join(SUFFIXES)}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another path")
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"{path}: a file of format {format!r} must end in {SUFFIXES[format]}")
    require_example(example)
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError:
            raise InputError(f"format 'onnx' needs {package}: pip install 'prune-fe[export]'") from None


@dataclass(frozen=True)
class _Signature:
    """How a graph is called.

    Attributes:
        inputs: Names of the tensors that it reads.
        outputs: Names of the tensors that it returns.
        dynamic_shapes: Parameter of the network's `forward` -> which sizes are those of the batch.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_shapes: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, traced: nn.Module, example: Inputs, output: Any) -> Self:
        """Return the signature of a network.

        Args:
            model: The network, whose arguments give the inputs their names.
            traced: The network, or a `_TupleOfTensors` around it, that is traced.
            example: Its inputs.
            output: What it returns for them.
        """
        positional, named = as_arguments(example)
        arguments, traced_arguments = (
            inspect.signature(module.forward).bind(*positional, **named).arguments for module in (model, traced)
        )
        sizes = {0: torch.export.Dim("batch")} if _has_batch(example) else {}
        return cls(
            inputs=("images",) if isinstance(example, Tensor) else _names(arguments, "input"),
            outputs=("logits",) if isinstance(output, Tensor) else _names(output, "output"),
            dynamic_shapes={
                name: tree_map(lambda leaf: sizes if isinstance(leaf, Tensor) else None, value)
                for name, value in traced_arguments.items()
            },
        )


class _TupleOfTensors(nn.Module):
    """Collect the tensors that a network returns in a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *positional: Any, **named: Any) -> tuple[Tensor, ...]:
        return tuple(tensors_in(self.network(*positional, **named)))


def _names(values: Any, kind: str) -> tuple[str, ...]:
    """Return a name for each tensor in nested values, made of the keys and numbers of its path."""
    paths = [re.sub(r"\W+", "_", path).strip("_") for path, leaf in leaves(values) if isinstance(leaf, Tensor)]
    return tuple(path if path[:1].isalpha() else f"{kind}_{path}" for path in paths)


def _has_batch(example: Inputs) -> bool:
    """Return whether a file can be for batches of any size: not where a list holds the images one by one."""
    return has_rows(example) and not isinstance(example, list)


def _describe_shapes(example: Inputs) -> Any:
    """Return the shapes of an example's tensors, with "batch" for the number of images."""
    first = ["batch"] if _has_batch(example) else []
    shapes = {path: [*first, *leaf.shape[len(first) :]] for path, leaf in leaves(example) if isinstance(leaf, Tensor)}
    return shapes[""] if isinstance(example, Tensor) else shapes


def _run_checked(model: nn.Module, inputs: Inputs) -> Any:
    """Return what a network returns, which must hold tensors, and only finite ones."""
    name = type(model).__name__
    try:
        with torch.no_grad():
            output = run(model, inputs)
    except Exception as error:  # Networks raise what they like at a wrong input.
        raise InputError(f"{name} does not run on an input of {describe(inputs)}: {first_line(error)}") from error
    if not tensors_in(output):
        raise InputError(f"{name} returns {describe(output)}; it must return tensors")
    if not all(tensor.isfinite().all() for tensor in tensors_in(output)):
        raise InputError(f"{name}: its outputs hold NaN or infinite values")
    return output


def _trace(model: nn.Module, signature: _Signature, example: Inputs) -> torch.export.ExportedProgram:
    """Return the graph of a network, without its example and the paths of source files that torch stores in it."""
    # For a batch of one, torch.export would make the batch size a constant.
    rows = take_rows(example, 2) if _has_batch(example) else example
    positional, named = as_arguments(draw_like(rows, torch.Generator(), torch.float32))
    try:
        with _ignore_warnings(), torch.no_grad():
            program = torch.export.export(model, positional, named, dynamic_shapes=signature.dynamic_shapes)
    except Exception as error:  # Tracing runs the network's own code.
        raise InputError(f"{type(model).__name__} cannot be traced for any batch size: {first_line(error)}") from error
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _write_onnx(program: torch.export.ExportedProgram, file: Path, notes: str, signature: _Signature) -> int:
    """Write an ONNX file and return its opset; weights that one file cannot hold lie in a second one, NAME.data."""
    weights = sum(weight.nbytes for weight in program.state_dict.values())
    try:
        with _ignore_warnings(), torch.no_grad():
            names: Any = {"input_names": list(signature.inputs), "output_names": list(signature.outputs)}
            graph = torch.onnx.export(program, **names, dynamic_shapes=signature.dynamic_shapes, verbose=False)
    except Exception as error:  # Most often, an operator without a translation.
        raise InputError(f"the graph has no form in ONNX: {first_line(error)}") from error
    assert graph is not None
    graph.model.metadata_props["about"] = notes
    graph.save(file, external_data=weights > ONE_FILE)
    return graph.model.opset_imports[""]


def _write_pt2(program: torch.export.ExportedProgram, file: Path, notes: str) -> None:
    """Write a .pt2 file."""
    content = io.BytesIO()  # torch's own writer does not report a full disk.
    with _ignore_warnings():
        torch.export.save(program, content, extra_files={"about.json": notes})
    file.write_bytes(content.getbuffer())


def _load_onnx(file: Path, threads: int, signature: _Signature) -> Callable[[Inputs], list[Tensor]]:
    """Return the network of an ONNX file, run by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # Errors only.
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def call(inputs: Inputs) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(signature.inputs, tensors_in(inputs), strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(signature.outputs), feed)]

    return call


def _load_pt2(file: Path) -> nn.Module:
    """Return the network of a .pt2 file."""
    with _ignore_warnings():
        return torch.export.load(file).module()


def _max_difference(outputs: Sequence[Any], expected: Sequence[Any]) -> tuple[float, float]:
    """Return the largest absolute difference of the outputs and their largest absolute expected value.

    The difference is infinite if a shape differs, and NaN if an output is.

    Args:
        outputs: What the graph returned for each batch, as a list of tensors.
        expected: What the network returned.
    """
    pairs = [(tensors_in(ours), tensors_in(theirs)) for ours, theirs in zip(outputs, expected, strict=True)]
    if any([value.shape for value in ours] != [value.shape for value in theirs] for ours, theirs in pairs):
        return float("inf"), 0.0
    differences = [compare_outputs(ours, theirs, "the graph") for ours, theirs in pairs]
    if any(math.isnan(difference) for difference, _ in differences):
        return math.nan, 0.0
    return max(difference for difference, _ in differences), max(largest for _, largest in differences)


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Ignore warnings in the block: torch's exporters warn about torch itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
