"""Write random images and weights for the rehearsal of scripts/gpu_evidence.sh.

    python scripts/tiny_evidence.py FOLDER FILE

FOLDER becomes a folder of two classes; FILE a state dict, in half precision, of the convolutions of a small network.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prune_fe.models.build import build

CLASSES, STAGES = ("cat", "dog"), [[4], [6]]


def main() -> None:
    """Write the images and the weights."""
    folder, file = map(Path, sys.argv[1:])
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                # Enlarging makes the images smooth, as photographs are.
                Image.fromarray(coarse).resize((64, 64)).save(folder / part / name / f"{number}.jpeg")
    torch.manual_seed(0)
    state = build("vgg-small", len(CLASSES), stages=STAGES).state_dict()
    torch.save({name: value.half() for name, value in state.items() if name.startswith("features.")}, file)


if __name__ == "__main__":
    main()
