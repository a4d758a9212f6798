"""Pictures, folders of them and labels that several tests use."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


def picture(seed=0, mode="RGB", size=(12, 9)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def photos(root, classes=("cat", "dog"), train=4, val=2):
    """A folder of classes, each image another one."""
    for part, count in (("train", train), ("val", val)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(1000 * number + i + (500 if part == "val" else 0)).save(root / part / name / f"{i}.png")
    return root


def images_of(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


class Labelled(Dataset):
    """Image i is the number i."""

    def __init__(self, targets, classes=()):
        self.targets = list(targets)
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.full((1, 2, 2), float(index)), self.targets[index]


def write_cifar(folder, monkeypatch, source="cifar10"):
    """Write 50 training and 20 test images in the format of CIFAR; torchvision checks no digest meanwhile."""
    import pickle

    from torchvision.datasets import CIFAR10, CIFAR100

    kind, labels = (CIFAR10, "labels") if source == "cifar10" else (CIFAR100, "fine_labels")
    base = folder / kind.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    for parts in (kind.train_list, kind.test_list):
        for name, _ in parts:
            count = 50 // len(parts) if parts is kind.train_list else 20
            batch = {
                "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                labels: list(range(10)) * (count // 10),
            }
            (base / name).write_bytes(pickle.dumps(batch))
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [f"name {i}" for i in range(10)]}))
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[name, None] for name, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})
    return folder
