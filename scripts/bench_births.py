"""How fast are birth times: against ripser.py on the same maps, and as a share of VGG16's forward pass.

Both sides of a comparison run alternately in one process; a figure is the median over the repeats, with min–max.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ripser
import torch
import torchvision
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.transforms.v2 import RandomCrop
from torchvision.transforms.v2.functional import normalize

from prune_fe.results import environment
from prune_fe.topology import birth_times

SIDE = 224


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: np.ndarray, digits: int = 2) -> str:
    """'median (min–max)'."""
    return f"{np.median(values):.{digits}f} ({values.min():.{digits}f}–{values.max():.{digits}f})"


def distances(values: np.ndarray) -> np.ndarray:
    """A map as ripser wants it: its edges numbered 1, 2, … from the largest value on, equal ones alike."""
    weights = np.maximum(values, values.T)
    off_diagonal = ~np.eye(len(values), dtype=bool)
    steps = np.zeros(weights.shape)
    steps[off_diagonal] = 1 + np.unique(-weights[off_diagonal], return_inverse=True)[1]
    return steps


def edges_by_ripser(steps: np.ndarray) -> int:
    """The birth time by `edges`, from the persistence diagram."""
    bars = ripser.ripser(steps, maxdim=1, distance_matrix=True)["dgms"][1]
    return int(bars[:, 0].min()) if len(bars) else 0


def compare_with_ripser(size: int, n_maps: int, repeats: int) -> None:
    """One row: microseconds a map on random maps, one thread; ripser is given its distances ready made."""
    maps = np.random.default_rng(size).random((n_maps, size, size)).astype(np.float32)
    ready = [distances(values) for values in maps]
    np.testing.assert_array_equal(birth_times(maps, "edges"), [edges_by_ripser(steps) for steps in ready])
    rounds = max(1, 1_000_000 // maps.size)  # enough maps for a clock of microseconds
    ours, theirs = [], []
    for _ in range(repeats):
        many = np.tile(maps, (rounds, 1, 1))
        ours.append(seconds(partial(birth_times, many, threads=1)) / len(many))
        theirs.append(seconds(lambda: [edges_by_ripser(steps) for steps in ready]) / n_maps)
    mine, other = 1e6 * np.array(ours), 1e6 * np.array(theirs)
    print(f"{size:4d}  {n_maps:5d}  {spread(mine):>24}  {spread(other, 0):>24}  {spread(other / mine, 0):>18}")


def photographs(folder: Path | None, n: int) -> Tensor:
    """n normalised crops (n, 3, 224, 224), from the photographs of a folder or the two that scikit-learn carries."""
    if folder is None:
        pictures = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        pictures = [torchvision.io.decode_image(str(path), "RGB") for path in files[:n]]
    torch.manual_seed(0)
    crops = [RandomCrop(SIDE, pad_if_needed=True)(pictures[i % len(pictures)]) for i in range(n)]
    return normalize(torch.stack(crops) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def vgg16(checkpoint: Path | None) -> torchvision.models.VGG:
    """VGG16 with the weights of a checkpoint, or with seeded random ones."""
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None)
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return model.eval()


def relu_maps(model: torchvision.models.VGG, images: Tensor) -> list[Tensor]:
    """The maps after each convolution's ReLU, (images, units, height, width) each."""
    maps, x = [], images
    for module in model.features:
        x = module(x)
        if isinstance(module, nn.ReLU):
            maps.append(x.clone())
    return maps


@torch.inference_mode()
def share_of_forward_pass(arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    """Time the plain forward pass and the birth times of all its ReLU maps, one after the other, several times."""
    model = vgg16(arguments.checkpoint)
    images = photographs(arguments.images, arguments.batch)
    layers = [maps.to(dtype) for maps in relu_maps(model, images)]
    births = [birth_times(maps) for maps in layers]  # warm up
    forward, layer_seconds = [], []
    for _ in range(arguments.repeats):
        forward.append(seconds(partial(model, images)))
        layer_seconds.append([seconds(partial(birth_times, maps)) for maps in layers])
    whole, each = np.array(forward), np.array(layer_seconds)
    print(f"\nVGG16, batch {arguments.batch}, {arguments.threads} threads, maps in {dtype}")
    print("layer  map  units   µs a map (all threads)   % of forward   births, % of maps   median birth")
    for i, (maps, numbers) in enumerate(zip(layers, births, strict=True)):
        share = 100 * np.median(each[:, i] / whole)
        born = numbers[numbers > 0]
        print(
            f"{i:5d}  {maps.shape[-1]:3d}  {maps.shape[1]:5d}  {spread(1e6 * each[:, i] / numbers.numel()):>23}"
            f"  {share:13.2f}  {100 * len(born) / numbers.numel():18.1f}"
            f"  {born.median().item() if len(born) else 0:13d}"
        )
    print(f"forward pass, s: {spread(whole)};  births, s: {spread(each.sum(1), 3)}")
    print(f"births as a share of the forward pass, %: {spread(100 * each.sum(1) / whole)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs; default: scikit-learn's two")
    parser.add_argument("--checkpoint", type=Path, help="VGG16 weights; default: random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="cast the maps: float16 bfloat16 float32")
    parser.add_argument("--skip-ripser", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.repeats} repeats; ripser {version('ripser')}; {json.dumps(environment())}")
    if not arguments.skip_ripser:
        print("\nrandom maps, one thread: µs a map, median (min–max)")
        print("size   maps                birth_times                 ripser.py    ripser.py / ours")
        for size, n_maps in ((14, 500), (28, 100), (56, 20)):
            compare_with_ripser(size, n_maps, arguments.repeats)
    for name in arguments.dtypes:
        share_of_forward_pass(arguments, getattr(torch, name))


if __name__ == "__main__":
    main()
