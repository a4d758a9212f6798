"""Time cumulative ablation with only the part of the network behind a layer, against runs of the whole network.

    python scripts/bench_ablation.py | tee ablation.txt

The layer is VGG16's last convolution with 512 units. Both ways run in one process and must agree. The slow way runs
only some of the steps, because each takes the same time.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import prune_fe
from prune_fe.experiment.run_folder import environment
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import Layer, find_layers
from prune_fe.tracing.split import SplitNetwork, split

LAYER, UNITS = "features.28", 512


def measure_seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_whole_network(
    model: nn.Module, layer: Layer, images: Tensor, order: list[int], steps: int
) -> tuple[list[float], float]:
    """Run the whole network with more and more units masked.

    Args:
        model: The network.
        layer: The layer whose units are masked.
        images: Images of shape (images, channels, height, width).
        order: The order in which units are masked.
        steps: How many numbers of masked units are tried.

    Returns:
        The seconds of each step, and the largest difference of the logits to those that the part behind the layer
        gives, as a share of the largest logit.
    """
    tail = split(model, layer, images[:2])
    assert isinstance(tail, SplitNetwork), tail
    seconds, worst = [], 0.0
    with torch.inference_mode():
        given = tail.tail_inputs(images)
        for count in np.linspace(0, UNITS, steps).astype(int).tolist():
            with mask(model, [layer], {LAYER: order[:count]}):
                start = time.perf_counter()
                expected = model(images)
                seconds.append(time.perf_counter() - start)
            keep = torch.ones(1, UNITS, dtype=torch.bool, device=images.device)
            keep[0, order[:count]] = False
            difference = (tail.logits(given, keep)[0] - expected).abs().max()
            worst = max(worst, float(difference / expected.abs().max()))
    return seconds, worst


def main() -> None:
    """Time both ways and print the environment and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4, help="how many steps of the slow way are run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(json.dumps(environment() | vars(arguments)))
    model = torchvision.models.vgg16(weights=None).eval().to(arguments.device)
    images = torch.randn(arguments.images, 3, 224, 224, device=arguments.device)
    batches = [(images, torch.arange(len(images)) % 10)]
    scores = Scores("random", {LAYER: np.random.default_rng(0).random(UNITS)})
    layer = find_layers(model, images[:1], [LAYER])[0]
    whole, worst = time_whole_network(model, layer, images, scores.weakest(LAYER, UNITS), arguments.steps)
    ablation = [
        measure_seconds(lambda: prune_fe.ablate(model, batches, scores, LAYER, batch_size=len(images)))
        for _ in range(2)
    ]
    steps = UNITS + 1
    print(f"whole network: {np.median(whole):.2f} s a step ({min(whole):.2f}–{max(whole):.2f}), {steps} steps")
    print(f"prune_fe.ablate, all {steps} steps: {', '.join(f'{spent:.1f} s' for spent in ablation)}")
    ratios = np.median(whole) * steps / np.array(ablation)
    print(f"times faster: {ratios.min():.0f}–{ratios.max():.0f}; logits differ by {worst:.1e} of the largest at most")


if __name__ == "__main__":
    main()
