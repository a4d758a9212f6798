"""A network as one file that runs without prune_fe: ONNX for onnxruntime and others, .pt2 for plain torch."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prune_fe.errors import InputError, first_line
from prune_fe.file_types import require_path
from prune_fe.io import new_files
from prune_fe.options import Threads, validate_value
from prune_fe.tracing.weights import require_example, require_sound_weights

Format = Literal["onnx", "torch-export"]

SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
"""The suffix that a file of each format must have."""

TOLERANCES: Mapping[Format, float] = {"onnx": 1e-3, "torch-export": 1e-5}
"""Largest allowed difference between the file's logits and the model's, as a share of the largest absolute logit."""

BATCHES = (1, 2, 5)
"""The batch sizes that an exported file is tried with."""

ANY_BATCH = ({0: torch.export.Dim("batch")},)
ONE_FILE = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold: protobuf ends at 2 GiB, and the graph needs some of it."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and how far its logits are from the model's on random images.

    Attributes:
        path: The file.
        format: Its format.
        max_difference: The largest absolute difference of a logit, over all batch sizes in `batches`.
        largest_logit: The largest absolute logit of the model on the same images.
        batches: The batch sizes that were tried.
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
    example: Tensor,
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
        example: (images, channels, height, width). Only its shape is used: the file is for images of this size.
        format: "onnx", or "torch-export" for plain torch.
        about: Anything worth keeping that JSON can express: metadata "about" of an ONNX file, extra file about.json
            of a .pt2 file.
        threads: Threads of onnxruntime.

    Raises:
        InputError: The network cannot be traced, its logits are not finite, or the file's logits differ from them by
            more than TOLERANCES allows.
        EnvironmentFault: The file cannot be written.
    """
    path = require_path(path)
    require_sound_weights(model)
    threads = validate_value(Threads, threads, "threads")
    _require_valid(path, example, format)
    shape = tuple(example.shape[1:])
    facts = {"producer": f"prune_fe {metadata.version('prune-fe')}", "input": ["batch", *shape], **(about or {})}
    notes = json.dumps(facts)
    twin = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    images = _random_images(shape)
    expected = [_run_classifier(twin, batch) for batch in images]
    program = _trace(twin, shape)
    with new_files(path, sum(weight.nbytes for weight in program.state_dict.values())) as file:
        write = _write_onnx if format == "onnx" else _write_pt2
        opset = write(program, file, notes)
        try:
            run = _load_onnx(file, threads) if format == "onnx" else _load_pt2(file)
            logits = [run(batch) for batch in images]
        except Exception as error:  # Each runtime has errors of its own.
            raise InputError(f"{path}: the exported graph does not run ({first_line(error)})") from error
        difference = _max_difference(logits, expected)
        largest = max(float(batch.abs().max()) for batch in expected)
        if not difference <= TOLERANCES[format] * largest:
            raise InputError(
                f"{path}: the exported graph is not the model: logits differ by {difference:.2g}, allowed are "
                f"{TOLERANCES[format]:g} of the largest, {largest:.2g}"
            )
        written = sorted(file.parent.iterdir())
        size = sum(part.stat().st_size for part in written)
    weights = next((path.with_name(part.name) for part in written if part != file), None)
    return Exported(path, format, difference, largest, BATCHES, size, opset, weights)


def _require_valid(path: Path, example: Tensor, format: Format) -> None:
    """Refuse a wrong path, format or example, and a package that is missing, before any work is done."""
    if format not in SUFFIXES:
        raise InputError(f"format is {format!r}, allowed are {', '.join(SUFFIXES)}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another path")
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"{path}: a file of format {format!r} must end in {SUFFIXES[format]}")
    if not isinstance(example, Tensor) or example.ndim != 4:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example is {got}; it must be a tensor (images, channels, height, width)")
    require_example(example)
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError:
            raise InputError(f"format 'onnx' needs {package}: pip install 'prune-fe[export]'") from None


def _random_images(shape: Sequence[int]) -> list[Tensor]:
    """Return a seeded batch (n, *shape) for each size in BATCHES."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=random) for batch in BATCHES]


def _run_classifier(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (images, classes) of a network, which must be finite."""
    name = type(model).__name__
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:  # Networks raise what they like at a wrong input.
        raise InputError(f"{name} does not run on an input of {tuple(images.shape)}: {first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{name} returns {got}, a classifier returns (images, classes)")
    if not logits.isfinite().all():
        raise InputError(f"{name}: its outputs hold NaN or infinite values")
    return logits


def _trace(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Return the graph of a network, without its example and the paths of source files that torch stores in it."""
    images = torch.zeros(2, *shape)  # For a batch of one, torch.export would make the batch size a constant.
    try:
        with _ignore_warnings(), torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=ANY_BATCH)
    except Exception as error:  # Tracing runs the network's own code.
        raise InputError(f"{type(model).__name__} cannot be traced for any batch size: {first_line(error)}") from error
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _write_onnx(program: torch.export.ExportedProgram, file: Path, notes: str) -> int:
    """Write an ONNX file and return its opset; weights that one file cannot hold lie in a second one, NAME.data."""
    weights = sum(weight.nbytes for weight in program.state_dict.values())
    try:
        with _ignore_warnings(), torch.no_grad():
            names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ANY_BATCH}
            graph = torch.onnx.export(program, **names, verbose=False)
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


def _load_onnx(file: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Return the network of an ONNX file, run by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # Errors only.
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _load_pt2(file: Path) -> nn.Module:
    """Return the network of a .pt2 file."""
    with _ignore_warnings():
        return torch.export.load(file).module()


def _max_difference(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference, infinite for a wrong shape, NaN if a logit is."""
    pairs = list(zip(logits, expected, strict=True))
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return float("inf")
    return float(torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max())


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Ignore warnings in the block: torch's exporters warn about torch itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
