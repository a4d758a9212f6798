"""Parameters that several commands share: annotated types, and groups of flags as frozen dataclasses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from prune_fe.data.options import MEMORY_GIB, VALIDATION, Interpolation, Transform
from prune_fe.experiment.options import ExecutorOptions

DATA_HELP = (
    'A folder with train/CLASS/* and val/CLASS/*, a tar file of one, "digits", or what --source reads, such as parquet '
    "files or WebDataset shards."
)

SPLITS_HELP = (
    "Names of the parts of parquet files or shards with the training and the test images; default: train, and the "
    "first of val, validation, valid and test with labels."
)


def _check_device(_: Any, value: str | None) -> None:
    if value is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
        raise ValueError("Allowed are auto, cpu, cuda, cuda:N and mps.")


def _check_validation(_: Any, value: float | str | None) -> None:
    if isinstance(value, float | int) and not 0 < value < 1:
        raise ValueError("Allowed are a share above 0 and below 1, and the path of a folder.")


AtLeastOne = validators.Number(gte=1, lt=2**31)
ThreadNumber = validators.Number(gte=1, lte=2**10)
Several = Parameter(consume_multiple=True)
DataPath = Annotated[str, Parameter(name=["--data", "--data-dir", "--data-path"], help=DATA_HELP)]
NewFolder = Annotated[Path, Parameter(name=["--output", "--output-dir"], help="A new folder.")]
BatchSize = Annotated[
    int,
    Parameter(
        name=["--batch-size", "-b"], help="Images of one forward pass.", validator=validators.Number(gte=1, lte=2**20)
    ),
]
Workers = Annotated[
    int,
    Parameter(
        name=["--workers", "-j"], help="Processes that read images.", validator=validators.Number(gte=0, lte=2**10)
    ),
]
Threads = Annotated[int | None, Parameter(help="CPU threads; default: torch's choice.", validator=ThreadNumber)]
Json = Annotated[
    bool,
    Parameter(name="--json", help="Print the main numbers and paths as one JSON object; all else goes to stderr."),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.", validator=_check_device)]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**31))]
RecipePath = Annotated[
    Path,
    Parameter(
        name=["recipe", "--config", "-c"],
        help="A YAML file, or the name of a recipe that comes with prune_fe, such as quickstart.",
    ),
]
ExecutorFlags = Annotated[ExecutorOptions, Parameter(name="*")]
Seeds = Annotated[list[int] | None, Several, Parameter(help="One or more seeds, instead of the recipe's.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RecipeFlags:
    """Flags of every command that runs a recipe; they replace keys of the file."""

    data: DataPath | None = None

    output: Annotated[
        Path, Parameter(name=["--output", "--output-dir"], help="The folder in which the run folder is created.")
    ] = Path("runs")

    resume: str | None = None
    """The folder of an interrupted run to continue, or "auto" for the latest one of this recipe in --output."""

    device: Device | None = None

    threads: int | None = None
    """CPU threads."""

    workers: Workers | None = None

    skip_bad: Annotated[int | None, Parameter(validator=validators.Number(gte=0, lt=2**31))] = None
    """Leave out at most this many image files that cannot be read, and list them in the results."""

    validation: Annotated[float | str | None, Parameter(validator=_check_validation)] = None
    """Share of the training images that is held out for validation; or a folder CLASS/* of validation images of your
    own, or a tar file of one."""

    set_: Annotated[list[str] | None, Parameter(name="--set")] = None
    """KEY=VALUE for any other key of the recipe: --set prune.ratio=0.7."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Flags that name the trained network to study, instead of a recipe."""

    model: str | None = None
    """Instead of a recipe: a torchvision or timm name with --checkpoint or --pretrained, or a folder that prune_fe
    saved."""

    checkpoint: Path | None = None
    """With --model: its trained weights."""

    pretrained: bool = False
    """With --model: the library's trained weights."""

    source: str | None = None
    """With --model: format of --data."""

    size: Annotated[int | None, Parameter(validator=validators.Number(gte=4, lte=2**13))] = None
    """With --model: height and width of the images; default: the saved model's, or the data's."""

    scorer: Annotated[tuple[str, ...], Several] = ("feature-entropy", "mean-activation", "l1-filter")
    """With --model: the scorers."""

    samples: Annotated[int | None, Parameter(name="--score-samples", validator=AtLeastOne)] = None
    """With --model: training images of each class that are scored on; default: all."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Flags that say which network a command takes."""

    model: str
    """vgg-small, a torchvision or timm name, or a folder that prune_fe saved."""

    checkpoint: Path | None = None
    """Trained weights of the model: a state dict of torch.save, alone or beside other entries, a .safetensors file, or
    the .index.json of several. Classes that it names are compared with those of the data."""

    pretrained: bool = False
    """Download the trained weights of torchvision or timm for a model built by name."""

    num_classes: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=10**6))] = None
    """Outputs of a model built by name; default: the classes of the data, the outputs of --checkpoint, or
    1000."""

    size: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=2**13))] = None
    """Height and width of the images; default: the saved model's, or 224 (digits: 32)."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RequiredDataFlags:
    """Flags that say which images a command reads."""

    data: DataPath

    source: str | None = None
    """Format of --data: folder (also a tar file), parquet (also hf://OWNER/NAME), webdataset, or a data set of
    torchvision: imagenet, cifar10, cifar100, flowers102, food101, oxford-pets or dtd; default: folder, or parquet for
    hf://, or digits for "digits"."""

    validation: Annotated[float | str, Parameter(validator=_check_validation)] = VALIDATION
    """Share of the training images of each class that is held out from training; or validation images of your own: a
    folder CLASS/* with the classes of the training images, or a tar file of one."""

    validation_from: Literal["train", "test"] = "train"
    """Where this share comes from: the training images, or val/ (test), whose other images are the test images. Weights
    that were trained elsewhere may have seen all of train/."""

    images_per_class: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None
    """At most this many training images of each class, drawn with the seed; default: all."""

    skip_bad: Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**31))] = 0
    """Leave out at most this many image files that cannot be read, and name them; with more the command stops."""

    transform: Transform | None = None
    """How an image gets its size. paper: resized to a square. crop: short side resized, centre cut out. imagenet: the
    same, and training reads random crops, flipped at random. weights: paper or crop, as the saved model or the
    pretrained weights ask for. Default: weights where that is known, otherwise paper."""

    resize: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=2**13))] = None
    """Pixels to which the short side is resized; default: what the weights ask for, or the size divided by 0.875. It
    means --transform crop where none is given."""

    crop: Annotated[int | None, Parameter(validator=validators.Number(gte=1, lte=2**13))] = None
    """Height and width of the centre that is cut out, another name of --size. It means --transform crop where none is
    given."""

    interpolation: Interpolation | None = None
    """How images are resized; default: what the weights ask for, or bilinear."""

    mean: Annotated[tuple[float, ...] | None, Several] = None
    """Mean of each channel that is subtracted, for pixel values from 0 to 1; default: what the weights ask for, or the
    data's, which is ImageNet's for photographs."""

    std: Annotated[tuple[float, ...] | None, Several] = None
    """Standard deviation of each channel that is divided by; default: as --mean."""

    decoder: Literal["pil", "torchvision"] = "pil"
    """torchvision decodes and resizes images about twice as fast, to pixels that differ by up to 2 of 255."""

    memory_gib: Annotated[float, Parameter(validator=validators.Number(gte=0))] = MEMORY_GIB
    """Images that take at most this much memory are decoded once; others each time they are read."""

    splits: Annotated[tuple[str, str] | None, Parameter(help=SPLITS_HELP)] = None

    columns: tuple[str, str] | None = None
    """Names of the columns of images and labels of --source parquet."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataFlags(RequiredDataFlags):
    """Flags that say which images a command reads, for a command that does not always need any."""

    data: DataPath | None = None  # type: ignore[assignment]
