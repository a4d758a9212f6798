"""The same images as a folder, in shards, in parquet files and in the format of torchvision's data sets."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import photos, picture


def listed(root: Path, part: str) -> list[tuple[str, int, bytes]]:
    """The name, the label and the content of each image of a part of a folder."""
    classes = sorted(path.name for path in (root / part).iterdir())
    return [
        (f"{name}/{file.name}", label, file.read_bytes())
        for label, name in enumerate(classes)
        for file in sorted((root / part / name).iterdir())
    ]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(root: Path, target: Path, shards: int = 2) -> Path:
    """The images of a folder in shards, in another order, and the names of the classes."""
    for part in ("train", "val"):
        samples = listed(root, part)[::-1]
        for shard in range(shards):
            members = []
            for name, label, content in samples[shard::shards]:
                key, _, extension = name.partition(".")
                members += [(f"{key}.{extension}", content), (f"{key}.cls", str(label).encode())]
                members.append((f"{key}.json", json.dumps({"of": name}).encode()))
            write_tar(target / f"set-{part}-{shard:04}.tar", members)
    names = sorted(path.name for path in (root / "train").iterdir())
    (target / "classes.txt").write_text("\n".join(names) + "\n")
    return target


def write_parquet(root: Path, target: Path) -> Path:
    """The images of a folder in parquet files, in another order."""
    import datasets

    target.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in (root / "train").iterdir())
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    datasets.disable_progress_bars()
    for part, name in (("train", "train"), ("val", "validation")):
        samples = listed(root, part)[::-1]
        images = [{"bytes": content, "path": path} for path, _, content in samples]
        rows = {"image": images, "label": [label for _, label, _ in samples]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(target / f"{name}-00000-of-00001.parquet"))
    return target


def write_flowers(folder: Path, monkeypatch: pytest.MonkeyPatch, images: int = 40, classes: int = 2) -> Path:
    """Flowers-102 in torchvision's format, whose digests are not checked meanwhile."""
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = folder / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    numbers = np.arange(1, images + 1)
    for number in numbers:
        picture(int(number)).save(base / "jpg" / f"image_{number:05}.jpg")
    savemat(base / "imagelabels.mat", {"labels": numbers % classes + 1})
    third = images // 4
    parts = {"trnid": numbers[: 2 * third], "valid": numbers[2 * third : 3 * third], "tstid": numbers[3 * third :]}
    savemat(base / "setid.mat", parts)
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    monkeypatch.setattr(Flowers102, "classes", [f"flower {number}" for number in range(classes)], raising=False)
    return folder


def write_food(folder: Path) -> Path:
    """Food-101 in torchvision's format."""
    base = folder / "food-101"
    (base / "meta").mkdir(parents=True)
    for part, count in (("train", 10), ("test", 2)):
        lists = {}
        for number, name in enumerate(("apple_pie", "waffles")):
            (base / "images" / name).mkdir(parents=True, exist_ok=True)
            lists[name] = [f"{name}/{part}{i}" for i in range(count)]
            for i in range(count):
                seed = 100 * number + i + (50 if part == "test" else 0)
                picture(seed).save(base / "images" / name / f"{part}{i}.jpg")
        (base / "meta" / f"{part}.json").write_text(json.dumps(lists))
    return folder


def write_pets(folder: Path) -> Path:
    """The Oxford-IIIT pets in torchvision's format."""
    base = folder / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps"):
        (base / name).mkdir(parents=True)
    for part, count in (("trainval", 10), ("test", 2)):
        lines = []
        for label, name in enumerate(("Abyssinian", "beagle"), 1):
            for i in range(count):
                picture(100 * label + i + (50 if part == "test" else 0)).save(base / "images" / f"{name}_{part}{i}.jpg")
                lines.append(f"{name}_{part}{i} {label} {label} 1")
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_textures(folder: Path) -> Path:
    """The describable textures in torchvision's format."""
    base = folder / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for offset, (part, count) in enumerate((("train", 6), ("val", 4), ("test", 2))):
        lines = []
        for number, name in enumerate(("banded", "woven")):
            (base / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(1000 * number + 100 * offset + i).save(base / "images" / name / f"{name}_{part}{i}.jpg")
                lines.append(f"{name}/{name}_{part}{i}.jpg")
        (base / "labels" / f"{part}1.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_source(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Images for any data source, some ten for training of each class."""
    from tests.data.pictures import write_cifar

    if source == "digits":
        return None
    if source.startswith("cifar"):
        return write_cifar(folder, monkeypatch, source)
    makers = {"food101": write_food, "oxford-pets": write_pets, "dtd": write_textures}
    if source in makers:
        return makers[source](folder)
    if source == "flowers102":
        return write_flowers(folder, monkeypatch)
    root = photos(folder / "photos", train=10)
    writers = {"parquet": write_parquet, "webdataset": write_shards}
    return writers[source](root, folder / source) if source in writers else root
