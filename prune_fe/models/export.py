"""A network as one file that runs without prune_fe: ONNX for onnxruntime and others, .pt2 for plain torch."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prune_fe.errors import EnvironmentFault, InputError

Format = Literal["onnx", "torch-export"]

SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCES: Mapping[Format, float] = {"onnx": 1e-3, "torch-export": 1e-5}
"""How far the file's logits may be from the model's, as a share of the largest absolute logit."""

BATCHES = (1, 2, 5)
ANY_BATCH = ({0: torch.export.Dim("batch")},)
ONE_FILE = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold: protobuf ends at 2 GiB, and the graph needs some of it."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from the model's on random images.

    max_difference: the largest absolute one over all the batch sizes in `batches`; largest_logit: the model's largest
    absolute logit there; opset: the version of ONNX's operators; bytes: on the disk; weights: the file beside `path`
    that holds them when one ONNX file cannot.
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
        """max_difference / largest_logit."""
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
    """Write a float32 CPU copy of `model`, in evaluation mode and for batches of any size, to the new file `path`.

    path: ends in .onnx or .pt2. example: (images, channels, height, width); the file is for images of this size, and
    holds none of them, since only the shape is used. about: anything worth keeping, as JSON: metadata "about" of an
    ONNX file, extra file about.json of a .pt2 file.

    The file is read back, by onnxruntime on `threads` threads or torch.export.load, and run beside the copy on seeded
    random images. Raises InputError, and leaves no file, when the logits differ by more than TOLERANCES allows, when
    they are not finite or the network cannot be traced, EnvironmentFault when the disk refuses.
    """
    path = Path(path)
    _require_valid(path, example, format)
    shape = tuple(example.shape[1:])
    facts = {"producer": f"prune_fe {metadata.version('prune-fe')}", "input": ["batch", *shape], **(about or {})}
    notes = json.dumps(facts)
    twin = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    images = _random_images(shape)
    logits = [_logits(twin, batch) for batch in images]
    program = _traced(twin, shape)
    with _all_or_nothing(path) as file:
        write = _write_onnx if format == "onnx" else _write_pt2
        opset = write(program, file, notes)
        try:
            run = _onnxruntime(file, threads) if format == "onnx" else _graph(file)
            found = [run(batch) for batch in images]
        except Exception as error:  # each runtime has errors of its own
            raise InputError(f"{path}: the exported graph does not run ({_first_line(error)})") from error
        difference, largest = _compared(found, logits)
        if not difference <= TOLERANCES[format] * largest:
            raise InputError(
                f"{path}: the exported graph is not the model: logits differ by {difference:.2g}, allowed are "
                f"{TOLERANCES[format]:g} of the largest, {largest:.2g}"
            )
        written = sorted(file.parent.iterdir())
        size = sum(part.stat().st_size for part in written)
    beside = next((path.with_name(part.name) for part in written if part != file), None)
    return Exported(path, format, difference, largest, BATCHES, size, opset, beside)


def _require_valid(path: Path, example: Tensor, format: Format) -> None:
    if format not in SUFFIXES:
        raise InputError(f"format is {format!r}, allowed are {', '.join(SUFFIXES)}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another path")
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"{path}: a file of format {format!r} must end in {SUFFIXES[format]}")
    if not isinstance(example, Tensor) or example.ndim != 4:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example is {got}; it must be a tensor (images, channels, height, width)")
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError:
            raise InputError(f"format 'onnx' needs {package}: pip install 'prune-fe[export]'") from None


def _random_images(shape: Sequence[int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=random) for batch in BATCHES]


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """(images, classes), finite."""
    name = type(model).__name__
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:  # networks raise what they like at a wrong input
        raise InputError(f"{name} does not run on an input of {tuple(images.shape)}: {_first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{name} returns {got}, a classifier returns (images, classes)")
    if not logits.isfinite().all():
        raise InputError(f"{name}: its outputs hold NaN or infinite values")
    return logits


def _traced(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """The graph of `model` without its example and without the places in the source that torch notes."""
    images = torch.zeros(2, *shape)  # of a batch of one the size would be taken for a constant
    try:
        with _silence(), torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=ANY_BATCH)
    except Exception as error:  # tracing runs the network's own code
        raise InputError(f"{type(model).__name__} cannot be traced for any batch size: {_first_line(error)}") from error
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _write_onnx(program: torch.export.ExportedProgram, file: Path, notes: str) -> int:
    """The opset. Weights that are too many for one file lie in a second one, NAME.data."""
    weights = sum(weight.nbytes for weight in program.state_dict.values())
    try:
        with _silence(), torch.no_grad():
            names: Any = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ANY_BATCH}
            graph = torch.onnx.export(program, **names, verbose=False)
    except Exception as error:  # an operator without a translation, most often
        raise InputError(f"the graph has no form in ONNX: {_first_line(error)}") from error
    assert graph is not None
    graph.model.metadata_props["about"] = notes
    graph.save(file, external_data=weights > ONE_FILE)
    return graph.model.opset_imports[""]


def _write_pt2(program: torch.export.ExportedProgram, file: Path, notes: str) -> None:
    content = io.BytesIO()  # torch's own writer does not say that a disk is full
    with _silence():
        torch.export.save(program, content, extra_files={"about.json": notes})
    file.write_bytes(content.getbuffer())


def _onnxruntime(file: Path, threads: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _graph(file: Path) -> nn.Module:
    with _silence():
        return torch.export.load(file).module()


def _compared(found: Sequence[Tensor], logits: Sequence[Tensor]) -> tuple[float, float]:
    """(largest absolute difference, largest absolute logit). A wrong shape is an infinite difference."""
    if any(one.shape != other.shape for one, other in zip(found, logits, strict=True)):
        return float("inf"), 0.0
    differences = [(one - other).abs().max() for one, other in zip(found, logits, strict=True)]
    return float(torch.stack(differences).max()), max(float(other.abs().max()) for other in logits)


@contextmanager
def _silence() -> Iterator[None]:
    """torch's exporters warn about torch itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _all_or_nothing(path: Path) -> Iterator[Path]:
    """A file of this name in a new folder beside `path`; what lies there in the end is moved to `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield aside / path.name
            # last the file itself, which another one beside it may belong to
            for part in sorted(aside.iterdir(), key=lambda part: part.name == path.name):
                with part.open("rb") as written:
                    os.fsync(written.fileno())
                if path.with_name(part.name).exists():
                    raise InputError(f"{path.with_name(part.name)} exists already; choose another path")
                os.replace(part, path.with_name(part.name))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
