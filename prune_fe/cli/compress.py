"""prune-fe compress: from a trained network to a smaller one, with everything that is measured, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from prune_fe.cli.inputs import parse_assignments, require_data, require_new
from prune_fe.cli.networks import Loaded, data_words, load, use_threads
from prune_fe.cli.output import print_json, reporter, say_next, text_to_stderr
from prune_fe.cli.parameters import Device, Json, ModelFlags, NewFolder, RequiredDataFlags, Seed, Threads, Workers
from prune_fe.cli.run_folders import using
from prune_fe.errors import InputError
from prune_fe.experiment.recipe import CompressOptions, ModelOptions, PruneSection, resolve_recipe
from prune_fe.models.manifest import is_saved

if TYPE_CHECKING:
    from prune_fe.experiment.compression import Compression

CompressFlags = Annotated[CompressOptions, Parameter(name="*")]
PruneFlags = Annotated[PruneSection, Parameter(name="*")]
Assignments = Annotated[
    list[str] | None,
    Parameter(name="--set", help="KEY=VALUE for any other key of the recipe: --set finetune.weight_decay=1e-4."),
]


def compress(
    *,
    model: ModelFlags,
    data: RequiredDataFlags,
    options: CompressFlags = CompressOptions(),
    prune: PruneFlags = PruneSection(),
    export: Literal["onnx", "torch-export"] | None = None,
    output: NewFolder = Path("compressed"),
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = 0,
    seed: Seed = 0,
    set_: Assignments = None,
    json: Json = False,
) -> None:
    """Compress a trained network: check, score, prune, recalibrate, fine-tune, measure, time, save, export, report.

    Without an amount, half of the multiply-adds is left. The last three lines say what is left of the cost, how much
    faster the network is, and what became of its accuracy. OUTPUT holds the network (model/, for prune_fe.load), the
    exported file, the report, and the recipe of the run. The same command continues where it was interrupted.

    Args:
        export: Also write the network as a file that runs without prune_fe, and check it: onnx for onnxruntime and
            others (pip install 'prune-fe[export]'), or torch-export for torch.export.load.
        output: A new folder, or one that this command has begun.
        seed: Seed of the images that are held out and scored on, and of their order in fine-tuning.
    """
    text_to_stderr(json)
    require_data(data.data)
    if not (output / "recipe.yaml").is_file():
        require_new(output)
    require_trained(model)
    use_threads(threads)
    loaded = load(model, data, device, seed)
    machine = {"device": device, "threads": threads, "workers": workers or None}
    content = recipe_content(model, loaded, options, prune, seed, machine)
    recipe = resolve_recipe(content, parse_assignments(set_), "compress", reporter.say)
    if len(recipe.scorers) > 1 or len(recipe.seeds) > 1:
        raise InputError("compress takes one scorer and one seed; prune-fe init writes a recipe for prune-fe run")
    from prune_fe.compression import compress_experiment, open_compression
    from prune_fe.experiment.compression import MODEL
    from prune_fe.experiment.experiment import begin

    is_begun = (output / "recipe.yaml").is_file()
    folder = open_compression(output, recipe)
    if is_begun:
        reporter.say(f"{output}: what is finished there is used again")
    with using(folder, str(output) if is_begun else None):
        result = compress_experiment(begin(recipe, folder, reporter, splits=loaded.splits), export)
    if result.report is not None:
        reporter.say(f"report: {result.report}")
    reporter.say(f"network: {output / MODEL}   (in Python: prune_fe.load({str(output / MODEL)!r}))")
    _say_export(output, result)
    say_next("evaluate", "--model", output / MODEL, *data_words(data), "--latency")
    reporter.say(str(result))
    if json:
        print_json(result.numbers())


def require_trained(model: ModelFlags) -> None:
    """Raise InputError where the flags name a network that nobody has trained."""
    if Path(model.model).is_file():
        raise InputError(
            f"{model.model} is a file: say which network it is of with --model, and --checkpoint {model.model}"
        )
    if model.checkpoint is None and not model.pretrained and not is_saved(model.model):
        raise InputError(
            f"{model.model} has no trained weights: pass --checkpoint FILE or --pretrained, or a folder of "
            "`prune-fe finetune` as --model"
        )


def recipe_content(
    model: ModelFlags,
    loaded: Loaded,
    options: CompressOptions,
    prune: PruneSection,
    seed: int,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of the recipe that compresses a network.

    Args:
        model: Which network.
        loaded: The network and its images.
        options: What is wanted.
        prune: How much is removed, and how.
        seed: Seed of all draws.
        machine: Further keys of the recipe, such as device.

    Raises:
        InputError: --num-classes is not the number of the data's classes.
    """
    from prune_fe.experiment.fitting import fit_recipe

    splits, images = loaded.splits, loaded.images
    assert splits is not None
    assert images is not None
    if model.num_classes not in (None, len(splits.classes)):
        raise InputError(f"--num-classes {model.num_classes}: the data has {len(splits.classes)} classes")
    checkpoint = None if model.checkpoint is None else str(model.checkpoint)
    which = ModelOptions(name=model.model, pretrained=model.pretrained, checkpoint=checkpoint)
    return fit_recipe(loaded.network, splits, images, which, options, prune, seed=seed, machine=machine)


def _say_export(output: Path, result: Compression) -> None:
    if (exported := result.exported) is not None:
        reporter.say(
            f"exported: {output / exported['path']} ({exported['bytes'] / 2**20:.3g} MiB), checked: its outputs differ "
            f"from the network's by at most {exported['relative_difference']:.1g} of the largest"
        )
