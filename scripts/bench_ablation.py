"""Cumulative ablation by the network's tail against running the whole network for each number of removed units.

    python scripts/bench_ablation.py | tee ablation.txt

The layer is VGG16's last convolution: 512 units. Both ways run in one process and must agree; of the slow way only some
steps are run, each of which costs the same.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision

import prune_fe
from prune_fe.experiment.run_folder import environment
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.feature_maps import find_layers, mask
from prune_fe.tracing.split import Tail, split

LAYER, UNITS = "features.28", 512


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4, help="of the slow way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(json.dumps(environment() | vars(arguments)))
    model = torchvision.models.vgg16(weights=None).eval().to(arguments.device)
    images = torch.randn(arguments.images, 3, 224, 224, device=arguments.device)
    batches, scores = (
        [(images, torch.arange(len(images)) % 10)],
        Scores("random", {LAYER: np.random.default_rng(0).random(UNITS)}),
    )
    layer = find_layers(model, images[:1], [LAYER])[0]
    order = scores.weakest(LAYER, UNITS)

    plain, worst = [], 0.0
    tail = split(model, layer, images[:2])
    assert isinstance(tail, Tail), tail
    with torch.inference_mode():
        given = tail.given(images)
        for count in np.linspace(0, UNITS, arguments.steps).astype(int).tolist():
            with mask(model, [layer], {LAYER: order[:count]}):
                begun = time.perf_counter()
                expected = model(images)
                plain.append(time.perf_counter() - begun)
            keep = torch.ones(1, UNITS, dtype=torch.bool, device=images.device)
            keep[0, order[:count]] = False
            worst = max(worst, float((tail.logits(given, keep)[0] - expected).abs().max() / expected.abs().max()))
    ours = [seconds(lambda: prune_fe.ablate(model, batches, scores, LAYER, batch_size=len(images))) for _ in range(2)]
    steps = UNITS + 1
    print(f"whole network: {np.median(plain):.2f} s a step ({min(plain):.2f}–{max(plain):.2f}), {steps} steps")
    print(f"prune_fe.ablate, all {steps} steps: {', '.join(f'{spent:.1f} s' for spent in ours)}")
    ratios = np.median(plain) * steps / np.array(ours)
    print(f"times faster: {ratios.min():.0f}–{ratios.max():.0f}; logits differ by {worst:.1e} of the largest at most")


if __name__ == "__main__":
    main()
