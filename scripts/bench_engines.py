r"""Cut the same network by the same scores in three ways: with torch-pruning's own pruner, and with both engines.

    python scripts/bench_engines.py --data PATH --output results/engines.md \
        --trained recipes/tiny-imagenet-small-resnet.yaml RUN/seed-0/trained \
        --trained recipes/vgg16-imagenet-pruning.yaml RUN/seed-0/trained data.size=112 data.images_per_class=30

"own pruner" is torch-pruning's BasePruner with `prune_fe.torch_pruning.Importance`, the other two are prune_fe.prune()
with engine="torch-pruning" and engine="trace". All remove half of the units of every convolution and keep those of
linear layers. The own pruner changes the network that it is given; prune() verifies that removing units equals masking
them, and returns a copy.

RUN is the run folder in which the recipe trained its network; further settings replace those of the recipe. Networks of
torchvision have random weights, and are only timed. Times are seconds of CPU time of one thread; the three ways take
turns, and each figure is the median over the repeats, with minimum and maximum. Memory is the peak of the resident
memory of a process of its own above what it had before the call. Each way's network is fine-tuned on its own, as the
recipe says, with the same seed. Needs pip install 'prune-fe[dev]'.
"""

import argparse
import copy
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

import prune_fe
from bench_prune import count_mib, cpu_seconds, measure_growth, spread
from prune_fe.data.labels import image_labels
from prune_fe.data.registry import load_data
from prune_fe.data.splits import Splits
from prune_fe.experiment.recipe import load_recipe
from prune_fe.experiment.run_folder import environment
from prune_fe.io import write_text
from prune_fe.models.manifest import read_manifest
from prune_fe.scoring.scores import Scores
from prune_fe.torch_pruning import Importance
from prune_fe.training.options import TrainOptions

RATIO = 0.5
BATCH = 100


@dataclass(frozen=True)
class Case:
    """A network that is cut.

    Attributes:
        name: What the table calls it.
        model: The network, in evaluation mode.
        scores: The scores of its convolutions.
        example: One input.
        splits: The images to fine-tune and test it on; None if it is not trained.
        finetune: How it is fine-tuned; None if it is not.
    """

    name: str
    model: nn.Module
    scores: Scores
    example: Tensor
    splits: Splits | None = None
    finetune: TrainOptions | None = None


def cut_by_own_pruner(model: nn.Module, scores: Scores, example: Tensor) -> nn.Module:
    """Prune a network in place."""
    keep = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        model, (example,), Importance(scores), pruning_ratio=RATIO, ignored_layers=keep
    )
    pruner.step()
    return model


def cut_by_engine(engine: str, model: nn.Module, scores: Scores, example: Tensor) -> nn.Module:
    """Return a pruned copy of a network."""
    return prune_fe.prune(model, scores, RATIO, example, engine=engine).model


WAYS: dict[str, Callable[[nn.Module, Scores, Tensor], nn.Module]] = {
    "own pruner": cut_by_own_pruner,
    "engine torch-pruning": partial(cut_by_engine, "torch-pruning"),
    "engine trace": partial(cut_by_engine, "trace"),
}


def make_untrained_case(name: str) -> Case:
    """Return a network of torchvision with random weights, scored by the sums of its filters' weights.

    Args:
        name: Its name there.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    return Case(
        f"{name}, random weights, one image of 64×64",
        model,
        prune_fe.score(model, None, scorer="l1-filter"),
        torch.randn(1, 3, 64, 64),
    )


def make_trained_case(recipe: str, folder: str, *settings: str, data: str, given: argparse.Namespace) -> Case:
    """Return a network that a recipe trained, scored on its training images.

    Args:
        recipe: File of the recipe.
        folder: Folder of the network.
        settings: KEY=VALUE of the recipe.
        data: Where the images lie.
        given: The command line: `scorer`, `samples` and `epochs`.
    """
    changes: dict[str, Any] = {"data.path": data} if data != "digits" else {}
    for setting in settings:
        key, _, value = setting.partition("=")
        changes[key] = json.loads(value) if value.replace(".", "", 1).isdigit() else value
    read = load_recipe(recipe, changes)
    splits = load_data(read.data, seed=0)
    built = prune_fe.build(read.model.name, len(splits.classes), in_channels=splits.channels, **read.model.arguments)
    model = prune_fe.load(folder, None if read_manifest(folder)["factory"] else built).eval()
    example = splits.test[0][0][None]
    scores = prune_fe.score(model, splits.train, given.scorer, samples=given.samples, example=example)
    section = read.finetune or TrainOptions()
    known = {field.name: getattr(section, field.name) for field in dataclasses.fields(TrainOptions)}
    side = "×".join(map(str, example.shape[-2:]))
    name = f"{read.name}, trained, {side} images, by {given.scorer} of {scores.images:,} images"
    return Case(name, model, scores, example, splits, TrainOptions(**known | {"epochs": given.epochs}))


def measure_times(case: Case, repeats: int) -> tuple[dict[str, np.ndarray], dict[str, nn.Module]]:
    """Cut a network in each way, in turns.

    Args:
        case: The network.
        repeats: How often.

    Returns:
        Way -> (repeats,) seconds, and way -> the network that it gave.
    """
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    cut: dict[str, nn.Module] = {}

    def run(way: str, model: nn.Module) -> None:
        cut[way] = WAYS[way](model, case.scores, case.example)

    for _ in range(repeats):
        for way in WAYS:
            # The own pruner changes the network that it is given, so that each repeat needs a copy.
            spent[way].append(cpu_seconds(partial(run, way, copy.deepcopy(case.model))))
    return {way: np.array(seconds) for way, seconds in spent.items()}, cut


def measure_peak(case: Case, way: str, folder: Path) -> float:
    """Return the MiB by which a cut raises the resident memory of a process of its own at most.

    Args:
        case: The network.
        way: How it is cut.
        folder: A folder for a file that the process reads.
    """
    torch.save((case.model, case.scores, case.example), folder / "case.pt")
    command = [sys.executable, __file__, "--peak", way, str(folder / "case.pt")]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def print_peak(way: str, file: str) -> None:
    """Print what `measure_peak` returns, in its process."""
    warm_up()  # what libraries load and compile at the first call is not counted
    model, scores, example = torch.load(file, weights_only=False)
    print(measure_growth(partial(WAYS[way], model, scores, example)))


def warm_up() -> None:
    """Cut a small network in each way."""
    for cut in WAYS.values():
        case = make_untrained_case("squeezenet1_1")
        cut(case.model, case.scores, case.example)


def have_same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether two state dicts have the same tensors."""
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def measure(case: Case, repeats: int) -> Iterator[str]:
    """Cut a network in each way, and yield the lines of its table.

    Args:
        case: The network.
        repeats: How often it is cut in each way.
    """
    times, cut = measure_times(case, repeats)
    own, weights = "own pruner", sum(weight.numel() for weight in case.model.parameters())
    tensors = {way: {key: tensor.clone() for key, tensor in model.state_dict().items()} for way, model in cut.items()}
    yield from (f"## {case.name}", "")
    heads = ["", "seconds", "× own pruner", "peak, MiB", "parameters left", "tensors as by the own pruner"]
    if case.finetune is not None:
        heads += ["accuracy after the cut", f"fine-tuned, epochs: {case.finetune.epochs}", "tensors then"]
    yield from ("| " + " | ".join(heads) + " |", "|---" * len(heads) + "|")
    for way, model in cut.items():
        with tempfile.TemporaryDirectory() as folder:
            peak = measure_peak(case, way, Path(folder))
        left = sum(weight.numel() for weight in model.parameters()) / weights
        same = "same bits" if have_same_bits(tensors[own], tensors[way]) else "others"
        cells = [way, spread(times[way]), spread(times[way] / times[own]), f"{peak:.0f}", f"{left:.1%}", same]
        if case.finetune is not None and case.splits is not None:
            cells.append(f"{prune_fe.evaluate(model, case.splits.test, batch_size=BATCH).accuracy:.2%}")
            prune_fe.finetune(model, case.splits.train, case.splits.validation, case.finetune, seed=0)
            cells.append(f"{prune_fe.evaluate(model, case.splits.test, batch_size=BATCH).accuracy:.2%}")
            cells.append("same bits" if have_same_bits(cut[own].state_dict(), model.state_dict()) else "others")
        yield "| " + " | ".join(cells) + " |"
    note = f"The weights take {count_mib(case.model):.0f} MiB."
    if case.splits is not None:
        whole = prune_fe.evaluate(case.model, case.splits.test, batch_size=BATCH)
        images = len(image_labels(case.splits.train))
        note += f" Accuracy of {whole.images:,} test images, {whole.accuracy:.2%} before; {images:,} training images."
    yield from ("", note, "")


def main() -> None:
    """Cut the networks that the command line names, and write the tables."""
    explanation = (__doc__ or "").partition('"own pruner"')[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", nargs="+", action="append", default=[], metavar="RECIPE FOLDER KEY=VALUE")
    parser.add_argument("--untrained", nargs="*", default=["resnet18", "resnet50", "vgg16"], help="of torchvision")
    parser.add_argument("--data", default="digits", help="folder or archive of the images, or digits")
    parser.add_argument("--scorer", default="feature-entropy")
    parser.add_argument("--samples", type=int, default=10, help="training images of each class for scoring")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of fine-tuning")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the tables, in Markdown; they are printed as well")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.peak:
        return print_peak(*given.peak)
    about = environment() | {"torch-pruning": version("torch-pruning"), "ratio": RATIO, "repeats": given.repeats}
    lines = ["# One network, the same scores and widths, cut in three ways", ""]
    lines += [f'"own pruner"{explanation}'.partition(" Needs pip")[0], ""]
    warm_up()
    makers: list[Callable[[], Case]] = [
        *(partial(make_trained_case, *words, data=given.data, given=given) for words in given.trained),
        *(partial(make_untrained_case, name) for name in given.untrained),
    ]
    for make in makers:
        load = os.getloadavg()[0]
        for line in measure(make(), given.repeats):
            print(line, flush=True)
            lines.append(line)
        lines += [f"Load of the machine at the start: {load:.1f}, on {os.cpu_count()} cores.", ""]
    lines += [f"`{json.dumps(about)}`", ""]
    if given.output is not None:
        write_text(given.output, "\n".join(lines))
    return None


if __name__ == "__main__":
    main()
